"""Fingerprints: checksum, thumbnail, hashes and colours, by which a set is searched for copies."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dct
from tqdm.auto import tqdm

from kdnb import files
from kdnb.images import read

PART = 500  # images, or pairs of them, after which a finished part is kept
THUMB = 96  # pixels a side of what is kept of an image


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of N images.

    ``pixels`` are SHA-256 sums of the decoded RGB pixels and their shape, ``thumbs`` grey uint8
    ``(N, THUMB, THUMB)``, ``small`` grey uint8 ``(N, 32, 32)`` for hashing, ``colours`` square
    roots of the frequencies of 8×8×8 colours, ``(N, 512)`` (None where the set is grey).
    """

    pixels: list[str]
    thumbs: np.ndarray
    small: np.ndarray
    colours: np.ndarray | None

    def __len__(self) -> int:
        return len(self.pixels)


def compute(
    root: Path, table: pd.DataFrame, name: str = "images", folder: Path | None = None
) -> Fingerprints:
    """Decode every image of a table (columns path, mode) once and keep what the search needs.

    Paths are relative to ``root``. Finished parts are kept in ``folder`` when it is given.
    """
    grey = bool(table["mode"].isin(read.GREY).all())

    paths, whole = table["path"].tolist(), {}
    bar = tqdm(
        total=len(paths),
        desc=f"fingerprints of {name}",
        unit="img",
        leave=False,
        disable=len(paths) < 500,
    )
    with bar, ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), PART):

            def seen(some=paths[start : start + PART]):
                rows = list(pool.map(lambda path: _look(root / path, grey), some))
                return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

            part = kept(folder, f"fingerprints-{start}", seen)
            # room for all at once: parts that are put together at the end take their memory twice
            if not start:
                for key, value in part.items():
                    room = files.scratch if key == "thumbs" else np.empty  # the only large ones
                    whole[key] = room((len(paths), *value.shape[1:]), value.dtype)
            for key, value in part.items():
                whole[key][start : start + PART] = value
            bar.update(len(part["pixels"]))
    return Fingerprints(
        whole["pixels"].tolist(),
        whole["thumbs"],
        whole["small"],
        None if grey else whole["colours"],
    )


def _look(path: Path, grey: bool) -> dict[str, str | np.ndarray]:
    """The fingerprint of one image, by the names of :class:`Fingerprints`."""
    image = read.decode(path).convert("RGB")
    whole = np.asarray(image)
    shades, colours = image.convert("L"), np.zeros(0, np.float32)
    if not grey:
        cells = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).astype(int) // 32
        counts = np.bincount((cells @ [64, 8, 1]).ravel(), minlength=512)
        # Hellinger: the distance of the roots of frequencies
        colours = np.sqrt(counts / counts.sum()).astype(np.float32)
    return {
        "pixels": hashlib.sha256(str(whole.shape).encode() + whole.tobytes()).hexdigest(),
        "thumbs": np.asarray(shades.resize((THUMB, THUMB), Image.Resampling.BOX)),
        "small": np.asarray(shades.resize((32, 32), Image.Resampling.LANCZOS)),
        "colours": colours,
    }


def kept(
    folder: Path | None, name: str, work: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays of ``work()``, kept in ``folder`` if any: a killed search goes on after them."""
    return files.remembered(folder / f"part-{PART}-{name}.npz", work) if folder else work()


def hash_all(small: np.ndarray) -> np.ndarray:
    """64-bit perceptual hashes ``(N, 8, 8)`` uint8 of the eight flips and quarter turns of images
    ``(N, 32, 32)``.

    Equal to ``imagehash.phash`` of the turned images, bit for bit. A flip only changes signs of the
    cosine transform and a quarter turn transposes it, so one transform of the set serves all eight.
    """
    parts = np.array_split(
        small, math.ceil(len(small) / 4096) or 1
    )  # a large set as floats would be the most memory of a search
    return np.concatenate([_hashes(part) for part in parts])


def _hashes(small: np.ndarray) -> np.ndarray:
    low = dct(dct(small.astype(np.float64), axis=1), axis=2)[:, :8, :8]
    sign = (-1.0) ** np.arange(8)
    views = []
    for turned in (low, low.transpose(0, 2, 1)):
        for rows in (1.0, sign[:, None]):
            views += [turned * rows * columns for columns in (1.0, sign[None, :])]
    flat = np.stack(views, 1).reshape(len(small), 8, 64)
    return np.packbits(flat > np.median(flat, axis=2, keepdims=True), axis=2)
