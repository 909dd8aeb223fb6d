"""Figures of what networks cost and what they can: accuracy against latency, fronts of a search,
predictions of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from kdnb.plots.style import PALETTE, done, role_style, start


def _logarithmic(axis: Axes) -> None:
    """A logarithmic x axis with few plain labels, at 1 and 3 of each decade: networks differ by one
    or two of them."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e5 else f"{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def predictor(measured: Sequence[float], predicted: Sequence[float], title: str = "") -> Figure:
    """Predicted against measured milliseconds, one dot a subnet; the band is ±10 %."""
    figure, axes = start(size=(4.4, 4.0))
    axis, low, high = (
        axes[0, 0],
        0.95 * min(*measured, *predicted),
        1.05 * max(*measured, *predicted),
    )
    line = np.array([low, high])
    axis.fill_between(line, 0.9 * line, 1.1 * line, color="0.9", label="±10 %")
    axis.plot(line, line, color="0.6", linewidth=1)
    axis.scatter(
        measured, predicted, color=PALETTE[0], s=22, label=f"{len(measured)} random subnets"
    )
    axis.set(xlabel="measured latency (ms)", ylabel="predicted latency (ms)", xlim=line, ylim=line)
    axis.legend(frameon=False, fontsize="small", loc="upper left")
    sns.despine(figure)
    return done(figure, title)


def front(
    looked: pd.DataFrame, marks: Mapping[str, tuple[float, float]], cost: str, title: str = ""
) -> Figure:
    """Every subnet that a search looked at (columns cost, accuracy, front), the front as steps, and
    named networks on it.

    ``marks`` name → (cost, accuracy); ``cost`` labels the axis.
    """
    figure, axes = start(size=(6.4, 4.0))
    axis, best = axes[0, 0], looked[looked["front"]].sort_values("cost")
    axis.scatter(looked["cost"], looked["accuracy"], color="0.75", s=14, label="looked at")
    axis.step(best["cost"], best["accuracy"], where="post", color=PALETTE[0], linewidth=1.5)
    axis.scatter(
        best["cost"], best["accuracy"], color=PALETTE[0], s=26, zorder=3, label="none beats it"
    )
    for number, (name, (x, y)) in enumerate(marks.items()):
        axis.scatter(
            [x],
            [y],
            marker="D^svP*"[number % 6],
            s=70,
            color=PALETTE[(number + 1) % 10],
            edgecolor="white",
            zorder=4,
            label=name,
        )
    axis.set(xlabel=cost, ylabel="balanced accuracy on validation images")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    sns.despine(figure)
    return done(figure, title)


def bubbles(table: pd.DataFrame, columns: Mapping[str, str], size: str, title: str = "") -> Figure:
    """Accuracy with its interval against several costs, a bubble a network, its area the column
    ``size``.

    ``table`` has one row a network (index), columns accuracy, low, high (in [0, 1]) and each of
    ``columns`` (name → axis label).
    """
    figure, axes = start(1, len(columns), (3.6, 3.4), sharey=True)
    area = 60 + 500 * table[size] / table[size].max()
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        for (name, row), spot in zip(table.iterrows(), area, strict=True):
            gap = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
            axis.errorbar(
                row[column],
                row["accuracy"],
                yerr=np.abs(gap),
                color=role_style(name)[0],
                capsize=3,
                linewidth=1,
            )
            axis.scatter(
                row[column],
                row["accuracy"],
                s=spot,
                color=role_style(name)[0],
                alpha=0.45,
                label=name,
            )
        axis.set(xlabel=label)
        _logarithmic(axis)
        axis.margins(x=0.25)
    axes[0, 0].set(ylabel="test accuracy (95 % interval)")
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    sns.despine(figure)
    return done(figure, title)


def runtimes(table: pd.DataFrame, title: str = "") -> Figure:
    """Latency at batch 1 with quartiles, and throughput, of each runtime (rows) for each network
    (colours).

    Columns model, title, latency_ms, latency_low, latency_high, images_per_second.
    """
    names = list(dict.fromkeys(table["title"]))
    figure, axes = start(1, 2, (4.4, 0.42 * len(names) + 1.5), sharey=True)
    networks = list(dict.fromkeys(table["model"]))
    for number, network in enumerate(networks):
        rows = table[table["model"] == network].set_index("title").reindex(names)
        place = np.arange(len(names)) + 0.18 * (number - (len(networks) - 1) / 2)
        middle = rows["latency_ms"].to_numpy(float)
        gap = np.abs(
            [
                middle - rows["latency_low"].to_numpy(float),
                rows["latency_high"].to_numpy(float) - middle,
            ]
        )
        color = role_style(network)[0]
        axes[0, 0].errorbar(
            middle, place, xerr=gap, fmt="o", markersize=5, capsize=3, color=color, label=network
        )
        axes[0, 1].plot(rows["images_per_second"], place, "o", markersize=5, color=color)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set(xlabel="milliseconds for one image\n(median, quartiles; logarithmic)")
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    axes[0, 1].set(xlabel="images a second\nat the best batch (logarithmic)")
    for axis in axes[0]:
        _logarithmic(axis)
    axes[0, 0].figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    sns.despine(figure)
    return done(figure, title)
