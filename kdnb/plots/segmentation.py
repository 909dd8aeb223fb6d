"""Figures of masks: beside one another on images, learning curves, and Dice by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kdnb.plots.style import LESION, PALETTE, done, legend_right, model_styles, start, styles

# what a difference of two masks shows: marked and true, marked only, true only
PARTS = {"found": PALETTE[2], "marked in excess": PALETTE[3], "missed": PALETTE[0]}


def masks_over_images(
    images: np.ndarray,
    truth: np.ndarray,
    masks: Mapping[str, np.ndarray],
    rows: Sequence[str],
    title: str = "",
) -> Figure:
    """Image, true mask, the masks of each network, and what the last of them found, missed, and
    marked in excess; one image per row.

    ``images`` are ``(N, H, W)`` or ``(N, H, W, 3)`` uint8; ``truth`` and each of ``masks`` boolean
    ``(N, H, W)``; ``rows`` a label for each image.
    """
    headers = ["image", "truth", *masks, "difference"]
    figure, axes = start(len(images), len(headers), (1.55, 1.6))
    last = list(masks.values())[-1]
    for number, line in enumerate(axes):
        for axis in line:
            axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
        for axis, mask in zip(line[1:-1], (truth, *masks.values()), strict=True):
            _fill(axis, mask[number], LESION)
        real, marked = truth[number], last[number]
        shown = (real & marked, marked & ~real, real & ~marked)
        for part, color in zip(shown, PARTS.values(), strict=True):
            _fill(line[-1], part, color)
        line[0].set_ylabel(rows[number], fontsize="xx-small", rotation=0, ha="right", va="center")
    for axis, header in zip(axes[0], headers, strict=True):
        axis.set_title(header.replace(", ", ",\n"), fontsize="xx-small")
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in PARTS.items()],
        loc="outside lower right",
        ncols=len(PARTS),
        frameon=False,
        fontsize="x-small",
    )
    return done(figure, title)


def _fill(axis: Axes, mask: np.ndarray, color: tuple[float, float, float]) -> None:
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = to_rgba(color, 0.6)
    axis.imshow(layer)


def dice_curves(
    histories: Mapping[str, pd.DataFrame],
    roles: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Loss and validation Dice by epoch for each run; a dot marks the epoch whose weights are kept.

    ``histories`` label → table with the columns epoch, hard_loss, val_loss and val_dice;
    ``roles`` label → role.
    """
    figure, ((loss, dice),) = start(1, 2, (4.8, 3.4))
    for label, style in styles(histories, roles).items():
        history, line = histories[label], {"color": style.color, "linestyle": style.dash}
        best = history.sort_values(["val_dice", "val_loss"], ascending=[False, True]).iloc[0]
        loss.plot(history["epoch"], history["val_loss"], label=label, **line)
        loss.plot(history["epoch"], history["hard_loss"], alpha=0.35, **line)
        dice.plot(history["epoch"], history["val_dice"], label=label, **line)
        dice.plot(best["epoch"], best["val_dice"], "o", color=style.color, markersize=6)
    loss.set(xlabel="epoch", ylabel="Dice + Lovász loss")
    loss.set_title("validation (faint: training)", fontsize="small")
    dice.set(xlabel="epoch", ylabel="Dice of all pixels")
    dice.set_title("validation (dot: epoch kept)", fontsize="small")
    for axis in figure.axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_right(dice)
    sns.despine(figure)
    return done(figure, title)


def dice_by_size(table: pd.DataFrame, title: str = "") -> Figure:
    """Mean Dice with its 95 % interval by the size of the target, for each network.

    ``table`` has the columns model, role, size (share of the image, 1 for all of it), dice, low,
    high and n.
    """
    figure, axes = start(size=(6.4, 3.6))
    axis, looks = axes[0, 0], model_styles(table)
    for number, (model, style) in enumerate(looks.items()):
        rows = table[table["model"] == model]
        spots = 100 * rows["size"] * 1.04 ** (number - (len(looks) - 1) / 2)
        gap = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["dice"].to_numpy(float))
        look = {"color": style.color, "linestyle": style.dash, "marker": "o", "markersize": 4}
        axis.errorbar(spots, rows["dice"], yerr=np.nan_to_num(gap), capsize=2, label=model, **look)
    axis.set(xscale="log", ylabel="Dice", ylim=(-0.02, 1.02))
    axis.set_xlabel("mean size of the target (% of the image)")
    sizes = 100 * table["size"].unique()  # ticks of a logarithm may all lie outside a short range
    axis.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
    axis.minorticks_off()
    handles = [Line2D([], [], color=s.color, linestyle=s.dash) for s in looks.values()]
    legend_right(axis, handles=handles, labels=list(looks))
    sns.despine(figure)
    return done(figure, title)
