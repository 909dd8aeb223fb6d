"""Logits of a network for a set of images, in batches, on the device that the network is on."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from kdnb import device
from kdnb.images.pixels import Pixels
from kdnb.models.zoo import Classifier


def predict(model: Classifier, pixels: Pixels, batch_size: int = 64) -> np.ndarray:
    """Logits ``(N, K)`` float32 of un-augmented images, in eval mode, without gradients.

    Computed on the network's own device, in mixed precision where that is fast; the network stays
    there and keeps its mode.
    """
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
            answers.append(
                model(images.to(place).contiguous(memory_format=torch.channels_last)).float().cpu()
            )
    model.train(training)
    return torch.cat(answers).numpy()
