"""Ensembles of classifiers that answered for the same images, and how much their members agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import cohen_kappa_score


def mean(logits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log of the members' mean probabilities, ``(N, K)``; ``logits`` member → ``(N, K)``."""
    return np.log(np.maximum(_probabilities(logits).mean(0), 1e-12))


def majority(logits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log of the shares of votes ``(N, K)``, of which the largest is the majority's class; of
    classes with equal votes, the one with the higher mean probability is taken.

    ``logits`` member → ``(N, K)``. The mean probability counts as one more vote, split among the
    classes: it is below 1 for any class that a member did not vote for, so it decides ties alone.
    """
    given = _probabilities(logits)
    votes = np.eye(given.shape[2])[given.argmax(2)].sum(0)
    return np.log(np.maximum((votes + given.mean(0)) / (len(given) + 1), 1e-12))


def _probabilities(logits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probabilities ``(M, N, K)``. Raises ``ValueError`` without members."""
    if not logits:
        raise ValueError("an ensemble needs a member")
    return softmax(np.stack([np.asarray(each, float) for each in logits.values()]), axis=2)


def agreement(predicted: Mapping[str, np.ndarray], labels: np.ndarray) -> pd.DataFrame:
    """One row a pair of members: one, other, kappa (Cohen 1960), disagreement (share of images),
    one_right, other_right (shares where that member alone is right) and both_wrong.

    ``predicted`` member → classes ``(N,)``; ``labels`` ``(N,)``. Kappa is in [−1, 1]; of two
    members that answer with the same single class, it is 1.
    """
    rows = []
    for one, other in itertools.combinations(predicted, 2):
        a, b = np.asarray(predicted[one]), np.asarray(predicted[other])
        constant = len(np.unique(np.concatenate([a, b]))) == 1
        rows.append(
            {
                "one": one,
                "other": other,
                "kappa": 1.0 if constant else float(cohen_kappa_score(a, b)),
                "disagreement": float((a != b).mean()),
                "one_right": float(((a == labels) & (b != labels)).mean()),
                "other_right": float(((a != labels) & (b == labels)).mean()),
                "both_wrong": float(((a != labels) & (b != labels)).mean()),
            }
        )
    return pd.DataFrame(rows)
