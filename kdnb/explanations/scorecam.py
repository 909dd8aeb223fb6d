"""Score-CAM, fast: all channels of all images through large batches, in one sweep for every class.

Wang et al. (2020), Score-CAM: score-weighted visual explanations for CNNs, CVPR workshops,
arXiv:1910.01279, algorithm 1. Ours because pytorch-grad-cam goes image by image in batches of 16
float32 images with a transfer per score.
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
ROUNDS = (
    0.4,
    0.7,
    1.0,
    # shares of the asked channels that are asked by then; after each the others' answers are predicted
)
NOISE = (
    0.01  # variance of an answer that its mask does not explain, as a share of what masks explain
)


@dataclass(frozen=True)
class Sweep:
    """What the masked images told: ``activations`` ``(N, C, h, w)`` and ``logits`` ``(N, C, K)`` of
    every channel's mask."""

    activations: Tensor
    logits: Tensor

    def weights(
        self, targets: Tensor, score: str = "logit", channel_softmax: bool = True
    ) -> Tensor:
        """Channel weights ``(N, C)`` for one class an image.

        ``score`` is the class's ``logit`` (the paper's increase of confidence: its baseline cancels
        in the softmax) or its ``prob``; with ``channel_softmax`` the scores are softmaxed over
        channels (the paper), without they are taken as they are (the authors' released code, with
        ``prob``).
        """
        values = self.logits if score == "logit" else self.logits.softmax(-1)
        picked = values.gather(2, targets.view(-1, 1, 1).expand(-1, values.shape[1], 1)).squeeze(2)
        return picked.softmax(1) if channel_softmax else picked

    def maps(self, weights: Tensor) -> Tensor:
        """Class activation maps ``(N, h, w)`` of channel weights, negative evidence cut off."""
        return torch.einsum("nc,nchw->nhw", weights, self.activations).clamp(min=0)


def effective_channels(weights: Tensor) -> Tensor:
    """How many channels a map really mixes, ``(N,)`` between 1 and C: the exponential of the
    entropy of the weights.

    Near C the map is the plain mean of the activations: the scores told the channels hardly apart.
    """
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
    """Mask images ``(N, 3, H, W)`` with each channel of ``activations`` ``(N, C, h, w)`` and ask
    the network, in batches.

    Every mask is the channel, enlarged bilinearly (corners aligned) and scaled to [0, 1]. Channels
    that are zero everywhere all give the same empty image, which is asked once. With ``channels``
    only so many are asked: first such as are most unlike, then those with the largest predicted
    logit of class ``targets`` ``(N,)`` (the predicted class by default), which the softmax gives
    the most weight; the others' logits stay predicted. How close the map stays hangs on the network
    (``outputs/benchmarks/score_cam.json``). ``fast`` computes in bf16; exact otherwise.
    """
    alive = activations.flatten(2).amax(2) != activations.flatten(2).amin(2)
    living = alive.sum(1)
    budget = living if channels is None else living.clamp(max=channels)
    asked = torch.zeros_like(alive)
    bar = tqdm(
        total=int(budget.sum()),
        desc="Score-CAM",
        unit="mask",
        leave=False,
        disable=budget.sum().item() < 4096,
    )
    with torch.inference_mode(), bar:
        classes = _answers(network, x, fast).argmax(1) if targets is None else targets
        logits = _answers(network, torch.zeros_like(x[:1]), fast).expand(*alive.shape, -1).clone()
        for share in ROUNDS:
            counts = torch.where(budget == living, budget, (share * budget).ceil().long()).tolist()
            scores = logits[torch.arange(len(x)), :, classes]
            chosen = torch.stack(
                [_next(*one) for one in zip(activations, scores, alive, asked, counts, strict=True)]
            )
            for part in chosen.nonzero().split(batch_size) if chosen.any() else ():
                rows, which = part.T
                logits[rows, which] = _answers(
                    network, x[rows] * _masks(activations[rows, which], x.shape[-2:])[:, None], fast
                )
                bar.update(len(part))
            asked |= chosen
            for image, rest in enumerate(alive & ~asked):
                if rest.any():
                    logits[image, rest] = _predicted(
                        activations[image], asked[image], rest, logits[image, asked[image]]
                    )
    return Sweep(activations, logits)


def _answers(network: nn.Module, batch: Tensor, fast: bool) -> Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=fast):
        return network(batch.contiguous(memory_format=torch.channels_last)).float()


def _masks(maps: Tensor, sides: torch.Size) -> Tensor:
    """Maps ``(B, h, w)`` enlarged to the image and scaled to [0, 1], as pytorch-grad-cam does."""
    large = F.interpolate(maps[:, None].float(), tuple(sides), mode="bilinear", align_corners=True)[
        :, 0
    ]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def _next(activations: Tensor, scores: Tensor, alive: Tensor, asked: Tensor, count: int) -> Tensor:
    """Which of an image's channels ``(C,)`` to ask next, so that ``count`` are asked in all."""
    waiting = (alive & ~asked).nonzero().squeeze(1)
    more = min(count - int(asked.sum()), len(waiting))
    places = (
        scores[waiting].topk(more).indices if asked.any() else _unlike(activations[waiting], more)
    )
    return torch.zeros_like(alive).index_fill(0, waiting[places], True)


def _unlike(maps: Tensor, count: int) -> Tensor:
    """Places of at most ``count`` of the maps ``(L, h, w)`` that stand for all: the one nearest to
    each cluster's centre."""
    if len(maps) <= count:
        return torch.arange(len(maps), device=maps.device)
    flat = _flat(maps)
    centres = KMeans(count, n_init=1, max_iter=20, random_state=0).fit(flat).cluster_centers_
    return torch.from_numpy(np.unique(pairwise_distances_argmin(centres, flat))).to(maps.device)


def _predicted(maps: Tensor, asked: Tensor, rest: Tensor, told: Tensor) -> Tensor:
    """Logits ``(R, K)`` of the channels in ``rest`` ``(C,)`` from those ``(M, K)`` of the ``asked``
    ``(C,)``.

    A mask is answered like masks near it: the mean of a Gaussian process (Rasmussen & Williams
    2006, equation 2.25) whose width is the median distance of the asked masks.
    """
    known, wanted = _flat(maps[asked]), _flat(maps[rest])
    width = max(float(np.median(pdist(known))), 1e-6) if len(known) > 1 else 1.0
    mean = told.mean(0)
    process = GaussianProcessRegressor(RBF(width), alpha=NOISE, optimizer=None).fit(
        known, (told - mean).cpu().numpy()
    )
    return mean + torch.from_numpy(process.predict(wanted)).to(told)


def _flat(maps: Tensor) -> np.ndarray:
    """Maps ``(M, h, w)`` as masks ``(M, h * w)`` in [0, 1], before they are enlarged."""
    flat = maps.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-8)).cpu().numpy()
