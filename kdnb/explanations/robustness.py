"""Sanity checks: does a map change when the weights are re-initialised, and stay when the image
barely changes?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdnb.explanations.base import Explanation
from kdnb.explanations.maps import rank_correlation
from kdnb.models.zoo import Classifier


def randomised(model: Classifier, seed: int = 0, stages: int = 5) -> list[tuple[str, Classifier]]:
    """Copies of a model with ever more layers re-initialised, from the head down to the stem, at
    most ``stages`` of them, each with a label. The model itself is not changed.

    Cascading randomisation: Adebayo et al. 2018, arXiv:1810.03292, section 3.1.
    """
    weighted = [
        name
        for name, module in model.network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and hasattr(module, "reset_parameters")
    ]
    # in every network of the zoo layers are defined in the order of computation, the head last
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


def randomisation_test(
    model: Classifier, explain: Callable[[Classifier], Explanation], stages: int = 5
) -> pd.DataFrame:
    """Rank correlation between the maps of a model and those of its randomised copies, averaged
    over images: columns stage and spearman, in [-1, 1].

    A method whose maps remain similar (near 1) although every weight is new explains the image, not
    the network (Adebayo et al. 2018, arXiv:1810.03292).
    """
    before = explain(model).maps
    rows = [{"stage": "trained", "spearman": 1.0}]
    for stage, broken in randomised(model, stages=stages):
        values = rank_correlation(before, explain(broken).maps)
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
        rows.append({"stage": stage, "spearman": mean})
    return pd.DataFrame(rows)


def sensitivity(
    explain: Callable[[Tensor], Explanation], images: Tensor, noise: float = 0.02, draws: int = 4
) -> np.ndarray:
    """Largest relative change ``(N,)`` of a map when noise is added to images ``(N, 3, S, S)`` in
    [0, 1] (or uint8); 0 is stable, NaN for a map of zeros.

    ``noise`` is the largest change of a pixel. ``explain`` must explain the same class every time.
    Max-sensitivity: Yeh et al. 2019, arXiv:1901.09392, equation 1.
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    generator, before = torch.Generator().manual_seed(0), explain(images).maps
    norm, worst = np.sqrt((before**2).sum((1, 2))), np.zeros(len(before))
    for _ in range(draws):
        noisy = images + noise * (2 * torch.rand(images.shape, generator=generator) - 1)
        change = np.sqrt(((explain(noisy.clamp(0, 1)).maps - before) ** 2).sum((1, 2)))
        worst = np.maximum(worst, change)
    return np.where(norm > 0, worst / np.maximum(norm, 1e-12), np.nan)
