"""Uncertainty of results: bootstrap, intervals, paired tests, Holm's correction, spread over
seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

DRAWS = 1000
CHUNK = 4_000_000  # counts held at once: 1,000 draws of 4,000 images


def draws(
    labels: np.ndarray, groups: np.ndarray | None = None, count: int = DRAWS, seed: int = 0
) -> Iterator[np.ndarray]:
    """Bootstrap draws of N images with ``labels`` ``(N,)``: how often each image is drawn, float32
    ``(draws, N)`` in chunks that together hold ``count`` draws.

    Images are drawn with replacement within each class, so that the classes keep their sizes. Where
    ``groups`` ``(N,)`` number images that belong together, whole groups are drawn, within the class
    of most of a group's images.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    unit = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    votes = np.zeros((unit.max(initial=-1) + 1, labels.max(initial=0) + 1), int)
    np.add.at(votes, (unit, labels), 1)
    stratum, step = votes.argmax(1), max(1, CHUNK // max(1, len(labels)))
    for start in range(0, count, step):
        here = min(step, count - start)
        counts = np.empty((here, len(stratum)), np.float32)
        for label in np.unique(stratum):
            members = np.flatnonzero(stratum == label)
            counts[:, members] = rng.multinomial(
                len(members), np.full(len(members), 1 / len(members)), size=here
            )
        yield counts[:, unit]


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Percentile interval [low, high] of bootstrap values ``(draws,)``; None where none is finite,
    as for an absent class."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return [float(value) for value in np.quantile(values, [(1 - level) / 2, (1 + level) / 2])]


def intervals(
    measure: Callable[[np.ndarray], dict[str, np.ndarray]],
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, list[float] | None]:
    """95 % bootstrap intervals [low, high] of every metric that ``measure`` computes from counts
    ``(draws, N)`` as ``{name: (draws,)}``; ``labels`` and ``groups`` ``(N,)`` as in
    :func:`draws`."""
    parts = [measure(counts) for counts in draws(labels, groups, seed=seed)]
    return {name: interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def jackknife(
    measure: Callable[[np.ndarray], float], groups: np.ndarray
) -> dict[str, float | int | None]:
    """A measure with its 95 % jackknife interval, from leaving out one group at a time: mean (the
    measure of all images), low, high, n.

    ``measure`` takes the indices of the images that are kept; ``groups`` ``(N,)`` number images
    that belong together. For measures that a bootstrap would bias because it repeats images, such
    as the similarity of representations. Efron & Stein 1981, *The Jackknife Estimate of Variance*,
    equation 1.3.
    """
    groups = np.asarray(groups)
    whole, left = measure(np.arange(len(groups))), np.unique(groups)
    parts = np.array([measure(np.flatnonzero(groups != group)) for group in left])
    half = 1.96 * np.sqrt((len(left) - 1) * parts.var())
    found = {"mean": whole, "low": whole - half, "high": whole + half}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()} | {
        "n": len(groups)
    }


def mean_interval(
    values: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> dict[str, float | None]:
    """Mean of the finite ``values`` ``(N,)`` with its 95 % bootstrap interval: mean, low, high, n;
    None where there are none. ``groups`` ``(N,)`` number values that are drawn together."""
    if groups is not None and len(np.unique(groups)) < len(groups):
        return summary(pd.DataFrame({"value": np.asarray(values, float)}), groups)["value"]
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2 or np.ptp(kept) == 0:
        mean = float(kept.mean()) if len(kept) else None
        return {"mean": mean, "low": mean, "high": mean, "n": len(kept)}
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((kept,), np.mean, n_resamples=2000, method="percentile", rng=rng)
    low, high = (float(value) for value in found.confidence_interval)
    return {"mean": float(kept.mean()), "low": low, "high": high, "n": len(kept)}


def summary(images: pd.DataFrame, groups: np.ndarray) -> dict[str, dict]:
    """Mean of every measure (a column) over images (rows) with its 95 % bootstrap interval:
    ``mean``, ``low``, ``high`` and ``n``, the images for which it is defined (no NaN).

    ``groups`` ``(N,)`` number images that are drawn together (patients).
    """
    names = list(images)
    values = images.to_numpy(float)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def means(counts):
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (counts @ filled) / (counts @ known)
        return dict(zip(names, found.T, strict=True))

    whole = means(np.ones((1, len(images))))
    ends = intervals(means, np.zeros(len(images), int), groups)
    found = {}
    for number, name in enumerate(names):
        n, mean = int(known[:, number].sum()), float(whole[name][0])
        low, high = ends[name] or (None, None)
        found[name] = {"mean": mean if n else None, "low": low, "high": high, "n": n}
    return found


def paired_difference(
    values: np.ndarray, other: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float | None]:
    """Mean difference of two measures ``(N,)`` of the same images with its 95 % interval, and the
    two-sided p of Wilcoxon's signed-rank test: mean, low, high, n, p_wilcoxon. Images of one of
    ``groups`` ``(N,)`` are drawn together, and the test sees their mean."""
    gap = np.asarray(values, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    known = np.isfinite(gap)
    gap, groups = gap[known], np.arange(known.sum()) if groups is None else groups[known]
    means = pd.Series(gap).groupby(groups).mean()
    p_value = float(stats.wilcoxon(means).pvalue) if means.ne(0).any() else 1.0
    return mean_interval(gap, groups=groups) | {"p_wilcoxon": p_value}


def mcnemar(right: np.ndarray, other_right: np.ndarray) -> tuple[float, int, int]:
    """Exact two-sided p of McNemar's test (binomial), and the numbers of images that only the first
    and only the second model gets right; ``right`` and ``other_right`` are boolean ``(N,)``."""
    better, worse = int((right & ~other_right).sum()), int((~right & other_right).sum())
    discordant = better + worse
    p_value = float(stats.binomtest(better, discordant).pvalue) if discordant else 1.0
    return p_value, better, worse


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of a paired bootstrap with ``differences`` ``(draws,)``: twice the smaller share
    of draws on one side of 0, never below 2 / (draws + 1).

    Davison & Hinkley 1997, *Bootstrap Methods and their Application*, equation 4.11, with the
    interval inverted.
    """
    differences = differences[np.isfinite(differences)]
    least = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (least + 1) / (len(differences) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests with Holm's correction, which controls the family-wise error rate
    (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (n − 1; None for one seed) and number of training seeds."""
    values = np.asarray(values, dtype=float)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
    }
