"""Does the student look where its teacher looks? Likeness of two sets of maps, image by image, with
its controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from skimage.metrics import structural_similarity

from kdnb import checks
from kdnb.explanations.faithfulness import interval, order, paired, rank_correlation
from kdnb.explanations.registry import features
from kdnb.models.zoo import Classifier

MEASURES = ("spearman", "pearson", "top10_iou", "js_divergence", "ssim")


def grid(model: Classifier) -> tuple[int, int]:
    """Height and width of the model's map before it is enlarged."""
    x = torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)
    was, _ = model.training, model.eval()
    try:
        return tuple(features(model, x).shape[-2:])
    finally:
        model.train(was)


def coarse(maps: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Maps ``(N, H, W)`` averaged to a grid: enlarging two maps makes them alike, so likeness is
    measured where they were made."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps))[:, None], cells)[
        :, 0
    ].numpy()


def likeness(maps: np.ndarray, other: np.ndarray, cells: tuple[int, int]) -> pd.DataFrame:
    """Likeness of each pair of maps ``(N, H, W)`` ≥ 0: one row an image, columns ``MEASURES``; NaN
    where a map is flat.

    ``spearman``, ``pearson``, ``top10_iou`` (overlap of the highest tenth) and ``js_divergence``
    (base 2, 0 equal to 1 apart) on the grid ``cells``, the coarser of the two networks'; ``ssim``
    at the size shown.
    """
    checks.shapes(maps=(maps, "N H W"), other=(other, "N H W"))
    first, second = (coarse(m, cells).reshape(len(m), -1).astype(np.float64) for m in (maps, other))
    flat = (np.ptp(first, axis=1) == 0) | (np.ptp(second, axis=1) == 0)
    top = max(1, round(0.1 * first.shape[1]))
    rows = []
    for a, b, large_a, large_b in zip(first, second, maps, other, strict=True):
        high_a, high_b = (set(order(m[None, None])[0, :top]) for m in (a, b))
        rows.append(
            {
                "pearson": np.corrcoef(a, b)[0, 1] if np.ptp(a) and np.ptp(b) else np.nan,
                "top10_iou": len(high_a & high_b) / len(high_a | high_b),
                "js_divergence": jensenshannon(a, b, base=2) ** 2
                if a.sum() > 0 and b.sum() > 0
                else np.nan,
                "ssim": structural_similarity(_unit(large_a), _unit(large_b), data_range=1.0),
            }
        )
    table = pd.DataFrame(rows).assign(spearman=rank_correlation(first[:, None], second[:, None]))[
        list(MEASURES)
    ]
    table[flat] = np.nan
    return table


def _unit(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / max(float(np.ptp(image)), 1e-12)


def transfer(
    teacher: np.ndarray,
    distilled: np.ndarray,
    alone: np.ndarray,
    cells: tuple[int, int],
    same: np.ndarray,
) -> tuple[pd.DataFrame, dict]:
    """Does distillation hand on where to look? Likeness to the teacher of the distilled and of the
    lone student.

    All maps explain the same class of the same images. ``same`` ``(N,)`` tells where teacher and
    distilled student give the same answer. Controls: the distilled student's maps of other images,
    and a centred Gaussian. Returns a table (pair, measure, mean, low, high, n) and, for each
    measure, the paired differences of the distilled student's likeness to that of the lone one
    (``alone``: was it handed on?) and to that of another image's map (``other_image``: are they
    alike at all?), with Wilcoxon's p.
    """
    axis = np.linspace(-1, 1, teacher.shape[-1])
    centre = np.broadcast_to(np.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2)), teacher.shape)
    pairs = {
        "distilled student": likeness(teacher, distilled, cells),
        "student alone": likeness(teacher, alone, cells),
        "distilled, other image": likeness(teacher, np.roll(distilled, 1, axis=0), cells),
        "centre prior": likeness(teacher, centre, cells),
    }
    if same.any() and not same.all():
        pairs["distilled, same answer"] = pairs["distilled student"][same]
        pairs["distilled, other answer"] = pairs["distilled student"][~same]
    rows = [
        {"comparison": pair, "measure": measure} | interval(table[measure].to_numpy())
        for pair, table in pairs.items()
        for measure in MEASURES
    ]
    against = {"alone": pairs["student alone"], "other_image": pairs["distilled, other image"]}
    gaps = {
        control: {
            measure: paired(pairs["distilled student"][measure], table[measure])
            for measure in MEASURES
        }
        for control, table in against.items()
    }
    return pd.DataFrame(rows), gaps
