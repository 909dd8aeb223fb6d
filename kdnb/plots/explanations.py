"""Figures of explanations and layers: maps laid over images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.ndimage import zoom

from kdnb.plots.style import LESION, done, start

UNSIGNED, SIGNED = ("inferno", 0), ("RdBu_r", -1)  # colour map, lowest value


def maps_over_images(
    images: np.ndarray,
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    titles: Mapping[str, Sequence[str]],
    masks: np.ndarray | None = None,
    signed: Sequence[str] = (),
    title: str = "",
    scale: str = "evidence for the class (scaled per map)",
    size: tuple[float, float] = (1.45, 1.6),
) -> Figure:
    """Explanation maps over images: one image per row, one network and method per column.

    ``images`` are ``(N, H, W)`` or ``(N, H, W, 3)`` uint8; ``panels`` column header → maps
    ``(N, H, W)``; ``rows`` a label for each image; ``titles`` column header → a line above each of
    its maps; ``masks`` ``(N, H, W)`` outline a lesion; columns in ``signed`` hold negative values;
    ``scale`` says what the colours of a map are;
    ``size`` width × height of a map in inches.
    """
    figure, axes = start(len(images), len(panels) + 1, size)
    for number, line in enumerate(axes):
        line[0].imshow(images[number], cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(rows[number], fontsize="xx-small", rotation=0, ha="right", va="center")
        for axis, (name, maps) in zip(line[1:], panels.items(), strict=True):
            _overlay(axis, images[number], maps[number], SIGNED if name in signed else UNSIGNED)
            above = titles.get(name, [""] * len(images))[number]
            axis.set_title(textwrap.fill(above, 20), fontsize="xx-small", pad=2)
        for axis in line:
            if masks is not None and masks[number].any() and not masks[number].all():
                axis.contour(masks[number], levels=[0.5], colors=[LESION], linewidths=1)
            _bare(axis)
    _headers(axes[0], ["image", *panels])
    _color_bar(figure, axes, UNSIGNED, scale)
    if signed:
        _color_bar(figure, axes, SIGNED, "signed evidence (red: for, blue: against)")
    return done(figure, title)


def _overlay(axis: Axes, image: np.ndarray, values: np.ndarray, colors: tuple[str, int]) -> None:
    name, low = colors
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.imshow(_scaled(values, low), cmap=name, vmin=low, vmax=1, alpha=0.55)
    if not np.any(values):
        place = {"ha": "center", "transform": axis.transAxes}
        axis.text(0.5, 0.5, "empty map", color="white", fontsize="xx-small", **place)


def _scaled(values: np.ndarray, low: int) -> np.ndarray:
    """A map divided by the 99.5th percentile of its magnitude, so that one extreme pixel does not
    darken the rest."""
    top = np.percentile(np.abs(values), 99.5) or np.abs(values).max() or 1.0
    return np.clip(values / top, low, 1)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def _headers(axes: np.ndarray, names: Sequence[str]) -> None:
    """Column headers above the first row, clear of its titles."""
    above = 9 + 7 * max(axis.get_title().count("\n") + 1 for axis in axes)
    for axis, name in zip(axes, names, strict=True):
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


def _color_bar(figure: Figure, axes: np.ndarray, colors: tuple[str, int], label: str) -> None:
    name, low = colors
    mappable = ScalarMappable(Normalize(low, 1), name)
    bar = figure.colorbar(mappable, ax=axes, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label(label, fontsize="x-small")
    bar.ax.tick_params(labelsize="x-small")


def shap_values(
    images: np.ndarray,
    values: Sequence[np.ndarray],
    classes: Sequence[str],
    rows: Sequence[str],
    title: str = "",
) -> Figure:
    """SHAP values of every class (column) for each image (row), drawn by ``shap.image_plot`` as in
    KD-FMV (arXiv:2502.15959); one colour scale per image.

    ``images`` are ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, ``values`` one ``(N, H, W)`` per class,
    ``rows`` a label for each image.
    """
    import shap  # imported here: numba, which it brings, takes seconds and few figures need it

    sns.reset_orig()  # the library's own style
    labels, lines = ([textwrap.fill(name, 18) for name in names] for names in (classes, rows))
    # narrower than the library's 20 inches: this figure made up most of a page's bytes
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


def feature_maps(images: np.ndarray, layers: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Average feature map of each layer (column) over each image (row), each map scaled to its own
    range.

    ``images`` are ``(N, H, W)`` or ``(N, H, W, 3)`` uint8; ``layers`` name → ``(N, h, w)``.
    """
    figure, axes = start(len(images), len(layers) + 1, (1.25, 1.3))
    for number, line in enumerate(axes):
        image = images[number]
        line[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        for axis, maps in zip(line[1:], layers.values(), strict=True):
            factors = np.array(image.shape[:2]) / maps[number].shape
            large = zoom(maps[number], factors, order=1, grid_mode=True, mode="nearest")
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.imshow(large, cmap="inferno", alpha=0.65)
    for axis, (name, maps) in zip(axes[0], {"image": images, **layers}.items(), strict=True):
        size = f"{maps.shape[1]}×{maps.shape[2]}"
        lines = [*(name.rsplit(".", 1) if len(name) > 16 else [name]), size]
        axis.set_title("\n".join(lines), fontsize="xx-small", pad=3)
    for axis in axes.flat:
        _bare(axis)
    return done(figure, title)
