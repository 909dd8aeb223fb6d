"""The area under the ROC curve of one class, whole and for few false alarms, with intervals."""

from __future__ import annotations

import numpy as np

from kdnb import checks
from kdnb.evaluation import statistics

FALSE_ALARMS = 0.1  # the largest false positive rate of the partial area


class Areas:
    """Both areas for many bootstrap draws at once: called with counts ``(draws, N)``, it gives
    ``{"auc": (draws,), "partial_auc": (draws,)}``.

    Made of ``positive`` ``(N,)``, boolean, and ``scores`` ``(N,)``, higher for positives. The
    partial area up to the false positive rate ``limit`` is scaled to 0.5 for chance and 1 for a
    perfect order: McClish 1989, doi:10.1177/0272989X8900900307, as in scikit-learn, which takes one
    draw at a time. Where a draw lacks one of the two kinds, areas are NaN. Raises ``ValueError``
    for shapes that do not fit and a limit outside (0, 1].
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray, limit: float = FALSE_ALARMS):
        checks.shapes(positive=(positive, "N"), scores=(scores, "N"))
        checks.within(1e-6, 1, limit=limit)
        values, rank = np.unique(-np.asarray(scores, float), return_inverse=True)
        self.kinds = np.asarray(positive, bool), ~np.asarray(positive, bool)
        self.order = np.argsort(rank, kind="stable")
        self.starts = np.searchsorted(rank[self.order], np.arange(len(values)))
        self.limit = limit

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        hits, alarms = (self._rates(counts * kind) for kind in self.kinds)
        widths = np.diff(alarms, axis=1)
        whole = (widths * (hits[:, 1:] + hits[:, :-1]) / 2).sum(1)
        inside = np.minimum(alarms[:, 1:], self.limit) - np.minimum(alarms[:, :-1], self.limit)
        share = np.divide(inside, widths, out=np.zeros_like(widths), where=widths > 0)
        rises = share * np.diff(hits, axis=1)
        part = (inside * (hits[:, :-1] + rises / 2)).sum(1)
        chance = self.limit**2 / 2
        return {"auc": whole, "partial_auc": (1 + (part - chance) / (self.limit - chance)) / 2}

    def _rates(self, counts: np.ndarray) -> np.ndarray:
        """The share of a kind that scores as high as each threshold or higher, from 0 to 1."""
        at = np.add.reduceat(counts[:, self.order], self.starts, axis=1, dtype=np.float64)
        total = at.sum(1, keepdims=True)
        rates = np.cumsum(at, axis=1) / np.where(total > 0, total, np.nan)
        return np.pad(rates, ((0, 0), (1, 0)))


def evaluate(
    positive: np.ndarray, scores: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict:
    """Both areas of :class:`Areas` and their 95 % bootstrap intervals [low, high] under
    ``intervals``; ``groups`` ``(N,)`` are drawn as one."""
    areas = Areas(positive, scores)
    found = {name: float(value[0]) for name, value in areas(np.ones((1, len(scores)))).items()}
    kinds = np.asarray(positive, int)
    return found | {"intervals": statistics.intervals(areas, kinds, groups, seed)}


def compare(
    positive: np.ndarray,
    scores: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict]:
    """Differences in both areas, the first minus the second, on the same images: ``difference``,
    ``low``, ``high`` (95 %, paired bootstrap) and ``n`` by name of the area."""
    one, two = Areas(positive, scores), Areas(positive, other)

    def gaps(counts):
        pairs = one(counts), two(counts)
        return {name: pairs[0][name] - pairs[1][name] for name in pairs[0]}

    whole = gaps(np.ones((1, len(scores))))
    limits = statistics.intervals(gaps, np.asarray(positive, int), groups, seed)
    return {
        name: {"difference": float(gap[0]), "n": len(scores)}
        | dict(zip(("low", "high"), limits[name] or (None, None), strict=True))
        for name, gap in whole.items()
    }
