"""A start without labels: a network learns which views are of one image (SimCLR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from kdnb import extras
from kdnb.distillation.base import Batch, Course, Method, Seen
from kdnb.images.augmentation import RandAugment
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter

losses = extras.late("pytorch_metric_learning.losses")


def criterion(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """NT-Xent of pytorch-metric-learning, which takes embeddings ``(N, D)`` and numbers ``(N,)``
    of images: equal numbers are views of one. Raises ``MissingExtra``."""
    return losses.NTXentLoss(temperature)


class SimCLR(Method):
    """Contrast of two views of each image with those of all others, without labels.

    Chen et al. 2020, arXiv:2002.05709, as R9 (arXiv:2112.08363) starts its networks. Ours: views by
    RandAugment(2, 9) after the dataset's augmentation, the projection head on the pooled maps of
    the last layer, and the optimiser of all networks here. It is not among the methods by name: a
    network that knows no labels cannot be compared with those that do.
    """

    name = "simclr"
    title, paper = "views of one image, no labels", "Chen et al. 2020, arXiv:2002.05709"
    needs_teacher = False
    taps = 1
    pooled = True

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's temperature for small batches, and its size of the projection."""

        contrast_temperature: float = parameter(0.5, "of the similarities", low=1e-3)
        projection: int = parameter(128, "size of the projection", low=2)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """The projection head, which training leaves behind."""
        width = student.features[0].shape[1]
        out = nn.Linear(width, self.options.projection)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), out)
        self.views = RandAugment()
        self.criterion = criterion(self.options.contrast_temperature)

    def change_batch(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """Two views of each image: all first ones, then all second ones."""
        views = [self.views(batch.images, generator) for _ in range(2)]
        return batch._replace(images=torch.cat(views))

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """The projections in place of the maps."""
        return student._replace(features=(self.head(student.features[0].flatten(1)),)), teachers

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss"}``; the classifier has a gradient of zero."""
        projections = student.features[0].float()
        numbers = torch.arange(len(projections) // 2, device=projections.device).repeat(2)
        return {"loss": self.criterion(projections, numbers) + 0 * student.logits.float().sum()}

    def selectable(self, epoch: int) -> bool:
        """The last epoch is kept: validation looks at classes, which are not learnt."""
        return False
