"""Relations of embeddings and of channels, and how far a student's lie from its teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks, device

SAME = 1e-14  # squared distance, as a share, below which double precision tells no difference


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


def gram_distance(own: Tensor, other: Tensor) -> Tensor:
    """√mean((G_own − G_other)²) of the matrices :func:`gram` of two maps ``(N, C, h, w)`` each; its
    gradient is zero where they are equal.

    With F ``(C, h·w)`` as columns of cells, ‖FFᵀ − EEᵀ‖² = ‖FᵀF‖² + ‖EᵀE‖² − 2‖FᵀE‖²: where there
    are fewer cells than channels, products of cells are compared, in double precision because of
    the difference.
    """
    checks.shapes(own=(own, "N C h w"), other=(other, "N C h w"))
    count, channels, cells = own.flatten(2).shape
    if channels <= cells:
        return root_mean_square(gram(own) - gram(other))
    one, two = own.double().flatten(2), other.double().flatten(2)
    with device.without_autocast(own.device):
        whole = (one.mT @ one).square().sum() + (two.mT @ two).square().sum()
        squared = whole - 2 * (one.mT @ two).square().sum()
    equal = squared <= SAME * whole
    root = torch.where(equal, torch.ones_like(squared), squared).sqrt()
    distance = torch.where(equal, torch.zeros_like(root), root)
    return (distance / (math.sqrt(count) * channels**2 * cells)).float()


def _offsets(points: Tensor) -> Tensor:
    points = points.float()
    return points[None] - points[:, None]
