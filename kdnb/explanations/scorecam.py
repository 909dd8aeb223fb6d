"""Score-CAM in large batches: one sweep over the channels of all images serves every class.

Wang et al. 2020, arXiv:1910.01279, algorithm 1. Written here because pytorch-grad-cam goes image by
image in batches of 16 float32 images with a transfer per score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor, nn
from tqdm import tqdm

SCORES = ("logit", "prob")
ROUNDS = (0.4, 0.7, 1.0)  # shares of the channels to score; after each, the others are predicted
NOISE = 0.01  # variance of a logit that its mask does not explain, relative to the explained one


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
    channels: int | None = None,
    targets: Tensor | None = None,
    fast: bool = False,
    batch_size: int = 64,
) -> Sweep:
    """Mask images ``(N, 3, H, W)`` with each channel of ``activations`` ``(N, C, h, w)`` and
    compute the network's logits, in batches.

    A mask is a channel, enlarged bilinearly (corners aligned) and scaled to [0, 1]. Channels that
    are constant give the same empty image, which is computed once. With ``channels`` only so many
    are scored: first the most dissimilar ones, then those with the largest predicted logit of class
    ``targets`` ``(N,)`` (by default the predicted class), which get most of the weight; the logits
    of the others are predicted. How close the map stays depends on the network
    (``outputs/benchmarks/score_cam.json``). ``fast`` computes in bf16.
    """
    usable = activations.flatten(2).amax(2) != activations.flatten(2).amin(2)
    available = usable.sum(1)
    budget = available if channels is None else available.clamp(max=channels)
    scored, total = torch.zeros_like(usable), int(budget.sum())
    bar = tqdm(total=total, desc="Score-CAM", unit="mask", leave=False, disable=total < 4096)
    with torch.inference_mode(), bar:
        classes = _logits(network, x, fast).argmax(1) if targets is None else targets
        logits = _logits(network, torch.zeros_like(x[:1]), fast).expand(*usable.shape, -1).clone()
        for share in ROUNDS:
            counts = torch.where(budget == available, budget, (share * budget).ceil().long())
            scores = logits[torch.arange(len(x)), :, classes]
            images = zip(activations, scores, usable, scored, counts.tolist(), strict=True)
            chosen = torch.stack([_select(*image) for image in images])
            for part in chosen.nonzero().split(batch_size) if chosen.any() else ():
                rows, which = part.T
                masks = _masks(activations[rows, which], x.shape[-2:])[:, None]
                logits[rows, which] = _logits(network, x[rows] * masks, fast)
                bar.update(len(part))
            scored |= chosen
            for image, rest in enumerate(usable & ~scored):
                if rest.any():
                    known = scored[image]
                    logits[image, rest] = _predict_logits(
                        activations[image], known, rest, logits[image, known]
                    )
    return Sweep(activations, logits)


def _logits(network: nn.Module, batch: Tensor, fast: bool) -> Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=fast):
        return network(batch.contiguous(memory_format=torch.channels_last)).float()


def _masks(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps ``(B, h, w)`` enlarged to the image and scaled to [0, 1], as pytorch-grad-cam does."""
    large = F.interpolate(maps[:, None].float(), tuple(size), mode="bilinear", align_corners=True)
    large = large[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def _select(
    activations: Tensor, scores: Tensor, usable: Tensor, scored: Tensor, count: int
) -> Tensor:
    """Channels ``(C,)`` of one image to score next, so that ``count`` are scored in all."""
    waiting = (usable & ~scored).nonzero().squeeze(1)
    more = min(count - int(scored.sum()), len(waiting))
    if scored.any():
        places = scores[waiting].topk(more).indices
    else:
        places = _representatives(activations[waiting], more)
    return torch.zeros_like(usable).index_fill(0, waiting[places], True)


def _representatives(maps: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` of the maps ``(L, h, w)`` that represent all: the nearest to the
    centre of each cluster."""
    if len(maps) <= count:
        return torch.arange(len(maps), device=maps.device)
    flat = _flat(maps)
    centres = KMeans(count, n_init=1, max_iter=20, random_state=0).fit(flat).cluster_centers_
    return torch.from_numpy(np.unique(pairwise_distances_argmin(centres, flat))).to(maps.device)


def _predict_logits(maps: Tensor, scored: Tensor, rest: Tensor, logits: Tensor) -> Tensor:
    """Logits ``(R, K)`` of the channels in ``rest`` ``(C,)`` from the ``logits`` ``(M, K)`` of the
    ``scored`` ones ``(C,)``.

    Similar masks have similar logits: the mean of a Gaussian process (Rasmussen & Williams 2006,
    equation 2.25) whose width is the median distance of the scored masks.
    """
    known, unknown = _flat(maps[scored]), _flat(maps[rest])
    width = max(float(np.median(pdist(known))), 1e-6) if len(known) > 1 else 1.0
    mean = logits.mean(0)
    process = GaussianProcessRegressor(RBF(width), alpha=NOISE, optimizer=None)
    process.fit(known, (logits - mean).cpu().numpy())
    return mean + torch.from_numpy(process.predict(unknown)).to(logits)


def _flat(maps: Tensor) -> np.ndarray:
    """Maps ``(M, h, w)`` as masks ``(M, h * w)`` in [0, 1], before they are enlarged."""
    flat = maps.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-8)).cpu().numpy()
