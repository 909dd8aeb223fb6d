"""Plots of data and results. They read tables and arrays, never models; each returns a closed
figure that a notebook shows once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from kdnb.plots.style import LESION, ORGAN, PALETTE, done, role_style, start


def samples(
    images: np.ndarray,
    labels: Sequence[str],
    masks: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """A row of images for each class. ``images`` ``(N, H, W)`` or ``(N, H, W, 3)`` uint8,
    ``labels`` their class names.

    ``masks`` maps ``lesion`` and ``organ`` to ``(N, H, W)``; their outlines are drawn where they
    are not empty.
    """
    names = list(dict.fromkeys(labels))
    columns = max(list(labels).count(name) for name in names)
    figure, axes = start(len(names), columns, (1.3, 1.5))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in enumerate(names):
        for column, number in enumerate(np.flatnonzero(np.asarray(labels) == name)):
            axis = axes[row, column]
            axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
            for kind, color in (("organ", ORGAN), ("lesion", LESION)):
                mask = (masks or {}).get(kind)
                if mask is not None and mask[number].any() and not mask[number].all():
                    axis.contour(mask[number] > 0, levels=[0.5], colors=[color], linewidths=1)
        axes[row, 0].set_title(name, loc="left", fontsize="small")
    if masks:
        handles = [
            plt.Line2D([], [], color=color, label=kind)
            for kind, color in (("organ", ORGAN), ("lesion", LESION))
            if masks.get(kind) is not None and masks[kind].any()
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    return done(figure, title)


def class_balance(counts: pd.DataFrame, title: str = "") -> Figure:
    """Images by class (rows) and split (columns)."""
    figure, axes = start(size=(6.5, 0.45 * len(counts) + 1.4))
    long = (
        counts.rename_axis(index="class")
        .reset_index()
        .melt(id_vars="class", var_name="split", value_name="images")
    )
    sns.barplot(long, y="class", x="images", hue="split", ax=axes[0, 0])
    for bars in axes[0, 0].containers:
        axes[0, 0].bar_label(bars, fontsize="x-small", padding=2)
    axes[0, 0].set(xlabel="number of images", ylabel="")
    sns.move_legend(axes[0, 0], "center left", bbox_to_anchor=(1, 0.5), frameon=False, title="")
    sns.despine(figure)
    return done(figure, title)


def problems(table: pd.DataFrame, title: str = "") -> Figure:
    """Files by the kind of problem found (columns problem and files)."""
    figure, axes = start(size=(6.5, 0.4 * max(1, len(table)) + 0.9))
    sns.barplot(table, y="problem", x="files", color=PALETTE[3], ax=axes[0, 0])
    for bars in axes[0, 0].containers:
        axes[0, 0].bar_label(bars, fontsize="small", padding=2)
    axes[0, 0].set(xlabel="number of files", ylabel="")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    sns.despine(figure)
    return done(figure, title)


def forest(table: pd.DataFrame, title: str = "", measure: str = "accuracy") -> Figure:
    """Differences of a measure with their intervals, a panel a group: columns group, label,
    difference, low, high (shares of 1)."""
    groups = dict(tuple(table.groupby("group", sort=False)))
    heights = [len(part) + 0.8 for part in groups.values()]
    figure, axes = start(
        len(groups),
        1,
        (8.4, (0.34 * sum(heights) + 1.1) / len(groups)),
        sharex=True,
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (name, part) in zip(axes.flat, groups.items(), strict=True):
        rows = np.arange(len(part))[::-1]
        middle, low, high = (
            100 * part[column].to_numpy(float) for column in ("difference", "low", "high")
        )
        axis.axvline(0, color="0.6", linewidth=1)
        axis.errorbar(
            middle,
            rows,
            xerr=np.abs(np.stack([middle - low, high - middle])),
            fmt="o",
            color=PALETTE[1],
            capsize=3,
        )
        axis.set_yticks(rows, part["label"], fontsize="small")
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_title(name, loc="left", fontsize="small")
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set_xlabel(f"difference in test {measure} (percentage points, 95 % interval)")
    sns.despine(figure, left=True)
    return done(figure, title)


def cells(
    table: pd.DataFrame, marked: tuple[float, float] | None = None, title: str = ""
) -> Figure:
    """A heat map of accuracy (shares of 1) by α (rows) and temperature (columns); ``marked`` is
    framed, cells not run are blank."""
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
    axis.set(xlabel="temperature T", ylabel="share of the labels α")
    axis.tick_params(axis="y", rotation=0)
    return done(figure, title)


def learning_curves(histories: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Loss and balanced accuracy over epochs for each run; the mark is the epoch whose weights were
    kept."""
    figure, axes = start(1, 2, (4.8, 3.4))
    for name, history in histories.items():
        color, dash = role_style(name)
        best = history.sort_values(
            ["val_balanced_accuracy", "val_loss"], ascending=[False, True]
        ).iloc[0]
        axes[0, 0].plot(
            history["epoch"], history["val_loss"], color=color, linestyle=dash, label=name
        )
        axes[0, 0].plot(
            history["epoch"], history["hard_loss"], color=color, linestyle=dash, alpha=0.35
        )
        axes[0, 1].plot(
            history["epoch"],
            history["val_balanced_accuracy"],
            color=color,
            linestyle=dash,
            label=name,
        )
        axes[0, 1].plot(
            best["epoch"], best["val_balanced_accuracy"], "o", color=color, markersize=6
        )
    axes[0, 0].set(
        xlabel="epoch",
        ylabel="cross-entropy (nats)",
        title="strong: validation, faint: training",
        yscale="log",
    )
    axes[0, 1].set(xlabel="epoch", ylabel="balanced accuracy", title="validation; dot: epoch kept")
    axes[0, 1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in axes.flat:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.title.set_fontsize("small")
    axes[0, 1].legend(frameon=False, loc="lower right", fontsize="small")
    sns.despine(figure)
    return done(figure, title)


def confusion(
    matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], title: str = ""
) -> Figure:
    """Confusion matrices side by side: numbers are images, the shade is the share of the true
    class."""
    side = max(2.6, 0.62 * len(classes) + 1.2)
    figure, axes = start(1, len(matrices), (side + 0.2, side), sharey=True)
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        counts = np.asarray(matrix)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        sns.heatmap(
            share,
            annot=counts,
            fmt="d",
            cmap="Blues",
            vmin=0,
            vmax=1,
            cbar=False,
            square=True,
            ax=axis,
            xticklabels=classes,
            yticklabels=classes,
            linewidths=0.5,
        )
        axis.set_title(name, fontsize="small")
        axis.set_xlabel("predicted class")
        axis.tick_params(axis="x", rotation=40)
        axis.tick_params(axis="y", rotation=0)
        plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    axes[0, 0].set_ylabel("true class")
    return done(figure, title)


def reliability(
    tables: Mapping[str, pd.DataFrame], errors: Mapping[str, float], title: str = ""
) -> Figure:
    """Accuracy against confidence of the predicted class; points are bins, their area the number of
    images."""
    figure, axes = start(size=(4.6, 4.2))
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfectly calibrated")
    for name, table in tables.items():
        color, dash = role_style(name)
        axis.plot(
            table["confidence"],
            table["accuracy"],
            color=color,
            linestyle=dash,
            label=f"{name} (ECE {errors[name]:.3f})",
        )
        axis.scatter(
            table["confidence"],
            table["accuracy"],
            s=150 * table["count"] / table["count"].sum() + 6,
            color=color,
        )
    lowest = min(table["confidence"].min() for table in tables.values())
    axis.set(
        xlabel="confidence of the predicted class",
        ylabel="accuracy",
        xlim=(max(0, lowest - 0.05), 1.02),
        ylim=(0, 1.03),
    )
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(frameon=False, fontsize="small")
    sns.despine(figure)
    return done(figure, title)


def gains(table: pd.DataFrame, title: str = "") -> Figure:
    """Differences of accuracy with their intervals: rows with columns label, difference, low, high
    (shares of 1)."""
    figure, axes = start(size=(6.2, 0.5 * len(table) + 1.1))
    axis, rows = axes[0, 0], np.arange(len(table))[::-1]
    middle, low, high = (100 * table[column].to_numpy() for column in ("difference", "low", "high"))
    axis.axvline(0, color="0.6", linewidth=1)
    axis.errorbar(
        middle,
        rows,
        xerr=np.abs(np.stack([middle - low, high - middle])),
        fmt="o",
        color=PALETTE[1],
        capsize=4,
    )
    axis.set_yticks(rows, table["label"])
    axis.set(
        xlabel="difference in test accuracy (percentage points, 95 % interval)",
        ylim=(-0.6, len(table) - 0.4),
    )
    sns.despine(figure)
    return done(figure, title)


def gallery(root: Path, links: pd.DataFrame, title: str = "") -> Figure:
    """Pairs of images that a detector took for copies, one above the other (columns first, second,
    kind, correlation)."""
    figure, axes = start(2, len(links), (1.9, 2.3))
    for column, row in enumerate(links.itertuples()):
        for axis, path in zip(axes[:, column], (row.first, row.second), strict=True):
            with Image.open(root / path) as image:
                axis.imshow(image.convert("RGB").resize((128, 128)))
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel("/".join(Path(path).parts[-2:])[-30:], fontsize=6)
        axes[0, column].set_title(f"{row.kind}\n{row.correlation:.3f}", fontsize="x-small")
    sns.despine(figure, left=True, bottom=True)
    return done(figure, title)


def accuracies(table: pd.DataFrame, title: str = "") -> Figure:
    """Balanced accuracy of several trainings under each split with intervals: columns split, seed,
    balanced_accuracy, low, high."""
    names = list(dict.fromkeys(table["split"]))
    figure, axes = start(size=(5.6, 0.7 * len(names) + 1.2))
    for place, name in enumerate(names):
        rows = table[table["split"] == name].reset_index(drop=True)
        for number, row in rows.iterrows():
            spot, middle = place + 0.16 * (number - (len(rows) - 1) / 2), row["balanced_accuracy"]
            gap = [[middle - row["low"]], [row["high"] - middle]]
            axes[0, 0].errorbar(
                middle,
                spot,
                xerr=np.abs(gap),
                fmt="o",
                markersize=4,
                capsize=3,
                color=PALETTE[place % 10],
            )
        axes[0, 0].plot(
            [rows["balanced_accuracy"].mean()] * 2,
            [place - 0.3, place + 0.3],
            color="0.3",
            linewidth=1.5,
        )
    axes[0, 0].set_yticks(
        range(len(names)),
        [f"{name} (n = {table.loc[table['split'] == name, 'n'].iloc[0]:,})" for name in names],
    )
    axes[0, 0].set(
        xlabel="balanced accuracy on test images (95 % interval; line: mean of the seeds)"
    )
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    sns.despine(figure)
    return done(figure, title)


def views(table: pd.DataFrame, chance: float, title: str = "") -> Figure:
    """Balanced accuracy from each view of the images (rows) for each model (colours), with
    intervals; the line is chance."""
    names, models = list(dict.fromkeys(table["view"])), list(dict.fromkeys(table["model"]))
    figure, axes = start(size=(6.0, 0.42 * len(names) + 1.5))
    for number, model in enumerate(models):
        rows = table[table["model"] == model].set_index("view").reindex(names)
        middle = rows["balanced_accuracy"].to_numpy(float)
        gap = np.abs([middle - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - middle])
        place = np.arange(len(names)) + 0.2 * (number - (len(models) - 1) / 2)
        axes[0, 0].errorbar(
            middle,
            place,
            xerr=gap,
            fmt="o",
            markersize=5,
            capsize=3,
            color=role_style(model)[0],
            label=model,
        )
    axes[0, 0].axvline(chance, color="0.5", linewidth=1, linestyle=":", label="chance")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set(
        xlabel="balanced accuracy on test images (95 % interval)",
        ylim=(len(names) - 0.5, -0.5),
        xlim=(0, 1.02),
    )
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    sns.despine(figure)
    return done(figure, title)
