"""Teachers that have each seen a part of the patients, and a student of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.distillation.base import Seen, register
from kdnb.distillation.soft_targets import Hybrid, soft_loss, soft_targets
from kdnb.parameters import parameter


def right_shares(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """softmax over teachers of −CEₘ(x), for every image x: ``(M, N)`` from ``teacher_logits``
    ``(M, N, K)`` and labels, class numbers ``(N,)`` or shares ``(N, K)``.

    For class numbers it is the probability that a teacher gives to the right class, divided by the
    sum of all teachers' probabilities for it.
    """
    shares = labels if labels.ndim == 2 else F.one_hot(labels, teacher_logits.shape[-1])
    entropy = -(shares * F.log_softmax(teacher_logits.float(), dim=-1)).sum(-1)
    return torch.softmax(-entropy, dim=0)


@register("limit_trained")
class LimitTrained(Hybrid):
    """``alpha · cross-entropy + (1 − alpha) · T² · KL(Σₘ wₘ(x) pₘ ‖ student)`` with limit-trained
    teachers m, arXiv:2303.09494: each is trained on its own patients.

    The paper segments, with Lovász and Dice losses and a KL of features. Ours, for classes:
    cross-entropy, a KL of the classes' probabilities, alpha and T of :class:`Hybrid`, three
    teachers, and their weights: equal, or for each image softmax(−CEₘ(x)), which
    ``teacher_weights`` multiply.
    """

    title, paper = "teachers of disjoint patients", "arXiv:2303.09494"
    idea = (
        "Several teachers, each trained on other patients, teach one student; each is trusted by "
        "how well it knows the image."
    )
    equation = (
        r"\mathcal{L} = \alpha\, \mathrm{CE}(y, p_s) + (1 - \alpha)\, T^2\,"
        r" \mathrm{KL}\Big(\sum_m w_m(x)\, p_m^{(T)} \,\|\, p_s^{(T)}\Big)"
        r" \\ w_m(x) = \mathrm{softmax}_m(-\mathrm{CE}(y, p_m))"
    )
    reported = (
        "teachers of small parts of the data teach a segmentation student, +9 % Dice; "
        "classification is ours"
    )
    reported_on = "prostate MRI, segmentation"
    teacher_shards = 3

    @dataclass(frozen=True)
    class Options(Hybrid.Options):
        """All of them are ours."""

        weighting: str = parameter(
            "loss",
            "weights of the teachers: equal, or by their loss on each image",
            choices=("loss", "equal"),
        )

    def soft(self, student: Seen, teachers: Sequence[Seen], labels: Tensor) -> Tensor:
        """The soft term alone."""
        logits, temperature = self.teacher_logits(student, teachers), self.options.temperature
        weights = self.teacher_weights(teachers).to(logits)
        if self.options.weighting == "loss":
            weights = weights[:, None] * right_shares(logits, labels)
        return soft_loss(student.logits, soft_targets(logits, temperature, weights), temperature)
