"""Agreement of a predicted mask with the true one: Dice, intersection over union, distance.

The rule for empty masks: where the true mask is empty, Dice, IoU and distance are not defined (NaN)
and do not enter a mean; whether anything was marked there is counted apart, as a false alarm. Where
the true mask is not empty and nothing was marked, Dice and IoU are 0 and the distance is the
diagonal of the image.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage

from kdnb import checks

OF_TARGETS = ("dice", "iou", "hd95", "missed")  # of images with a target
MEASURES = (*OF_TARGETS, "false_alarm")


def overlap(masks: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """``dice`` 2|A∩B| / (|A| + |B|), ``iou`` |A∩B| / |A∪B|, ``missed`` (1: nothing marked) and
    ``false_alarm`` (1: something marked) of boolean ``masks`` and ``truth`` ``(N, H, W)``, each
    ``(N,)``: the first three are NaN where the truth is empty, the last where it is not."""
    checks.shapes(masks=(masks, "N H W"), truth=(truth, "N H W"))
    flat, real = (each.reshape(len(each), -1).astype(bool) for each in (masks, truth))
    both, marked, size = (flat & real).sum(1), flat.sum(1), real.sum(1)
    found = {
        "dice": 2 * both / np.maximum(marked + size, 1),
        "iou": both / np.maximum((flat | real).sum(1), 1),
        "missed": (marked == 0) * 1.0,
    }
    found = {name: np.where(size > 0, values, np.nan) for name, values in found.items()}
    return found | {"false_alarm": np.where(size > 0, np.nan, (marked > 0) * 1.0)}


def boundary_distance(mask: np.ndarray, truth: np.ndarray) -> float:
    """95 % Hausdorff distance of two boolean masks ``(H, W)`` in pixels: the 95th percentile of the
    distances from the border of one to that of the other, the larger of both ways.

    NaN where ``truth`` is empty, the image's diagonal where only ``mask`` is. Huttenlocher et al.
    1993, doi:10.1109/34.232073, with a percentile in place of the maximum.
    """
    if not truth.any():
        return np.nan
    if not mask.any():
        return float(np.hypot(*truth.shape))
    borders = [each & ~ndimage.binary_erosion(each) for each in (mask, truth)]
    away = [ndimage.distance_transform_edt(~border) for border in borders]
    ways = (away[1][borders[0]], away[0][borders[1]])
    return float(max(np.percentile(values, 95) for values in ways))


def by_image(masks: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """All :data:`MEASURES` of boolean ``masks`` and ``truth`` ``(N, H, W)``, a row an image. Raises
    ``ValueError`` for different shapes."""
    table = pd.DataFrame(overlap(masks, truth))
    pairs = zip(masks.astype(bool), truth.astype(bool), strict=True)
    table["hd95"] = [boundary_distance(mask, real) for mask, real in pairs]
    return table[list(MEASURES)]
