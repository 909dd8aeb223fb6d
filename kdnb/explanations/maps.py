"""Operations on sets of maps ``(N, H, W)`` that several measures need."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from kdnb import checks


def rank_pixels(maps: np.ndarray) -> np.ndarray:
    """Pixel indices ``(N, H·W)`` of maps ``(N, H, W)`` from most to least relevant; ties are broken
    in a fixed random order, so that a flat map prefers no corner."""
    flat = maps.reshape(len(maps), -1)
    noise = np.random.default_rng(0).permutation(flat.shape[1])
    return np.stack([np.lexsort((noise, -row)) for row in flat])


def rank_correlation(maps: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation ``(N,)`` of each pair of maps ``(N, H, W)``, in [-1, 1]; NaN where one
    of the two is flat. Raises ``ValueError`` for different shapes."""
    checks.shapes(maps=(maps, "N H W"), other=(other, "N H W"))
    first, second = (stats.rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, other))
    first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.where(scale > 0, (first * second).sum(1) / np.maximum(scale, 1e-12), np.nan)


def average_over_grid(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Maps ``(N, H, W)`` averaged over the cells of a ``grid`` ``(h, w)``, giving ``(N, h, w)``."""
    whole = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    return F.adaptive_avg_pool2d(whole, grid)[:, 0].numpy()
