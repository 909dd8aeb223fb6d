"""DIST: the student's probabilities correlate with its teacher's, over classes and over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kdnb import checks
from kdnb.distillation.base import Method, Seen, register
from kdnb.distillation.soft_targets import TEMPERATURE, hard_loss, soft_targets
from kdnb.parameters import parameter


def dissimilarity(one: Tensor, other: Tensor) -> Tensor:
    """1 − Pearson's correlation of equal rows of two matrices ``(N, D)``, mean over the rows.

    Huang et al. 2022, equations 5 to 7. A row without variance correlates with nothing, and a
    single column is such a row.
    """
    checks.shapes(one=(one, "N D"), other=(other, "N D"))
    rows = (each - each.mean(1, keepdim=True) for each in (one, other))
    return 1 - F.cosine_similarity(*rows, dim=1).mean()


@register("dist")
class DIST(Method):
    """Cross-entropy + τ² · (β · inter + γ · intra), equations 8 to 10 of Huang et al. 2022.

    ``inter`` correlates the probabilities of an image over the classes, ``intra`` those of a class
    over the images of a batch. Two probabilities always correlate by ±1, so that with two classes
    ``inter`` has no gradient; with one image in a batch ``intra`` has none. Ours: probabilities of
    several teachers are averaged.
    """

    # torchdistill's DISTLoss is the same for one teacher; it reads modules through hooks of its own
    title, paper = "correlated probabilities", "Huang et al. 2022, arXiv:2205.10536"
    idea = (
        "The student's probabilities should correlate with the teacher's instead of being equal: "
        "over the classes of an image, and over the images of a class."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) + T^2 \left[ \beta\, (1 - \rho_{\mathrm{classes}})"
        r" + \gamma\, (1 - \rho_{\mathrm{images}}) \right]"
    )
    reported = "correlated probabilities teach better than soft targets"
    reported_on = "natural images (ImageNet, CIFAR-100)"
    transfers = ("labels", "probabilities", "relations")

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The authors' configuration for ImageNet; on CIFAR-100 their temperature is 4."""

        temperature: float = parameter(1.0, TEMPERATURE, low=0.01)
        inter_weight: float = parameter(2.0, "weight of the correlation over classes, beta", low=0)
        intra_weight: float = parameter(2.0, "weight of the correlation over images, gamma", low=0)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "inter_loss", "intra_loss"}``."""
        options, logits = self.options, self.teacher_logits(student, teachers)
        wanted = soft_targets(logits, options.temperature, self.teacher_weights(teachers)).exp()
        own = F.softmax(student.logits.float() / options.temperature, 1)
        hard = hard_loss(student.logits, labels, self.class_weights)
        inter = options.temperature**2 * dissimilarity(own, wanted)
        intra = options.temperature**2 * dissimilarity(own.T, wanted.T)
        loss = hard + options.inter_weight * inter + options.intra_weight * intra
        return {"loss": loss, "hard_loss": hard, "inter_loss": inter, "intra_loss": intra}
