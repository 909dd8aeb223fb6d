"""The pixel cache (one uint8 file, memory-mapped), the batches that come from it, and augmentation
of whole batches."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from kdnb import device, files
from kdnb.images import read
from kdnb.images.read import PER_IMAGE, Rule

STEP = 1000  # images after which a growing cache notes how far it is
MASKS_ARE = "0 or 255"  # part of the name of a cache of masks


def read_image(
    path: Path,
    image_size: int,
    mode: str,
    resample: int = Image.Resampling.BILINEAR,
    rule: Rule = PER_IMAGE,
) -> np.ndarray:
    """One image as uint8 ``(C, image_size, image_size)``, stretched to a square; C is 1 for mode
    ``L``, 3 for ``RGB``. ``rule`` makes 8 bits of deeper images."""
    image = read.decode(path, rule).convert(mode).resize((image_size, image_size), resample)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def read_mask(root: Path, names: str, image_size: int) -> np.ndarray:
    """The mask of one image, 0 or 255, uint8 ``(1, image_size, image_size)``; several files of one
    mask (``a.png|b.png``) are joined."""
    size = (image_size, image_size)
    parts = [read.decode_mask(root / name) for name in names.split(read.SEVERAL)]
    return np.max([part.resize(size, Image.Resampling.NEAREST) for part in parts], axis=0)[None]


def cache(
    root: Path,
    table: pd.DataFrame,
    image_size: int,
    mode: str,
    name: str,
    column: str = "path",
    rule: Rule = PER_IMAGE,
) -> np.ndarray:
    """Pixels of all rows as a memory-mapped uint8 array ``(N, C, image_size, image_size)``, built
    once.

    The file is keyed by the checksums of what it holds, size and mode. It appears whole or not at
    all: it grows as ``.part`` and is renamed at the end; who was killed goes on where it stood, and
    a second process waits for the first. ``column`` may be ``mask`` or ``organ_mask``; rows without
    one are zero. The pages belong to the system's page cache, not to this process.
    """
    held = table["sha256" if column == "path" else f"{column}_sha256"]
    how = [MASKS_ARE] if column != "path" else []
    if column == "path" and table["mode"].isin(read.DEEP).any():
        how = [rule.sentence]
    key = files.digest([table[column].tolist(), held.tolist(), column, *how])
    path = files.cache_dir() / "pixels" / f"{name}-{column}-{image_size}-{mode}-{key}.npy"
    with files.lock(path):
        if not path.exists():
            shape = (len(table), 1 if mode == "L" else 3, image_size, image_size)

            def put(row):
                if column == "path":
                    path = root / table["path"].iloc[row]
                    return read_image(path, image_size, mode, Image.Resampling.BILINEAR, rule)
                return read_mask(root, table[column].iloc[row], image_size)

            _fill(path, shape, table[column].tolist(), name, put)
    # copy-on-write: torch wants a writable buffer, the file must not change
    return np.load(path, mmap_mode="c", allow_pickle=False)


def _fill(
    path: Path,
    shape: tuple[int, ...],
    names: list[str],
    title: str,
    look: Callable[[int], np.ndarray],
) -> None:
    part, progress = path.with_suffix(".part"), path.with_suffix(".progress")
    with files.told_when_full(path):
        if not (part.exists() and progress.exists()):
            # every block is taken now: a disk that is full later kills the process that writes into
            # a mapped file
            array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with open(part, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            files.write_json(progress, {"done": 0})
        else:
            array = np.lib.format.open_memmap(part, mode="r+")

        def put(row):
            if names[row]:
                array[row] = look(row)

        rows = range(files.read_json(progress)["done"], shape[0])
        bar = tqdm(
            total=shape[0],
            initial=rows.start,
            desc=f"pixels of {title} at {shape[-1]} px",
            unit="img",
            leave=False,
            disable=shape[0] < 500,
        )
        with bar, ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
            for start in rows[::STEP]:
                for _ in pool.map(put, rows[start - rows.start :][:STEP]):
                    bar.update()
                array.flush()
                files.write_json(progress, {"done": min(start + STEP, shape[0])})
        files.put_in_place(part, path)
        progress.unlink()


class Pixels(Dataset):
    """Rows of a pixel cache with their labels; a batch is fetched in one go, as float images in [0,
    1].

    ``self[rows]`` gives ``(images (B, 3, S, S) float32, labels (B,) int64, rows (B,) int64)``. Grey
    images are expanded to three channels without being copied.
    """

    def __init__(
        self, images: np.ndarray, labels: Sequence[int], rows: Sequence[int] | None = None
    ):
        self.images = torch.from_numpy(images)
        self.labels = torch.tensor(np.asarray(labels), dtype=torch.int64)
        self.rows = (
            torch.arange(len(self.labels))
            if rows is None
            else torch.tensor(np.asarray(rows), dtype=torch.int64)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(
        self, index: int | Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = self.rows[torch.as_tensor(index)].reshape(-1)
        chosen = self.images[rows.to(self.images.device)]
        images = torch.div(chosen, 255.0).expand(-1, 3, -1, -1)
        return images, self.labels[rows], rows

    # DataLoader asks for a whole batch at once when this method exists: no Python per image
    __getitems__ = __getitem__

    def subset(self, rows: Sequence[int]) -> Pixels:
        """Chosen rows of the cache, in that order."""
        chosen = copy.copy(self)
        chosen.rows = torch.tensor(np.asarray(rows), dtype=torch.int64)
        return chosen

    def moved_to(self, place: torch.device) -> Pixels:
        """The same rows with the cache's pixels in the memory of a CUDA GPU that has room for them;
        else unchanged. Batches are then cut there: the bytes travel once, not as floats in every
        epoch."""
        if not device.holds(place, self.images.nbytes):
            return self
        moved = copy.copy(self)
        moved.images = self.images.to(place)
        return moved

    def floats(self, rows: Sequence[int]) -> torch.Tensor:
        """Chosen rows as float images ``(n, 3, S, S)`` in [0, 1]."""
        return self.subset(rows)[range(len(rows))][0]

    def pictures(self, rows: Sequence[int]) -> np.ndarray:
        """Chosen rows as matplotlib draws them: uint8 ``(n, S, S)`` grey or ``(n, S, S, 3)``
        colour."""
        images = self.images[torch.as_tensor(np.asarray(rows))].permute(0, 2, 3, 1).numpy()
        return images[..., 0] if images.shape[-1] == 1 else images

    def batches(self, batch_size: int, shuffle: bool = False, seed: int = 0) -> DataLoader:
        """A DataLoader over these rows; with ``shuffle`` the order follows from ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self, batch_size, shuffle=shuffle, generator=generator, collate_fn=_as_is)


def _as_is(batch):
    return batch


@dataclass(frozen=True)
class Augment:
    """Random rotation, shift, zoom, flips, brightness and contrast, drawn anew for every image of a
    batch.

    ``degrees`` is the largest rotation either way; ``translate`` a fraction of the side; ``scale``,
    ``brightness`` and ``contrast`` relative changes (0.1: between 0.9 and 1.1 times). Ours because
    torchvision's transforms give a whole batch the same parameters, and kornia's are five times
    slower (1,500 against 7,500 images/s at 96 px on two cores).
    """

    degrees: float = 10.0
    translate: float = 0.05
    scale: float = 0.1
    hflip: bool = False
    vflip: bool = False
    brightness: float = 0.1
    contrast: float = 0.1

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in [0, 1] to the same shape and range; ``generator`` is a CPU
        generator."""
        return self.with_masks(images, None, generator)[0]

    def with_masks(
        self,
        images: torch.Tensor,
        masks: torch.Tensor | None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The views of ``__call__``, and ``masks`` ``(B, H, W)`` moved with their images: same
        shape and type, each pixel that of the nearest one, brightness and contrast aside."""
        count = len(images)
        # drawn on the CPU: the same seed gives the same views on every device
        draw = torch.rand(8, count, generator=generator) * 2 - 1
        angle, zoom = draw[0] * math.radians(self.degrees), 1 + draw[1] * self.scale
        flip_x = torch.where(draw[2] < 0, -1.0, 1.0) if self.hflip else torch.ones(count)
        flip_y = torch.where(draw[3] < 0, -1.0, 1.0) if self.vflip else torch.ones(count)
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        shift_x, shift_y = 2 * self.translate * draw[4], 2 * self.translate * draw[5]
        matrix = torch.stack(
            [cos * flip_x, -sin * flip_y, shift_x, sin * flip_x, cos * flip_y, shift_y], dim=1
        )
        # a grey image stored once and expanded to three channels is warped once
        grey = images.shape[1] == 3 and images.stride(1) == 0
        moved = images[:, :1] if grey else images
        grid = F.affine_grid(
            matrix.view(-1, 2, 3).to(images), list(moved.shape), align_corners=False
        )
        moved = F.grid_sample(moved, grid, padding_mode="border", align_corners=False)
        if masks is not None:
            nearest = {"mode": "nearest", "padding_mode": "border", "align_corners": False}
            masks = F.grid_sample(masks[:, None].to(moved), grid, **nearest)[:, 0].to(masks.dtype)
        gain = (1 + self.contrast * draw[6]).to(images).view(-1, 1, 1, 1)
        bias = (self.brightness * draw[7]).to(images).view(-1, 1, 1, 1)
        # contrast around mid-grey: gain * (x - 0.5) + 0.5 + bias, in one pass
        moved = torch.addcmul(0.5 * (1 - gain) + bias, moved, gain).clamp_(0, 1)
        return (moved.expand(-1, images.shape[1], -1, -1) if grey else moved), masks
