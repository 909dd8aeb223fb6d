"""How good predictions are: metrics, calibration and paired intervals, from labels and logits alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 3


def evaluate(labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> dict:
    """All metrics of one set of predictions, as JSON-ready numbers in [0, 1].

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``. A class that the labels lack has no recall and no ROC-AUC: its entry is
    None and the averages are over the classes there are. A precision without any prediction of that class is 0.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity: the training diverged; lower the learning rate (-p lr)")
    probabilities, predicted = softmax(logits, axis=1), logits.argmax(1)
    every = np.arange(len(classes))
    present = np.isin(every, labels)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    auc = [sk.roc_auc_score(labels == k, probabilities[:, k]) if 0 < support[k] < len(labels) else None for k in every]
    known = [value for value in auc if value is not None]
    return {
        "n": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "macro_auc": float(np.mean(known)) if known else None,
        "cross_entropy": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
        "ece": calibration_error(labels, logits),
        "per_class": [
            {"class": classes[k], "precision": float(precision[k]), "recall": float(recall[k]) if present[k] else None,
             "f1": float(f1[k]) if present[k] else None, "auc": auc[k] if auc[k] is None else float(auc[k]),
             "support": int(support[k])}
            for k in every
        ],
        "confusion": sk.confusion_matrix(labels, predicted, labels=every).tolist(),
    }  # fmt: skip


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the classes that occur in ``labels``, in [0, 1]."""
    with warnings.catch_warnings():  # classes that are predicted but absent are expected in small validation sets
        warnings.simplefilter("ignore")
        return float(sk.balanced_accuracy_score(labels, predicted))


def reliability(labels: np.ndarray, logits: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Confidence of the predicted class in equal bins of [0, 1]: columns confidence, accuracy, count; empty bins left out.

    Guo et al. 2017, arXiv:1706.04599, equations 1-3. Ours because scikit-learn's ``calibration_curve`` is binary and
    gives no counts.
    """
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    table = pd.DataFrame({"confidence": probabilities.max(1), "accuracy": probabilities.argmax(1) == np.asarray(labels)})
    which = np.minimum((table["confidence"] * bins).astype(int), bins - 1)
    grouped = table.groupby(which).mean()
    return grouped.assign(count=table.groupby(which).size()).reset_index(drop=True)


def calibration_error(labels: np.ndarray, logits: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: Σ (bin count / N) · |accuracy − confidence|, in [0, 1] (same source, equation 3)."""
    table = reliability(labels, logits, bins)
    return float(((table["accuracy"] - table["confidence"]).abs() * table["count"]).sum() / table["count"].sum())


def compare(labels: np.ndarray, logits: np.ndarray, other: np.ndarray, seed: int = 0) -> dict:
    """Accuracy of one model minus another's on the same images: difference, 95 % bootstrap interval, exact McNemar p.

    The interval resamples images (percentile, 2,000 draws); McNemar's test is the binomial test on the images on which
    exactly one of the two is right.
    """
    right, other_right = (np.asarray(z).argmax(1) == labels for z in (logits, other))
    gain = right.astype(float) - other_right
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    if better + worse == 0:
        low = high = 0.0
    else:
        result = stats.bootstrap((gain,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
        low, high = (float(value) for value in result.confidence_interval)
    p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {"difference": float(gain.mean()), "low": low, "high": high, "p_mcnemar": p_value,
            "only_first_right": better, "only_second_right": worse, "n": len(gain)}  # fmt: skip
