"""SHAP values by expected gradients, vectorised over images and samples.

Lundberg & Lee 2017, arXiv:1705.07874; expected gradients: Erion et al. 2021, arXiv:1906.10670,
equation 3. With the draws of the library the values equal those of ``shap.GradientExplainer``.
Written here because the library fills samples one by one, draws them independently, and reseeds
numpy for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import files

Draw = tuple[int, int, float]  # image, background image, and the share of the image in the point


def independent(images: int, backgrounds: int, samples: int, seed: int) -> Iterator[Draw]:
    """Every sample on its own, from the random stream of ``shap.GradientExplainer``."""
    stream = np.random.RandomState(seed)  # noqa: NPY002
    for image in range(images):
        for _ in range(samples):
            yield image, stream.choice(backgrounds), stream.uniform()


def stratified(images: int, backgrounds: int, samples: int, seed: int) -> Iterator[Draw]:
    """Every background image equally often, or once more, and the samples of each evenly spaced on
    the way to the image. Their starts are stratified as well (McKay et al. 1979,
    doi:10.1080/00401706.1979.10489755), so that all samples together are evenly spaced too. Ours.
    """
    for image in range(images):
        rng = np.random.default_rng([seed, image])
        counts = np.full(backgrounds, samples // backgrounds)
        counts[rng.permutation(backgrounds)[: samples % backgrounds]] += 1
        starts = (rng.permutation(backgrounds) + rng.random(backgrounds)) / backgrounds
        for background, (count, start) in enumerate(zip(counts, starts, strict=True)):
            for place in range(count):
                yield image, background, (place + start) / count


DRAWS: dict[str, Callable[[int, int, int, int], Iterator[Draw]]] = {
    "stratified": stratified,
    "independent": independent,
}


def gradient_shap(
    network: nn.Module,
    x: Tensor,
    targets: Tensor,
    background: Tensor,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    draws: str = "stratified",
) -> Tensor:
    """SHAP values ``(N, 3, H, W)`` of the logits of ``targets`` ``(N,)`` for normalised images
    ``x`` ``(N, 3, H, W)`` against ``background`` ``(B, 3, H, W)``.

    A value is the mean over ``samples`` of gradient × (image − background image), the gradient at a
    random point between the two. The sum over an image tends to logit(image) − mean
    logit(background). Erion et al. 2021, arXiv:1906.10670, equation 3. ``draws``, a key of
    :data:`DRAWS`, says how points are drawn. Raises ``UnknownName``.
    """
    draw = DRAWS[files.lookup(draws, DRAWS, "draws")]
    points = list(draw(len(x), len(background), samples, seed))
    values = torch.zeros_like(x)
    starts = range(0, len(points), batch_size)
    short = len(points) < 4096
    for start in tqdm(starts, desc="SHAP", unit="batch", leave=False, disable=short):
        batch = zip(*points[start : start + batch_size], strict=True)
        image, other, share = (list(column) for column in batch)
        t = torch.tensor(share, dtype=torch.float64).view(-1, 1, 1, 1)
        t, rest = t.to(x), (1 - t).to(x)  # rounded as the library rounds, to equal the last bit
        inputs = t * x[image] + rest * background[other]
        inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
        logits = network(inputs).gather(1, targets[image].view(-1, 1))
        (gradient,) = torch.autograd.grad(logits.sum(), inputs)
        part = gradient * (x[image] - background[other]) / samples
        values.index_add_(0, torch.tensor(image, device=x.device), part)
    return values
