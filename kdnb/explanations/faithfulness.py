"""How good an explanation is: does the answer hang on it, does it point at the lesion, does it
notice broken weights?

Ours in torch because Quantus fails with today's numpy on several of these (DESIGN.md); ROAD comes
from pytorch-grad-cam. Maps are ``(N, H, W)``; where a sign matters, pass ``Explanation.evidence``.
A mask or map that is empty gives NaN, never 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_grad_cam.metrics.road import ROADCombined
from scipy import stats
from torch import Tensor

from kdnb import checks, device, files
from kdnb.explanations.registry import Explanation, check_images, untouched
from kdnb.models.zoo import Classifier

BASELINES = ("blur", "mean")


def order(maps: np.ndarray) -> np.ndarray:
    """Pixels ``(N, H·W)`` from most to least relevant; ties in a fixed random order, so that flat
    maps favour no corner."""
    flat = maps.reshape(len(maps), -1)
    noise = np.random.default_rng(0).permutation(flat.shape[1])
    return np.stack([np.lexsort((noise, -row)) for row in flat])


def baseline(images: Tensor, kind: str = "blur") -> Tensor:
    """What a removed pixel becomes: a strong Gaussian ``blur`` (deviation a tenth of the side) or
    the image's ``mean`` colour."""
    files.lookup(kind, BASELINES, "baseline")
    if kind == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    sigma = images.shape[-1] / 10
    reach = min(int(2.5 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(
        -(torch.arange(-reach, reach + 1.0, device=images.device) ** 2) / (2 * sigma**2)
    )
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, [reach] * 4, mode="reflect")
    wide = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(wide, kernel.transpose(2, 3), groups=images.shape[1])


def curves(
    model: Classifier,
    images: Tensor,
    maps: np.ndarray,
    targets: np.ndarray,
    steps: int = 32,
    kind: str = "blur",
    batch_size: int = 256,
) -> dict[str, np.ndarray]:
    """Probability of the target class while the most relevant pixels are removed (``deletion``) or
    brought back (``insertion``).

    Each is ``(N, steps + 1)`` over shares 0 to 1 of the pixels: x_t = x⊙(1 − M_t) + b⊙M_t with M_t
    the top share t (Petsiuk et al. 2018, arXiv:1806.07421, algorithm 1). Low areas under deletion
    and high ones under insertion are good.
    """
    images = check_images(images, model)
    _same_images(images, maps, targets)
    checks.within(1, maps[0].size, steps=steps)
    base, ranks = baseline(images, kind), np.argsort(order(maps), axis=1).reshape(maps.shape)
    shares = np.round(np.linspace(0, 1, steps + 1) * maps[0].size)
    rows, found = torch.as_tensor(targets, device=images.device), {}
    with untouched(model), torch.inference_mode():
        for name, start, end in (("deletion", images, base), ("insertion", base, images)):
            parts = []
            for some in torch.arange(len(images)).split(max(1, batch_size // (steps + 1))):
                # numpy takes a tensor of one index for a scalar, so the last image alone would lose
                # its axis
                cut = torch.from_numpy(
                    ranks[some.numpy()][:, None] < shares[None, :, None, None]
                ).to(images.device)
                mixed = torch.where(cut[:, :, None], end[some][:, None], start[some][:, None])
                chance = _chances(model, mixed.flatten(0, 1)).view(len(some), steps + 1, -1)
                parts.append(
                    chance.gather(2, rows[some].view(-1, 1, 1).expand(-1, steps + 1, 1)).squeeze(2)
                )
            found[name] = torch.cat(parts).cpu().numpy()
    return found


def _chances(model: Classifier, images: Tensor) -> Tensor:
    """Probabilities ``(N, K)``, in mixed precision where that is fast: thousands of images are asked for one
    curve."""
    with device.autocast(images.device):
        return model(images.contiguous(memory_format=torch.channels_last)).float().softmax(-1)


def area(curve: np.ndarray) -> np.ndarray:
    """Area under curves ``(N, steps + 1)`` over [0, 1], by trapezoid."""
    return np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)


def _same_images(images: Tensor, maps: np.ndarray, targets: np.ndarray) -> None:
    checks.shapes(images=(images, "N C H W"), maps=(maps, "N H W"), targets=(targets, "N"))


def confidence_change(
    model: Classifier, images: Tensor, maps: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """Average drop and increase in confidence when only the map's part of the image is left (each
    ``(N,)``).

    drop = max(0, Y − O) / Y, increase = 1 where O > Y; Y and O are the class's probabilities for
    the image and for image ⊙ map, the map scaled to [0, 1] (Chattopadhay et al. 2018,
    arXiv:1710.11063, section 4; Score-CAM's own metrics).
    """
    images = check_images(images, model)
    _same_images(images, maps, targets)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    scaled = torch.from_numpy(((maps - low) / np.maximum(high - low, 1e-12)).astype(np.float32)).to(
        images.device
    )
    with untouched(model), torch.inference_mode():
        rows = torch.as_tensor(targets, device=images.device).view(-1, 1)
        whole, part = (
            model(x).softmax(1).gather(1, rows)[:, 0].cpu().numpy()
            for x in (images, images * scaled[:, None])
        )
    return {
        "average_drop": np.maximum(0, whole - part) / np.maximum(whole, 1e-12),
        "increase": (part > whole).astype(float),
    }


def road(
    model: Classifier,
    images: Tensor,
    maps: np.ndarray,
    targets: np.ndarray,
    percentiles: Sequence[int] = (50,),
) -> np.ndarray:
    """ROAD ``(N,)``: half the difference of the class's probability when the least and when the
    most relevant pixels are imputed.

    Rong et al. 2022, arXiv:2202.00449; higher is better, 0 is chance. Imputation leaves no trace of
    the mask's shape.
    """
    images = check_images(images, model)
    _same_images(images, maps, targets)
    ranks = (
        1 - np.argsort(order(maps), axis=1).reshape(maps.shape) / maps[0].size
    )  # no ties: shares are what they say
    scores = [lambda output, target=int(target): output.softmax(-1)[target] for target in targets]
    torch.manual_seed(0)  # the imputed pixels carry a little noise
    with untouched(model):

        def ask(batch):  # the library imputes where the images lie and asks there too
            return model(batch.to(images.device))

        return np.asarray(
            ROADCombined(list(percentiles))(images.cpu(), ranks.astype(np.float32), scores, ask)
        )


def localisation(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """How well maps point at boolean masks of the same shape; each ``(N,)`` in [0, 1], NaN where
    the mask or map is empty.

    ``pointing``: 1 where the highest pixel lies in the mask (ties: their share). ``mass``: Σ over
    the mask of the map / Σ of the map. ``rank``: share of the |S| highest pixels that lie in the
    mask S. ``iou``: best intersection over union over thresholds. ``area``: |S| / HW, what a map
    that knows nothing gets for pointing, mass and rank.
    """
    checks.shapes(maps=(maps, "N H W"), masks=(masks, "N H W"))
    flat, inside = (
        maps.reshape(len(maps), -1).astype(np.float64),
        masks.reshape(len(masks), -1).astype(bool),
    )
    size, total = inside.sum(1), flat.clip(min=0).sum(1)
    usable = (size > 0) & (total > 0)
    best = flat == flat.max(1, keepdims=True)
    hits = np.cumsum(np.take_along_axis(inside, order(maps), 1), axis=1)
    taken = np.arange(1, flat.shape[1] + 1)
    rows = np.arange(len(flat))
    found = {
        "pointing": (best & inside).sum(1) / best.sum(1),
        "mass": (flat.clip(min=0) * inside).sum(1) / np.maximum(total, 1e-12),
        "rank": hits[rows, np.maximum(size, 1) - 1] / np.maximum(size, 1),
        "iou": (hits / (size[:, None] + taken - hits)).max(1),
    }
    return {name: np.where(usable, value, np.nan) for name, value in found.items()} | {
        "area": np.where(size > 0, inside.mean(1), np.nan)
    }


def outside(maps: np.ndarray, organ: np.ndarray) -> np.ndarray:
    """Share of the attention outside the organ ``(N,)``: 0 all inside; the organ's own empty share
    is what chance gives."""
    return 1 - localisation(maps, organ)["mass"]


def sparseness(maps: np.ndarray) -> np.ndarray:
    """Gini index of magnitudes ``(N,)``: 0 flat, near 1 a single pixel (Chalasani et al. 2020,
    arXiv:1810.06583); NaN if zero."""
    values = np.sort(np.abs(maps.reshape(len(maps), -1)).astype(np.float64), axis=1)
    count, total = values.shape[1], values.sum(1)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return np.where(
        total > 0, (values * weights).sum(1) / (count * np.maximum(total, 1e-300)), np.nan
    )


def rank_correlation(maps: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of maps ``(N,)`` in [-1, 1]; NaN where one of them is
    flat."""
    checks.shapes(maps=(maps, "N H W"), other=(other, "N H W"))
    first, second = (stats.rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, other))
    first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.where(scale > 0, (first * second).sum(1) / np.maximum(scale, 1e-12), np.nan)


def sensitivity(
    run: Callable[[Tensor], Explanation], images: Tensor, noise: float = 0.02, draws: int = 4
) -> np.ndarray:
    """Largest relative change of a map under small noise, ``(N,)``; 0 is stable (Yeh et al. 2019,
    arXiv:1901.09392, equation 1).

    ``noise`` is the largest change of a pixel in [0, 1]. ``run`` must explain the same class every
    time.
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    generator, before = torch.Generator().manual_seed(0), run(images).maps
    norm, worst = np.sqrt((before**2).sum((1, 2))), np.zeros(len(before))
    for _ in range(draws):
        shaken = images + noise * (2 * torch.rand(images.shape, generator=generator) - 1)
        change = np.sqrt(((run(shaken.clamp(0, 1)).maps - before) ** 2).sum((1, 2)))
        worst = np.maximum(worst, change)
    return np.where(norm > 0, worst / np.maximum(norm, 1e-12), np.nan)


def randomised(model: Classifier, seed: int = 0, stages: int = 5) -> list[tuple[str, Classifier]]:
    """Copies of a model with ever more of its weights drawn anew, from the head down to the stem
    (at most ``stages`` of them).

    Adebayo et al. 2018, arXiv:1810.03292, section 3.1 (cascading randomisation). The given model is
    not touched.
    """
    weighted = [
        name
        for name, module in model.network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and hasattr(module, "reset_parameters")
    ]
    # the order of definition is that of computation in every network of the zoo: the last is the
    # head
    cuts = np.unique(np.linspace(1, len(weighted), min(stages, len(weighted))).round().astype(int))
    found = []
    for cut in cuts:
        broken = copy.deepcopy(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name in weighted[-cut:]:
                broken.network.get_submodule(name).reset_parameters()
        found.append((f"{cut} of {len(weighted)} layers", broken))
    return found


def sanity(
    model: Classifier, explain: Callable[[Classifier], Explanation], stages: int = 5
) -> pd.DataFrame:
    """Rank correlation of maps before and after randomising weights: rows stage, spearman (mean
    over images).

    A method whose maps stay alike (near 1) although every weight is new explains the image, not the
    network.
    """
    before = explain(model).maps
    rows = [{"stage": "trained", "spearman": 1.0}]
    for stage, broken in randomised(model, stages=stages):
        values = rank_correlation(before, explain(broken).maps)
        rows.append(
            {
                "stage": stage,
                "spearman": float(np.nanmean(values)) if np.isfinite(values).any() else 0.0,
            }
        )
    return pd.DataFrame(rows)


def interval(values: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """Mean of the finite values with its 95 % bootstrap interval: mean, low, high, n; None where
    there are none."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2 or np.ptp(kept) == 0:
        mean = float(kept.mean()) if len(kept) else None
        return {"mean": mean, "low": mean, "high": mean, "n": len(kept)}
    found = stats.bootstrap(
        (kept,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed)
    )
    low, high = (float(value) for value in found.confidence_interval)
    return {"mean": float(kept.mean()), "low": low, "high": high, "n": len(kept)}


def paired(values: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Mean difference of two measures of the same images with its interval, and Wilcoxon's
    signed-rank p (two-sided)."""
    gap = np.asarray(values, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    gap = gap[np.isfinite(gap)]
    p_value = float(stats.wilcoxon(gap).pvalue) if np.any(gap != 0) else 1.0
    return interval(gap) | {"p_wilcoxon": p_value}
