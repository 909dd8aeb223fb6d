"""A memory of embeddings by row of the dataset, and the contrast of an embedding with its rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class Memory(nn.Module):
    """The embeddings of all rows of a dataset, each a moving average of norm 1.

    ``rows`` ``(R, D)`` begins with random values, as in Wu et al. 2018, arXiv:1805.01978. ``level``
    is the logarithm of the mean exponential score, which is measured once, in the first contrast,
    and stands in for the normalisation of the scores. Both survive an interruption.
    """

    def __init__(self, count: int, size: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        bound = math.sqrt(3 / size)  # norm 1 on average
        self.register_buffer("rows", torch.empty(count, size).uniform_(-bound, bound))
        self.register_buffer("level", torch.tensor(math.nan))

    def update(self, rows: Tensor, embedded: Tensor) -> None:
        """Move these rows ``(N,)`` towards their embeddings ``(N, D)``."""
        moved = self.rows[rows].lerp(embedded.detach().float(), 1 - self.momentum)
        self.rows[rows] = F.normalize(moved, dim=1)

    def class_means(self, shares: Tensor) -> Tensor:
        """Directions ``(K, D)`` of the mean of ReLU(row) for each class.

        ``shares`` ``(K, R)`` holds the share of each row in the mean of each class.
        """
        return F.normalize(shares @ self.rows.relu(), dim=1)

    def contrast(
        self, anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Scores of anchors ``(N, D)`` with rows of the memory, in float32.

        ``positives`` ``(N, P)`` are rows for each anchor, ``negatives`` ``(Q,)`` are rows for all
        of them; the scores are ``(N, P)`` and ``(N, Q)``.
        """
        scaled = anchors.float() / temperature
        found = torch.einsum("nd,npd->np", scaled, self.rows[positives])
        return found, scaled @ self.rows[negatives].T


def mean_exponential(scores: list[Tensor]) -> Tensor:
    """The logarithm of the mean of e^score over tensors of any shape, ``(N, ...)``."""
    joined = torch.cat([each.detach().flatten() for each in scores])
    return joined.logsumexp(0) - math.log(len(joined))


def noise_contrast(positive: Tensor, negative: Tensor, level: Tensor) -> Tensor:
    """−mean log h over the positives − sum log(1 − h) over the negatives of each anchor, ``(N,)``.

    ``positive`` ``(N, P)`` and ``negative`` ``(N, Q)`` are scores s, and h = e^s / (e^s + Q·e^level)
    is the probability that a row is a positive one. Tian et al. 2020, arXiv:1910.10699, equations
    18 and 19, for several positives; in logarithms, because e^s overflows half precision.
    """
    noise = level + math.log(negative.shape[1])
    found, rejected = F.logsigmoid(positive - noise), F.logsigmoid(noise - negative)
    return -found.mean(1) - rejected.sum(1)


def others_of_class(
    rows: Tensor, members: Tensor, most: int, generator: Generator | None = None
) -> Tensor:
    """Rows of the same class for each of ``rows`` ``(N,)``, never the row itself: ``(N, P)``.

    ``members`` ``(M,)`` are all rows of the class; P is ``most``, or M − 1 where that is less.
    """
    chance = torch.rand(len(rows), len(members), generator=generator)
    chance[rows.cpu()[:, None] == members.cpu()] = -1  # its own row comes last
    drawn = chance.topk(min(most, len(members) - 1), dim=1).indices
    return members[drawn.to(members.device)]
