"""Teachers that have each seen a part of the patients, and a student of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.distillation.base import Course, Seen, projected, register
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


def feature_divergence(own: Tensor, other: Tensor) -> Tensor:
    """KL of the softmax over channels in each cell, teacher ‖ student, a mean over cells, of maps
    ``(N, C, h, w)``: ``(N,)`` in float32."""
    log_q, log_p = (F.log_softmax(maps.float(), dim=1) for maps in (own, other))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean((1, 2))


@register("limit_trained")
class LimitTrained(Hybrid):
    """``alpha · cross-entropy + (1 − alpha) · T² · KL(Σₘ wₘ(x) pₘ ‖ student)`` with limit-trained
    teachers m, arXiv:2303.09494: each is trained on its own patients.

    The paper segments, with Lovász and Dice losses and a KL of features. Ours, for classes:
    cross-entropy, a KL of the classes' probabilities, alpha and T of :class:`Hybrid`, three
    teachers, each with the study's epochs of its own part, so that together they cost as much as
    one teacher, and their weights: equal, or for each image softmax(−CEₘ(x)), which
    ``teacher_weights`` multiply.

    ``feature_weight`` adds the paper's KL of features, :func:`feature_divergence` of the last maps,
    with the same weights of the teachers; off by default, because the paper's features are those
    of a decoder. Ours: its form, and a 1×1 convolution for each teacher that gives the student's
    map the teacher's channels.
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
        feature_weight: float = parameter(0.0, "weight of the KL of the last maps", low=0)

    @property
    def taps(self) -> int:
        """Layers that are read."""
        return int(self.options.feature_weight > 0)

    @classmethod
    def reads_logits_only(cls) -> bool:
        """With its default options."""
        return True

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """A regressor for each teacher whose map is compared."""
        self.regressors = nn.ModuleList(
            nn.Conv2d(student.features[0].shape[1], teacher.features[0].shape[1], 1)
            for teacher in teachers
            if self.taps
        )

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """The student's regressed map for each teacher, and the teachers' maps, on one grid."""
        if not self.taps:
            return student, teachers
        return projected(self.regressors, student, teachers)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "soft_loss"}``, and ``"feature_loss"`` where maps are read."""
        found = super().loss(student, teachers, labels, rows)
        if not self.taps:
            return found
        weights = self._weights(self.teacher_logits(student, teachers), teachers, labels)
        terms = torch.stack(
            [
                feature_divergence(own, teacher.features[0])
                for own, teacher in zip(student.features, teachers, strict=True)
            ]
        )
        features = (weights / weights.sum(0) * terms).sum(0).mean()
        loss = found["loss"] + self.options.feature_weight * features
        return found | {"loss": loss, "feature_loss": features}

    def soft(self, student: Seen, teachers: Sequence[Seen], labels: Tensor) -> Tensor:
        """The soft term alone."""
        logits, temperature = self.teacher_logits(student, teachers), self.options.temperature
        weights = self._weights(logits, teachers, labels)
        return soft_loss(student.logits, soft_targets(logits, temperature, weights), temperature)

    def _weights(self, logits: Tensor, teachers: Sequence[Seen], labels: Tensor) -> Tensor:
        """Weights of the teachers ``(M, 1)``, or ``(M, N)`` for each image; their sum is free."""
        weights = self.teacher_weights(teachers).to(logits)[:, None]
        return (
            weights * right_shares(logits, labels) if self.options.weighting == "loss" else weights
        )
