"""Milliseconds that the networks of both papers take for one image of 224 px, in every runtime: ``python -m benchmarks.latency``.

Weights are random: they have no say in time. Notebook 06 times trained networks, and whether their answers stay right.
"""

from __future__ import annotations

import pandas as pd
import torch
from tqdm import tqdm

from kdnb import efficiency, files, models, provenance

SIZE, CLASSES, SECONDS = 224, ("a", "b", "c"), 2.0
PAPERS = {"ofa595": ("vgg19_bn", "visformer_small", "autoformerv2_tiny"), "kdfmv5": ("densenet121",), "kdfmv8": ("densenet121",)}


def timings(names: list[str], image_size: int = SIZE, seconds: float = SECONDS) -> pd.DataFrame:
    """The rows of :func:`kdnb.efficiency.measure` for networks with random weights, one a network and runtime."""
    images = torch.rand(8, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))  # calibrates int8
    bar, tables = tqdm(names, desc="networks", unit="network"), []
    for name in bar:
        torch.manual_seed(0)
        model = models.create(name, len(CLASSES), image_size)
        tables.append(efficiency.measure(model, CLASSES, efficiency.here(compiled=False), images, seconds)[0])
    return pd.concat(tables, ignore_index=True)


def speedups(table: pd.DataFrame, papers: dict[str, tuple[str, ...]] = PAPERS) -> list[dict]:
    """Each student against the teachers of its paper, as notebook 06 stores it."""
    return [found for student, teachers in papers.items()
            for found in efficiency.speedups(table[table["model"].isin((student, *teachers))], student)]  # fmt: skip


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
