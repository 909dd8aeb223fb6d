"""Score-CAM in large batches: one sweep over the channels of all images serves every class.

Wang et al. 2020, arXiv:1910.01279, algorithm 1. Written here because pytorch-grad-cam goes image by
image in batches of 16 float32 images with a transfer per score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor, nn
from tqdm import tqdm

from kdnb.explanations.maps import rank_correlation
from kdnb.models.folding import folded

SCORES = ("logit", "prob")
ROUNDS = (0.4, 0.7, 1.0)  # shares of the channels to score; after each, the others are predicted
FIRST, GROWTH = 8, 1.5  # with a tolerance: the channels of the first round, then times as many
DRAWS = 16  # of the logits that are not scored, from which the error of a map is estimated
# masks in a batch: those of 64 leave a processor's cache
BATCH = {"cpu": 16}
FOLDED = 128  # masks from which on folding batch norms, which takes three passes, saves time
# variances of a logit that its mask may leave unexplained, relative to the explained one
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Sweep:
    """The network's logits for the masked images: ``activations`` ``(N, C, h, w)`` and, for the
    mask of every channel, ``logits`` ``(N, C, K)``."""

    activations: Tensor
    logits: Tensor

    def weights(
        self, targets: Tensor, score: str = "logit", channel_softmax: bool = True
    ) -> Tensor:
        """Channel weights ``(N, C)`` for one class per image, ``targets`` ``(N,)``.

        ``score`` is the class's ``logit`` (the paper's increase of confidence, whose baseline
        cancels in the softmax) or its ``prob``. With ``channel_softmax`` the scores are softmaxed
        over channels (the paper); without, they are used as they are (the authors' released code,
        with ``prob``).
        """
        values = self.logits if score == "logit" else self.logits.softmax(-1)
        index = targets.view(-1, 1, 1).expand(-1, values.shape[1], 1)
        scores = values.gather(2, index).squeeze(2)
        return scores.softmax(1) if channel_softmax else scores

    def maps(self, weights: Tensor) -> Tensor:
        """Class activation maps ``(N, h, w)`` of channel weights ``(N, C)``, negative values set to
        0."""
        return torch.einsum("nc,nchw->nhw", weights, self.activations).clamp(min=0)


def effective_channels(weights: Tensor) -> Tensor:
    """Number of channels that a map mixes, ``(N,)`` between 1 and C: the exponential of the entropy
    of the weights ``(N, C)``. Near C the map is the plain mean of the activations."""
    shares = weights.clamp(min=0)
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.exp(torch.special.entr(shares).sum(1))


def sweep(
    network: nn.Module,
    x: Tensor,
    activations: Tensor,
    targets: Tensor,
    num_classes: int,
    channels: int | None = None,
    fast: bool = False,
    batch_size: int | None = None,
    tolerance: float | None = None,
    weigh: Callable[[Sweep, Tensor], Tensor] = Sweep.weights,
) -> Sweep:
    """Mask images ``(N, 3, H, W)`` with channels of ``activations`` ``(N, C, h, w)`` and compute
    the network's logits, in batches.

    A mask is a channel, enlarged bilinearly (corners aligned) and scaled to [0, 1]. Channels that
    are constant give the same empty image, which is computed once. With ``channels`` at most so
    many are scored; with a ``tolerance`` in (0, 1), more and more until the rank correlation that
    the map is expected to have with the exact one reaches it. First come the most dissimilar
    channels, then those whose logit of class ``targets`` ``(N,)``, of ``num_classes``, may be large
    and get most of the weight; the logits of the others are predicted. ``weigh`` gives the weights
    of a sweep for ``targets``. ``fast`` computes in bf16.
    """
    batch_size = batch_size or BATCH.get(x.device.type, 64)
    usable = activations.flatten(2).amax(2) != activations.flatten(2).amin(2)
    total = int(usable.sum() if channels is None else usable.sum(1).clamp(max=channels).sum())
    bar = tqdm(total=total, desc="Score-CAM", unit="mask", leave=False, disable=total < 4096)
    network = folded(network, x[:1]) if total >= FOLDED else network
    with torch.inference_mode(), bar:
        logits = x.new_zeros(*usable.shape, num_classes, dtype=torch.float32)
        found = Sweep(activations, logits)
        plans = [_empty_image(found, ~usable)] + [
            _plan(found, row, each.nonzero().flatten(), target, channels, tolerance, weigh)
            for row, (each, target) in enumerate(zip(usable, targets.split(1), strict=True))
        ]
        while wanted := [pair for plan in plans if (pair := next(plan, None)) is not None]:
            every = torch.cat(wanted)
            for part in every.split(batch_size):
                rows, which = part.T
                masks = _masks(activations[rows, which], x.shape[-2:])[:, None]
                logits[rows, which] = _logits(network, x[rows] * masks, fast)
                bar.update(len(part))
    return found


def _empty_image(found: Sweep, constant: Tensor) -> Iterator[Tensor]:
    """The pair (image, channel) ``(1, 2)`` to score for all that are ``constant`` ``(N, C)``; when
    this goes on, its logits are those of all."""
    pairs = constant.nonzero()
    if len(pairs):
        yield pairs[:1]
        found.logits[constant] = found.logits[tuple(pairs[0])].clone()


def _plan(
    found: Sweep,
    row: int,
    usable: Tensor,
    target: Tensor,
    channels: int | None,
    tolerance: float | None,
    weigh: Callable[[Sweep, Tensor], Tensor],
) -> Iterator[Tensor]:
    """Pairs (image, channel) ``(M, 2)`` of image ``row`` to score next, of its ``usable`` channels
    ``(L,)``. Their logits are in ``found`` when this goes on, and at the end those of all."""
    budget = len(usable) if channels is None else min(channels, len(usable))
    known = torch.zeros(len(usable), dtype=torch.bool, device=usable.device)
    process, bound = None, None
    for count in _counts(budget, len(usable), tolerance):
        if count == len(usable):
            best = ~known
        elif process is None:
            process = _Process.of(found.activations[row, usable])
            best = _representatives(process.masks, count)
        else:
            best = bound.masked_fill(known, -torch.inf).topk(count - int(known.sum())).indices
        new = torch.zeros_like(known)
        new[best] = True
        known |= new
        yield torch.stack([torch.full_like(usable[new], row), usable[new]], 1)
        if known.all():
            return
        logits = found.logits[row, usable]
        noise = process.noise(known, logits[known, target])
        found.logits[row, usable[~known]] = process.mean(known, logits[known], noise)[~known]
        drawn = process.draws(known, logits[known, target], noise)
        bound = drawn.mean(1) + drawn.std(1)
        if tolerance and _agreement(found, row, usable, target, drawn, weigh) >= tolerance:
            return


def _counts(budget: int, available: int, tolerance: float | None) -> Iterator[int]:
    """How many channels of an image are scored after each round, at most ``budget`` of those that
    are ``available``."""
    if not budget:
        return
    if tolerance is None:
        shares = (1.0,) if budget == available else ROUNDS
        yield from sorted({math.ceil(share * budget) for share in shares})
        return
    count = min(FIRST, budget)
    yield count
    while count < budget:
        count = min(math.ceil(GROWTH * count), budget)
        yield count


def _agreement(
    found: Sweep,
    row: int,
    usable: Tensor,
    target: Tensor,
    drawn: Tensor,
    weigh: Callable[[Sweep, Tensor], Tensor],
) -> float:
    """The rank correlation that the map of image ``row`` is likely to have with the exact one: the
    lower quartile over maps from ``drawn`` ``(L, D)`` logits of ``usable`` channels ``(L,)``."""
    several = found.activations[row].expand(drawn.shape[1] + 1, -1, -1, -1)
    logits = found.logits[row].repeat(len(several), 1, 1)
    logits[1:, usable, target] = drawn.T
    each = Sweep(several, logits)
    maps = each.maps(weigh(each, target.expand(len(several))))
    # between cells a map is bilinear, and its ranks there count in what is drawn
    large = F.interpolate(maps[:, None], scale_factor=3, mode="bilinear", align_corners=False)
    maps = large[:, 0].cpu().numpy()
    first = np.broadcast_to(maps[:1], maps[1:].shape)
    empty = (np.ptp(first, axis=(1, 2)) == 0) & (np.ptp(maps[1:], axis=(1, 2)) == 0)
    similar = np.nan_to_num(rank_correlation(maps[1:], first))
    return float(np.quantile(np.where(empty, 1.0, similar), 0.25))


def _logits(network: nn.Module, batch: Tensor, fast: bool) -> Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=fast):
        return network(batch.contiguous(memory_format=torch.channels_last)).float()


def _masks(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps ``(B, h, w)`` enlarged to the image and scaled to [0, 1], as pytorch-grad-cam does."""
    large = F.interpolate(maps[:, None].float(), tuple(size), mode="bilinear", align_corners=True)
    large = large[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    # enlarged, a constant map differs by rounding, which the scale would turn into a mask
    constant = maps.amin((1, 2), keepdim=True) == maps.amax((1, 2), keepdim=True)
    return ((large - low) / (high - low + 1e-8)).masked_fill(constant, 0)


def _representatives(masks: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` of the masks ``(L, h * w)`` that represent all: the nearest to
    the centre of each cluster."""
    flat = masks.cpu().numpy()
    centres = KMeans(count, n_init=1, max_iter=20, random_state=0).fit(flat).cluster_centers_
    return torch.from_numpy(np.unique(pairwise_distances_argmin(centres, flat))).to(masks.device)


@dataclass(frozen=True)
class _Process:
    """A Gaussian process over the masks of one image: similar masks have similar logits.

    ``masks`` ``(L, h * w)`` before they are enlarged; ``kernel`` ``(L, L)``, squared exponential,
    its width the median distance of the masks; ``prior`` ``(L, D)`` draws of it, and ``rest``
    ``(L, D)`` standard normal ones of what masks do not explain. Rasmussen & Williams 2006,
    equation 2.25; draws of the posterior by Matheron's rule (Wilson et al. 2020, arXiv:2002.09309,
    equation 9). Ours, because scikit-learn would decompose all masks' covariance in each round.
    """

    masks: Tensor
    kernel: Tensor
    prior: Tensor
    rest: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> _Process:
        """The process over the masks of maps ``(L, h, w)``."""
        flat = maps.flatten(1).float()
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        masks = (flat - low) / (high - low).clamp(min=1e-8)
        distances = torch.cdist(masks, masks)
        width = distances[distances > 0].median() if (distances > 0).any() else 1.0
        kernel = torch.exp(-0.5 * (distances / width) ** 2)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(2, len(masks), DRAWS, generator=generator).to(masks.device)
        root = torch.linalg.cholesky(_with_noise(kernel, min(NOISES)))
        return cls(masks, kernel, root @ normal[0], normal[1])

    def noise(self, known: Tensor, values: Tensor) -> float:
        """The variance of ``values`` ``(M,)`` that the masks do not explain, relative to the
        explained one: of ``NOISES``, the one under which each value is likeliest given all others
        (Rasmussen & Williams 2006, equations 5.10 to 5.12)."""
        given, inner = _standardised(values)[0], self.kernel[known][:, known]
        likely = {}
        for noise in NOISES:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(_with_noise(inner, noise)))
            precision = inverse.diagonal()
            error = inverse @ given / precision
            likely[noise] = float((precision.log() - error**2 * precision).sum())
        return max(likely, key=likely.get)

    def mean(self, known: Tensor, values: Tensor, noise: float) -> Tensor:
        """Predicted values ``(L, K)`` of all masks from ``values`` ``(M, K)`` of those in ``known``
        ``(L,)``."""
        centre = values.mean(0)
        return centre + self._moved(known, values - centre, noise)

    def draws(self, known: Tensor, values: Tensor, noise: float) -> Tensor:
        """Draws ``(L, D)`` of what the values may be, given ``values`` ``(M,)`` of those in
        ``known`` ``(L,)``, which keep theirs."""
        given, centre, scale = _standardised(values)
        free = self.prior + math.sqrt(noise) * self.rest
        found = centre + scale * (free + self._moved(known, given[:, None] - free[known], noise))
        found[known] = values[:, None]
        return found

    def _moved(self, known: Tensor, values: Tensor, noise: float) -> Tensor:
        """How far ``values`` ``(M, K)`` of the masks in ``known`` move all: ``(L, K)``."""
        root = torch.linalg.cholesky(_with_noise(self.kernel[known][:, known], noise))
        return self.kernel[:, known] @ torch.cholesky_solve(values, root)


def _with_noise(kernel: Tensor, noise: float) -> Tensor:
    return kernel + noise * torch.eye(len(kernel), device=kernel.device)


def _standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values with mean 0 and deviation 1, that mean and that deviation."""
    centre, scale = values.mean(), values.std(correction=0).clamp(min=1e-12)
    return (values - centre) / scale, centre, scale
