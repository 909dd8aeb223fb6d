"""Figures of a dataset: its images, its classes, its faulty files and its duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kdnb.plots.style import LESION, ORGAN, PALETTE, done, start

MASKS = {"organ": ORGAN, "lesion": LESION}


def samples(
    images: np.ndarray,
    labels: Sequence[str],
    masks: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """Example images, one row per class.

    ``images`` are ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, ``labels`` their class names. ``masks``
    maps ``organ`` and ``lesion`` to ``(N, H, W)``; the outline of a mask that is neither empty nor
    full is drawn.
    """
    names = list(dict.fromkeys(labels))
    columns = max(list(labels).count(name) for name in names)
    figure, axes = start(len(names), columns, (1.3, 1.5))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in enumerate(names):
        for axis, number in zip(
            axes[row], np.flatnonzero(np.asarray(labels) == name), strict=False
        ):
            axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
            for kind, color in MASKS.items():
                if kind in (masks or {}):
                    _outline(axis, masks[kind][number], color)
        axes[row, 0].set_title(name, loc="left", fontsize="small")
    handles = [
        plt.Line2D([], [], color=color, label=kind)
        for kind, color in MASKS.items()
        if masks and kind in masks and masks[kind].any()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    return done(figure, title)


def _outline(axis: Axes, mask: np.ndarray, color: tuple[float, float, float]) -> None:
    if mask.any() and not mask.all():
        axis.contour(mask > 0, levels=[0.5], colors=[color], linewidths=1)


def class_balance(counts: pd.DataFrame, title: str = "") -> Figure:
    """Number of images by class and split; ``counts`` has a row per class, a column per split."""
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
    """Number of faulty files by kind of problem (columns problem, files)."""
    figure, axes = start(size=(6.5, 0.4 * max(1, len(table)) + 0.9))
    sns.barplot(table, y="problem", x="files", color=PALETTE[3], ax=axes[0, 0])
    for bars in axes[0, 0].containers:
        axes[0, 0].bar_label(bars, fontsize="small", padding=2)
    axes[0, 0].set(xlabel="number of files", ylabel="")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    sns.despine(figure)
    return done(figure, title)


def image_pairs(root: Path, links: pd.DataFrame, title: str = "") -> Figure:
    """Pairs of images that were detected as copies, one pair per column.

    ``links`` has the columns first, second (paths below ``root``), kind and correlation.
    """
    figure, axes = start(2, len(links), (1.9, 2.3))
    for column, row in enumerate(links.itertuples()):
        for axis, path in zip(axes[:, column], (row.first, row.second), strict=True):
            with Image.open(root / path) as image:
                axis.imshow(image.convert("RGB").resize((128, 128)))
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel("/".join(Path(path).parts[-2:])[-30:], fontsize=6)
        axes[0, column].set_title(f"{row.kind}\nr = {row.correlation:.3f}", fontsize="x-small")
    sns.despine(figure, left=True, bottom=True)
    return done(figure, title)
