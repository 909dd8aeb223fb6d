"""Augmentations of timm for whole batches: RandAugment, mixup and CutMix, drawn from a generator of
torch, so that an interrupted run sees the images that it would have seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torch import Generator, Tensor


@contextmanager
def drawn_from(generator: Generator | None) -> Iterator[None]:
    """Within the block, the global random numbers of Python and NumPy follow from ``generator``.

    timm's augmentations use both. Their states are the old ones again afterwards.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002


@dataclass(frozen=True)
class RandAugment:
    """``operations`` operations of timm's RandAugment for each image, all of ``magnitude`` (0 to
    10), each applied with timm's default probability of one half.

    Cubuk et al. 2020, arXiv:1909.13719. Operations act on 8-bit images, as in the paper.
    """

    operations: int = 2
    magnitude: int = 9

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] to the same shape and range; ``generator`` is a CPU
        generator."""
        # a grey image stored once and expanded to three channels is changed once
        grey = images.stride(1) == 0
        transform = rand_augment_transform(
            f"rand-m{self.magnitude}-n{self.operations}", {"img_mean": 128 if grey else (128,) * 3}
        )
        eight_bits = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pixels = eight_bits[..., 0] if grey else eight_bits
        with drawn_from(generator):
            changed = [np.asarray(transform(Image.fromarray(image))) for image in pixels]
        found = torch.from_numpy(np.stack(changed)).to(images) / 255
        return found[:, None].expand(-1, 3, -1, -1) if grey else found.permute(0, 3, 1, 2)


def mixed(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    mixup: float,
    cutmix: float,
    smoothing: float,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, S, S)`` mixed with one another by timm, and their labels as shares
    ``(N, num_classes)``.

    ``mixup`` and ``cutmix`` are the parameters of the Beta distributions from which a batch's share
    is drawn, 0 for neither; where both are positive, each batch is mixed in one of the two ways
    with equal probability. ``labels`` are ``(N,)``. Zhang et al. 2018, arXiv:1710.09412; Yun et al.
    2019, arXiv:1905.04899; ``smoothing`` of Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    mix = Mixup(
        mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes, prob=mixup + cutmix > 0
    )
    # timm pairs the first image with the last and asks for an even number, so an odd batch is
    # extended by one image that is dropped again; it also mixes in place
    count = len(images)
    rows = torch.arange(count + count % 2, device=images.device).clamp(max=count - 1)
    with drawn_from(generator):
        images, shares = mix(images[rows].contiguous(), labels[rows])
    return images[:count], shares[:count]
