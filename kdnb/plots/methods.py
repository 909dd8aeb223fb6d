"""Figures of methods: what each transfers, what its targets are, and how they rank."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb import extras
from kdnb.plots.style import PALETTE, ROLES, done, label_rows, legend_right, offsets, start

scikit_posthocs = extras.late("scikit_posthocs")


def transfers(table: pd.DataFrame, title: str = "") -> Figure:
    """One line a method: a dot under everything that its student learns from.

    ``table`` has a row a method with the columns title (text) and, for each kind of knowledge, a
    column of booleans.
    """
    kinds = [name for name in table.columns if name not in ("title", "paper")]
    figure, axes = start(size=(10.0, 0.3 * len(table) + 0.9))
    axis = axes[0, 0]
    axis.hlines(range(len(table)), -0.5, len(kinds) - 0.5, color="0.9", linewidth=1, zorder=0)
    for column, kind in enumerate(kinds):
        rows = [row for row, held in enumerate(table[kind]) if held]
        axis.scatter([column] * len(rows), rows, color=PALETTE[column], s=60)
    for row, words in enumerate(table["title"]):
        axis.text(len(kinds) - 0.4, row, words, va="center", fontsize="small", color="0.3")
    axis.set(xlim=(-0.5, len(kinds) - 0.5))
    axis.set_xticks(range(len(kinds)), kinds)
    axis.xaxis.tick_top()
    axis.set_xlabel("its student learns from", loc="left")
    axis.xaxis.set_label_position("top")
    label_rows(axis, table.index)
    axis.tick_params(length=0)
    sns.despine(figure, left=True, bottom=True)
    return done(figure, title)


def softened_targets(
    image: np.ndarray,
    label: int,
    teacher: np.ndarray,
    softened: np.ndarray,
    classes: Sequence[str],
    weights: tuple[float, float],
    title: str = "",
) -> Figure:
    """One image beside the targets that a student gets for it, a group of bars for each class.

    ``image`` ``(H, W)`` or ``(H, W, 3)`` uint8 of class ``label``; the teacher's probabilities
    ``(K,)`` at temperature 1 and at T (``softened``); ``weights`` are α and T. The last bars are
    α · label + (1 − α) · softened teacher.
    """
    alpha, temperature = weights
    one_hot = np.eye(len(classes))[label]
    bars = {
        "label": (one_hot, "0.6"),
        "teacher": (teacher, ROLES["teacher"].color),
        f"teacher at T = {temperature:g}": (softened, PALETTE[9]),
        f"{alpha:g} · label + {1 - alpha:.3g} · softened": (
            alpha * one_hot + (1 - alpha) * softened,
            ROLES["distilled"].color,
        ),
    }
    height = max(2.4, 0.62 * len(classes) + 0.8)
    figure, ((left, right),) = start(1, 2, (3.6, height), gridspec_kw={"width_ratios": (1, 1.6)})
    left.imshow(image, cmap="gray", vmin=0, vmax=255)
    left.set(xticks=[], yticks=[])
    left.set_xlabel(textwrap.fill(classes[label], 24), fontsize="small")
    rows = np.arange(len(classes))
    for (words, (values, color)), offset in zip(bars.items(), offsets(4, 0.2), strict=True):
        right.barh(rows + offset, values, 0.19, color=color, label=words)
    label_rows(right, [textwrap.fill(name, 24) for name in classes])
    right.set(xlim=(0, 1), xlabel="probability")
    legend_right(right)
    sns.despine(figure)
    return done(figure, title)


def critical_difference(ranks: pd.Series, p_values: pd.DataFrame, title: str = "") -> Figure:
    """Critical-difference diagram (Demšar 2006, section 3.2.4): methods at their mean rank, the
    best on the left; a bar joins methods that a test does not tell apart at 5 %.

    ``ranks`` by method; ``p_values`` of each pair (methods × methods).
    """
    figure, axes = start(size=(8.4, 0.22 * len(ranks) + 1.6))
    scikit_posthocs.critical_difference_diagram(
        ranks,
        p_values,
        ax=axes[0, 0],
        label_fmt_left="{label} ({rank:.1f}) ",
        label_fmt_right=" ({rank:.1f}) {label}",
        color_palette=dict.fromkeys(ranks.index, "0.25"),
        label_props={"fontsize": "small"},
        crossbar_props={"color": PALETTE[1], "linewidth": 2.5},
    )
    axes[0, 0].set_xlabel("mean rank")
    axes[0, 0].xaxis.set_label_position("top")
    return done(figure, title)
