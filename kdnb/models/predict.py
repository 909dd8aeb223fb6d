"""Logits of a network for a set of images, in batches, on the fastest settings of the machine."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.zoo import Classifier


def predict(model: Classifier, pixels: Pixels, batch_size: int = 64) -> np.ndarray:
    """Logits ``(N, K)`` float32 of un-augmented images, in eval mode, without gradients; the
    model's mode is kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = model.training
    model.to(device, memory_format=torch.channels_last).eval()
    autocast = torch.autocast(device, torch.bfloat16, enabled=zoo.precision() == "bf16")
    loader, answers = pixels.batches(batch_size), []
    with torch.inference_mode(), autocast:
        for images, _, _ in tqdm(
            loader,
            desc=f"{model.name} predicts",
            unit="batch",
            leave=False,
            disable=len(loader) < 20,
        ):
            answers.append(
                model(images.to(device).contiguous(memory_format=torch.channels_last)).float().cpu()
            )
    model.train(training)
    return torch.cat(answers).numpy()
