"""Figures of training and of predictions: learning curves, confusion, calibration, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdnb.plots.style import (
    PALETTE,
    Style,
    done,
    intervals,
    label_rows,
    legend_right,
    model_styles,
    offsets,
    percent,
    start,
    styles,
)

ROLE_OF_ITSELF = {role: role for role in ("teacher", "distilled", "baseline")}


def learning_curves(
    histories: Mapping[str, pd.DataFrame],
    roles: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Loss and balanced accuracy by epoch for each run; a dot marks the epoch whose weights are
    kept.

    ``histories`` label → table with the columns epoch, hard_loss, val_loss and
    val_balanced_accuracy (share of 1); ``roles`` label → role.
    """
    figure, ((loss, accuracy),) = start(1, 2, (4.8, 3.4))
    for label, style in styles(histories, roles).items():
        history, line = histories[label], {"color": style.color, "linestyle": style.dash}
        ranked = history.sort_values(["val_balanced_accuracy", "val_loss"], ascending=[False, True])
        best = ranked.iloc[0]
        loss.plot(history["epoch"], history["val_loss"], label=label, **line)
        loss.plot(history["epoch"], history["hard_loss"], alpha=0.35, **line)
        accuracy.plot(history["epoch"], history["val_balanced_accuracy"], label=label, **line)
        accuracy.plot(
            best["epoch"], best["val_balanced_accuracy"], "o", color=style.color, markersize=6
        )
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    loss.set_title("validation (faint: training)", fontsize="small")
    accuracy.set(xlabel="epoch", ylabel="balanced accuracy")
    accuracy.set_title("validation (dot: epoch kept)", fontsize="small")
    percent(accuracy, "y")
    for axis in figure.axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_right(accuracy)
    sns.despine(figure)
    return done(figure, title)


def confusion(
    matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], title: str = ""
) -> Figure:
    """Confusion matrices side by side: the number is the count of images, the shade its share of
    the true class.

    ``matrices`` label → counts ``(K, K)``, true class by predicted class.
    """
    names = [textwrap.fill(name, 16) for name in classes]
    side = max(3.2, 0.65 * len(classes) + 1.4)
    figure, axes = start(1, len(matrices), (side, side), sharey=True)
    for axis, (label, matrix) in zip(axes.flat, matrices.items(), strict=True):
        counts = np.asarray(matrix)
        sns.heatmap(
            counts / np.maximum(counts.sum(1, keepdims=True), 1),
            annot=counts,
            fmt="d",
            cmap="Blues",
            vmin=0,
            vmax=1,
            cbar=False,
            square=True,
            ax=axis,
            xticklabels=names,
            yticklabels=names,
            linewidths=0.5,
        )
        axis.set_title(label, fontsize="small")
        axis.set_xlabel("predicted class")
        axis.tick_params(axis="x", rotation=40)
        axis.tick_params(axis="y", rotation=0)
        plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    axes[0, 0].set_ylabel("true class")
    return done(figure, title)


def reliability(
    tables: Mapping[str, pd.DataFrame],
    errors: Mapping[str, float],
    roles: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Reliability diagram: accuracy against confidence of the predicted class, one dot per bin, its
    area the number of images.

    ``tables`` label → table of ``evaluation.reliability``; ``errors`` label → expected calibration
    error; ``roles`` label → role.
    """
    figure, axes = start(size=(7.2, 4.2))
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect calibration")
    for label, style in styles(tables, roles).items():
        table = tables[label]
        share = table["count"] / table["count"].sum()
        axis.plot(
            table["confidence"],
            table["accuracy"],
            color=style.color,
            linestyle=style.dash,
            label=f"{label} (ECE {errors[label]:.3f})",
        )
        axis.scatter(table["confidence"], table["accuracy"], s=150 * share + 6, color=style.color)
    lowest = min(table["confidence"].min() for table in tables.values())
    axis.set(xlim=(max(0, lowest - 0.05), 1.02), ylim=(0, 1.03))
    axis.set(xlabel="confidence of the predicted class", ylabel="accuracy")
    percent(axis, "x")
    percent(axis, "y")
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)


def forest(table: pd.DataFrame, title: str = "", measure: str = "accuracy") -> Figure:
    """Forest plot: differences of a measure with their 95 % intervals, in percentage points.

    ``table`` has the columns label, difference, low, high (shares of 1) and, for a panel per
    group, group.
    """
    groups = table.groupby("group", sort=False) if "group" in table else [("", table)]
    groups = dict(tuple(groups))
    heights = [len(part) + 0.8 for part in groups.values()]
    figure, axes = start(
        len(groups),
        1,
        (8.4, (0.34 * sum(heights) + 1.1) / len(groups)),
        sharex=True,
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (name, part) in zip(axes.flat, groups.items(), strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        intervals(axis, part, "difference", np.arange(len(part)), 100, color=PALETTE[1])
        label_rows(axis, part["label"])
        axis.tick_params(axis="y", length=0, labelsize="small")
        axis.set_title(name, loc="left", fontsize="small")
    axes[-1, 0].set_xlabel(f"difference in test {measure} (percentage points, 95 % interval)")
    sns.despine(figure, left=True)
    return done(figure, title)


def accuracy_grid(
    table: pd.DataFrame, marked: tuple[float, float] | None = None, title: str = ""
) -> Figure:
    """Heat map of test accuracy by label weight α (rows) and temperature T (columns).

    ``table`` holds shares of 1, NaN where a cell was not run; the cell ``marked`` (α, T) is framed.
    """
    figure, axes = start(size=(0.95 * table.shape[1] + 1.9, 0.6 * table.shape[0] + 1.3))
    axis = axes[0, 0]
    sns.heatmap(
        100 * table,
        annot=True,
        fmt=".1f",
        cmap="Blues",
        linewidths=0.5,
        ax=axis,
        cbar_kws={"label": "test accuracy (%)"},
    )
    if marked and marked[0] in table.index and marked[1] in table.columns:
        corner = list(table.columns).index(marked[1]), list(table.index).index(marked[0])
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE[3], linewidth=2.5))
    axis.set(xlabel="temperature T", ylabel="label weight α")
    axis.tick_params(axis="y", rotation=0)
    return done(figure, title)


def accuracy_by_share(table: pd.DataFrame, title: str = "") -> Figure:
    """Balanced test accuracy of each method over the shares of the labels, with 95 % intervals.

    ``table`` has the columns share (of 1), method, balanced_accuracy, low, high (shares of 1).
    Methods whose name begins with ``teacher`` are drawn as teachers.
    """
    figure, axes = start(size=(5.6, 3.6))
    axis, methods = axes[0, 0], list(dict.fromkeys(table["method"]))
    roles = {name: "teacher" if name.startswith("teacher") else "" for name in methods}
    looks = styles(methods, roles)
    for (method, style), shift in zip(looks.items(), offsets(len(looks), 0.04), strict=True):
        rows = table[table["method"] == method].sort_values("share")
        bounds = {bound: f"{method} {bound}" for bound in ("low", "high")}
        rows = rows.rename(columns={"balanced_accuracy": method} | bounds)
        _with_bars(axis, rows, method, float(np.exp(shift)), style)
    _over_shares(axis, sorted(table["share"].unique()))
    axis.set(ylabel="balanced test accuracy")
    percent(axis, "y")
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)


def accuracy_by_split(table: pd.DataFrame, title: str = "") -> Figure:
    """Balanced test accuracy of several training seeds under each split, with 95 % intervals.

    ``table`` has the columns split, seed, balanced_accuracy, low, high (shares of 1) and n.
    """
    figure, axes = start(size=(5.6, 0.7 * table["split"].nunique() + 1.2))
    axis, labels = axes[0, 0], []
    for place, (name, rows) in enumerate(table.groupby("split", sort=False)):
        spots = place + offsets(len(rows), 0.16)
        color = PALETTE[place % len(PALETTE)]
        intervals(axis, rows, "balanced_accuracy", spots, color=color, markersize=4)
        mean = rows["balanced_accuracy"].mean()
        axis.plot([mean, mean], [place - 0.3, place + 0.3], color="0.3", linewidth=1.5)
        labels.append(f"{name} (n = {rows['n'].iloc[0]:,})")
    label_rows(axis, labels)
    axis.set_xlabel("balanced test accuracy (95 % interval; line: mean over seeds)")
    percent(axis, "x")
    sns.despine(figure)
    return done(figure, title)


def accuracy_by_view(table: pd.DataFrame, chance: float, title: str = "") -> Figure:
    """Balanced test accuracy of each model from each partial view of the images, with 95 %
    intervals.

    ``table`` has the columns view, model, balanced_accuracy, low, high (shares of 1) and, where
    models have roles, role; ``chance`` in [0, 1] is drawn as a line.
    """
    names, looks = list(dict.fromkeys(table["view"])), model_styles(table)
    figure, axes = start(size=(6.0, 0.42 * len(names) + 1.5))
    axis = axes[0, 0]
    for (model, style), shift in zip(looks.items(), offsets(len(looks), 0.2), strict=True):
        rows = table[table["model"] == model].set_index("view").reindex(names)
        spots = np.arange(len(names)) + shift
        intervals(axis, rows, "balanced_accuracy", spots, color=style.color, label=model)
    axis.axvline(chance, color="0.5", linewidth=1, linestyle=":", label="chance")
    label_rows(axis, names)
    axis.set(xlabel="balanced test accuracy (95 % interval)", xlim=(0, 1.02))
    percent(axis, "x")
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)


def label_shares(table: pd.DataFrame, title: str = "") -> Figure:
    """Balanced test accuracy of teacher, distilled student and baseline by the share of the
    training labels, and distilled minus baseline, with 95 % intervals.

    ``table`` has the columns share and, for teacher, distilled, baseline and difference, the value
    and its bounds ``… low`` and ``… high`` (shares of 1). The band of the difference is ±1 point.
    """
    figure, ((accuracy, gain),) = start(1, 2, (4.6, 3.4))
    known = styles(("teacher", "distilled", "baseline"), ROLE_OF_ITSELF)
    for place, (role, style) in zip((0.97, 1.0, 1.03), known.items(), strict=True):
        _with_bars(accuracy, table, role, place, style)
    accuracy.set(ylabel="balanced test accuracy")
    accuracy.legend()
    gain.axhspan(-1, 1, color="0.92")
    gain.axhline(0, color="0.6", linewidth=1)
    points = table.drop(columns=["seeds", "n", "epochs"], errors="ignore").mul(100)
    _with_bars(gain, points.assign(share=table["share"]), "difference", 1.0, known["distilled"])
    gain.set(ylabel="distilled − baseline (points)")
    for axis in (accuracy, gain):
        _over_shares(axis, table["share"].tolist())
    percent(accuracy, "y")
    sns.despine(figure)
    return done(figure, title)


def _over_shares(axis: Axes, shares: Sequence[float]) -> None:
    """Shares of the labels on a logarithmic x axis: equal steps are equal factors."""
    axis.set(xscale="log", xlabel="share of the training labels")
    axis.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    axis.minorticks_off()


def _with_bars(axis: Axes, table: pd.DataFrame, name: str, place: float, style: Style) -> None:
    """A line with vertical bars from ``… low`` to ``… high``, moved by a factor on the x axis."""
    below, above = table[name] - table[f"{name} low"], table[f"{name} high"] - table[name]
    line = {"color": style.color, "linestyle": style.dash, "marker": "o", "markersize": 4}
    axis.errorbar(place * table["share"], table[name], yerr=[below, above], label=name, **line)


def agreement(table: pd.DataFrame, title: str = "") -> Figure:
    """Matrix of Cohen's kappa between classifiers, with the share of images on which they disagree.

    ``table`` has one row a pair: one, other, kappa (in [−1, 1]) and disagreement (share of 1).
    """
    names = list(dict.fromkeys([*table["one"], *table["other"]]))
    kappa = pd.DataFrame(np.nan, names, names)
    words = pd.DataFrame("", names, names)
    for row in table.itertuples():
        for pair in ((row.one, row.other), (row.other, row.one)):
            kappa.loc[pair] = row.kappa
            words.loc[pair] = f"{row.kappa:.2f}\n{row.disagreement:.0%}".replace("-", "−")
    figure, axes = start(size=(1.15 * len(names) + 3.2, 0.75 * len(names) + 1.6))
    axis = axes[0, 0]
    options = {"cmap": "viridis", "linewidths": 0.5, "cbar_kws": {"label": "kappa"}}
    sns.heatmap(kappa, annot=words, fmt="", vmin=0, vmax=1, ax=axis, **options)
    wrapped = [textwrap.fill(name, 14, break_long_words=False) for name in names]
    axis.set_xticklabels(wrapped, rotation=0)
    axis.tick_params(labelsize="small", rotation=0)
    axis.set_title("kappa, share of images with different answers", loc="left", fontsize="small")
    return done(figure, title)
