"""Loading images from disk into batches, against torchvision's ``ImageFolder`` and ``DataLoader``:
``make bench``.

The same files (phantom radiographs of 128 px) and batches at 96 px, for one epoch with warm system
caches. kdnb reads the pixel cache written in the first epoch; the time to build it is reported
separately.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from tempfile import TemporaryDirectory

import pandas as pd
import seaborn as sns
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kdnb import data, files, provenance
from kdnb.images import phantoms
from kdnb.plots import style

SIZE, BATCH = 96, 64
GOALS = {"times_image_folder": "at least 5, plain and augmented"}


def seconds(batches: Callable[[], Iterable], repeats: int = 3) -> tuple[float, int]:
    """Seconds of the fastest of ``repeats`` epochs, and the images of one epoch."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        seen = sum(len(images) for images, *_ in batches())
        times.append(time.perf_counter() - begun)
    return min(times), seen


def cost_of_cache(dataset: data.Dataset) -> float:
    """Seconds to build the pixel cache of the whole dataset in an empty folder."""
    with TemporaryDirectory() as folder:
        was, os.environ["KDNB_CACHE"] = str(files.cache_dir()), folder
        begun = time.perf_counter()
        dataset.pixels(SIZE)
        took, os.environ["KDNB_CACHE"] = time.perf_counter() - begun, was
    return took


def main() -> None:
    """Measure and write ``outputs/benchmarks/data_path.json`` and its figure."""
    dataset = data.load("phantom_cxr")
    root = dataset.index.root / "Train"
    pixels, built = dataset.pixels(SIZE, "train"), cost_of_cache(dataset)
    augment, views = dataset.augment(), torch.Generator().manual_seed(0)
    plain = [
        v2.Grayscale(3),
        v2.Resize((SIZE, SIZE)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    same = [
        v2.RandomAffine(
            augment.degrees, (augment.translate,) * 2, (1 - augment.scale, 1 + augment.scale)
        ),
        v2.ColorJitter(augment.brightness, augment.contrast),
    ]
    rows = []
    for title, transforms in (("plain", plain), ("augmented", [*plain, *same])):
        for workers in (0, os.cpu_count() or 1):
            folder = ImageFolder(
                root, v2.Compose(transforms), is_valid_file=lambda path: "/images/" in path
            )
            took, seen = seconds(
                partial(DataLoader, folder, BATCH, shuffle=True, num_workers=workers)
            )
            rows.append(
                {
                    "way": f"ImageFolder, {workers} workers",
                    "views": title,
                    "images_per_second": seen / took,
                }
            )

        def ours(title: str = title) -> Iterable:
            for images, *_ in pixels.batches(BATCH, shuffle=True):
                yield (augment(images, views) if title == "augmented" else images,)

        took, seen = seconds(ours)
        best = max(row["images_per_second"] for row in rows if row["views"] == title)
        rows.append(
            {
                "way": "kdnb",
                "views": title,
                "images_per_second": seen / took,
                "times_image_folder": seen / took / best,
            }
        )
    table = pd.DataFrame(rows)
    print(table.round(1).to_string(index=False))
    stored = {
        "goals": GOALS,
        "images": len(pixels),
        "image_size": SIZE,
        "batch_size": BATCH,
        "file_size": phantoms.SIZE,
        "cache": {"images": len(dataset.table), "seconds_to_build": built},
        "results": table.astype(object).where(table.notna(), None).to_dict("records"),
        "provenance": provenance.collect(),
    }
    folder = files.outputs_dir() / "benchmarks"
    print("wrote", files.write_json(folder / "data_path.json", stored))
    drawn, axes = style.start(size=(5.6, 2.8))
    sns.barplot(table, y="way", x="images_per_second", hue="views", ax=axes[0, 0])
    axes[0, 0].set(xscale="log", xlabel="images per second (logarithmic)", ylabel="")
    sns.despine(drawn)
    with files.atomic(folder / "data_path.png") as picture:
        style.done(drawn, f"From disk to batches of {BATCH} at {SIZE} px").savefig(
            picture, dpi=110, bbox_inches="tight"
        )


if __name__ == "__main__":
    main()
