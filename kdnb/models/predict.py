"""Logits of a network for a set of images, in batches, on the device that the network is on."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from kdnb import device
from kdnb.images.pixels import Pixels
from kdnb.models.zoo import Classifier


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
