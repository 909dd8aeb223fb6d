"""Self-training: a teacher's soft pseudo-labels for images whose labels were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdnb.distillation.base import Batch, Course, Method, Seen, register
from kdnb.distillation.soft_targets import TEMPERATURE, hard_loss, soft_loss, soft_targets
from kdnb.images import augmentation
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


def entropy(logits: Tensor) -> Tensor:
    """−Σₖ pₖ log pₖ in nats, mean over the images of ``logits`` ``(N, K)``, in float32."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()


def labelled_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``logits`` ``(N, K)``, mean over the images that have a label.

    ``labels`` ``(N,)`` with −1 for an image without one, or shares ``(N, K)`` whose sum is the part
    of an image that has one. The sum over the images is divided by the number of labelled images,
    or by 1 where it is less; zero, with a gradient of zero, without any.
    """
    if labels.ndim == 1:
        shares = F.one_hot(labels.clamp(min=0), logits.shape[1]) * (labels >= 0)[:, None]
    else:
        shares = labels
    whole = hard_loss(logits, shares.to(logits.device, torch.float32), class_weights)
    return whole * len(logits) / shares.sum().clamp(min=1)


@register("self_training")
class SelfTraining(Method):
    """``cross-entropy + pseudo_weight · T² · KL(teachers ‖ student) − tempering · H(student)``, on
    labelled and unlabelled images, mixed; after arXiv:2005.02231.

    The paper trains a teacher on the labelled images and a student on the teacher's soft
    pseudo-labels, with mixup and confidence tempering, for which it gives no formula. Ours: the
    formula above; cross-entropy is the mean over the labelled images of a batch, KL and entropy H
    that over all of its images; the teacher answers the mixed image; T is that of ``hybrid``; two
    rounds, the student of the first being the teacher of the second; the weights; and a teacher
    that is trained by the study's recipe for teachers. Class weights concern the labels alone.
    """

    title, paper = "pseudo-labels for images without a label", "arXiv:2005.02231"
    transfers = ("labels", "probabilities")
    unlabelled = True
    idea = (
        "A teacher that learnt from few labels answers for the images without a label. The student "
        "learns from labels and answers together, and teaches the next student."
    )
    equation = (
        r"\mathcal{L} = \mathcal{L}_{\mathrm{CE}} + \lambda T^2 \mathrm{KL}(p^t \,\|\, p^s) "
        r"- \beta H(p^s)"
    )
    reported = "15 % of the labels suffice for the accuracy of all of them: 85 % fewer labels"
    reported_on = "chest X-rays"

    @dataclass(frozen=True)
    class Options(Method.Options):
        """All of them are ours."""

        temperature: float = parameter(4.0, TEMPERATURE, low=1e-3)
        pseudo_weight: float = parameter(1.0, "weight of the pseudo-labels", low=0)
        tempering: float = parameter(0.1, "weight of the student's entropy", low=0)
        mixup: float = parameter(0.2, "Beta distribution of mixup, 0: none", low=0)
        rounds: int = parameter(2, "trainings of the student", low=1, high=10)

    @property
    def rounds(self) -> int:
        """Trainings of the student."""
        return self.options.rounds

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Note the number of classes."""
        self.classes = student.logits.shape[1]

    def change_batch(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """Mix the images of a batch; labels become shares ``(N, K)``, which sum to the labelled
        part of an image."""
        # images without a label are mixed as a class of their own, which is then dropped
        numbers = torch.where(batch.labels < 0, self.classes, batch.labels)
        images, shares = augmentation.mixed(
            batch.images, numbers, self.classes + 1, self.options.mixup, 0.0, 0.0, generator
        )
        return batch._replace(images=images, labels=shares[:, : self.classes])

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "soft_loss", "entropy"}``."""
        options, logits = self.options, self.teacher_logits(student, teachers)
        targets = soft_targets(logits, options.temperature, self.teacher_weights(teachers))
        hard = labelled_loss(student.logits, labels, self.class_weights)
        soft = soft_loss(student.logits, targets, options.temperature)
        spread = entropy(student.logits)
        loss = hard + options.pseudo_weight * soft - options.tempering * spread
        return {"loss": loss, "hard_loss": hard, "soft_loss": soft, "entropy": spread}
