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
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor, nn
from tqdm import tqdm

SCORES = ("logit", "prob")
NOISE = 0.05  # variance of an answer that its mask does not explain, as a share of what masks explain


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
    all give the same empty image, which is asked once. With ``channels`` only so many, as unlike as can be, are asked, and the
    answers to the others are predicted from theirs; how close the map stays then hangs on the network, and OFA-595's may not
    (``outputs/benchmarks/score_cam.json``). ``fast`` computes in bf16; exact otherwise.
    """
    images, count = activations.shape[:2]
    alive = activations.flatten(2).amax(2) != activations.flatten(2).amin(2)
    asked = [live.nonzero().squeeze(1)[_unlike(maps[live], channels)] for maps, live in zip(activations, alive, strict=True)]
    jobs = [(image, channel) for image, some in enumerate(asked) for channel in some.tolist()]
    sides, answers = x.shape[-2:], []
    bar = tqdm(range(0, len(jobs), batch_size), desc="Score-CAM", unit="batch", leave=False, disable=len(jobs) < 4096)
    with torch.inference_mode():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=fast):
            empty = network(torch.zeros_like(x[:1])).float()
            for start in bar:
                rows, which = (list(part) for part in zip(*jobs[start : start + batch_size], strict=True))
                batch = x[rows] * _masks(activations[rows, which], sides)[:, None]
                answers.append(network(batch.contiguous(memory_format=torch.channels_last)).float())
        logits = empty.expand(images, count, -1).clone()
        told = torch.cat(answers).split([len(some) for some in asked]) if answers else ()
        for image, (some, answer) in enumerate(zip(asked, told, strict=False)):
            logits[image, alive[image]] = _predicted(activations[image], alive[image], some, answer)
    return Sweep(activations, logits)


def _masks(maps: Tensor, sides: torch.Size) -> Tensor:
    """Maps ``(B, h, w)`` enlarged to the image and scaled to [0, 1], as pytorch-grad-cam does."""
    large = F.interpolate(maps[:, None].float(), tuple(sides), mode="bilinear", align_corners=True)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def _unlike(living: Tensor, channels: int | None) -> Tensor:
    """Places of at most ``channels`` of the maps ``(L, h, w)`` that stand for all: the one nearest to each cluster's centre."""
    if channels is None or len(living) <= channels:
        return torch.arange(len(living), device=living.device)
    flat = living.flatten(1).float()
    flat = flat - flat.amin(1, keepdim=True)
    shapes = F.normalize(flat, dim=1).cpu().numpy()  # alike in where they fire, not in how strongly
    centres = KMeans(channels, n_init=1, max_iter=20, random_state=0).fit(shapes).cluster_centers_
    return torch.from_numpy(np.unique(pairwise_distances_argmin(centres, shapes))).to(living.device)


def _predicted(activations: Tensor, alive: Tensor, asked: Tensor, told: Tensor) -> Tensor:
    """Logits ``(L, K)`` of all living channels from those ``(M, K)`` of the asked ones.

    A mask is answered like masks near it: the mean of a Gaussian process (Rasmussen & Williams 2006, equation 2.25) whose width
    is the median distance of the asked masks.
    """
    if len(asked) == int(alive.sum()):
        return told
    flat = activations.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    masks = (flat - low) / (high - low).clamp(min=1e-8)
    width = torch.cdist(masks[asked], masks[asked]).median().clamp(min=1e-6).item()
    process = GaussianProcessRegressor(RBF(width), alpha=NOISE, optimizer=None)
    mean = told.mean(0)
    process.fit(masks[asked].cpu().numpy(), (told - mean).cpu().numpy())
    found = mean + torch.from_numpy(process.predict(masks.cpu().numpy())).to(told)
    found[asked] = told
    return found[alive]
