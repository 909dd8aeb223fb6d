"""Localisation: does a map point at the lesion, does it stay inside the organ, how concentrated is
it? An empty mask or map gives NaN, never 0."""

from __future__ import annotations

import numpy as np

from kdnb import checks
from kdnb.explanations.maps import rank_pixels


def localisation(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Agreement of maps ``(N, H, W)`` with boolean ``masks`` ``(N, H, W)``; each value is ``(N,)``
    in [0, 1], NaN where the mask or the map is empty.

    ``pointing``: 1 where the highest pixel lies in the mask S, ties share it (pointing game).
    ``mass``: sum of the map over S divided by its sum (relevance mass accuracy). ``rank``: share of
    the |S| highest pixels that lie in S (relevance rank accuracy). ``iou``: largest intersection
    over union over all thresholds. ``area``: |S| / HW, which pointing, mass and rank reach by
    chance. Arras et al. 2022, doi:10.1016/j.inffus.2021.11.008. Raises ``ValueError`` for different
    shapes.
    """
    checks.shapes(maps=(maps, "N H W"), masks=(masks, "N H W"))
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    inside = masks.reshape(len(masks), -1).astype(bool)
    size, total = inside.sum(1), flat.clip(min=0).sum(1)
    usable = (size > 0) & (total > 0)
    best = flat == flat.max(1, keepdims=True)
    hits = np.cumsum(np.take_along_axis(inside, rank_pixels(maps), 1), axis=1)
    taken = np.arange(1, flat.shape[1] + 1)
    rows = np.arange(len(flat))
    found = {
        "pointing": (best & inside).sum(1) / best.sum(1),
        "mass": (flat.clip(min=0) * inside).sum(1) / np.maximum(total, 1e-12),
        "rank": hits[rows, np.maximum(size, 1) - 1] / np.maximum(size, 1),
        "iou": (hits / (size[:, None] + taken - hits)).max(1),
    }
    return {name: np.where(usable, value, np.nan) for name, value in found.items()} | {
        "area": np.where(size > 0, inside.mean(1), np.nan)
    }


def outside(maps: np.ndarray, organ: np.ndarray) -> np.ndarray:
    """Share ``(N,)`` of the sum of maps ``(N, H, W)`` that lies outside the boolean mask ``organ``
    ``(N, H, W)``, in [0, 1]; a flat map reaches the share of the image outside the organ. Raises
    ``ValueError`` for different shapes."""
    return 1 - localisation(maps, organ)["mass"]


def sparseness(maps: np.ndarray) -> np.ndarray:
    """Gini index ``(N,)`` of the magnitudes of maps ``(N, H, W)``: 0 for a flat map, near 1 for a
    single pixel, NaN for a map of zeros (Chalasani et al. 2020, arXiv:1810.06583)."""
    values = np.sort(np.abs(maps.reshape(len(maps), -1)).astype(np.float64), axis=1)
    count, total = values.shape[1], values.sum(1)
    weights = 2 * np.arange(1, count + 1) - count - 1
    gini = (values * weights).sum(1) / (count * np.maximum(total, 1e-300))
    return np.where(total > 0, gini, np.nan)
