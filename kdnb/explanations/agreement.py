"""Agreement: how similar are the student's maps to the teacher's, image by image, and how similar
are they by chance?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon
from skimage.metrics import structural_similarity

from kdnb import checks
from kdnb.evaluation.statistics import mean_interval, paired_difference
from kdnb.explanations.maps import average_over_grid, rank_correlation, rank_pixels

SIMILARITIES = ("spearman", "pearson", "top10_iou", "js_divergence", "ssim")


def similarity(maps: np.ndarray, other: np.ndarray, grid: tuple[int, int]) -> pd.DataFrame:
    """Similarity of each pair of non-negative maps ``(N, H, W)``: one row per image, columns
    ``SIMILARITIES``; NaN where a map is flat.

    ``spearman``, ``pearson``, ``top10_iou`` (intersection over union of the highest tenth) and
    ``js_divergence`` (base 2; 0 equal, 1 disjoint) are computed on ``grid`` ``(h, w)``, the coarser
    of the two networks', because enlarging makes any two maps similar; ``ssim`` at full size.
    Raises ``ValueError`` for different shapes.
    """
    checks.shapes(maps=(maps, "N H W"), other=(other, "N H W"))
    first, second = (
        average_over_grid(m, grid).reshape(len(m), -1).astype(np.float64) for m in (maps, other)
    )
    flat = (np.ptp(first, axis=1) == 0) | (np.ptp(second, axis=1) == 0)
    rows = []
    for a, b, large_a, large_b in zip(first, second, maps, other, strict=True):
        rows.append(
            {
                "pearson": np.corrcoef(a, b)[0, 1] if np.ptp(a) and np.ptp(b) else np.nan,
                "top10_iou": _top_iou(a, b, max(1, round(0.1 * first.shape[1]))),
                "js_divergence": _js_divergence(a, b),
                "ssim": structural_similarity(_unit(large_a), _unit(large_b), data_range=1.0),
            }
        )
    spearman = rank_correlation(first[:, None], second[:, None])
    table = pd.DataFrame(rows).assign(spearman=spearman)[list(SIMILARITIES)]
    table[flat] = np.nan
    return table


def _top_iou(first: np.ndarray, second: np.ndarray, count: int) -> float:
    """Intersection over union of the ``count`` highest cells."""
    a, b = (set(rank_pixels(m[None, None])[0, :count]) for m in (first, second))
    return len(a & b) / len(a | b)


def _js_divergence(first: np.ndarray, second: np.ndarray) -> float:
    if first.sum() <= 0 or second.sum() <= 0:
        return np.nan
    return jensenshannon(first, second, base=2) ** 2


def _unit(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / max(float(np.ptp(image)), 1e-12)


def similarity_to_teacher(
    teacher: np.ndarray,
    distilled: np.ndarray,
    baseline: np.ndarray,
    grid: tuple[int, int],
    same_prediction: np.ndarray,
    groups: np.ndarray | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Similarity to the teacher's maps of those of the distilled student, of the baseline (the same
    student trained without a teacher) and of two controls: the distilled student's map of another
    image, and a centred Gaussian.

    All maps ``(N, H, W)`` explain the same class of the same images; ``same_prediction`` ``(N,)``
    is true where teacher and distilled student predict the same class; ``groups`` ``(N,)`` number
    images of one patient, which are drawn together. Returns a table (comparison,
    role, measure, mean, low, high, n) and, for each control and measure, the paired difference
    between the distilled student's similarity and that of ``baseline`` or ``other_image``, with
    Wilcoxon's p. Raises ``ValueError`` for different shapes.
    """
    axis = np.linspace(-1, 1, teacher.shape[-1])
    centre = np.broadcast_to(np.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2)), teacher.shape)
    student = similarity(teacher, distilled, grid)
    controls = {
        "baseline": similarity(teacher, baseline, grid),
        "other_image": similarity(teacher, np.roll(distilled, 1, axis=0), grid),
    }
    groups, every = np.arange(len(teacher)) if groups is None else groups, slice(None)
    compared = [
        ("distilled student", "distilled", student, every),
        ("baseline student", "baseline", controls["baseline"], every),
        ("distilled, other image", "distilled", controls["other_image"], every),
        ("centre prior", "", similarity(teacher, centre, grid), every),
    ]
    if same_prediction.any() and not same_prediction.all():
        compared.append(("distilled, same prediction", "distilled", student, same_prediction))
        compared.append(("distilled, other prediction", "distilled", student, ~same_prediction))
    rows = [
        {"comparison": name, "role": role, "measure": m}
        | mean_interval(table[m].to_numpy()[part], groups=groups[part])
        for name, role, table, part in compared
        for m in SIMILARITIES
    ]
    differences = {
        control: {m: paired_difference(student[m], table[m], groups) for m in SIMILARITIES}
        for control, table in controls.items()
    }
    return pd.DataFrame(rows), differences
