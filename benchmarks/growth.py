"""Growth of time and memory with the number of images: index, pixel cache, search for duplicates,
one pass of the loader.

``python -m benchmarks.growth 1000 10000`` measures the given sizes; by default up to 100,000, which
takes long. Each size runs in a process of its own on phantom radiographs of 64 px. An epoch is one
pass of the loader without a network. Memory excludes the system's page cache.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import seaborn as sns
from PIL import Image
from tqdm import tqdm

from benchmarks.data import own_memory_mb
from kdnb import data, files, provenance
from kdnb.images import index, phantoms
from kdnb.leakage import detector
from kdnb.plots import style

SIZES, SIDE, PIXELS = (1_000, 10_000, 34_000, 100_000), 64, 32
GOALS = {"time": "no faster than n log n", "own_memory_mb": 2_000, "copies_of_34000_s": 600}
STEPS = ("index", "cache", "copies", "epoch")


def _draw(job: tuple[str, int, str]) -> None:
    path, number, label = job
    drawn = phantoms.draw("phantom_cxr", label, number, size=SIDE).image
    Image.fromarray((drawn * 255).round().astype("uint8")).save(path, compress_level=1)


def tree(count: int) -> Path:
    """A tree ``<class>/*.png`` of ``count`` phantoms, drawn once and kept in the cache."""
    root = files.cache_dir() / "growth" / f"{count}-{SIDE}px"
    labels = list(data.describe("phantom_cxr").classes)
    jobs = []
    for number in range(count):
        path = root / files.simplify(labels[number % len(labels)]) / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            jobs.append((str(path), number, labels[number % len(labels)]))
    with multiprocessing.Pool() as pool:
        for _ in tqdm(
            pool.imap_unordered(_draw, jobs, chunksize=50),
            total=len(jobs),
            desc=f"drawing {count:,}",
            unit="img",
        ):
            pass
    return root


def measure(root: Path, count: int) -> dict:
    """Seconds of each step for a tree of ``count`` images, and the peak memory in MB."""
    highest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            highest[0] = max(highest[0], own_memory_mb())

    row, spec = {"images": count}, data.describe("folder")
    threading.Thread(target=watch, daemon=True).start()

    def timed(name: str, work: object) -> object:
        begun = time.perf_counter()
        found = work()
        row[f"{name}_s"] = time.perf_counter() - begun
        return found

    found = timed("index", lambda: index.build(spec, root))
    timed("copies", lambda: detector.detect(found.root, found.table, f"{count:,}"))
    loaded = data.load("folder", root, "random")
    images = timed("cache", lambda: loaded.pixels(PIXELS))
    timed("epoch", lambda: sum(len(batch) for batch, _, _ in images.batches(64, shuffle=True)))
    done.set()
    return row | {"own_memory_mb": highest[0]}


def main() -> None:
    """Measure and write ``outputs/benchmarks/growth.json`` and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument(
        "--tree", type=Path, help="measure this tree in this process and print one line of JSON"
    )
    asked = parser.parse_args()
    if asked.tree:
        print(json.dumps(measure(asked.tree, asked.sizes[0])))
        return
    rows = []
    for count in asked.sizes:
        command = [
            sys.executable,
            "-m",
            "benchmarks.growth",
            str(count),
            "--tree",
            str(tree(count)),
        ]
        with TemporaryDirectory(
            dir=files.cache_dir()
        ) as fresh:  # so that nothing is read from a cache
            output = subprocess.run(
                command,
                check=True,
                text=True,
                stdout=subprocess.PIPE,
                env=os.environ | {"KDNB_CACHE": fresh},
            )
        rows.append(json.loads(output.stdout.splitlines()[-1]))
        print({name: round(value, 1) for name, value in rows[-1].items()}, flush=True)
    rows = compared(rows)
    folder = files.outputs_dir() / "benchmarks"
    stored = {
        "goals": GOALS,
        "image_side": SIDE,
        "pixels": PIXELS,
        "results": rows,
        "provenance": provenance.collect(),
    }
    print("wrote", files.write_json(folder / "growth.json", stored))
    draw(rows, folder / "growth.png")


def compared(rows: list[dict]) -> list[dict]:
    """Add the growth of each step relative to n log n, since the first and the previous size."""

    def grown(row, since, step):
        expected = (
            row["images"] * math.log(row["images"]) / (since["images"] * math.log(since["images"]))
        )
        return row[f"{step}_s"] / since[f"{step}_s"] / expected

    return [
        row
        | {f"{step}_of_n_log_n": grown(row, rows[0], step) for step in STEPS}
        | {
            f"{step}_of_n_log_n_since_the_size_before": grown(row, rows[max(0, number - 1)], step)
            for step in STEPS
        }
        for number, row in enumerate(rows)
    ]


def draw(rows: list[dict], path: Path) -> None:
    """Seconds of each step against the number of images, both logarithmic."""
    long = pd.DataFrame(rows).melt("images", [f"{step}_s" for step in STEPS], "step", "seconds")
    drawn, axes = style.start(size=(5.6, 3.6))
    sns.lineplot(
        long.assign(step=long["step"].str.removesuffix("_s")),
        x="images",
        y="seconds",
        hue="step",
        marker="o",
        ax=axes[0, 0],
    )
    axes[0, 0].set(
        xscale="log", yscale="log", xlabel="images (logarithmic)", ylabel="seconds (logarithmic)"
    )
    sns.move_legend(axes[0, 0], "upper left", bbox_to_anchor=(1, 1), frameon=False)
    sns.despine(drawn)
    with files.atomic(path) as picture:
        style.done(drawn, "Phantoms: time against the number of images").savefig(
            picture, dpi=110, bbox_inches="tight"
        )


if __name__ == "__main__":
    main()
