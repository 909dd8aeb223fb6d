"""A memory of embeddings by row of the dataset, and the contrast of an embedding with its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kdnb import device


class Memory(nn.Module):
    """The embeddings of all rows of a dataset, each a moving average of norm 1.

    ``bank`` ``(R, D)`` begins with random values, as in Wu et al. 2018, arXiv:1805.01978. ``level``
    is the logarithm of the mean exponential score; it is measured in the first batch and then
    stays. Both are in the checkpoint.
    """

    def __init__(self, rows: int, size: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        bound = math.sqrt(3 / size)  # norm 1 on average
        self.register_buffer("bank", torch.empty(rows, size).uniform_(-bound, bound))
        self.register_buffer("level", torch.tensor(math.nan))

    def update(self, rows: Tensor, embedded: Tensor) -> None:
        """Move these rows ``(N,)`` towards their embeddings ``(N, D)``."""
        moved = self.bank[rows].lerp(embedded.detach().float(), 1 - self.momentum)
        self.bank[rows] = F.normalize(moved, dim=1)

    def scores(
        self, anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Scores of anchors ``(N, D)`` with rows of the bank: ``(N, P)`` and ``(N, Q)``, float32.

        ``positives`` ``(N, P)`` are rows for each anchor, ``negatives`` ``(Q,)`` rows for all.
        """
        scaled = anchors.float() / temperature
        with device.without_autocast(anchors.device):
            found = (self.bank[positives] @ scaled[:, :, None])[:, :, 0]
            return found, scaled @ self.bank[negatives].T

    def measure_level(self, scores: Sequence[Tensor]) -> None:
        """Set ``level`` from the scores of the first batch, tensors of any shape such as
        ``(N, Q)``."""
        if self.level.isnan():
            joined = torch.cat([each.detach().flatten() for each in scores])
            self.level.copy_(joined.logsumexp(0) - math.log(len(joined)))

    def class_directions(self, shares: Tensor) -> Tensor:
        """The mean of ReLU(row) of each class, scaled to norm 1: ``(K, D)``.

        ``shares`` ``(K, R)`` holds the share of each row in the mean of each class.
        """
        with device.without_autocast(shares.device):
            return F.normalize(shares @ self.bank.relu(), dim=1)


def noise_contrast(positive: Tensor, negative: Tensor, level: Tensor) -> Tensor:
    """−mean log h over the positives − sum log(1 − h) over the negatives of each anchor ``(N,)``.

    ``positive`` ``(N, P)`` and ``negative`` ``(N, Q)`` are scores s; h = e^s / (e^s + Q·e^level) is
    the probability that a row is a positive one. Tian et al. 2020, arXiv:1910.10699, equations 18
    and 19, for several positives; in logarithms, because e^s overflows half precision.
    """
    noise = level + math.log(negative.shape[1])
    found, rejected = F.logsigmoid(positive - noise), F.logsigmoid(noise - negative)
    return -found.mean(1) - rejected.sum(1)


def others_of_class(
    rows: Tensor, members: Tensor, most: int, generator: Generator | None = None
) -> Tensor:
    """For each of ``rows`` ``(N,)`` random other rows of its class: ``(N, P)``.

    ``members`` ``(M,)`` are all rows of the class; P is ``most``, or M − 1 where that is less. All
    tensors and the generator are on the CPU.
    """
    order = torch.rand(len(rows), len(members), generator=generator)
    order[rows[:, None] == members] = -1  # its own row comes last
    return members[order.topk(min(most, len(members) - 1), dim=1).indices]
