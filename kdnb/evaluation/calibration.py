"""Whether confidence can be taken at its word: reliability, calibration error, Brier score,
temperature scaling."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from kdnb import checks

BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 3


def adaptive_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each image, ``(N,)``: as many images in each, equal confidences together (Nguyen &
    O'Connor 2015, section 3)."""
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    return np.searchsorted(edges, confidence, side="right")


def reliability(
    labels: np.ndarray, logits: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> pd.DataFrame:
    """Confidence of the predicted class in bins: columns confidence, accuracy, count; empty bins
    left out.

    Bins are equal parts of [0, 1], or hold equal numbers of images if ``adaptive``. Guo et al.
    2017, equations 1-3. Ours because scikit-learn's ``calibration_curve`` is binary and gives no
    counts.
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
    """Expected calibration error: Σ (bin count / N) · |accuracy − confidence|, in [0, 1] (same
    source, equation 3)."""
    table = reliability(labels, logits, bins, adaptive)
    return float(
        ((table["accuracy"] - table["confidence"]).abs() * table["count"]).sum()
        / table["count"].sum()
    )


def brier(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Brier score of each image, Σ_k (p_k − y_k)², in [0, 2], shape ``(N,)`` (Brier 1950)."""
    checks.shapes(labels=(labels, "N"), logits=(logits, "N K"))
    checks.labels(labels, np.shape(logits)[1])
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return ((probabilities - np.eye(probabilities.shape[1])[np.asarray(labels)]) ** 2).sum(1)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature that makes validation logits likeliest, between 0.05 and 20 (Guo et al. 2017,
    section 4.2).

    The likelihood is convex in 1/T: a bounded scalar search finds its only maximum.
    """
    checks.shapes(labels=(labels, "N"), logits=(logits, "N K"))
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)

    def loss(log_inverse):
        return float(
            -log_softmax(logits * np.exp(log_inverse), axis=1)[
                np.arange(len(labels)), labels
            ].mean()
        )

    return float(
        np.exp(-minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded").x)
    )


def before_and_after(
    labels: np.ndarray, logits: np.ndarray, temperature: float
) -> dict[str, dict[str, float]]:
    """ECE (adaptive bins), Brier score and cross-entropy of test logits as they are and divided by
    ``temperature``."""
    checks.positive(temperature=temperature)
    rows = {}
    for name, z in (
        ("before", np.asarray(logits, float)),
        ("after", np.asarray(logits, float) / temperature),
    ):
        likelihood = log_softmax(z, axis=1)[np.arange(len(labels)), labels]
        rows[name] = {
            "ece": calibration_error(labels, z, adaptive=True),
            "brier": float(brier(labels, z).mean()),
            "cross_entropy": float(-likelihood.mean()),
        }
    return rows
