"""Logits and features of a network for a set of images, in batches, on the device that the network
is on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import device, errors
from kdnb.images.pixels import Pixels
from kdnb.models.zoo import Classifier


class NoFeatures(
    errors.UserError,
    ValueError,
    code="KD803",
    way_out="choose another network with -p teacher or -p features",
):
    """A network has no last linear layer whose inputs could serve as features."""


def mirrorings(flips: str) -> list[tuple[int, ...]]:
    """The axes of ``(N, C, H, W)`` images to flip for each view, none for the first.

    Raises ``ValueError`` for letters other than ``h`` and ``v``.
    """
    if not set(flips) <= {"h", "v"}:
        raise ValueError(f"flips must be made of h and v, got {flips!r}")
    views: list[tuple[int, ...]] = [()]
    for letter, axis in (("h", 3), ("v", 2)):
        if letter in flips:
            views += [(*axes, axis) for axes in views]
    return views


def predict(model: Classifier, pixels: Pixels, batch_size: int = 64, flips: str = "") -> np.ndarray:
    """Logits ``(N, K)`` float32 of un-augmented images, in eval mode, without gradients.

    ``flips``, a part of ``hv``, averages them over the image and its mirror images (left-right,
    upside down, both): test-time augmentation.

    Computed on the network's own device, in mixed precision where that is fast; the network stays
    there and keeps its mode.
    """
    views = mirrorings(flips)
    place, training = device.of(model), model.training
    model.to(memory_format=torch.channels_last).eval()
    loader, answers = pixels.batches(batch_size), []
    with torch.inference_mode(), device.autocast(place):
        for images, _, _ in tqdm(
            loader,
            desc=f"{model.name} predicts",
            unit="batch",
            leave=False,
            disable=len(loader) < 20,
        ):
            images = images.to(place)
            logits = [
                model(images.flip(axes).contiguous(memory_format=torch.channels_last)).float()
                for axes in views
            ]
            answers.append((sum(logits) / len(logits)).cpu() if flips else logits[0].cpu())
    model.train(training)
    return torch.cat(answers).numpy()


def penultimate(model: Classifier, pixels: Pixels, batch_size: int = 64) -> np.ndarray:
    """What the last linear layer of a network reads of un-augmented images, ``(N, F)`` float32.

    Computed as :func:`predict` does; the layer's hook is removed again. Raises ``ValueError`` for a
    network that does not end in a linear layer.
    """
    found = [
        layer
        for layer in model.network.modules()
        if isinstance(layer, nn.Linear) and layer.out_features == model.num_classes
    ]
    kept: list[Tensor] = []

    def keep(layer, given):
        kept.append(given[0].float().cpu().clone())

    hook = found[-1].register_forward_pre_hook(keep) if found else None
    try:
        predict(model, pixels, batch_size)
    finally:
        if hook is not None:
            hook.remove()
    if not kept or kept[0].ndim != 2:
        raise NoFeatures(
            f"{model.name} does not end in a linear layer, so it has no features to read: choose "
            "another network"
        )
    return torch.cat(kept).numpy()
