"""Similarity-preserving distillation: images that are alike for the teacher are so for the
student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kdnb import checks, device
from kdnb.distillation.base import Method, Seen, register
from kdnb.distillation.soft_targets import hard_loss
from kdnb.parameters import parameter


def similarities(features: Tensor) -> Tensor:
    """Dot products ``(N, N)`` of the maps ``(N, C, h, w)`` of N images, each row of norm 1.

    Tung & Mori 2019, equations 1 to 3; float32, since the products overflow half precision.
    """
    checks.shapes(features=(features, "N C h w"))
    flat = features.float().flatten(1)
    with device.without_autocast(flat.device):
        return F.normalize(flat @ flat.T, dim=1)


@register("similarity_preserving")
class SimilarityPreserving(Method):
    """Cross-entropy + γ · Σ over layers of ‖G_student − G_teacher‖² / N², equations 4 and 5 of Tung
    & Mori 2019, with the similarities G of the N images of a batch.

    Maps of any two sizes give matrices of one size. With one image in a batch the term is zero.
    """

    # torchdistill's SPKDLoss reads one layer of one teacher, in the precision it is given
    title, paper = "similarity of images", "Tung & Mori 2019, arXiv:1907.09682"
    idea = (
        "Two images that activate the teacher alike should activate the student alike: matrices of "
        "the similarities in a batch are compared."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) + \frac{\gamma}{N^2} \lVert G^s - G^t \rVert^2"
        r" \\ G_{ij} \propto f_i \cdot f_j, \quad \lVert G_{i} \rVert = 1"
    )
    reported = "similarities teach better than labels alone, and add to soft targets"
    reported_on = "natural images and textures (CIFAR-10, CINIC-10)"
    transfers = ("labels", "relations")
    version = 2

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values on CIFAR-10: the last convolutional layer."""

        similarity_weight: float = parameter(3000.0, "weight of the similarities, gamma", low=0)
        similarity_layers: int = parameter(1, "stages that are compared, from the last", low=1)

    @property
    def taps(self) -> int:
        """Layers that are read."""
        return self.options.similarity_layers

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "similarity_loss"}``."""
        hard = hard_loss(student.logits, labels, self.class_weights)
        own = [similarities(maps) for maps in student.features]
        distance = self.averaged(
            [
                sum(F.mse_loss(s, similarities(t)) for s, t in zip(own, each.features, strict=True))
                for each in teachers
            ]
        )
        loss = hard + self.options.similarity_weight * distance
        return {"loss": loss, "hard_loss": hard, "similarity_loss": distance}
