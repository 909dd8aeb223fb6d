"""Decoupled knowledge distillation: the target's share and the other classes are weighted apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks
from kdnb.distillation.base import Course, Method, Mismatch, Seen, register
from kdnb.distillation.soft_targets import TEMPERATURE, hard_loss, soft_targets
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


def decoupled(
    logits: Tensor, log_targets: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T² · KL of target class against all others (TCKD), and T² · KL among the others (NCKD).

    ``logits`` and ``log_targets`` ``(N, K)``, the latter from :func:`soft_targets`, and ``labels``
    ``(N,)``; means over the batch. Zhao et al. 2022, section 3.1, equations 5 to 7. For two classes
    the second is zero, and so is its gradient.
    """
    checks.shapes(logits=(logits, "N K"), log_targets=(log_targets, "N K"), labels=(labels, "N"))
    checks.positive(temperature=temperature)
    student = _split(F.log_softmax(logits.float() / temperature, 1), labels)
    teacher = _split(log_targets, labels)
    target, other = (
        temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        for own, wanted in zip(student, teacher, strict=True)
    )
    return target, other


def _split(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(N, 2)`` of target and rest, and ``(N, K − 1)`` among the rest."""
    target = log_p.gather(1, labels[:, None])
    others = log_p[~F.one_hot(labels, log_p.shape[1]).bool()].view(len(log_p), -1)
    # never log(1 − p): it is −∞ where float32 rounds the target's p to 1
    rest = others.logsumexp(1, keepdim=True)
    return torch.cat([target, rest], 1), others - rest


@register("dkd")
class DKD(Method):
    """Cross-entropy + w(epoch) · (α · TCKD + β · NCKD), equation 8 of Zhao et al. 2022.

    w rises linearly over the first epochs. Two classes have no second class besides the target:
    NCKD is zero, and the loss is cross-entropy + w · α · T² · KL. Ours: the warm-up is a share of
    the epochs (the paper's 20 of 240), so that a short run ends it too; probabilities of several
    teachers are averaged.
    """

    # torchdistill and timm have no decoupled loss
    title, paper = "target class and others apart", "Zhao et al. 2022, arXiv:2203.08679"
    idea = (
        "Soft targets mix how sure the teacher is of the true class with how it ranks the others; "
        "here both are learnt apart, with weights of their own."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) + w(t)\, T^2 \left[ \alpha\,"
        r" \mathrm{KL}(b_t \,\|\, b_s) + \beta\, \mathrm{KL}(\hat p_t \,\|\, \hat p_s) \right]"
        r" \\ b = (p_y, 1 - p_y), \quad \hat p_k = \frac{p_k}{1 - p_y}"
    )
    reported = "decoupled soft targets teach better than plain ones"
    reported_on = "natural images (CIFAR-100, ImageNet)"
    transfers = ("labels", "probabilities")

    ramp: float = 1.0  # w of this epoch

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values on CIFAR-100."""

        temperature: float = parameter(4.0, TEMPERATURE, low=0.01)
        target_weight: float = parameter(1.0, "weight of the target's term, alpha", low=0)
        other_weight: float = parameter(8.0, "weight of the other classes' term, beta", low=0)
        warmup_share: float = parameter(
            0.083, "share of the epochs in which both weights rise", low=0, high=1
        )

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Note the length of the warm-up; say what is left of the method with two classes."""
        self.warmup = round(self.options.warmup_share * course.epochs)
        if student.logits.shape[1] == 2:
            print(
                "dkd: with two classes the term of the other classes is zero; the loss is "
                f"cross-entropy + {self.options.target_weight:g} · T² · KL"
            )

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Choose w."""
        self.ramp = min(1.0, (epoch + 1) / max(1, self.warmup))

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "target_loss", "other_loss"}``.

        Raises ``ValueError`` for labels that mix classes: a mixture has no target class.
        """
        if labels.ndim != 1:
            raise Mismatch(
                f"dkd needs one class an image, got labels {tuple(labels.shape)} that mix classes: "
                "do not mix images, or choose another method, for instance hybrid"
            )
        options, logits = self.options, self.teacher_logits(student, teachers)
        targets = soft_targets(logits, options.temperature, self.teacher_weights(teachers))
        hard = hard_loss(student.logits, labels, self.class_weights)
        target, other = decoupled(student.logits, targets, labels, options.temperature)
        soft = options.target_weight * target + options.other_weight * other
        loss = hard + self.ramp * soft
        return {"loss": loss, "hard_loss": hard, "target_loss": target, "other_loss": other}
