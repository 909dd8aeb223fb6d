"""Relational knowledge distillation: distances and angles between the images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.distillation.base import Method, Seen, mean_features, register
from kdnb.distillation.relations import angles, distances
from kdnb.distillation.soft_targets import hard_loss
from kdnb.parameters import parameter

FEWEST = 3  # images; two have one distance, which is its own mean, and no angle


@register("rkd")
class RKD(Method):
    """Cross-entropy + λ_D · distances + λ_A · angles, each with the Huber loss: section 3.2 of Park
    et al. 2019.

    The Huber losses are means over all pairs and triples, as in the authors' code. Ours: the
    embedding is the mean of the last map over its cells. A last batch of fewer than three images
    has no relations: only its labels count.
    """

    # torchdistill's RKDLoss is NaN for one image and computes in the precision it is given
    title, paper = "distances and angles", "Park et al. 2019, arXiv:1904.05068"
    idea = (
        "Images that are near or far for the teacher should be so for the student: distances "
        "between pairs and angles between triples of images are compared, not the embeddings."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s)"
        r" + \lambda_D\, \mathrm{mean}_{i,j}\, \mathrm{Huber}(d_{ij}^s - d_{ij}^t)"
        r" \\ + \lambda_A\, \mathrm{mean}_{i,j,k}\, \mathrm{Huber}(\cos \theta_{ijk}^s"
        r" - \cos \theta_{ijk}^t)"
    )
    reported = "distances and angles teach better than labels alone, and add to soft targets"
    reported_on = "natural images (CIFAR-100, Tiny ImageNet; retrieval sets)"
    transfers = ("labels", "relations")
    version = 2
    taps = 1
    pooled = True

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's weights for classification."""

        distance_weight: float = parameter(25.0, "weight of the distances", low=0)
        angle_weight: float = parameter(50.0, "weight of the angles", low=0)

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """Embeddings ``(N, C)`` in place of maps."""
        own, *others = (Seen(each.logits, (mean_features(each),)) for each in (student, *teachers))
        return own, others

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "distance_loss", "angle_loss"}``."""
        hard = hard_loss(student.logits, labels, self.class_weights)
        if len(labels) < FEWEST:
            distance = angle = torch.zeros_like(hard)
        else:
            distance, angle = (
                self.averaged(
                    [
                        F.smooth_l1_loss(relate(student.features[0]), relate(each.features[0]))
                        for each in teachers
                    ]
                )
                for relate in (distances, angles)
            )
        options = self.options
        loss = hard + options.distance_weight * distance + options.angle_weight * angle
        return {"loss": loss, "hard_loss": hard, "distance_loss": distance, "angle_loss": angle}
