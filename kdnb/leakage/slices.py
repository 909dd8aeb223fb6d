"""Neighbouring slices of one scan: images whose fine detail lies in the same places.

Two neighbouring slices of a head are no copies: outlines shift, and a lesion grows or ends. Yet
their detail agrees, place by place, far more than that of two patients. How far two patients agree
depends on the set, and the labels tell: a scan has one label, so links between labels are chance,
and their number says how many links within labels are. Where patients have several labels this
finds less, never more.
"""

from __future__ import annotations

import bisect

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from kdnb.leakage import nearest

SIDE = 64  # pixels a side on which slices are compared
COARSE = 1.5  # pixels (sigma): what is coarser is the shape of a head, which patients share
RIM = 3  # pixels along the border that are not compared
NEIGHBOURS = 12  # most similar images that are compared with each
PROJECTED = 256  # dimensions in which they are looked for
BLOCK = 1000  # images or pairs at a time
LOWEST = 0.5  # a pair below this correlation is never linked
CHANCE = 0.01  # largest share of links by chance
UNSEEN = 3  # links between labels that chance may hide where none is found (95 %, rule of three)
LARGEST = 0.05  # of all images that such links may bring into one group


def find(
    thumbs: np.ndarray, labels: np.ndarray, group: np.ndarray, name: str = "images"
) -> pd.DataFrame:
    """Pairs of images of one scan that are not in one group yet.

    ``thumbs`` grey uint8 ``(N, H, W)``, ``labels`` ``(N,)``, ``group`` the number of each image's
    group ``(N,)``. Columns first, second (rows), correlation, from 0.5 to 1. Empty where labels
    cannot tell chance, as in a set of one class.
    """
    detail = describe(thumbs, name)
    pairs = _most_similar(detail)
    pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
    correlation = _correlation(detail, pairs)
    order = np.argsort(-correlation, kind="stable")
    order = order[correlation[order] >= LOWEST]
    pairs, correlation = pairs[order], correlation[order]
    count = _trusted(pairs, labels, group)
    return pd.DataFrame(
        {
            "first": pairs[:count, 0],
            "second": pairs[:count, 1],
            "correlation": correlation[:count],
        }
    )


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
    distances (Johnson & Lindenstrauss 1984) and are searched ten times as fast."""
    signs = np.random.default_rng(0).choice((-1, 1), (detail.shape[1], PROJECTED))
    signs = signs.astype(np.float32) / PROJECTED**0.5
    base = np.concatenate(
        [detail[start : start + BLOCK] @ signs for start in range(0, len(detail), BLOCK)]
    )
    _, other = nearest.store(base).search(base, min(NEIGHBOURS + 1, len(base)))
    pairs = np.stack([np.repeat(np.arange(len(base)), other.shape[1]), other.ravel()], 1)
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs[:, 1] >= 0)]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _correlation(detail: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Correlation of each pair ``(M,)``."""
    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    parts = [
        np.einsum("ij,ij->i", *(detail[block[:, end]].astype(np.float32) for end in (0, 1)))
        for block in blocks
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _trusted(pairs: np.ndarray, labels: np.ndarray, group: np.ndarray) -> int:
    """How many of the pairs, most similar first, are links: as many as keep the share of chance
    below ``CHANCE`` and bring no more than ``LARGEST`` of the images together."""
    share = np.unique(labels, return_counts=True)[1] / max(1, len(labels))
    between = 1 - (share**2).sum()  # of chance links, those between two labels
    if between <= 0:
        return 0
    across = np.cumsum(labels[pairs[:, 0]] != labels[pairs[:, 1]])
    few = (across + UNSEEN) / between <= CHANCE * np.arange(1, len(pairs) + 1)
    counts = np.flatnonzero(few) + 1
    most = max(LARGEST * len(labels), np.bincount(group).max())

    def largest(count):
        ends = group[pairs[:count]]
        size = int(group.max()) + 1
        edges = coo_array((np.ones(count), (ends[:, 0], ends[:, 1])), shape=(size, size))
        return np.bincount(connected_components(edges, directed=False)[1][group]).max()

    fitting = bisect.bisect_right(counts, most, key=largest)
    return int(counts[fitting - 1]) if fitting else 0
