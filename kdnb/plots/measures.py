"""Figures of measurements on explanations and layers: faithfulness, similarity, execution time."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdnb.plots.style import (
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

CONTROLS = {"random map": ("0.4", ":"), "centre prior": ("0.4", "--")}  # grey: they use no network
SIMILARITIES = {
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "top10_iou": "IoU of the highest tenth",
    "js_divergence": "Jensen-Shannon divergence",
    "ssim": "SSIM",
}


def measures(table: pd.DataFrame, labels: Mapping[str, str], title: str = "") -> Figure:
    """One panel per measure: mean and 95 % interval of each method (row) for each model (colour).

    ``table`` has the columns method, model, measure, mean, low, high and, where models have roles,
    role; ``labels`` name the measures to draw → axis label.
    """
    methods, looks = list(dict.fromkeys(table["method"])), model_styles(table)
    columns = min(4, len(labels))
    size = (3.1, max(0.3, 0.16 * len(looks)) * len(methods) + 1.2)
    figure, axes = start(-(-len(labels) // columns), columns, size, sharey=True)
    for axis in axes.flat[len(labels) :]:
        axis.set_visible(False)
    for axis, (measure, label) in zip(axes.flat, labels.items(), strict=False):
        part = table[table["measure"] == measure]
        for (model, style), shift in zip(looks.items(), offsets(len(looks), 0.22), strict=True):
            rows = part[part["model"] == model].set_index("method").reindex(methods)
            spots = np.arange(len(methods)) + shift
            options = {"markersize": 4, "capsize": 2, "color": style.color, "label": model}
            intervals(axis, rows, "mean", spots, **options)
        axis.set_xlabel(textwrap.fill(label, 34), fontsize="small")
        label_rows(axis, methods)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    sns.despine(figure)
    return done(figure, title)


def removal_curves(curves: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Mean probability of the class while the most relevant pixels are deleted or inserted.

    ``curves[method]`` maps ``deletion`` and ``insertion`` to ``(N, steps + 1)`` probabilities.
    """
    figure, (axes,) = start(1, 2, (4.4, 3.2), sharey=True)
    looks = itertools.product(("-", "-.", (0, (1, 1))), sns.color_palette("colorblind"))
    for method, kinds in curves.items():
        color, dash = CONTROLS.get(method) or next(looks)[::-1]
        for axis, kind in zip(axes, ("deletion", "insertion"), strict=True):
            mean = kinds[kind].mean(0)
            axis.plot(np.linspace(0, 1, len(mean)), mean, color=color, linestyle=dash, label=method)
    axes[0].set(xlabel="most relevant pixels deleted", ylabel="probability of the class")
    axes[0].set_title("deletion (lower is better)", fontsize="small")
    axes[1].set(xlabel="most relevant pixels inserted")
    axes[1].set_title("insertion (higher is better)", fontsize="small")
    for axis in axes:
        percent(axis, "x")
    legend_right(axes[1], fontsize="x-small")
    sns.despine(figure)
    return done(figure, title)


def randomisation(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Similarity of maps to those of the trained network while its weights are re-initialised from
    the head down to the stem, one line per method.

    ``tables`` method → table with the columns stage and spearman (in [-1, 1]).
    """
    figure, axes = start(size=(6.2, 4.0))
    axis = axes[0, 0]
    looks = itertools.product(("-", "--"), sns.color_palette("colorblind", 7))
    shapes = itertools.cycle("osD^vPX")
    for (method, table), (dash, color), shape in zip(
        tables.items(), itertools.cycle(looks), shapes, strict=False
    ):
        line = {"color": color, "linestyle": dash, "marker": shape, "markersize": 4}
        axis.plot(table["stage"], table["spearman"], label=method, **line)
    axis.axhline(0, color="0.7", linewidth=1)
    axis.set(ylabel="rank correlation with the original map", ylim=(-1.05, 1.05))
    axis.set(xlabel="re-initialised layers, from the head down")
    axis.tick_params(axis="x", labelsize="x-small", rotation=15)
    legend_right(axis, fontsize="x-small")
    sns.despine(figure)
    return done(figure, title)


def map_similarity(table: pd.DataFrame, measure: str = "spearman", title: str = "") -> Figure:
    """Similarity of explanation maps to those of the teacher, with 95 % intervals.

    ``table`` has the columns comparison (what is compared with the teacher), measure, mean, low,
    high and, where comparisons have roles, role.
    """
    rows = table[table["measure"] == measure].reset_index(drop=True)
    looks = model_styles(rows.rename(columns={"comparison": "model"}))
    figure, axes = start(size=(6.2, 0.42 * len(rows) + 1.1))
    axis = axes[0, 0]
    for place, (name, style) in enumerate(looks.items()):
        one = rows[rows["comparison"] == name]
        intervals(axis, one, "mean", np.array([place]), color=style.color)
    axis.axvline(0, color="0.7", linewidth=1)
    label_rows(axis, looks)
    axis.set_xlabel(f"{SIMILARITIES[measure]} with the teacher's map (95 % interval)")
    sns.despine(figure)
    return done(figure, title)


def execution_times(table: pd.DataFrame, title: str = "") -> Figure:
    """Mean execution time of each explanation method for each model; logarithmic for several
    methods, which differ by orders of magnitude.

    ``table`` has the columns method, model, seconds (per image) and, where models have roles, role.
    """
    methods = len(set(table["method"]))
    several = methods > 1
    figure, axes = start(size=(6.2, 0.34 * methods + 1.2))
    axis = axes[0, 0]
    colors = {model: style.color for model, style in model_styles(table).items()}
    sns.barplot(table, y="method", x="seconds", hue="model", palette=colors, ax=axis)
    axis.set(xscale="log" if several else "linear", ylabel="")
    axis.set_xlabel(f"seconds per image{' (logarithmic)' if several else ''}")
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)


def layer_similarity(table: pd.DataFrame, rows: str, columns: str, title: str = "") -> Figure:
    """Heat map of the CKA between the layers of two networks, the first layers at the lower left.

    ``table`` holds a row per layer of the network ``rows``, a column per layer of ``columns``.
    """
    figure, axes = start(size=(0.34 * table.shape[1] + 2.6, 0.3 * table.shape[0] + 1.8))
    sns.heatmap(
        table.iloc[::-1],
        vmin=0,
        vmax=1,
        cmap="viridis",
        ax=axes[0, 0],
        xticklabels=True,
        yticklabels=True,
        cbar_kws={"label": "linear CKA"},
    )
    axes[0, 0].set(xlabel=f"layers of {columns}, first to last", ylabel=f"layers of {rows}")
    axes[0, 0].tick_params(labelsize="xx-small")
    return done(figure, title)


def probes(
    tables: Mapping[str, pd.DataFrame],
    chance: float,
    roles: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Balanced accuracy of linear probes by depth, one line per network.

    ``tables`` label → table with the columns depth (0 first layer, 1 last) and balanced_accuracy
    (share of 1); ``chance`` in [0, 1] is drawn as a line; ``roles`` label → role.
    """
    figure, axes = start(size=(6.0, 3.4))
    axis = axes[0, 0]
    for label, style in styles(tables, roles).items():
        line = {"color": style.color, "linestyle": style.dash, "marker": "o", "markersize": 4}
        axis.plot(tables[label]["depth"], tables[label]["balanced_accuracy"], label=label, **line)
    axis.axhline(chance, color="0.6", linewidth=1, linestyle=":", label="chance")
    axis.set(xlabel="relative depth (0: first layer, 1: last)", ylabel="balanced test accuracy")
    percent(axis, "y")
    axis.xaxis.set_major_locator(MaxNLocator(6))
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)
