"""Score-CAM, fast: all channels of all images through large batches, in one sweep for every class.

Wang et al. (2020), Score-CAM: score-weighted visual explanations for CNNs, CVPR workshops, arXiv:1910.01279, algorithm 1.
Ours because pytorch-grad-cam goes image by image in batches of 16 float32 images with a transfer per score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from tqdm import tqdm

SCORES = ("logit", "prob")


@dataclass(frozen=True)
class Sweep:
    """What the masked images told: ``activations`` ``(N, C, h, w)`` and ``logits`` ``(N, C, K)`` of every channel's mask."""

    activations: Tensor
    logits: Tensor

    def weights(self, targets: Tensor, score: str = "logit", channel_softmax: bool = True) -> Tensor:
        """Channel weights ``(N, C)`` for one class an image.

        ``score`` is the class's ``logit`` (the paper's increase of confidence: its baseline cancels in the softmax) or its
        ``prob``; with ``channel_softmax`` the scores are softmaxed over channels (the paper), without they are taken as they
        are (the authors' released code, with ``prob``).
        """
        values = self.logits if score == "logit" else self.logits.softmax(-1)
        picked = values.gather(2, targets.view(-1, 1, 1).expand(-1, values.shape[1], 1)).squeeze(2)
        return picked.softmax(1) if channel_softmax else picked

    def maps(self, weights: Tensor) -> Tensor:
        """Class activation maps ``(N, h, w)`` of channel weights, negative evidence cut off."""
        return torch.einsum("nc,nchw->nhw", weights, self.activations).clamp(min=0)


def effective_channels(weights: Tensor) -> Tensor:
    """How many channels a map really mixes, ``(N,)`` between 1 and C: the exponential of the entropy of the weights.

    Near C the map is the plain mean of the activations: the scores told the channels hardly apart.
    """
    shares = weights.clamp(min=0)
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.exp(torch.special.entr(shares).sum(1))


def sweep(network: nn.Module, x: Tensor, activations: Tensor, channels: int | None = None, fast: bool = False,
          batch_size: int = 64) -> Sweep:  # fmt: skip
    """Mask images ``(N, 3, H, W)`` with each channel of ``activations`` ``(N, C, h, w)`` and ask the network, in batches.

    Every mask is the channel, enlarged bilinearly (corners aligned) and scaled to [0, 1]. Channels that are zero everywhere
    all give the same empty image, which is asked once. ``channels`` asks one mask for each of so many clusters of alike
    channels instead of one for each channel. ``fast`` computes in bf16; exact otherwise.
    """
    images, count = activations.shape[:2]
    alive = activations.flatten(2).amax(2) != activations.flatten(2).amin(2)
    member = [_clusters(maps[live], channels) for maps, live in zip(activations, alive, strict=True)]
    jobs = [(image, cluster) for image, known in enumerate(member) for cluster in range(int(known.max()) + 1 if len(known) else 0)]
    sides, answers = x.shape[-2:], []
    cast = torch.autocast(x.device.type, torch.bfloat16, enabled=fast)
    with torch.inference_mode(), cast:
        empty = network(torch.zeros_like(x[:1])).float()
        for start in tqdm(range(0, len(jobs), batch_size), desc="Score-CAM", unit="batch", leave=False, disable=len(jobs) < 4096):
            part = jobs[start : start + batch_size]
            masks = torch.stack([_mask(activations[i][alive[i]], member[i] == k, sides) for i, k in part]) if channels else (
                _masks(activations, alive, part, sides))  # fmt: skip
            batch = x[[i for i, _ in part]] * masks[:, None]
            answers.append(network(batch.contiguous(memory_format=torch.channels_last)).float())
        logits = empty.expand(images, count, -1).clone()
        told, done = torch.cat(answers) if answers else empty[:0], 0
        for image, known in enumerate(member):
            clusters = int(known.max()) + 1 if len(known) else 0
            logits[image, alive[image]] = told[done : done + clusters][known]
            done += clusters
    return Sweep(activations, logits)


def _scaled(maps: Tensor, sides: torch.Size) -> Tensor:
    """Maps ``(B, h, w)`` enlarged to the image and scaled to [0, 1], as pytorch-grad-cam does."""
    large = F.interpolate(maps[:, None].float(), tuple(sides), mode="bilinear", align_corners=True)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def _masks(activations: Tensor, alive: Tensor, jobs: list[tuple[int, int]], sides: torch.Size) -> Tensor:
    """Masks of single channels; job ``(i, k)`` means the k-th living channel of image i."""
    number = {i: alive[i].nonzero().squeeze(1) for i in {i for i, _ in jobs}}
    return _scaled(torch.stack([activations[i, number[i][k]] for i, k in jobs]), sides)


def _mask(living: Tensor, members: Tensor, sides: torch.Size) -> Tensor:
    """The mask of a cluster: the mean of its members' masks."""
    return _scaled(living[members], sides).mean(0)


def _clusters(living: Tensor, channels: int | None) -> Tensor:
    """The cluster of each living channel ``(L, h, w)``; without ``channels`` each is its own."""
    if channels is None or len(living) <= channels:
        return torch.arange(len(living), device=living.device)
    flat = living.flatten(1).float()
    flat = flat - flat.amin(1, keepdim=True)
    shapes = F.normalize(flat, dim=1).cpu().numpy()  # alike in where they fire, not in how strongly
    found = KMeans(channels, n_init=1, max_iter=20, random_state=0).fit(shapes).labels_
    return torch.from_numpy(np.unique(found, return_inverse=True)[1]).to(living.device)
