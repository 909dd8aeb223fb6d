"""EFCM: features of a large network first, without labels, then the task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from kdnb.distillation.base import Course, Method, Seen, projected, register
from kdnb.distillation.soft_targets import hard_loss
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter

SIZES = (3, 5, 7)  # of the parallel convolutions, in cells


class Projector(nn.Module):
    """From a student's map ``(N, C, h, w)`` to a teacher's ``(N, D, h, w)``: a 1×1 convolution,
    depthwise convolutions of three sizes under a selective gate, and one transformer block.

    The gate is that of Li et al. 2019, arXiv:1903.06586, equations 1 to 6. There is no batch norm,
    so that one image is enough, and no position embedding, so that any grid is.
    """

    def __init__(self, width: int, target: int):
        super().__init__()
        hidden = max(32, target // 16)
        self.widen = nn.Conv2d(width, target, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(target, target, size, padding=size // 2, groups=target) for size in SIZES
        )
        self.squeeze, self.select = nn.Linear(target, hidden), nn.Linear(hidden, 3 * target)
        self.block = Block(target, num_heads=math.gcd(8, target), mlp_ratio=2.0)

    def forward(self, features: Tensor) -> Tensor:
        wide = self.widen(features)
        branches = torch.stack([branch(wide) for branch in self.branches])
        squeezed = F.relu(self.squeeze(branches.sum(0).mean((2, 3))))
        gate = self.select(squeezed).unflatten(1, (len(SIZES), -1)).softmax(1)
        chosen = (branches * gate.transpose(0, 1)[..., None, None]).sum(0)
        tokens = self.block((wide + chosen).flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, features.shape[2:])


def feature_distance(own: Tensor, other: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth-L1 distance of two maps ``(N, C, h, w)`` whose cells are normalised to mean 0 and
    variance 1 over the channels, a mean over all entries, in float32."""
    pair = [
        F.layer_norm(maps.float().permute(0, 2, 3, 1), maps.shape[1:2]) for maps in (own, other)
    ]
    return F.smooth_l1_loss(*pair, beta=beta)


@register("efcm")
class EFCM(Method):
    """Stage 1 minimises the smooth-L1 distance between the teacher's last map and the student's
    after a :class:`Projector`, without labels; stage 2 minimises cross-entropy without a teacher.

    The stages are those of EFCM, arXiv:2409.11817. Ours: the projector in place of its TransScan,
    the coarser grid of the two maps, normalised features, one learning rate schedule over both
    stages with half of the epochs each. The projector is not part of the network that is kept.
    """

    title, paper = "features without labels, then labels", "EFCM, arXiv:2409.11817"
    idea = (
        "The student first imitates the teacher's features on images without labels, through a "
        "projector that is dropped; then it learns the labels, of which few are needed."
    )
    equation = (
        r"\mathcal{L}_1 = \mathrm{SmoothL1}\left(\frac{g(F_s) - \mu}{\sigma},"
        r" \frac{F_t - \mu}{\sigma}\right) \\ \mathcal{L}_2 = \mathrm{CE}(y, p_s)"
    )
    reported = "a small model that first imitates a foundation model's features needs few labels"
    reported_on = "eleven downstream sets, from foundation models"
    transfers = ("labels", "maps")
    version = 2
    taps = 1

    @dataclass(frozen=True)
    class Options(Method.Options):
        """All of them are ours."""

        feature_share: float = parameter(
            0.5, "share of the epochs that is stage 1", low=0, high=0.9
        )
        beta: float = parameter(1.0, "where smooth L1 goes from square to linear", low=1e-3)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """A projector for each teacher."""
        self.first = int(self.options.feature_share * course.epochs)
        width = student.features[0].shape[1]
        self.projectors = nn.ModuleList(
            Projector(width, teacher.features[0].shape[1]) for teacher in teachers
        )

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Choose the stage."""
        self.imitating = epoch < self.first

    def asks_teachers(self, epoch: int) -> bool:
        """Stage 2 has no teacher."""
        return epoch < self.first

    def selectable(self, epoch: int) -> bool:
        """The classifier learns in stage 2 only."""
        return epoch >= self.first

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """In stage 1 the student's projected map for each teacher, and the teachers' maps, on one
        grid; in stage 2 the logits alone."""
        if not self.imitating:
            # every parameter takes part in every step; what does not learn has weight zero
            idle = sum(weights.sum() for weights in self.projectors.parameters())
            return Seen(student.logits + 0 * idle), []
        return projected(self.projectors, student, teachers)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "feature_loss", "hard_loss"}``; ``feature_loss`` is 0 in stage 2."""
        hard = hard_loss(student.logits, labels, self.class_weights)
        if not self.imitating:
            return {"loss": hard, "feature_loss": torch.zeros_like(hard), "hard_loss": hard}
        distance = self.averaged(
            [
                feature_distance(own, teacher.features[0], self.options.beta)
                for own, teacher in zip(student.features, teachers, strict=True)
            ]
        )
        return {"loss": distance + 0 * hard, "feature_loss": distance, "hard_loss": hard}
