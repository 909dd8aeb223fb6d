"""Attention transfer: the student's maps are strong where the teacher's are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kdnb import checks
from kdnb.distillation.base import Method, Seen, on_one_grid, register
from kdnb.distillation.soft_targets import hard_loss
from kdnb.parameters import parameter


def attention(features: Tensor) -> Tensor:
    """The mean of squares over the channels of maps ``(N, C, h, w)``: ``(N, 1, h, w)``, float32.

    F²_sum of Zagoruyko & Komodakis 2017, section 3.1, up to a factor that the norm removes.
    """
    checks.shapes(features=(features, "N C h w"))
    return features.float().square().mean(1, keepdim=True)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps ``(N, 1, h, w)``, each scaled to norm 1.

    The finer one is averaged to the coarser grid first.
    """
    own, wanted = (F.normalize(q.flatten(1), dim=1) for q in on_one_grid(student, teacher))
    return F.mse_loss(own, wanted)


@register("attention_transfer")
class AttentionTransfer(Method):
    """Cross-entropy + β · Σ over layers of the mean squared difference of normalised attention
    maps: equation 2 of Zagoruyko & Komodakis 2017.

    As in the authors' code, the norm is squared, and there is no factor ½. The paper pairs the ends
    of three or four stages and leaves maps of unequal sizes to interpolation. Ours: the last two
    stages, which all networks of the zoo have, and averages over the coarser grid.
    """

    # torchdistill's ATLoss needs maps of one size and one teacher
    title, paper = "attention maps", "Zagoruyko & Komodakis 2017, arXiv:1612.03928"
    idea = (
        "The student's maps should be strong where the teacher's are: the mean of squares over the "
        "channels of each layer is compared, scaled to norm 1."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) + \beta \sum_{l} \frac{1}{h_l w_l} \left\lVert"
        r" \frac{Q_l^s}{\lVert Q_l^s \rVert} - \frac{Q_l^t}{\lVert Q_l^t \rVert} \right\rVert^2"
        r" \\ Q = \frac{1}{C} \sum_c A_c^2"
    )
    reported = "attention maps make a student better than labels alone, and add to soft targets"
    reported_on = "natural images (CIFAR-10, ImageNet)"
    transfers = ("labels", "maps")
    version = 2

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's weight, 1000 by number of cells and images."""

        attention_weight: float = parameter(1000.0, "weight of the attention maps, beta", low=0)
        attention_layers: int = parameter(2, "stages that are compared, from the last", low=1)

    @property
    def taps(self) -> int:
        """Layers that are read."""
        return self.options.attention_layers

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """Attention maps in place of features; processes exchange one channel instead of all."""
        own, *others = (
            Seen(each.logits, tuple(attention(maps) for maps in each.features))
            for each in (student, *teachers)
        )
        return own, others

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "attention_loss"}``."""
        hard = hard_loss(student.logits, labels, self.class_weights)
        distance = self.averaged(
            [
                sum(
                    attention_loss(own, wanted)
                    for own, wanted in zip(student.features, teacher.features, strict=True)
                )
                for teacher in teachers
            ]
        )
        loss = hard + self.options.attention_weight * distance
        return {"loss": loss, "hard_loss": hard, "attention_loss": distance}
