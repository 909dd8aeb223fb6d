"""What a student learns from: pure functions of logits, and the registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks, files


def soft_targets(
    teacher_logits: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Log of the teachers' averaged probabilities at a temperature: ``(M, N, K)`` logits of M
    teachers to ``(N, K)``.

    ``weights`` ``(M,)`` are normalised to sum 1 (equal by default). Hinton et al. 2015,
    arXiv:1503.02531, section 2.
    """
    if teacher_logits.ndim != 3:
        raise ValueError(
            f"teacher_logits must be (teachers, N, K), got {tuple(teacher_logits.shape)}"
        )
    checks.positive(temperature=temperature)
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    if weights is None:
        weights = torch.ones(len(log_p))
    log_w = torch.log(weights.to(log_p) / weights.sum().to(log_p)).view(-1, 1, 1)
    return torch.logsumexp(log_p + log_w, dim=0)


def average(logits: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """What several teachers answer together: their logits ``(N, K)`` each to the log of
    :func:`soft_targets` at temperature 1."""
    shares = torch.tensor(weights) if weights else None
    return soft_targets(torch.from_numpy(np.stack(logits)), 1.0, shares).numpy()


def hard_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits ``(N, K)`` with labels ``(N,)``, in float32 whatever the logits'
    precision."""
    checks.shapes(logits=(logits, "N K"), labels=(labels, "N"))
    return F.cross_entropy(logits.float(), labels, weight=class_weights)


def soft_loss(logits: Tensor, log_targets: Tensor, temperature: float) -> Tensor:
    """T² · KL(targets ‖ student at T), mean over the batch; ``log_targets`` ``(N, K)`` come from
    :func:`soft_targets`.

    T² keeps the size of the gradient when T changes (Hinton et al. 2015, section 2.1).
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

    The student does not stand in it, so it has no gradient for the student; it only adds a constant
    to the loss.
    """
    probabilities = soft_targets(teacher_logits, 1.0, weights).exp()
    one_hot = F.one_hot(labels, probabilities.shape[-1]).to(probabilities)
    return F.cross_entropy(probabilities / temperature, F.softmax(one_hot / temperature, dim=-1))


@dataclass(frozen=True)
class Method:
    """A way to teach: ``loss = alpha · hard + (1 − alpha) · soft``.

    ``soft`` takes (student logits, labels, teacher logits ``(M, N, K)``, temperature, teacher
    weights); None means that no teacher takes part. ``alpha`` and ``temperature`` are the paper's
    values, or ours where it names none.
    """

    title: str
    paper: str
    soft: Callable[..., Tensor] | None = None
    alpha: float = 1.0
    temperature: float = 1.0


def _student_against_teacher(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    weights: Tensor | None,
) -> Tensor:
    return soft_loss(logits, soft_targets(teacher_logits, temperature, weights), temperature)


def _labels_against_teacher(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    weights: Tensor | None,
) -> Tensor:
    return released_soft_loss(labels, teacher_logits, temperature, weights)


METHODS: dict[str, Method] = {
    "hard": Method("labels only (no teacher)", "the control of both papers"),
    "hybrid": Method(
        "labels and soft targets",
        "paper A, hybrid supervision; alpha is its lambda",
        _student_against_teacher,
        alpha=0.5,
        temperature=4.0,
    ),
    # the text names no T²; with it, the text's loss and paper A's are one function with other
    # constants
    "kd_fmv": Method(
        "KD-FMV as written", "paper B, text", _student_against_teacher, alpha=0.7, temperature=10.0
    ),
    "kd_fmv_as_released": Method(
        "KD-FMV as released",
        "paper B, published code",
        _labels_against_teacher,
        alpha=0.7,
        temperature=5.0,
    ),
}


@dataclass(frozen=True)
class Objective:
    """One method with its constants: called with logits, labels and teacher logits, it returns
    named losses.

    ``alpha`` in [0, 1] is the share of the labels, ``temperature`` > 0 softens both sides,
    ``teacher_weights`` (one a teacher) default to equal shares. Raises ``ValueError`` outside these
    ranges.
    """

    method: str = "hard"
    alpha: float | None = None
    temperature: float | None = None
    teacher_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        known = METHODS[files.lookup(self.method, METHODS, "method")]
        object.__setattr__(self, "alpha", known.alpha if self.alpha is None else float(self.alpha))
        object.__setattr__(
            self,
            "temperature",
            known.temperature if self.temperature is None else float(self.temperature),
        )
        checks.within(0, 1, alpha=self.alpha)
        checks.positive(temperature=self.temperature)
        if self.teacher_weights and (
            min(self.teacher_weights) < 0 or sum(self.teacher_weights) <= 0
        ):
            raise ValueError(
                f"teacher_weights must not be negative and not all zero, got {self.teacher_weights}"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher takes part at all."""
        return METHODS[self.method].soft is not None

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "soft_loss"}`` of logits ``(N, K)``; ``soft_loss`` only where a
        teacher takes part."""
        hard = hard_loss(logits, labels, class_weights)
        if not self.needs_teacher:
            return {"loss": hard, "hard_loss": hard}
        if teacher_logits is None or teacher_logits.shape[1:] != logits.shape:
            shape = None if teacher_logits is None else tuple(teacher_logits.shape)
            raise ValueError(
                f"{self.method} needs teacher logits (teachers, {len(logits)}, {logits.shape[-1]}), got {shape}"
            )
        weights = torch.tensor(self.teacher_weights) if self.teacher_weights else None
        if weights is not None and len(weights) != len(teacher_logits):
            raise ValueError(f"{len(weights)} teacher_weights for {len(teacher_logits)} teachers")
        soft = METHODS[self.method].soft(logits, labels, teacher_logits, self.temperature, weights)
        return {
            "loss": self.alpha * hard + (1 - self.alpha) * soft,
            "hard_loss": hard,
            "soft_loss": soft,
        }


def sandwich(
    objective: Objective,
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The objective of several subnets that answered the same ``(N,)`` labels, the largest first:
    logits ``(R·N, K)``.

    With a teacher all learn from it. Without one the largest learns from the labels and the others
    from the labels and from the largest (in-place distillation, Yu & Huang 2019, arXiv:1903.05134,
    section 3.3). Losses are means over the subnets; one subnet is the plain objective.
    """
    parts = logits.split(len(labels))
    told = [objective(parts[0], labels, teacher_logits, class_weights)]
    if not objective.needs_teacher:
        objective, teacher_logits = Objective("hybrid"), parts[0].detach().float()[None]
    told += [objective(part, labels, teacher_logits, class_weights) for part in parts[1:]]
    return {name: sum(losses[name] for losses in told) / len(told) for name in told[0]}
