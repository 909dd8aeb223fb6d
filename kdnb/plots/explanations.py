"""Figures of explanations: maps over images, layers, and what was measured on them. Read arrays and
tables, never models."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import shap
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.ndimage import zoom

from kdnb.plots.style import LESION, done, role_style, start


def maps_over_images(
    images: np.ndarray,
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    titles: Mapping[str, Sequence[str]],
    masks: np.ndarray | None = None,
    signed: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Rows of images, columns of maps over them, one colour scale for all maps of a kind.

    ``images`` ``(N, H, W)`` uint8; ``panels`` column title → maps ``(N, H, W)``; ``rows`` a line
    for each image; ``titles`` column title → a line above each of its panels; ``masks`` ``(N, H,
    W)`` outline a lesion; columns in ``signed`` are drawn with two colours.
    """
    figure, axes = start(len(images), len(panels) + 1, (1.45, 1.6))
    for number, line in enumerate(axes):
        line[0].imshow(images[number], cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(rows[number], fontsize="xx-small", rotation=0, ha="right", va="center")
        for axis, (name, maps) in zip(line[1:], panels.items(), strict=True):
            axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
            low, colors = (-1, "RdBu_r") if name in signed else (0, "inferno")
            axis.imshow(_shown(maps[number], low), cmap=colors, vmin=low, vmax=1, alpha=0.55)
            if not np.any(maps[number]):
                axis.text(
                    0.5,
                    0.5,
                    "empty map",
                    color="white",
                    ha="center",
                    fontsize="xx-small",
                    transform=axis.transAxes,
                )
            said = titles.get(name, [""] * len(images))[number]
            axis.set_title(
                textwrap.fill(said, 20), fontsize="xx-small", pad=2
            )  # names of classes may be long
        for axis in line:
            if masks is not None and masks[number].any() and not masks[number].all():
                axis.contour(masks[number], levels=[0.5], colors=[LESION], linewidths=1)
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
    above = 9 + 7 * max(axis.get_title().count("\n") + 1 for axis in axes[0])
    for axis, name in zip(axes[0], ["image", *panels], strict=True):
        axis.annotate(
            name,
            (0.5, 1),
            (0, above),
            textcoords="offset points",
            ha="center",
            xycoords="axes fraction",
            fontsize="x-small",
            fontweight="bold",
            annotation_clip=False,
        )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "inferno"), ax=axes, shrink=0.5, aspect=30, pad=0.01
    )
    bar.set_label("evidence for the class (1: the map's largest)", fontsize="x-small")
    if signed:
        other = figure.colorbar(
            ScalarMappable(Normalize(-1, 1), "RdBu_r"), ax=axes, shrink=0.5, aspect=30, pad=0.01
        )
        other.set_label("signed: red for, blue against", fontsize="x-small")
    return done(figure, title)


def shap_values(
    images: np.ndarray,
    values: Sequence[np.ndarray],
    classes: Sequence[str],
    rows: Sequence[str],
    title: str = "",
) -> Figure:
    """``shap.image_plot`` as in paper B: for each image (row) the SHAP values of every class
    (column), one scale an image.

    ``images`` ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, ``values`` one ``(N, H, W)`` a class,
    ``rows`` a line for each image.
    """
    sns.reset_orig()  # the library's own look
    labels, lines = ([textwrap.fill(name, 18) for name in names] for names in (classes, rows))
    # narrower than the library's 20 inches: most of a page's bytes were this figure's
    shap.image_plot(
        [part[..., None] for part in values],
        images / 255,
        labels=[labels] * len(images),
        true_labels=lines,
        width=14,
        hspace=0.5,
        show=False,
    )
    return done(plt.gcf(), title)


def _shown(values: np.ndarray, low: int) -> np.ndarray:
    """A map scaled by its 99.5th percentile of magnitude: one hot pixel must not darken the rest."""
    top = np.percentile(np.abs(values), 99.5) or np.abs(values).max() or 1.0
    return np.clip(values / top, low, 1)


def measures(table: pd.DataFrame, shown: Mapping[str, str], title: str = "") -> Figure:
    """One panel a measure: mean and 95 % interval of each method (rows) for each model (colours).

    ``table`` has the columns method, model, measure, mean, low, high; ``shown`` maps measures to
    axis labels.
    """
    methods, models = list(dict.fromkeys(table["method"])), list(dict.fromkeys(table["model"]))
    columns = min(4, len(shown))
    figure, axes = start(
        -(-len(shown) // columns), columns, (3.1, 0.3 * len(methods) + 1.2), sharey=True
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (measure, label) in zip(axes.flat, shown.items(), strict=False):
        for number, model in enumerate(models):
            rows = (
                table[(table["model"] == model) & (table["measure"] == measure)]
                .set_index("method")
                .reindex(methods)
            )
            place = np.arange(len(methods)) + 0.22 * (number - (len(models) - 1) / 2)
            mean = rows["mean"].astype(float).to_numpy()
            gap = np.abs(
                np.stack([mean - rows["low"].astype(float), rows["high"].astype(float) - mean])
            )
            axis.errorbar(
                mean,
                place,
                xerr=gap,
                fmt="o",
                markersize=4,
                capsize=2,
                color=role_style(model)[0],
                label=model,
            )
        axis.set(xlabel=label, ylim=(len(methods) - 0.5, -0.5))
        axis.set_yticks(range(len(methods)), methods)
        axis.xaxis.label.set_fontsize("small")
    axes.flat[0].figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    sns.despine(figure)
    return done(figure, title)


def removal(curves: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Mean probability while pixels go (deletion) or come back (insertion):
    ``curves[method][kind]`` ``(N, steps + 1)``."""
    figure, axes = start(1, 2, (4.4, 3.2), sharey=True)
    floors = {"random map": ("0.4", ":"), "centre prior": ("0.4", "--")}
    styles = (
        (color, dash)
        for dash in ("-", "-.", (0, (1, 1)))
        for color in sns.color_palette("colorblind")
    )
    for method, kinds in curves.items():
        color, dash = floors.get(method) or next(styles)
        for axis, kind in zip(axes[0], ("deletion", "insertion"), strict=True):
            mean = kinds[kind].mean(0)
            axis.plot(np.linspace(0, 1, len(mean)), mean, color=color, linestyle=dash, label=method)
    axes[0, 0].set(
        xlabel="most relevant pixels removed",
        ylabel="probability of the class",
        title="deletion: low is good",
    )
    axes[0, 1].set(xlabel="most relevant pixels brought back", title="insertion: high is good")
    for axis in axes[0]:
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.title.set_fontsize("small")
    axes[0, 1].legend(frameon=False, fontsize="x-small", bbox_to_anchor=(1, 1), loc="upper left")
    sns.despine(figure)
    return done(figure, title)


def sanity(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Likeness of maps to those of the trained network while its weights are drawn anew from head
    to stem (columns of a table: stage, spearman), one line a method."""
    figure, axes = start(size=(6.2, 4.0))
    looks = itertools.product(("-", "--"), sns.color_palette("colorblind", 7))
    for (method, table), (dash, color), marker in zip(
        tables.items(), looks, "osD^vPX" * 2, strict=False
    ):
        axes[0, 0].plot(
            table["stage"],
            table["spearman"],
            dash,
            color=color,
            marker=marker,
            markersize=4,
            label=method,
        )
    axes[0, 0].axhline(0, color="0.7", linewidth=1)
    axes[0, 0].set(
        ylabel="rank correlation with the trained map",
        xlabel="weights drawn anew, from the head down",
    )
    axes[0, 0].set_ylim(-1.05, 1.05)
    axes[0, 0].tick_params(axis="x", labelsize="x-small", rotation=15)
    axes[0, 0].legend(frameon=False, fontsize="x-small", bbox_to_anchor=(1, 1), loc="upper left")
    sns.despine(figure)
    return done(figure, title)


def likeness(table: pd.DataFrame, measure: str = "spearman", title: str = "") -> Figure:
    """Likeness of maps to the teacher's, with 95 % intervals: columns ``teacher against``, measure,
    mean, low, high."""
    rows = table[table["measure"] == measure].reset_index(drop=True)
    figure, axes = start(size=(6.2, 0.42 * len(rows) + 1.1))
    mean, low, high = (rows[name].astype(float).to_numpy() for name in ("mean", "low", "high"))
    for place, name in enumerate(rows["teacher against"]):
        gap = [[mean[place] - low[place]], [high[place] - mean[place]]]
        color = role_style(
            "alone" if "alone" in name else "distilled" if name.startswith("distilled") else ""
        )[0]
        axes[0, 0].errorbar(mean[place], place, xerr=np.abs(gap), fmt="o", color=color, capsize=4)
    axes[0, 0].axvline(0, color="0.7", linewidth=1)
    axes[0, 0].set_yticks(range(len(rows)), rows["teacher against"])
    axes[0, 0].set(
        xlabel=f"{measure} with the teacher's map (95 % interval)", ylim=(len(rows) - 0.5, -0.5)
    )
    sns.despine(figure)
    return done(figure, title)


def times(table: pd.DataFrame, title: str = "") -> Figure:
    """Mean execution time of each method for teacher and student: columns method, model, seconds;
    logarithmic for several."""
    figure, axes = start(size=(6.2, 0.34 * table["method"].nunique() + 1.2))
    colors = {model: role_style(model)[0] for model in dict.fromkeys(table["model"])}
    sns.barplot(table, y="method", x="seconds", hue="model", palette=colors, ax=axes[0, 0])
    several = (
        len(set(table["method"])) > 1
    )  # methods lie orders of magnitude apart, teacher and student do not
    axes[0, 0].set(
        xscale="log" if several else "linear",
        ylabel="",
        xlabel=f"seconds an image{' (logarithmic)' if several else ''}",
    )
    sns.move_legend(axes[0, 0], "center left", bbox_to_anchor=(1, 0.5), frameon=False, title="")
    sns.despine(figure)
    return done(figure, title)


def feature_maps(images: np.ndarray, layers: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Average feature map of each layer (columns) over each image (rows): ``layers`` name → ``(N,
    h, w)``, scaled one by one."""
    figure, axes = start(len(images), len(layers) + 1, (1.25, 1.3))
    for number, line in enumerate(axes):
        line[0].imshow(images[number], cmap="gray", vmin=0, vmax=255)
        for axis, maps in zip(line[1:], layers.values(), strict=True):
            values = maps[number]
            large = zoom(
                values,
                np.array(images[number].shape[:2]) / values.shape,
                order=1,
                grid_mode=True,
                mode="nearest",
            )
            axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
            axis.imshow(large, cmap="inferno", alpha=0.65)
    for axis, (name, maps) in zip(axes[0], {"image": images, **layers}.items(), strict=True):
        axis.set_title(f"{name}\n{maps.shape[1]}×{maps.shape[2]}", fontsize="xx-small", pad=3)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    return done(figure, title)


def similarity(table: pd.DataFrame, rows: str, columns: str, title: str = "") -> Figure:
    """CKA of layers of two networks as a heat map, stems at the lower left."""
    figure, axes = start(size=(0.34 * table.shape[1] + 2.6, 0.3 * table.shape[0] + 1.8))
    sns.heatmap(
        table.iloc[::-1],
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=False,
        ax=axes[0, 0],
        xticklabels=True,
        yticklabels=True,
        cbar_kws={"label": "CKA (1: alike)"},
    )
    axes[0, 0].set(xlabel=f"layer of {columns}, from the image on", ylabel=f"layer of {rows}")
    axes[0, 0].tick_params(labelsize="xx-small")
    return done(figure, title)


def probes(tables: Mapping[str, pd.DataFrame], chance: float, title: str = "") -> Figure:
    """Balanced accuracy of a linear probe against depth, one line a network; ``chance`` in [0, 1]
    as a dotted line."""
    figure, axes = start(size=(6.0, 3.4))
    for name, table in tables.items():
        color, dash = role_style(name)
        axes[0, 0].plot(
            table["depth"],
            table["balanced_accuracy"],
            "o",
            color=color,
            linestyle=dash,
            markersize=4,
            label=name,
        )
    axes[0, 0].axhline(chance, color="0.6", linewidth=1, linestyle=":", label="chance")
    axes[0, 0].set(
        xlabel="depth (0: first layer, 1: last)", ylabel="balanced accuracy on test images"
    )
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(6))
    axes[0, 0].legend(frameon=False, fontsize="small", loc="lower right")
    sns.despine(figure)
    return done(figure, title)
