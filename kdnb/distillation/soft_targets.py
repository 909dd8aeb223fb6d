"""Labels and soft targets: the methods of both papers, and the pure functions they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks
from kdnb.distillation.base import Method, Seen, create, register
from kdnb.parameters import parameter

ALPHA = "share of the labels in the loss, 0 to 1 (lambda in paper A)"
TEMPERATURE = "softens the answers of teacher and student, above 0"


def soft_targets(
    teacher_logits: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Log of the teachers' averaged probabilities at a temperature.

    ``teacher_logits`` ``(M, N, K)`` of M teachers to ``(N, K)``. ``weights``, ``(M,)`` or one for
    each image ``(M, N)``, are normalised to sum 1 over the teachers (equal by default). Hinton et
    al. 2015, arXiv:1503.02531, section 2.
    """
    if teacher_logits.ndim != 3:
        raise ValueError(
            f"teacher_logits must be (teachers, N, K), got {tuple(teacher_logits.shape)}"
        )
    checks.positive(temperature=temperature)
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    if weights is None:
        weights = torch.ones(len(log_p))
    log_w = torch.log(weights.to(log_p) / weights.sum(0).to(log_p)).view(len(log_p), -1, 1)
    return torch.logsumexp(log_p + log_w, dim=0)


def average(logits: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The joint answer of several teachers as logits ``(N, K)``.

    ``logits`` are ``(N, K)`` each; the result is the log of their averaged probabilities, see
    :func:`soft_targets` at temperature 1.
    """
    shares = torch.tensor(weights) if weights else None
    return soft_targets(torch.from_numpy(np.stack(logits)), 1.0, shares).numpy()


def hard_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits ``(N, K)`` with labels, in float32 whatever the logits' precision.

    ``labels`` are class numbers ``(N,)``, or probabilities ``(N, K)``.
    """
    checks.shapes(logits=(logits, "N K"), labels=(labels, "N K" if labels.ndim == 2 else "N"))
    return F.cross_entropy(logits.float(), labels, weight=class_weights)


def soft_loss(logits: Tensor, log_targets: Tensor, temperature: float) -> Tensor:
    """T² · KL(targets ‖ student at T), mean over the batch.

    ``logits`` and ``log_targets`` are ``(N, K)``; the latter come from :func:`soft_targets`. T²
    keeps the size of the gradient when T changes (Hinton et al. 2015, section 2.1).
    """
    checks.shapes(logits=(logits, "N K"), log_targets=(log_targets, "N K"))
    checks.positive(temperature=temperature)
    log_q = F.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_targets, reduction="batchmean", log_target=True)


def released_soft_loss(
    labels: Tensor, teacher_logits: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """The soft term of KD-FMV's released code: cross-entropy of softmax(one-hot / T) with
    softmax(teacher's probabilities / T).

    ``labels`` ``(N,)``, ``teacher_logits`` ``(M, N, K)``. The student's logits do not occur in it:
    it adds a constant to the loss and has no gradient for the student.
    """
    probabilities = soft_targets(teacher_logits, 1.0, weights).exp()
    one_hot = F.one_hot(labels, probabilities.shape[-1]).to(probabilities)
    return F.cross_entropy(probabilities / temperature, F.softmax(one_hot / temperature, dim=-1))


@register("hard")
class Hard(Method):
    """Cross-entropy with the labels, without a teacher."""

    title, paper = "labels only (no teacher)", "the control of both papers"
    idea = "The student learns from the labels alone: the control of every comparison."
    equation = r"\mathcal{L} = \mathrm{CE}(y, p_s)"
    needs_teacher = False

    @dataclass(frozen=True)
    class Options(Method.Options):
        """Without effect; they keep the tables of all methods alike."""

        alpha: float = parameter(1.0, ALPHA, low=0, high=1)
        temperature: float = parameter(1.0, TEMPERATURE)

        def __post_init__(self) -> None:
            super().__post_init__()
            checks.positive(temperature=self.temperature)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss"}``."""
        hard = hard_loss(student.logits, labels, self.class_weights)
        return {"loss": hard, "hard_loss": hard}


@register("hybrid")
class Hybrid(Hard):
    """``alpha · cross-entropy + (1 − alpha) · T² · KL(teachers ‖ student)``: hybrid supervision of
    paper A, after Hinton et al. 2015, arXiv:1503.02531."""

    title, paper = "labels and soft targets", "paper A, hybrid supervision; alpha is its lambda"
    idea = (
        "Beside the labels, the student learns the teacher's probabilities of all classes, "
        "softened by a temperature T."
    )
    equation = (
        r"\mathcal{L} = \alpha\, \mathrm{CE}(y, p_s)"
        r" + (1 - \alpha)\, T^2\, \mathrm{KL}(p_t^{(T)} \,\|\, p_s^{(T)})"
    )
    transfers = ("labels", "probabilities")
    needs_teacher = True

    @dataclass(frozen=True)
    class Options(Hard.Options):
        """Paper A could not be read for its constants; these are ours."""

        alpha: float = parameter(0.5, ALPHA, low=0, high=1)
        temperature: float = parameter(4.0, TEMPERATURE)

    def soft(self, student: Seen, teachers: Sequence[Seen], labels: Tensor) -> Tensor:
        """The soft term alone."""
        logits, temperature = self.teacher_logits(student, teachers), self.options.temperature
        targets = soft_targets(logits, temperature, self.teacher_weights(teachers))
        return soft_loss(student.logits, targets, temperature)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "soft_loss"}``."""
        alpha, hard = self.options.alpha, hard_loss(student.logits, labels, self.class_weights)
        soft = self.soft(student, teachers, labels)
        return {"loss": alpha * hard + (1 - alpha) * soft, "hard_loss": hard, "soft_loss": soft}


@register("kd_fmv")
class KDFMV(Hybrid):
    """Paper B's loss as its text describes it.

    The text names no T²; with it, this loss and paper A's are one function with other constants.
    """

    title, paper = "KD-FMV as written", "paper B, text"

    @dataclass(frozen=True)
    class Options(Hybrid.Options):
        """Paper B's best cell on brain tumour."""

        alpha: float = parameter(0.7, ALPHA, low=0, high=1)
        temperature: float = parameter(10.0, TEMPERATURE)


@register("kd_fmv_as_released")
class KDFMVAsReleased(Hybrid):
    """Paper B's loss as its published code computes it: see :func:`released_soft_loss`."""

    title, paper = "KD-FMV as released", "paper B, published code"
    idea = (
        "The soft term compares softened labels with the teacher's probabilities. The student does "
        "not occur in it, so the run is a training with labels whose loss is scaled by alpha."
    )
    equation = (
        r"\mathcal{L} = \alpha\, \mathrm{CE}(y, p_s) + (1 - \alpha)\,"
        r" \mathrm{H}(\mathrm{softmax}(y / T),\ \mathrm{softmax}(p_t / T))"
    )
    transfers = ("labels",)  # no gradient of the teacher's

    @dataclass(frozen=True)
    class Options(Hybrid.Options):
        """Constants of the published code."""

        alpha: float = parameter(0.7, ALPHA, low=0, high=1)
        temperature: float = parameter(5.0, TEMPERATURE)

    def soft(self, student: Seen, teachers: Sequence[Seen], labels: Tensor) -> Tensor:
        """The soft term alone; without a gradient for the student."""
        logits = self.teacher_logits(student, teachers)
        return released_soft_loss(
            labels, logits, self.options.temperature, self.teacher_weights(teachers)
        )


def sandwich(
    method: Method, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor
) -> dict[str, Tensor]:
    """The losses of several subnets of a supernet, averaged over the subnets.

    ``student.logits`` ``(R·N, K)`` are the answers of R subnets for the same N images, the largest
    first. With a teacher all subnets learn from it. Without one the largest learns from the labels
    and the others from the labels and the largest (in-place distillation, Yu & Huang 2019,
    arXiv:1903.05134, section 3.3).
    """
    largest, *others = (Seen(logits) for logits in student.logits.split(len(labels)))
    losses = [method.loss(largest, teachers, labels, rows)]
    if not method.needs_teacher:
        weights, method = method.class_weights, create("hybrid")
        method.class_weights, teachers = weights, [Seen(largest.logits.detach().float())]
    losses += [method.loss(subnet, teachers, labels, rows) for subnet in others]
    return {name: sum(found[name] for found in losses) / len(losses) for name in losses[0]}
