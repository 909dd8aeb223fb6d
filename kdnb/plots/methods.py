"""Figures of methods: what each transfers, and how they rank."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb import extras
from kdnb.plots.style import PALETTE, done, label_rows, start

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
