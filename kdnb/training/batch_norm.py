"""Batch-norm statistics of a trained network, recalibrated on images that are not augmented.

Training leaves the running statistics of its last augmented batches. Rotated and zoomed images are
smoother than test images (bilinear interpolation), and a network that is normalised for the former
may do worse on the latter; ``outputs/benchmarks/batch_statistics.json`` has the size of the effect.
Wu & Johnson 2021, arXiv:2105.07576, sections 3 (an exact average in place of a running one) and 5
(a shift between training and test images); Touvron et al. 2019, arXiv:1906.06423, section 3
(training and test images of different preparation).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from kdnb import device
from kdnb.data import Dataset
from kdnb.models.zoo import Classifier

IMAGES, BATCH = 256, 64


def calibration_images(dataset: Dataset, image_size: int) -> Tensor:
    """Training images without augmentation, ``(N, 3, S, S)`` in [0, 1] with N at most 256, in a
    fixed random order.

    The classes keep their shares. In label order a batch would hold a single class, and its mean
    would be that of the class.
    """
    train = dataset.pixels(image_size, "train")
    return train.floats(np.random.default_rng(0).permutation(train.rows)[:IMAGES])


def recalibrate(model: Classifier, images: Tensor) -> Classifier:
    """Replace the running statistics of every batch norm by their average over batches of
    ``images`` ``(N, 3, S, S)`` in [0, 1].

    Weights do not change; a network without batch norm does not change at all. Returns the same
    network in eval mode. ``torch.optim.swa_utils.update_bn`` does not serve: it sets all layers to
    training mode, where dropout is active and a supernet samples subnets.
    """
    norms = [
        module
        for module in model.eval().modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    place = device.of(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    with torch.no_grad(), device.autocast(place):
        # equal parts: a last batch of one image would count as much as a whole one, and has no
        # variance where the last map is a single cell
        for batch in images.tensor_split(math.ceil(len(images) / BATCH)) if norms else ():
            model(batch.to(place).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
