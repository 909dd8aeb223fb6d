"""Differences over runs and images, which are both drawn: each run answers for each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdnb import checks


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval; ``groups`` and ``runs`` are the numbers of each that
    were drawn, ``p_value`` is two-sided, against no difference."""

    value: float
    low: float
    high: float
    p_value: float
    groups: int
    runs: int


def difference(
    values: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95
) -> Difference:
    """The mean of paired differences ``(N, S)`` of N images in S runs, with its interval.

    Groups of images and runs are crossed random effects, ``d = μ + group + run + rest``. The
    variance of the mean is estimated from the three mean squares of the two-way table, (MS of
    groups + MS of runs − MS of the rest) / (groups · runs), and its degrees of freedom are
    Satterthwaite's (1946, *An Approximate Distribution of Estimates of Variance Components*,
    equation 17; Searle, Casella & McCulloch 1992, *Variance Components*, section 4.5). ``groups``
    ``(N,)`` number images that belong together; a group counts by its images. With one run the
    variation between runs is unknown, and the interval is that of the images alone. Raises
    ``ValueError`` for shapes that do not fit and fewer than two groups.
    """
    values = np.asarray(values, dtype=np.float64)
    checks.shapes(values=(values, "N S"), groups=(groups, "N"))
    table = _by_group(values, groups)
    (count, runs), mean = table.shape, float(table.mean())
    if count < 2:
        raise ValueError("an interval needs two groups of images or more")
    variance, freedom = _variance(table - mean)
    error = np.sqrt(variance)
    half = stats.t.ppf((1 + level) / 2, freedom) * error
    p_value = 2 * stats.t.sf(abs(mean) / error, freedom) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, float(p_value), count, runs)


def _by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Sums over the images of each group, scaled so that their mean is the mean over images."""
    if groups is None:
        return values
    number = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((number.max() + 1, values.shape[1]))
    np.add.at(sums, number, values)
    return sums * (len(sums) / len(values))


def _variance(centred: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of a centred two-way table, and its degrees of freedom."""
    (count, runs), (rows, columns) = centred.shape, (centred.mean(1), centred.mean(0))
    of_groups = runs * (rows**2).sum() / (count - 1)
    if runs == 1:
        return of_groups / count, count - 1
    of_runs = count * (columns**2).sum() / (runs - 1)
    rest = centred - rows[:, None] - columns
    of_rest = (rest**2).sum() / ((count - 1) * (runs - 1))
    joined = of_groups + of_runs - of_rest
    # a negative component of variance is taken as none: the larger mean square stays alone
    largest = max(of_groups, of_runs)
    if joined <= largest:
        return largest / centred.size, count - 1 if of_groups >= of_runs else runs - 1
    parts = (of_groups, count - 1), (of_runs, runs - 1), (of_rest, (count - 1) * (runs - 1))
    freedom = joined**2 / sum(square**2 / degrees for square, degrees in parts)
    return joined / centred.size, max(freedom, 1.0)


def balanced(labels: np.ndarray) -> np.ndarray:
    """Weights ``(N,)`` with mean 1 that turn a mean over images into the mean of the classes'
    means: times them, differences in right answers become differences in balanced accuracy."""
    labels = np.asarray(labels)
    present, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(present) * counts[place])
