"""Deep AUC maximisation: the margin loss of the area under the ROC curve, one class against the
rest."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb import checks
from kdnb.distillation.base import Course, Method, Seen, register
from kdnb.distillation.soft_targets import hard_loss
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter

RATE = 0.1  # of a, b and α: PESG's default learning rate


def auc_margin_loss(
    scores: Tensor,
    positive: Tensor,
    share: Tensor,
    centres: Tensor,
    alpha: Tensor,
    margin: float = 1.0,
) -> Tensor:
    """The AUC margin loss of K classes, each against the rest, ``(K,)``, mean over N images:

    F = (1 − p)(h − a)² 1₊ + p(h − b)² 1₋ + 2α[p(1 − p)m + p h 1₋ − (1 − p) h 1₊] − p(1 − p)α².

    ``scores`` h ``(N, K)`` in [0, 1]; ``positive`` ``(N, K)`` of 0 and 1; ``share`` p ``(K,)``, of
    the positives in training; ``centres`` a and b ``(2, K)``; ``alpha`` ``(K,)``, not negative;
    ``margin`` m. To be minimised over the network, a and b, and maximised over α. Where these are
    at their best, a and b are the mean scores of positives and negatives, α = max(0, m + b − a),
    and F = p(1 − p)[variance₊ + variance₋ + α²]. Yuan et al. 2021, arXiv:2012.03173, equation 7, as
    libauc's ``AUCMLoss`` (version v1) computes it for a stated ``imratio`` p. Ours because libauc
    brings graph and language libraries that nothing here needs.
    """
    checks.shapes(
        scores=(scores, "N K"),
        positive=(positive, "N K"),
        share=(share, "K"),
        centres=(centres, "2 K"),
        alpha=(alpha, "K"),
    )
    ones = positive.to(scores)
    others, rare = 1 - ones, share * (1 - share)
    spread = (1 - share) * (scores - centres[0]) ** 2 * ones
    spread = spread + share * (scores - centres[1]) ** 2 * others
    gap = share * scores * others - (1 - share) * scores * ones
    return (spread + 2 * alpha * (rare * margin + gap) - rare * alpha**2).mean(0)


@register("aucm")
class AUCM(Method):
    """The AUC margin loss of each class against the rest, after a warm-up with cross-entropy;
    arXiv:2112.08363, with the loss of arXiv:2012.03173.

    The papers train networks for two classes with PESG, which descends along the weights and the
    centres a and b of the scores, ascends along α, and pulls the weights towards those of an
    earlier epoch. Ours: the mean over all classes, each against the rest, with the softmax
    probability as its score, so that the answer stays a probability; AdamW for the weights, with
    libauc's step for α, plain gradient steps for a and b (libauc's have momentum, decay and the
    pull), and the pull; steps of a, b and α during the warm-up too, so that they fit the scores
    when it ends; the weights at the start of an epoch are those that it is pulled towards; half of
    the epochs are warm-up.
    """

    title, paper = "area under the ROC curve, labels only", "arXiv:2112.08363"
    idea = (
        "The network learns to put positives above negatives, whatever their share: where a class "
        "is rare, cross-entropy is content to miss it."
    )
    equation = (
        r"F = (1-p)(h-a)^2 1_+ + p(h-b)^2 1_- + 2\alpha [p(1-p)m + p h 1_- - (1-p) h 1_+] "
        r"- p(1-p)\alpha^2"
    )
    needs_teacher = False
    version = 2  # α steps as in libauc
    reported = "larger areas under the ROC curve than cross-entropy, and probabilities to trust"
    reported_on = "chest X-rays of COVID-19"

    @dataclass(frozen=True)
    class Options(Method.Options):
        """Margin and pull are libauc's defaults (the pull is its learning rate times its
        ``epoch_decay``); the warm-up is ours."""

        margin: float = parameter(1.0, "wanted distance of positives and negatives", low=0, high=1)
        warmup_share: float = parameter(
            0.5, "share of the epochs with cross-entropy alone", low=0, high=1
        )
        pull: float = parameter(
            2e-4, "pull towards the weights at the start of an epoch, a step", low=0, high=1
        )

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """The shares of the classes, a, b and α, and a copy of the network to pull towards."""
        classes = student.logits.shape[1]
        known = course.labels[course.labels >= 0]
        counts = torch.bincount(known, minlength=classes).to(student.logits.device)
        self.register_buffer("share", counts / counts.sum())
        self.register_buffer("centres", torch.zeros(2, classes, device=counts.device))
        self.register_buffer("slope", torch.zeros(classes, device=counts.device))
        self.first = int(self.options.warmup_share * course.epochs)
        self.start = copy.deepcopy(course.student.network).requires_grad_(False)
        self.margin_epoch = self.first == 0

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Leave the warm-up in time, and keep the weights."""
        self.margin_epoch = epoch >= self.first
        self.start.load_state_dict(student.network.state_dict())

    def selectable(self, epoch: int) -> bool:
        """No epoch of the warm-up."""
        return epoch >= self.first

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "auc_loss"}``; a, b and α make a step. Raises ``ValueError`` for
        mixed labels: an image of two classes is neither positive nor negative."""
        if labels.ndim != 1:
            raise ValueError(
                "aucm needs one class an image, and these are mixed: choose a method or recipe "
                "without mixup"
            )
        scores = student.logits.float().softmax(1)
        positive = F.one_hot(labels, scores.shape[1])
        values = self.share, self.centres.clone(), self.slope.clone()
        margin = auc_margin_loss(scores, positive, *values, self.options.margin).mean()
        self._step(scores.detach(), positive)
        hard = hard_loss(student.logits, labels, self.class_weights)
        loss = margin if self.margin_epoch else hard
        return {"loss": loss, "hard_loss": hard.detach(), "auc_loss": margin.detach()}

    @torch.no_grad()
    def _step(self, scores: Tensor, positive: Tensor) -> None:
        """One step each: a and b downhill; α, as PESG's, towards m + b − a and not below zero."""
        ones, rate = positive.to(scores), RATE
        others, (a, b) = 1 - ones, self.centres
        slope_a = -2 * (1 - self.share) * ((scores - a) * ones).mean(0)
        slope_b = -2 * self.share * ((scores - b) * others).mean(0)
        uphill = 2 * (self.options.margin + b - a - self.slope)
        self.centres -= rate * torch.stack([slope_a, slope_b])
        self.slope.add_(rate * uphill).clamp_(min=0)

    @torch.no_grad()
    def after_step(self, student: Classifier, step: int) -> None:
        """The pull: w ← w − pull · (w − weights at the start of the epoch)."""
        if self.margin_epoch and self.options.pull:
            own, start = (list(each.parameters()) for each in (student.network, self.start))
            torch._foreach_lerp_(own, start, self.options.pull)
