"""Relations of embeddings and of channels, and how far a student's lie from its teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks, device


def distances(points: Tensor) -> Tensor:
    """Euclidean distances ``(N, N)`` between points ``(N, D)``, in units of their mean.

    Park et al. 2019, arXiv:1904.05068, equation 5. The mean leaves out a point's distance to
    itself. Computed in float32; points that coincide have distance zero and gradient zero.
    """
    checks.shapes(points=(points, "N D"))
    # differences: |a|² + |b|² − 2ab loses the small distances
    lengths = _offsets(points).norm(dim=2)
    pairs = max(1, len(points) * (len(points) - 1))
    return lengths / (lengths.sum() / pairs).clamp(min=1e-12)


def angles(points: Tensor) -> Tensor:
    """Cosines ``(N, N, N)`` of the angles between points ``(N, D)``; the first index is the vertex.

    Park et al. 2019, arXiv:1904.05068, equation 8. Computed in float32; a point that coincides with
    the vertex has cosine zero.
    """
    checks.shapes(points=(points, "N D"))
    directions = F.normalize(_offsets(points), dim=2)
    with device.without_autocast(points.device):
        return directions @ directions.mT


def gram(maps: Tensor) -> Tensor:
    """Products of channels ``(N, C, C)`` of maps ``(N, C, h, w)``, divided by C·h·w, in float32."""
    checks.shapes(maps=(maps, "N C h w"))
    cells = maps.float().flatten(2)
    with device.without_autocast(maps.device):
        return cells @ cells.mT / cells[0].numel()


def root_mean_square(difference: Tensor) -> Tensor:
    """√mean(x²) of a tensor of any shape, ``(N, ...)``; its gradient at zero is zero, where that of
    a square root of a mean is not a number."""
    return torch.linalg.vector_norm(difference) / math.sqrt(difference.numel())


def _offsets(points: Tensor) -> Tensor:
    points = points.float()
    return points[None] - points[:, None]
