"""Calibration: reliability, expected calibration error, Brier score, temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from kdnb import checks

BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 3


def adaptive_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin ``(N,)`` of each image by its ``confidence`` ``(N,)``: equal numbers of images, equal
    confidences in one bin (Nguyen & O'Connor 2015, section 3)."""
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    return np.searchsorted(edges, confidence, side="right")


def reliability(
    labels: np.ndarray, logits: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> pd.DataFrame:
    """Accuracy by confidence of the predicted class: a row per non-empty bin, columns confidence
    and accuracy (means, in [0, 1]) and count.

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``. Bins are equal parts of [0, 1] or, if ``adaptive``,
    hold equal numbers of images. Guo et al. 2017, arXiv:1706.04599, equations 1 to 3. Written here
    because scikit-learn's ``calibration_curve`` is binary and gives no counts. Raises
    ``ValueError`` for shapes that do not fit or ``bins`` below 1.
    """
    checks.shapes(labels=(labels, "N"), logits=(logits, "N K"))
    checks.within(1, np.inf, bins=bins)
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    table = pd.DataFrame(
        {
            "confidence": probabilities.max(1),
            "accuracy": probabilities.argmax(1) == np.asarray(labels),
        }
    )
    equal = np.minimum((table["confidence"].to_numpy() * bins).astype(int), bins - 1)
    which = adaptive_bins(table["confidence"].to_numpy(), bins) if adaptive else equal
    grouped = table.groupby(which).mean()
    return grouped.assign(count=table.groupby(which).size()).reset_index(drop=True)


def calibration_error(
    labels: np.ndarray, logits: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> float:
    """Expected calibration error, in [0, 1]: Σ (bin count / N) · |accuracy − confidence|.

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``; bins as in :func:`reliability`. Guo et al. 2017,
    arXiv:1706.04599, equation 3. Raises ``ValueError`` for shapes that do not fit.
    """
    table = reliability(labels, logits, bins, adaptive)
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def brier(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Brier score ``(N,)`` of each image, Σ_k (p_k − y_k)², in [0, 2] (Brier 1950).

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``. Raises ``ValueError`` for shapes or labels that do
    not fit.
    """
    checks.shapes(labels=(labels, "N"), logits=(logits, "N K"))
    checks.labels(labels, np.shape(logits)[1])
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return ((probabilities - np.eye(probabilities.shape[1])[np.asarray(labels)]) ** 2).sum(1)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature, between 0.05 and 20, that minimises the cross-entropy of validation logits.

    ``labels`` ``(N,)``, ``logits`` ``(N, K)``. The loss is convex in 1/T, so that a bounded scalar
    search finds its only minimum. Guo et al. 2017, arXiv:1706.04599, section 4.2. Raises
    ``ValueError`` for shapes that do not fit.
    """
    checks.shapes(labels=(labels, "N"), logits=(logits, "N K"))
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)

    def loss(log_inverse):
        likelihood = log_softmax(logits * np.exp(log_inverse), axis=1)
        return float(-likelihood[np.arange(len(labels)), labels].mean())

    limits = (-np.log(20), np.log(20))
    return float(np.exp(-minimize_scalar(loss, bounds=limits, method="bounded").x))


def scores(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    """Calibration of logits ``(N, K)``, divided by ``temperature``, against ``labels`` ``(N,)``:
    ``ece`` with adaptive bins, ``brier`` and ``cross_entropy`` (nats).

    Raises ``ValueError`` for a temperature that is not positive or shapes that do not fit.
    """
    checks.positive(temperature=temperature)
    logits = np.asarray(logits, float) / temperature
    likelihood = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return {
        "ece": calibration_error(labels, logits, adaptive=True),
        "brier": float(brier(labels, logits).mean()),
        "cross_entropy": float(-likelihood.mean()),
    }


@dataclass(frozen=True)
class TemperatureScaling:
    """Temperature scaling of one model: the fitted ``temperature``, and the :func:`scores` of the
    test logits ``before`` and ``after`` division by it."""

    temperature: float
    before: dict[str, float]
    after: dict[str, float]


def calibrate(
    val_labels: np.ndarray,
    val_logits: np.ndarray,
    test_labels: np.ndarray,
    test_logits: np.ndarray,
) -> TemperatureScaling:
    """Fit a temperature to validation logits and apply it to test logits.

    ``val_labels`` ``(M,)``, ``val_logits`` ``(M, K)``, ``test_labels`` ``(N,)``, ``test_logits``
    ``(N, K)``. Guo et al. 2017, arXiv:1706.04599, section 4.2. Raises ``ValueError`` for shapes
    that do not fit.
    """
    temperature = fit_temperature(val_labels, val_logits)
    before, after = (scores(test_labels, test_logits, t) for t in (1.0, temperature))
    return TemperatureScaling(temperature, before, after)
