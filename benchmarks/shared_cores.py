"""Effect of the short busy-wait of :mod:`kdnb` on idle and on shared cores: ``python -m
benchmarks.shared_cores``, on Linux.

Threads of torch (libgomp) wait for each other in a busy loop of 300,000 turns by default. Each
setting trains in a process of its own, in alternation, alone and beside as many busy processes as
there are cores.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pandas as pd
import torch
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.deployment import efficiency
from kdnb.models import zoo

NETWORKS, SIZE, BATCH, SECONDS, ROUNDS = ("densenet121", "ofa595", "kdfmv5"), 64, 32, 2.0, 3
SPINS = {"kdnb": "1000", "library": "300000"}


def milliseconds(name: str, seconds: float = SECONDS) -> float:
    """Mean time of forward and backward pass of one batch, over ``seconds``, in this process."""
    model = zoo.create(name, 3, SIZE).to(memory_format=torch.channels_last).train()
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or steps < 2:
        model(images).sum().backward()
        steps += 1
    return 1000 * (time.perf_counter() - start) / steps


@contextlib.contextmanager
def busy(count: int):
    """Run ``count`` processes that only keep a core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def timings(rounds: int = ROUNDS) -> pd.DataFrame:
    """Columns round, beside, setting and milliseconds of each network."""
    rows = []
    turns = [
        (turn, beside, setting)
        for turn in range(rounds)
        for beside in (0, os.cpu_count())
        for setting in SPINS
    ]
    for turn, beside, setting in tqdm(turns, desc="training"):
        with busy(beside):
            output = subprocess.run(
                [sys.executable, "-m", "benchmarks.shared_cores", *NETWORKS],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"GOMP_SPINCOUNT": SPINS[setting]},
            )
        rows.append([turn, beside, setting, *map(float, output.stdout.split())])
    return pd.DataFrame(rows, columns=["round", "beside", "setting", *NETWORKS])


def compared(table: pd.DataFrame) -> list[dict]:
    """Speed-up by the short busy-wait for each network and number of busy processes: median and
    range of the rounds."""
    took, found = (
        table.pivot(index="round", columns=["beside", "setting"], values=list(NETWORKS)),
        [],
    )
    for name, beside in (
        (name, beside) for name in NETWORKS for beside in table["beside"].unique()
    ):
        ratios = took[name, beside, "library"] / took[name, beside, "kdnb"]
        found.append(
            {
                "network": name,
                "beside": int(beside),
                "times_as_fast": float(ratios.median()),
                "low": float(ratios.min()),
                "high": float(ratios.max()),
            }
        )
    return found


def main() -> None:
    """Measure and write ``outputs/benchmarks/shared_cores.json``; with names of networks, only
    print their milliseconds."""
    if names := sys.argv[1:]:
        print(*(milliseconds(name) for name in names))
        return
    results = {
        "compared": compared(timings()),
        "image_size": SIZE,
        "batch_size": BATCH,
        "hardware": efficiency.hardware(),
    }
    print(pd.DataFrame(results["compared"]).round(2).to_string(index=False))
    kept = {"results": results, "provenance": provenance.collect()}
    print("wrote", files.write_json(files.outputs_dir() / "benchmarks" / "shared_cores.json", kept))


if __name__ == "__main__":
    main()
