"""Metrics of predictions with their intervals, and paired comparisons, from labels and logits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from kdnb import checks
from kdnb.evaluation import statistics
from kdnb.evaluation.calibration import BINS, adaptive_bins, brier, calibration_error


def evaluate(
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    split: str = "",
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """All metrics of one set of predictions, as JSON-ready numbers, with their 95 % bootstrap
    intervals [low, high] under ``intervals``.

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``, ``classes`` K names; ``split`` is stored with the
    result; ``groups`` ``(N,)`` number images that belong together, which the bootstrap draws
    together; ``seed`` of the bootstrap. All values lie in [0, 1] but ``brier`` (up to 2) and
    ``cross_entropy`` (nats). A class that the labels lack has no recall and no ROC-AUC: its entry
    is None and averages are over the other classes. The precision of a class that is never
    predicted is 0. ``ece`` has equal bins, ``ece_adaptive`` equally filled ones; both are biased
    estimates. Raises ``ValueError`` for shapes or labels that do not fit, and for logits that are
    not finite.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    _check(labels, logits, classes, groups)
    probabilities, predicted = softmax(logits, axis=1), logits.argmax(1)
    per_class = _per_class(labels, predicted, probabilities, classes)
    every = np.arange(len(classes))
    recall, f1, auc = (
        [row[name] for row in per_class if row[name] is not None]
        for name in ("recall", "f1", "auc")
    )
    return {
        "n": len(labels),
        "split": split,
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.mean(recall)),
        "macro_f1": float(np.mean(f1)),
        "macro_auc": float(np.mean(auc)) if auc else None,
        "cross_entropy": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
        "ece": calibration_error(labels, logits),
        "ece_adaptive": calibration_error(labels, logits, adaptive=True),
        "brier": float(brier(labels, logits).mean()),
        "per_class": per_class,
        "confusion": sk.confusion_matrix(labels, predicted, labels=every).tolist(),
        "intervals": statistics.intervals(Measures(labels, logits), labels, groups, seed),
    }


def _check(
    labels: np.ndarray, logits: np.ndarray, classes: Sequence[str], groups: np.ndarray | None
) -> None:
    checks.shapes(
        labels=(labels, "N"),
        logits=(logits, "N K"),
        classes=(list(classes), "K"),
        groups=(groups, "N"),
    )
    checks.labels(labels, len(classes))
    if not np.isfinite(logits).all():
        raise checks.Diverged(
            "logits hold NaN or infinity: the training diverged; lower the learning rate (-p lr)"
        )


def _per_class(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> list[dict]:
    """One-against-rest metrics of each class; None where the labels do not define one."""
    every = np.arange(len(classes))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    rows = []
    for k in every:
        present, absent = support[k] > 0, support[k] < len(labels)
        auc = sk.roc_auc_score(labels == k, probabilities[:, k]) if present and absent else None
        rows.append(
            {
                "class": classes[k],
                "precision": float(precision[k]),
                "recall": float(recall[k]) if present else None,
                "f1": float(f1[k]) if present else None,
                "auc": None if auc is None else float(auc),
                "support": int(support[k]),
            }
        )
    return rows


class Measures:
    """The metrics of :func:`evaluate` for many bootstrap draws at once, vectorised over draws.

    Made of ``labels`` ``(N,)`` and ``logits`` ``(N, K)``, and called with counts ``(draws, N)``, it
    gives ``{metric: (draws,)}``; a row of ones gives the metrics themselves.
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
        hits, truth, chosen = (np.einsum("bkk->bk", matrix), matrix.sum(2), matrix.sum(1))
        recall = hits / np.maximum(truth, 1)
        f1 = 2 * hits / np.maximum(truth + chosen, 1)
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
    """Mean recall, in [0, 1], of the classes that occur in ``labels`` ``(N,)``; ``predicted``
    ``(N,)`` are class numbers."""
    with warnings.catch_warnings():
        # a small validation set may lack a class that is predicted
        warnings.simplefilter("ignore")
        return float(sk.balanced_accuracy_score(labels, predicted))


def compare(
    labels: np.ndarray,
    logits: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """Differences in accuracy, macro F1 and macro AUC of one model to another on the same images,
    with 95 % intervals of a paired bootstrap.

    ``labels`` ``(N,)``; ``logits`` and ``other`` ``(N, K)`` of the two models; ``groups`` ``(N,)``
    number images that belong together. Differences are shares of 1, first minus second.
    ``p_mcnemar`` is exact (McNemar 1947) and treats images as independent; ``macro_f1`` and
    ``macro_auc`` hold difference, low, high and the p of the bootstrap. Raises ``ValueError`` for
    shapes that do not fit.
    """
    checks.shapes(
        labels=(labels, "N"), logits=(logits, "N K"), other=(other, "N K"), groups=(groups, "N")
    )
    labels = np.asarray(labels)
    right, other_right = (np.asarray(z).argmax(1) == labels for z in (logits, other))
    p_value, better, worse = statistics.mcnemar(right, other_right)
    one, two = Measures(labels, logits), Measures(labels, other)
    ones = np.ones((1, len(labels)), np.float32)
    first, second = one(ones), two(ones)
    found = {}
    parts = [(one(counts), two(counts)) for counts in statistics.draws(labels, groups, seed=seed)]
    for name in ("accuracy", "macro_f1", "macro_auc"):
        drawn = np.concatenate([a[name] - b[name] for a, b in parts])
        difference = float((first[name] - second[name])[0])
        limits = statistics.interval(drawn)
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
    """Results of :func:`evaluate` as text, ``0.956 [0.943, 0.966]``: a row per label of ``scores``,
    a column per metric, n and split."""
    rows = {
        name: {metric: _with_interval(score, metric) for metric in metrics}
        | {"n": score["n"], "split": score["split"]}
        for name, score in scores.items()
    }
    return pd.DataFrame(rows).T


def _with_interval(score: dict, metric: str) -> str:
    value, limits = score[metric], score["intervals"][metric]
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else "")


def table_of_tests(pairs: dict[str, dict]) -> pd.DataFrame:
    """Results of :func:`compare` as a table, one row per label of ``pairs``; the p values are
    corrected over the whole table (Holm 1979)."""
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
