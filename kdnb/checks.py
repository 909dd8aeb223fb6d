"""Checks of arguments: shapes and ranges, with errors that name the parameter (types are checked by
``kdnb/__init__``)."""

from __future__ import annotations

import math

import numpy as np

from kdnb import errors


class Diverged(
    errors.UserError,
    FloatingPointError,
    ValueError,
    code="KD401",
    way_out="lower the learning rate with -p lr; if the network was stored, remove its folder in "
    "the cache",
):
    """Losses or answers of a network are NaN or infinite; the message names the network."""


def shapes(**named: tuple[object, str]) -> None:
    """Compare shapes with letters, where the same letter is the same size:
    ``shapes(labels=(labels, "N"), logits=(logits, "N K"))``.

    None is skipped. Raises ``ValueError`` with the parameter's name, its expected and its actual
    shape.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, (array, letters) in named.items():
        if array is None:
            continue
        shape, wanted = tuple(np.shape(array)), letters.split()
        if len(shape) != len(wanted):
            raise ValueError(f"{name} must be ({', '.join(wanted)}), got shape {shape}")
        for letter, size in zip(wanted, shape, strict=True):
            known, first = sizes.setdefault(letter, (size, name))
            if size != known:
                raise ValueError(
                    f"{name} must be ({', '.join(wanted)}) with {letter} = {known} as in {first}, "
                    f"got shape {shape}"
                )


def within(low: float, high: float, **named: float | None) -> None:
    """Each number must lie in [``low``, ``high``]; None is skipped. Raises ``ValueError``."""
    for name, value in named.items():
        if value is not None and not low <= value <= high:
            limit = (
                f"be at least {low:g}" if math.isinf(high) else f"lie between {low:g} and {high:g}"
            )
            raise ValueError(f"{name} must {limit}, got {value}")


def positive(**named: float) -> None:
    """Each number must be above 0 and finite. Raises ``ValueError``."""
    for name, value in named.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, got {value}")


def labels(values: np.ndarray, num_classes: int, name: str = "labels") -> None:
    """Class indices must be integers between 0 and ``num_classes`` − 1. Raises ``ValueError``."""
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be whole numbers, got {values.dtype}")
    if len(values) and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(
            f"{name} must lie between 0 and {num_classes - 1}, got {values.min()} to {values.max()}"
        )
