"""Batch statistics of a trained network, counted anew on images as the network will meet them.

Training leaves the running mean of its last augmented batches. Turned and zoomed images are
smoother than those that are tested (bilinear interpolation), and a network that was normalised for
the smooth ones may do worse on the others: by how much is in
``outputs/benchmarks/batch_statistics.json``. Wu & Johnson 2021, arXiv:2105.07576, section 3 (one
exact average in place of a running one) and 5 (images of another kind); Touvron et al. 2019,
arXiv:1906.06423, section 3 (images prepared in two ways).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from kdnb.data import Dataset
from kdnb.models import zoo
from kdnb.models.zoo import Classifier

IMAGES, BATCH = 256, 64


def calibration_images(dataset: Dataset, image_size: int) -> Tensor:
    """Training images without augmentation, ``(256, 3, S, S)`` in [0, 1], in random order and the
    same each time.

    Drawn as they come, with the classes' own shares; in the order of labels a batch would hold one
    class and its mean only.
    """
    train = dataset.pixels(image_size, "train")
    return train.floats(np.random.default_rng(0).permutation(train.rows)[:IMAGES])


def recalibrate(model: Classifier, images: Tensor) -> Classifier:
    """Replace the running statistics of every batch norm by their average over batches of
    ``images`` ``(N, 3, S, S)`` in [0, 1].

    Weights stay as they are; a network without batch norm stays wholly so. Returns the same network
    in eval mode. Ours because ``torch.optim.swa_utils.update_bn`` sets all layers to training:
    dropout would act, and a supernet would answer for others.
    """
    norms = [
        module
        for module in model.eval().modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=zoo.precision() == "bf16"),
    ):
        # equal parts: a rest of one image would count as much as a batch, and has no spread where
        # the last map is one cell
        for batch in images.tensor_split(math.ceil(len(images) / BATCH)) if norms else ():
            model(batch.to(device).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
