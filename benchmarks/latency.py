"""Milliseconds that the networks of both papers take for one image of 224 px: ``python -m benchmarks.latency``.

In every runtime but torch.compile. All networks are timed in turn, several rounds: a machine that is slower in one minute than in
another moves a round, and the range of the rounds tells by how much. Weights are random: they have no say in time. Notebook 06
times trained networks, and whether their answers stay right.
"""

from __future__ import annotations

import pandas as pd
import torch
from tqdm import tqdm

from kdnb import efficiency, files, models, provenance

SIZE, CLASSES, SECONDS, ROUNDS = 224, ("a", "b", "c"), 1.0, 5
PAPERS = {"ofa595": ("vgg19_bn", "visformer_small", "autoformerv2_tiny"), "kdfmv5": ("densenet121",), "kdfmv8": ("densenet121",)}


def timings(names: list[str], image_size: int = SIZE, seconds: float = SECONDS, rounds: int = ROUNDS) -> pd.DataFrame:
    """The rows of :func:`kdnb.efficiency.measure` for networks with random weights, one a round, network and runtime."""
    images = torch.rand(8, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))  # calibrates int8
    bar, tables = tqdm([(turn, name) for turn in range(rounds) for name in names], desc="networks", unit="network"), []
    for turn, name in bar:
        torch.manual_seed(0)
        model = models.create(name, len(CLASSES), image_size)
        measured, _ = efficiency.measure(model, CLASSES, efficiency.here(compiled=False), images, seconds)
        tables.append(measured.assign(round=turn))
    return pd.concat(tables, ignore_index=True)


def speedups(table: pd.DataFrame, papers: dict[str, tuple[str, ...]] = PAPERS) -> list[dict]:
    """Each student against the teachers of its paper, in the columns of :func:`kdnb.efficiency.speedups`: median of the rounds,
    ``low`` and ``high`` their range."""
    found = pd.DataFrame([row for _, part in table.groupby("round") for student, teachers in papers.items()
                          for row in efficiency.speedups(part[part["model"].isin((student, *teachers))], student)])  # fmt: skip
    times = found.groupby(["teacher", "student", "runtime"], sort=False)["times_as_fast"]
    return times.agg(times_as_fast="median", low="min", high="max").reset_index().to_dict("records")


def main() -> None:
    """Measure and write ``outputs/benchmarks/latency.json`` and ``latency.csv``."""
    table = timings(sorted({name for student, teachers in PAPERS.items() for name in (student, *teachers)}))
    results = {"speedups": speedups(table), "image_size": SIZE, "hardware": efficiency.hardware()}
    print(pd.DataFrame(results["speedups"]).round(2).to_string(index=False))
    folder = files.outputs_dir() / "benchmarks"
    print("wrote", files.write_json(folder / "latency.json", {"results": results, "provenance": provenance.collect()}))
    with files.atomic(folder / "latency.csv") as path:
        table.drop(columns=["title", "clock_mhz"]).round(3).to_csv(path, index=False)


if __name__ == "__main__":
    main()
