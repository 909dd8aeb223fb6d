"""Speed and memory of the pixel cache and of augmentation: ``make bench``.

Absolute numbers depend on the machine; the ratios to loading images one by one, measured in
the same run, hardly do.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kdnb import files, provenance
from kdnb.images.pixels import Augment, Pixels

IMAGES, SIZE, BATCH = 34_000, 96, 64  # about the size of COVID-QU-Ex
GOALS = {
    "loader_images_per_second": 50_000,
    "augmented_images_per_second": 5_000,
    "own_memory_mb": 1_000,
}


def make(path: Path, channels: int) -> np.ndarray:
    """A pixel cache of noise in the format of :func:`kdnb.images.pixels.cache`."""
    array = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(IMAGES, channels, SIZE, SIZE)
    )
    rng = np.random.default_rng(0)
    for start in range(0, IMAGES, 2_000):
        array[start : start + 2_000] = rng.integers(
            0, 256, array[start : start + 2_000].shape, dtype=np.uint8
        )
    array.flush()
    return np.load(path, mmap_mode="c")


class OneByOne(Dataset):
    """The reference: one image at a time from the same file."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.array[index]).float() / 255, 0


def rate(batches: Callable[[], Iterable], most: int = IMAGES, repeats: int = 3) -> float:
    """Images per second, the best of ``repeats`` passes over at most ``most`` images."""
    best = 0.0
    for _ in range(repeats):
        seen, started = 0, time.perf_counter()
        for images, *_ in batches():
            seen += len(images)
            if seen >= most:
                break
        best = max(best, seen / (time.perf_counter() - started))
    return best


def own_memory_mb() -> float:
    """Memory of this process in MB, without pages of the cache file, which the system may drop."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(
        int(line.split()[1]) / 1024
        for line in status.read_text().splitlines()
        if line.startswith("RssAnon")
    )


def measure(channels: int) -> dict[str, float]:
    """Rates and memory for grey (1) or colour (3) images."""
    with TemporaryDirectory() as folder:
        array = make(Path(folder) / "pixels.npy", channels)
        pixels = Pixels(array, np.zeros(IMAGES, int))
        augment, views = Augment(hflip=True), torch.Generator().manual_seed(0)
        found = {"loader_images_per_second": rate(lambda: pixels.batches(BATCH, shuffle=True))}
        found["own_memory_mb"] = own_memory_mb()
        found["augmented_images_per_second"] = rate(
            lambda: (
                (augment(images, views),) for images, *_ in pixels.batches(BATCH, shuffle=True)
            ),
            most=8_000,
        )
        plain = rate(lambda: DataLoader(OneByOne(array), BATCH, shuffle=True), 8_000, 1)
        transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1)),
                v2.ColorJitter(0.1, 0.1),
            ]
        )
        singly = rate(
            lambda: (
                (torch.stack([transform(image) for image in images]),)
                for images, *_ in pixels.batches(BATCH)
            ),
            2_000,
            1,
        )
    found |= {
        "loader_times_per_image_way": found["loader_images_per_second"] / plain,
        "augment_times_per_image_way": found["augmented_images_per_second"] / singly,
    }
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    """Measure, compare with the goals, and write ``outputs/benchmarks/data.json``."""
    results = {name: measure(channels) for name, channels in (("grey", 1), ("colour", 3))}
    print(f"{IMAGES:,} images of {SIZE} px, batches of {BATCH}, {torch.get_num_threads()} threads")
    print(f"{'':32}{'goal':>10}{'grey':>10}{'colour':>10}")
    for name in results["grey"]:
        grey, colour = results["grey"][name], results["colour"][name]
        print(f"{name:32}{GOALS.get(name, ''):>10}{grey:>10,}{colour:>10,}")
    stored = {
        "images": IMAGES,
        "image_size": SIZE,
        "batch_size": BATCH,
        "goals": GOALS,
        "results": results,
        "provenance": provenance.collect(),
    }
    print("wrote", files.write_json(files.outputs_dir() / "benchmarks" / "data.json", stored))


if __name__ == "__main__":
    main()
