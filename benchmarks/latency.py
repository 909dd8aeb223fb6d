"""Latency of the networks of both papers for one image of 224 px: ``python -m benchmarks.latency``.

PyTorch and ONNX Runtime, float32, random weights. All networks are timed in alternation for several
rounds; the range of the rounds shows how much the speed of the machine varied. Notebook 06 times
trained networks in more runtimes and tests whether their accuracy changes.
"""

from __future__ import annotations

import pandas as pd
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.deployment import efficiency, latency
from kdnb.models import zoo

SIZE, SECONDS, ROUNDS = 224, 0.5, 3
PAPERS = {
    "ofa595": ("vgg19_bn", "visformer_small", "autoformerv2_tiny"),
    "kdfmv5": ("densenet121",),
    "kdfmv8": ("densenet121",),
}


def timings(
    names: list[str], image_size: int = SIZE, seconds: float = SECONDS, rounds: int = ROUNDS
) -> pd.DataFrame:
    """Columns round, model, runtime, latency_ms; networks have three classes and random weights."""
    kinds = [(name, runtime) for name in names for runtime in latency.RUNTIMES]
    shape = (1, 3, image_size, image_size)
    runs = {
        kind: latency.ready(zoo.create(kind[0], 3, image_size), shape, kind[1])
        for kind in tqdm(kinds, desc="preparing")
    }
    turns = tqdm([(turn, kind) for turn in range(rounds) for kind in kinds], desc="timing")
    return pd.DataFrame(
        [(turn, *kind, runs[kind](seconds)) for turn, kind in turns],
        columns=["round", "model", "runtime", "latency_ms"],
    )


def speedups(table: pd.DataFrame, papers: dict[str, tuple[str, ...]] = PAPERS) -> list[dict]:
    """Each student against the teachers of its paper, in the columns of
    :func:`kdnb.deployment.efficiency.speedups`: median of the rounds, ``low`` and ``high`` their
    range."""
    took, found = table.pivot(index="round", columns=["model", "runtime"], values="latency_ms"), []
    for student, teacher, runtime in (
        (s, t, r) for s, teachers in papers.items() for t in teachers for r in latency.RUNTIMES
    ):
        ratios = took[teacher, runtime] / took[student, runtime]
        found.append(
            {
                "teacher": teacher,
                "student": student,
                "runtime": runtime,
                "times_as_fast": float(ratios.median()),
                "low": float(ratios.min()),
                "high": float(ratios.max()),
            }
        )
    return found


def main() -> None:
    """Measure and write ``outputs/benchmarks/latency.json`` and ``latency.csv``."""
    table = timings(
        sorted({name for student, teachers in PAPERS.items() for name in (student, *teachers)})
    )
    hardware = efficiency.hardware() | {"torch_threads": latency.THREADS}
    results = {"speedups": speedups(table), "image_size": SIZE, "hardware": hardware}
    print(pd.DataFrame(results["speedups"]).round(2).to_string(index=False))
    folder = files.outputs_dir() / "benchmarks"
    print(
        "wrote",
        files.write_json(
            folder / "latency.json", {"results": results, "provenance": provenance.collect()}
        ),
    )
    with files.atomic(folder / "latency.csv") as path:
        table.round(3).to_csv(path, index=False)


if __name__ == "__main__":
    main()
