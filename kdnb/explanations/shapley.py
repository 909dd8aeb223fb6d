"""SHAP values by expected gradients, vectorised over images and samples.

Lundberg & Lee 2017, arXiv:1705.07874; expected gradients: Erion et al. 2021, arXiv:1906.10670,
equation 3. The values equal those of ``shap.GradientExplainer`` for the same samples. Written here
because the library fills samples one by one, computes all classes where one is explained, and
reseeds numpy for the whole process.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


def gradient_shap(
    network: nn.Module,
    x: Tensor,
    targets: Tensor,
    background: Tensor,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """SHAP values ``(N, 3, H, W)`` of the logits of ``targets`` ``(N,)`` for normalised images
    ``x`` ``(N, 3, H, W)`` against ``background`` ``(B, 3, H, W)``.

    A value is the mean over ``samples`` of gradient × (image − background image), the gradient at a
    random point between the two. The sum over an image tends to logit(image) − mean
    logit(background). Erion et al. 2021, arXiv:1906.10670, equation 3.
    """
    # the library's own random stream, so that both can be compared sample by sample
    stream = np.random.RandomState(seed)  # noqa: NPY002
    draws = [
        (image, stream.choice(len(background)), stream.uniform())
        for image in range(len(x))
        for _ in range(samples)
    ]
    values = torch.zeros_like(x)
    starts = range(0, len(draws), batch_size)
    short = len(draws) < 4096
    for start in tqdm(starts, desc="SHAP", unit="batch", leave=False, disable=short):
        batch = zip(*draws[start : start + batch_size], strict=True)
        image, other, share = (list(column) for column in batch)
        t = torch.tensor(share, dtype=torch.float64).view(-1, 1, 1, 1)
        t, rest = t.to(x), (1 - t).to(x)  # rounded as the library rounds, to equal the last bit
        points = t * x[image] + rest * background[other]
        points = points.contiguous(memory_format=torch.channels_last).requires_grad_()
        logits = network(points).gather(1, targets[image].view(-1, 1))
        (gradient,) = torch.autograd.grad(logits.sum(), points)
        part = gradient * (x[image] - background[other]) / samples
        values.index_add_(0, torch.tensor(image, device=x.device), part)
    return values
