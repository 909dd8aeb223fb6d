"""Neighbouring slices of one scan: images whose fine detail lies in the same places.

Two neighbouring slices of a head are no copies: outlines shift, and a lesion grows or ends. Yet
their detail agrees, place by place, far more than that of two patients. How far two patients agree
depends on the set, and two things tell. A scan has one label, so links between labels are chance,
and their number says how many links within labels are; where patients have several labels this
finds less, never more. And slices are often numbered in order: pairs of near numbers are held
against pairs of far ones, and where order means nothing, nothing is linked.
"""

from __future__ import annotations

import bisect

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from kdnb.images import tables
from kdnb.leakage import nearest

SIDE = 64  # pixels a side on which slices are compared
COARSE = 1.5  # pixels (sigma): what is coarser is the shape of a head, which patients share
RIM = 3  # pixels along the border that are not compared
NEIGHBOURS = 12  # most similar images that are compared with each
PROJECTED = 256  # dimensions in which they are looked for
BLOCK = 1000  # images or pairs at a time
LOWEST = 0.1  # a pair below this correlation is never linked
CHANCE = 0.01  # largest share of links by chance
UNSEEN = 3  # links by chance that may be there where none is seen (95 %, rule of three)
LARGEST = 0.05  # of all images that such links may bring into one group
NEAR, FAR = 3, 50  # numbers of neighbouring slices differ by at most, of other scans by more than
DRAWS = 200_000  # pairs of far numbers


def find(
    thumbs: np.ndarray, table: pd.DataFrame, group: np.ndarray, name: str = "images"
) -> pd.DataFrame:
    """Pairs of images of one scan that are not in one group yet.

    ``thumbs`` grey uint8 ``(N, H, W)``, ``table`` their paths and labels (columns path, label),
    ``group`` the number of each image's group ``(N,)``. Columns first, second (rows), correlation.
    Empty where neither labels nor numbers can tell chance.
    """
    detail, found = describe(thumbs, name), []
    for search in (_by_label, _by_number):
        pairs, correlation, chance = search(detail, table, group)
        count = _trusted(pairs, chance, group)
        links = {"first": pairs[:count, 0], "second": pairs[:count, 1]}
        found.append(pd.DataFrame(links | {"correlation": correlation[:count]}))
        group = tables.merge(group, pairs[:count])
    return pd.concat(found, ignore_index=True)


def describe(thumbs: np.ndarray, name: str = "images") -> np.ndarray:
    """Fine detail of grey images ``(N, H, W)`` uint8, of mean 0 and length 1, float16
    ``(N, 3364)``; all zero where an image has none."""
    found = np.empty((len(thumbs), (SIDE - 2 * RIM) ** 2), np.float16)
    rows = tqdm(thumbs, f"detail of {name}", unit="img", leave=False, disable=len(thumbs) < 5000)
    for row, thumb in enumerate(rows):
        image = cv2.resize(thumb, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        image -= cv2.GaussianBlur(image, (0, 0), COARSE)
        flat = image[RIM:-RIM, RIM:-RIM].ravel()
        flat = flat - flat.mean()
        found[row] = flat / max(float(np.linalg.norm(flat)), 1e-3)
    return found


def _most_similar(detail: np.ndarray) -> np.ndarray:
    """Pairs of rows ``(M, 2)``: each with its ``NEIGHBOURS`` nearest. Random projections keep
    distances (Johnson & Lindenstrauss 1984) and are a thirteenth as long."""
    signs = np.random.default_rng(0).choice((-1, 1), (detail.shape[1], PROJECTED))
    signs = signs.astype(np.float32) / PROJECTED**0.5
    base = np.concatenate(
        [detail[start : start + BLOCK] @ signs for start in range(0, len(detail), BLOCK)]
    )
    _, other = nearest.store(base).search(base, min(NEIGHBOURS + 1, len(base)))
    pairs = np.stack([np.repeat(np.arange(len(base)), other.shape[1]), other.ravel()], 1)
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs[:, 1] >= 0)]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _by_label(
    detail: np.ndarray, table: pd.DataFrame, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most similar pairs, most similar first: rows ``(M, 2)``, correlations ``(M,)``, and how
    many of the first 1, 2, … M are expected to be chance, by those between two labels."""
    labels = table["label"].to_numpy()
    pairs, correlation = _ordered(detail, _most_similar(detail), group)
    share = np.unique(labels, return_counts=True)[1] / max(1, len(labels))
    between = 1 - (share**2).sum()  # of chance links, those between two labels
    across = np.cumsum(labels[pairs[:, 0]] != labels[pairs[:, 1]])
    return pairs, correlation, (across + UNSEEN) / between if between > 0 else across + np.inf


def _by_number(
    detail: np.ndarray, table: pd.DataFrame, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with near numbers in their names, as :func:`_by_label` gives them; chance by the
    correlations of pairs with far numbers."""
    near, far = _numbered(table["path"])
    pairs, correlation = _ordered(detail, near, group)
    far = far[group[far[:, 0]] != group[far[:, 1]]]
    apart = np.sort(_correlation(detail, far))
    above = len(apart) - np.searchsorted(apart, correlation)
    compared = (group[near[:, 0]] != group[near[:, 1]]).sum()
    return pairs, correlation, compared * (above + UNSEEN) / max(1, len(apart))


def _numbered(paths: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows ``(n, 2)`` whose names differ by their last number only: all with near numbers,
    and some, drawn by chance, with far ones."""
    stems = paths.reset_index(drop=True).str.replace(r"\.[^./]*$", "", regex=True)
    known = stems.str.extract(r"^(?P<before>.*?)(?P<number>\d{1,9})(?P<after>\D*)$").dropna()
    known = known.assign(number=known["number"].astype(int)).sort_values("number", kind="stable")
    series = known.groupby(["before", "after"])
    rng, near, far = np.random.default_rng(0), [np.empty((0, 2), int)], [np.empty((0, 2), int)]
    for _, own in series:
        rows, count = own.index.to_numpy(), own["number"].to_numpy()
        for step in range(1, NEAR + 1):
            close = count[step:] - count[:-step] <= NEAR
            near.append(np.stack([rows[:-step], rows[step:]], 1)[close])
        draws = rng.integers(0, len(rows), (DRAWS * len(rows) // len(paths), 2))
        apart = np.abs(np.subtract(*count[draws.T])) > FAR
        far.append(rows[draws][apart])
    return np.concatenate(near), np.concatenate(far)


def _ordered(
    detail: np.ndarray, pairs: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that join two groups, and their correlations, most similar first; those below
    ``LOWEST`` are left out."""
    pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
    correlation = _correlation(detail, pairs)
    order = np.argsort(-correlation, kind="stable")
    order = order[correlation[order] >= LOWEST]
    return pairs[order], correlation[order]


def _correlation(detail: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Correlation of each pair ``(M,)``."""
    found = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), BLOCK):
        # torch, because numpy converts half precision slowly
        one, other = (torch.from_numpy(detail[ends]).float() for ends in pairs[start:][:BLOCK].T)
        found[start : start + BLOCK] = (one * other).sum(1).numpy()
    return found


def _trusted(pairs: np.ndarray, chance: np.ndarray, group: np.ndarray) -> int:
    """How many of the pairs, most similar first, are links: as many as keep the share of chance
    below ``CHANCE`` and bring no more than ``LARGEST`` of the images together."""
    counts = np.flatnonzero(chance <= CHANCE * np.arange(1, len(pairs) + 1)) + 1
    most = max(LARGEST * len(group), np.bincount(group).max())
    fitting = bisect.bisect_right(
        counts, most, key=lambda count: np.bincount(tables.merge(group, pairs[:count])).max()
    )
    return int(counts[fitting - 1]) if fitting else 0
