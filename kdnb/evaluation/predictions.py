"""Each network's answer for every test image, as a result file keeps it: paired differences over
several runs need them."""

from __future__ import annotations

import string

import numpy as np

DIGITS = string.digits + string.ascii_letters


def as_text(classes: np.ndarray) -> str:
    """Class numbers ``(N,)`` as a compact text: one character each, or spaces between where there
    are more than 62 classes."""
    if max(classes, default=0) < len(DIGITS):
        return "".join(DIGITS[number] for number in classes)
    return " ".join(map(str, classes))


def from_text(text: str) -> np.ndarray:
    """The class numbers of :func:`as_text`, ``(N,)``."""
    if " " in text:
        return np.array([int(number) for number in text.split()])
    return np.array([DIGITS.index(digit) for digit in text])


def truth(labels: np.ndarray, groups: np.ndarray) -> dict[str, str]:
    """``labels`` and ``groups`` ``(N,)`` of the test images as texts, groups numbered from 0."""
    number = np.unique(groups, return_inverse=True)[1]
    return {"labels": as_text(labels), "groups": " ".join(map(str, number))}


def labels_and_groups(held: dict) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of :func:`truth`."""
    return from_text(held["labels"]), np.array(held["groups"].split(), int)
