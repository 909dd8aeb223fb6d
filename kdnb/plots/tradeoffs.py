"""Figures of accuracy against cost: latency, search, runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kdnb.plots.style import (
    PALETTE,
    done,
    intervals,
    label_rows,
    legend_right,
    model_styles,
    offsets,
    percent,
    start,
)


def predicted_latency(
    measured: Sequence[float], predicted: Sequence[float], title: str = ""
) -> Figure:
    """Predicted against measured latency in milliseconds, one dot per subnet; the band is ±10 %."""
    figure, axes = start(size=(4.4, 4.0))
    axis = axes[0, 0]
    line = np.array([0.95 * min(*measured, *predicted), 1.05 * max(*measured, *predicted)])
    axis.fill_between(line, 0.9 * line, 1.1 * line, color="0.9", label="±10 %")
    axis.plot(line, line, color="0.6", linewidth=1)
    dots = {"color": PALETTE[0], "s": 22, "label": f"{len(measured)} random subnets"}
    axis.scatter(measured, predicted, **dots)
    axis.set(xlabel="measured latency (ms)", ylabel="predicted latency (ms)", xlim=line, ylim=line)
    axis.legend(frameon=False, fontsize="small", loc="upper left")
    sns.despine(figure)
    return done(figure, title)


def pareto_front(
    table: pd.DataFrame, marks: Mapping[str, tuple[float, float]], cost: str, title: str = ""
) -> Figure:
    """Accuracy against cost of every subnet that a search evaluated, with the Pareto front.

    ``table`` has the columns cost, accuracy (share of 1) and front (boolean); ``marks`` name →
    (cost, accuracy) of networks to point out; ``cost`` labels the axis.
    """
    figure, axes = start(size=(6.4, 4.0))
    axis, best = axes[0, 0], table[table["front"]].sort_values("cost")
    axis.scatter(table["cost"], table["accuracy"], color="0.75", s=14, label="evaluated subnets")
    axis.step(best["cost"], best["accuracy"], where="post", color=PALETTE[0], linewidth=1.5)
    dots = {"color": PALETTE[0], "s": 26, "zorder": 3, "label": "Pareto front"}
    axis.scatter(best["cost"], best["accuracy"], **dots)
    for number, (name, (x, y)) in enumerate(marks.items()):
        color, shape = PALETTE[(number + 1) % len(PALETTE)], "D^svP*"[number % 6]
        mark = {"s": 70, "edgecolor": "white", "zorder": 4, "label": name}
        axis.scatter([x], [y], marker=shape, color=color, **mark)
    axis.set(xlabel=cost, ylabel="balanced validation accuracy")
    percent(axis, "y")
    legend_right(axis)
    sns.despine(figure)
    return done(figure, title)


def accuracy_against_cost(
    table: pd.DataFrame, costs: Mapping[str, str], size: str, title: str = ""
) -> Figure:
    """Test accuracy with its 95 % interval against one or more costs, one bubble per network.

    ``table`` has a row per network (index), the columns accuracy, low, high (shares of 1), each of
    ``costs`` (column → axis label) and, where networks have roles, role; the area of a bubble is
    the column ``size``.
    """
    figure, axes = start(1, len(costs), (3.6, 3.4), sharey=True)
    area = 60 + 500 * table[size] / table[size].max()
    looks = model_styles(table.assign(model=table.index))
    for axis, (column, label) in zip(axes[0], costs.items(), strict=True):
        for name, row in table.iterrows():
            color, accuracy = looks[name].color, row["accuracy"]
            gap = np.abs([[accuracy - row["low"]], [row["high"] - accuracy]])
            axis.errorbar(row[column], accuracy, yerr=gap, color=color, capsize=3, linewidth=1)
            bubble = {"s": area[name], "color": color, "alpha": 0.45, "label": name}
            axis.scatter(row[column], accuracy, **bubble)
        axis.set(xlabel=label)
        _logarithmic(axis)
        axis.margins(x=0.25)
    axes[0, 0].set(ylabel="test accuracy (95 % interval)")
    percent(axes[0, 0], "y")
    handles = axes[0, 0].get_legend_handles_labels()
    options = {"ncols": 3, "frameon": False, "fontsize": "small"}
    legend = figure.legend(*handles, loc="outside lower center", **options)
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    sns.despine(figure)
    return done(figure, title)


def _logarithmic(axis: Axes) -> None:
    """A logarithmic x axis with plain labels at 1 and 3 of each decade: networks differ by one or
    two decades."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(lambda x, _: _short(x))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """A number with the prefix M or G where it is large: 3e9 as ``3 G``."""
    for prefix, size in (("G", 1e9), ("M", 1e6)):
        if value >= 0.1 * size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"


def runtimes(table: pd.DataFrame, title: str = "") -> Figure:
    """Latency at batch size 1 (median, quartiles) and throughput of each runtime (row) for each
    network (colour).

    ``table`` has the columns model, title (of the runtime), latency_ms, latency_low, latency_high,
    images_per_second and, where networks have roles, role.
    """
    names, looks = list(dict.fromkeys(table["title"])), model_styles(table)
    figure, ((latency, throughput),) = start(1, 2, (4.4, 0.42 * len(names) + 1.5), sharey=True)
    columns = {"latency_low": "low", "latency_high": "high"}
    for (model, style), shift in zip(looks.items(), offsets(len(looks), 0.18), strict=True):
        rows = table[table["model"] == model].set_index("title").reindex(names)
        spots = np.arange(len(names)) + shift
        options = {"markersize": 5, "color": style.color}
        intervals(
            latency, rows.rename(columns=columns), "latency_ms", spots, label=model, **options
        )
        throughput.plot(rows["images_per_second"], spots, "o", **options)
    label_rows(latency, names)
    latency.set(xlabel="milliseconds per image\n(median, quartiles; logarithmic)")
    throughput.set(xlabel="images per second\nat the best batch size (logarithmic)")
    for axis in (latency, throughput):
        _logarithmic(axis)
    handles = latency.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    sns.despine(figure)
    return done(figure, title)
