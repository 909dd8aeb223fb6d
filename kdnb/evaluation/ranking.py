"""Ranks of several methods over several runs: are they different, and which ones?

Friedman's test and Nemenyi's comparison of mean ranks (Demšar 2006, *Statistical Comparisons of
Classifiers over Multiple Data Sets*, sections 3.2 and 3.2.2). Wilcoxon's signed-rank test of each
pair would be sharper where there are many runs (Benavoli, Corani & Mangili 2016), but with five
runs its smallest p value is 0.06, so it can decide nothing there.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from kdnb import extras

scikit_posthocs = extras.late("scikit_posthocs")


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """Mean rank of each column over the rows, 1 for the highest score; ties share their ranks."""
    return scores.rank(axis=1, ascending=False).mean().sort_values()


def friedman(scores: pd.DataFrame) -> dict[str, float]:
    """Friedman's test in the form of Iman & Davenport (1980): is any column different?

    ``scores`` has one row a run and one column a method. Returns ``statistic``, which has the F
    distribution, and ``p_value``. Raises ``ValueError`` for fewer than two rows or three columns.
    """
    rows, columns = scores.shape
    if rows < 2 or columns < 3:
        raise ValueError(f"Friedman's test needs 2 runs and 3 methods, got {rows} and {columns}")
    chi = stats.friedmanchisquare(*scores.to_numpy().T).statistic
    if not np.isfinite(chi):  # every score is the same
        return {"statistic": 0.0, "p_value": 1.0}
    free = rows * (columns - 1) - chi
    statistic = (rows - 1) * chi / free if free > 0 else np.inf
    p_value = stats.f.sf(statistic, columns - 1, (columns - 1) * (rows - 1))
    return {"statistic": float(statistic), "p_value": float(p_value)}


def nemenyi(scores: pd.DataFrame) -> pd.DataFrame:
    """p values of Nemenyi's test for each pair of columns (rows × columns, 1 on the diagonal)."""
    return scikit_posthocs.posthoc_nemenyi_friedman(scores)
