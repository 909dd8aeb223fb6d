"""How good predictions are: metrics with their intervals, and paired comparisons, from labels and
logits alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from kdnb import checks
from kdnb.evaluation import statistics
from kdnb.evaluation.calibration import BINS, adaptive_bins, brier, calibration_error, reliability

__all__ = [
    "BINS",
    "Measures",
    "balanced_accuracy",
    "calibration_error",
    "compare",
    "evaluate",
    "reliability",
    "table",
    "table_of_tests",
]


def evaluate(
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    split: str = "",
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """All metrics of one set of predictions, as JSON-ready numbers in [0, 1], with their 95 %
    intervals under ``intervals``.

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``; ``split`` names where the images come from and goes
    into the result; ``groups`` ``(N,)`` number images that belong together and are drawn together.
    A class that the labels lack has no recall and no ROC-AUC: its entry is None and the averages
    are over the classes there are. A precision without any prediction of that class is 0. ``ece``
    has equal bins, ``ece_adaptive`` equally filled ones; their intervals are those of a biased
    estimate.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    checks.shapes(
        labels=(labels, "N"),
        logits=(logits, "N K"),
        classes=(list(classes), "K"),
        groups=(groups, "N"),
    )
    checks.labels(labels, len(classes))
    if not np.isfinite(logits).all():
        raise ValueError(
            "logits hold NaN or infinity: the training diverged; lower the learning rate (-p lr)"
        )
    probabilities, predicted = softmax(logits, axis=1), logits.argmax(1)
    every = np.arange(len(classes))
    present = np.isin(every, labels)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    auc = [
        sk.roc_auc_score(labels == k, probabilities[:, k]) if 0 < support[k] < len(labels) else None
        for k in every
    ]
    known = [value for value in auc if value is not None]
    return {
        "n": len(labels),
        "split": split,
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "macro_auc": float(np.mean(known)) if known else None,
        "cross_entropy": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
        "ece": calibration_error(labels, logits),
        "ece_adaptive": calibration_error(labels, logits, adaptive=True),
        "brier": float(brier(labels, logits).mean()),
        "per_class": [
            {
                "class": classes[k],
                "precision": float(precision[k]),
                "recall": float(recall[k]) if present[k] else None,
                "f1": float(f1[k]) if present[k] else None,
                "auc": auc[k] if auc[k] is None else float(auc[k]),
                "support": int(support[k]),
            }
            for k in every
        ],
        "confusion": sk.confusion_matrix(labels, predicted, labels=every).tolist(),
        "intervals": statistics.intervals(Measures(labels, logits), labels, groups, seed),
    }


class Measures:
    """Every metric of ``evaluate`` under many weightings of the same images at once: no Python for
    an image or a draw.

    Called with counts ``(draws, N)`` it gives ``{metric: (draws,)}``; one row of ones gives the
    metrics themselves.
    """

    def __init__(self, labels: np.ndarray, logits: np.ndarray):
        self.labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
        self.probabilities = softmax(logits, axis=1)
        self.predicted, self.size = logits.argmax(1), logits.shape[1]
        self.loss = -log_softmax(logits, axis=1)[np.arange(len(self.labels)), self.labels]
        self.brier = brier(self.labels, logits)
        confidence = self.probabilities.max(1)
        self.gap = (self.predicted == self.labels) - confidence
        self.bins = {
            "ece": np.minimum((confidence * BINS).astype(int), BINS - 1),
            "ece_adaptive": adaptive_bins(confidence),
        }
        self.present = np.flatnonzero(np.bincount(self.labels, minlength=self.size))

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        total = counts.sum(1)
        cell = np.eye(self.size**2, dtype=np.float32)[self.labels * self.size + self.predicted]
        matrix = (counts @ cell).reshape(-1, self.size, self.size).astype(float)
        hits, truth, said = (np.einsum("bkk->bk", matrix), matrix.sum(2), matrix.sum(1))
        recall = hits / np.maximum(truth, 1)
        f1 = 2 * hits / np.maximum(truth + said, 1)
        found = {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": recall[:, self.present].mean(1),
            "macro_f1": f1[:, self.present].mean(1),
            "macro_auc": self._auc(counts),
            "cross_entropy": counts @ self.loss / total,
            "brier": counts @ self.brier / total,
        }
        for name, which in self.bins.items():
            parts = np.eye(which.max(initial=0) + 1)[which] * self.gap[:, None]
            found[name] = np.abs(counts @ parts).sum(1) / total
        return found

    def _auc(self, counts: np.ndarray) -> np.ndarray:
        """Mean one-against-rest area: the weighted share of (positive, negative) pairs in the right
        order, ties half."""
        areas = []
        for k in self.present:
            if len(self.present) < 2:
                return np.full(len(counts), np.nan)
            score, rank = np.unique(self.probabilities[:, k], return_inverse=True)
            order = np.argsort(rank, kind="stable")
            starts = np.searchsorted(rank[order], np.arange(len(score)))
            positive = np.add.reduceat(
                counts[:, order] * (self.labels[order] == k), starts, axis=1, dtype=np.float64
            )
            negative = np.add.reduceat(
                counts[:, order] * (self.labels[order] != k), starts, axis=1, dtype=np.float64
            )
            below = np.cumsum(negative, axis=1) - 0.5 * negative
            areas.append(
                (positive * below).sum(1) / np.maximum(positive.sum(1) * negative.sum(1), 1e-12)
            )
        return np.mean(areas, axis=0)


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the classes that occur in ``labels``, in [0, 1]."""
    with (
        warnings.catch_warnings()
    ):  # classes that are predicted but absent are expected in small validation sets
        warnings.simplefilter("ignore")
        return float(sk.balanced_accuracy_score(labels, predicted))


def compare(
    labels: np.ndarray,
    logits: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """One model minus another on the same images: accuracy, macro F1 and macro AUC, each with its
    95 % bootstrap interval.

    Both models see the same draws (paired). ``p_mcnemar`` is exact, from the images that exactly
    one of the two gets right; it takes images as independent. ``macro_f1`` and ``macro_auc`` hold
    difference, low, high and the bootstrap's p.
    """
    checks.shapes(
        labels=(labels, "N"), logits=(logits, "N K"), other=(other, "N K"), groups=(groups, "N")
    )
    labels = np.asarray(labels)
    right, other_right = (np.asarray(z).argmax(1) == labels for z in (logits, other))
    p_value, better, worse = statistics.mcnemar(right, other_right)
    one, two = Measures(labels, logits), Measures(labels, other)
    whole = np.ones((1, len(labels)), np.float32)
    found = {}
    names = ("accuracy", "macro_f1", "macro_auc")
    parts = [(one(counts), two(counts)) for counts in statistics.draws(labels, groups, seed=seed)]
    for name in names:
        drawn = np.concatenate([first[name] - second[name] for first, second in parts])
        difference, limits = (
            float((one(whole)[name] - two(whole)[name])[0]),
            statistics.interval(drawn),
        )
        known = limits is not None and np.isfinite(difference)
        values = (difference, *limits, statistics.bootstrap_p(drawn)) if known else (None,) * 4
        found[name] = dict(zip(("difference", "low", "high", "p_bootstrap"), values, strict=True))
    accuracy = found.pop("accuracy")
    return {
        "difference": float(right.mean() - other_right.mean()),
        "low": accuracy["low"],
        "high": accuracy["high"],
        "p_mcnemar": p_value,
        "only_first_right": better,
        "only_second_right": worse,
        "n": len(labels),
        **found,
    }


def table(
    scores: Mapping[str, dict],
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "ece"),
) -> pd.DataFrame:
    """Results of :func:`evaluate` as a reader wants them: ``0.956 [0.943, 0.966]`` for each metric,
    with n and split beside."""
    rows = {}
    for name, score in scores.items():
        limits = {metric: score["intervals"][metric] for metric in metrics}
        rows[name] = {
            metric: "–"
            if score[metric] is None
            else f"{score[metric]:.3f}"
            + (f" [{limits[metric][0]:.3f}, {limits[metric][1]:.3f}]" if limits[metric] else "")
            for metric in metrics
        }
        rows[name] |= {"n": score["n"], "split": score["split"]}
    return pd.DataFrame(rows).T


def table_of_tests(pairs: dict[str, dict]) -> pd.DataFrame:
    """Comparisons of :func:`compare` as a table, with p values corrected over all of them (Holm):
    one row a comparison."""
    rows = pd.DataFrame(
        [
            {
                "comparison": name,
                "n": pair["n"],
                "accuracy": pair["difference"],
                "low": pair["low"],
                "high": pair["high"],
                "macro F1": pair["macro_f1"]["difference"],
                "macro AUC": pair["macro_auc"]["difference"],
                "p McNemar": pair["p_mcnemar"],
                "p F1": pair["macro_f1"]["p_bootstrap"],
                "p AUC": pair["macro_auc"]["p_bootstrap"],
            }
            for name, pair in pairs.items()
        ]
    )
    columns = ["p McNemar", "p F1", "p AUC"]
    tests = rows[columns].to_numpy(dtype=float, copy=True)
    known = np.isfinite(tests)
    tests[known] = statistics.holm(tests[known])
    return rows.assign(**dict(zip(columns, tests.T, strict=True)))
