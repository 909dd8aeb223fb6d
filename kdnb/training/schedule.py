"""How a network is trained: settings, learning rate, order of the images, class weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Settings:
    """AdamW with linear warm-up and cosine decay, early stopping on validation.

    ``lr`` is the peak; ``patience`` the epochs without a better validation score before training
    stops; ``clip`` the largest gradient norm; ``class_weights`` weighs labels by inverse frequency.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    augment: bool = True
    pretrained: bool = False
    weight_decay: float = 0.05
    warmup: float = 0.1
    patience: int = 12
    clip: float = 1.0
    class_weights: bool = True


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up to the peak, then half a cosine to zero, for ``step`` 0 to ``steps`` − 1."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.lr * (step + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def epoch_seed(settings: Settings, epoch: int) -> int:
    """The seed of all randomness in an epoch, so that none of it has to be stored."""
    return settings.seed * 100_003 + epoch


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse frequencies ``(K,)`` with mean 1 over the images: N / (K · count). Images without a
    label (−1) do not count."""
    labels = labels[labels >= 0]
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts)


class Batches(Sampler):
    """One process's equal part of every batch; the order in an epoch follows from (seed, epoch).

    So a resumed run sees the images it would have seen, and all processes of a launch together see
    what a single process would see. A last, shorter batch is cut to a size that divides equally,
    and dropped below two images a process: batch norm cannot learn from one. Raises ``ValueError``
    where whole batches do not divide equally.
    """

    def __init__(self, size: int, settings: Settings, part: int = 0, parts: int = 1):
        batch = settings.batch_size
        if parts > 1 and (batch % parts or min(size, batch) < 2 * parts):
            raise ValueError(
                f"{size} training images in batches of {batch} cannot be divided among {parts} "
                "processes, equally and with two images each: launch fewer, or choose a "
                f"-p batch_size that is a multiple of {parts}"
            )
        rest = size % batch
        self.settings, self.epoch, self.part, self.parts = settings, 0, part, parts
        self.rows, self.used = size, size - (rest if rest < 2 * parts else rest % parts) or size

    def __len__(self) -> int:
        return math.ceil(self.used / self.settings.batch_size)

    @property
    def images(self) -> int:
        """Images that are learnt from in an epoch."""
        return self.used

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.settings, self.epoch))
        order = torch.randperm(self.rows, generator=generator)[: self.used]
        batches = order.split(self.settings.batch_size)
        return (batch.chunk(self.parts)[self.part].tolist() for batch in batches)
