"""The style of all figures: one palette, and one colour and line style for each role of a network.

A network's role is ``teacher``, ``distilled`` or ``baseline`` (the same student trained without a
teacher). A table states it in a column ``role`` beside ``model``; a mapping by label is given with
``roles``, label → role. A network without a role ("" or no column) gets a colour of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnb import files


@dataclass(frozen=True)
class Style:
    """How a network is drawn: RGB ``color`` (values in [0, 1]) and line style ``dash``."""

    color: tuple[float, float, float]
    dash: str


# Okabe-Ito through seaborn: distinguishable with any colour vision.
PALETTE = sns.color_palette("colorblind")
ROLES = {
    "teacher": Style(PALETTE[0], "-"),
    "distilled": Style(PALETTE[1], "-"),
    "baseline": Style(PALETTE[7], "--"),
}
FORMER_ROLES = {"alone": "baseline"}  # the key in stored results
WITHOUT_ROLE = [Style(PALETTE[number], ":") for number in (2, 4, 8, 5, 6, 9)]
ORGAN, LESION = PALETTE[9], PALETTE[1]


def start(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.2), **options
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes ``(rows, columns)``, each of ``size`` width × height in inches."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        squeeze=False,
        **options,
    )
    return figure, axes


def done(figure: Figure, title: str = "") -> Figure:
    """The figure with its title, closed: a notebook shows the value of a cell, and an open figure
    would appear twice."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    plt.close(figure)
    return figure


def styles(labels: Iterable[str], roles: Mapping[str, str] | None = None) -> dict[str, Style]:
    """The style of each label by its role; further networks of the same role get lighter colours.

    Raises ``ValueError`` for a label that ``roles`` lacks, ``UnknownName`` for an unknown role.
    """
    found, seen = {}, Counter()
    for label in dict.fromkeys(labels):
        if roles is not None and label not in roles:
            raise ValueError(f"no role is given for {label!r}; roles: {dict(roles)}")
        role = (roles or {}).get(label, "")
        role = FORMER_ROLES.get(role, role)
        found[label] = _style(role, seen[role])
        seen[role] += 1
    return found


def _style(role: str, number: int) -> Style:
    if not role:
        return WITHOUT_ROLE[number % len(WITHOUT_ROLE)]
    style = ROLES[files.lookup(role, ROLES, "role")]
    if number == 0:
        return style
    share = 0.65**number  # of the colour; the rest is white
    return Style(tuple(1 - share * (1 - value) for value in style.color), style.dash)


def model_styles(table: pd.DataFrame) -> dict[str, Style]:
    """The style of each value of the column ``model`` by the column ``role``, where there is one.

    Raises ``UnknownName`` for an unknown role.
    """
    if "role" not in table:
        return styles(table["model"])
    return styles(table["model"], dict(zip(table["model"], table["role"], strict=True)))


def offsets(count: int, step: float) -> np.ndarray:
    """Places ``(count,)`` around 0, ``step`` apart, for marks that share a row."""
    return step * (np.arange(count) - (count - 1) / 2)


def intervals(
    axis: Axes, table: pd.DataFrame, value: str, rows: np.ndarray, scale: float = 1.0, **options
) -> None:
    """Values with their intervals (columns ``value``, low, high) as horizontal bars at ``rows``."""
    middle, low, high = (scale * table[name].to_numpy(float) for name in (value, "low", "high"))
    gap = np.abs(np.stack([middle - low, high - middle]))
    axis.errorbar(middle, rows, xerr=gap, **{"fmt": "o", "capsize": 3} | options)


def label_rows(axis: Axes, labels: Iterable[str]) -> None:
    """One tick per row, the first at the top."""
    labels = list(labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)


def percent(axis: Axes, which: str) -> None:
    """Show shares of 1 as percentages on the ``x`` or ``y`` axis."""
    getattr(axis, f"{which}axis").set_major_formatter(lambda x, _: f"{round(100 * x, 6):g} %")


def legend_right(axis: Axes, **options) -> None:
    """The legend outside the axes, at the upper right."""
    options = {"fontsize": "small", "title": None} | options
    axis.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left", **options)
