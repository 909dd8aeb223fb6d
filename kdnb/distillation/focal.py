"""Labels as KD-OCT's teacher learns them: focal loss, mixed images, averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel

from kdnb import checks
from kdnb.distillation.base import Batch, Course, Method, Seen, register
from kdnb.distillation.soft_targets import hard_loss
from kdnb.images import augmentation
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


def focal_loss(
    logits: Tensor, labels: Tensor, gamma: float, class_weights: Tensor | None = None
) -> Tensor:
    """Σₖ wₖ yₖ (1 − pₖ)^γ (−log pₖ), mean over the images, in float32 whatever the logits'
    precision.

    ``logits`` ``(N, K)``, ``labels`` class numbers ``(N,)`` or shares ``(N, K)``, ``class_weights``
    ``(K,)`` with mean 1 over the training images. Lin et al. 2017, arXiv:1708.02002, equation 5,
    with the classes' softmax in place of a sigmoid; for γ = 0 it is cross-entropy. Ours because
    torchvision's is for binary labels, and timm has none.
    """
    checks.shapes(logits=(logits, "N K"), labels=(labels, "N K" if labels.ndim == 2 else "N"))
    shares = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])
    log_p = F.log_softmax(logits.float(), dim=1)
    # the derivative of x^γ at 0 is infinite for γ < 1
    missed = (-torch.expm1(log_p)).clamp(min=1e-12)
    terms = -shares * missed**gamma * log_p
    return (terms if class_weights is None else terms * class_weights).sum(1).mean()


@register("focal")
class Focal(Method):
    """Focal loss on mixed images with smoothed labels, and the average of the last epochs' weights.

    The paper names focal loss, mixup, CutMix and label smoothing, but not how they are combined.
    Ours: focal loss of the mixed and smoothed label shares; each batch is mixed in one of the two
    ways. With ``averaged_from`` below 1, weights are averaged at the end of each later epoch
    (Izmailov et al. 2018, arXiv:1803.05407), and the average is the network that is kept; no other
    epoch is.
    """

    title, paper = "labels only, focal loss on mixed images", "KD-OCT's teacher, arXiv:2512.09069"
    idea = (
        "Labels of mixed images count more where the network is wrong, and the weights of the last "
        "epochs may be averaged. KD-OCT trains its teacher this way."
    )
    equation = r"\mathcal{L} = -\sum_k y_k\, (1 - p_k)^{\gamma} \log p_k"
    needs_teacher = False

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values; averaging is part of the teacher's recipe."""

        gamma: float = parameter(2.0, "weight of hard images", low=0)
        mixup: float = parameter(0.4, "Beta distribution of mixup, 0: none", low=0)
        cutmix: float = parameter(1.0, "Beta distribution of CutMix, 0: none", low=0)
        smoothing: float = parameter(0.1, "share of a label that all classes get", low=0, high=0.9)
        averaged_from: float = parameter(
            1.0, "share of the epochs after which weights are averaged, 1: never", low=0, high=1
        )

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """The average of the weights, if there is to be one."""
        self.classes, self.epochs = student.logits.shape[1], course.epochs
        self.first_averaged = int(self.options.averaged_from * course.epochs)
        if self.first_averaged < course.epochs:
            self.average = AveragedModel(course.student.network).requires_grad_(False)

    def change_batch(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """Mix the images of a batch; labels become shares ``(N, K)``."""
        options = self.options
        images, shares = augmentation.mixed(
            batch.images,
            batch.labels,
            self.classes,
            options.mixup,
            options.cutmix,
            options.smoothing,
            generator,
        )
        return batch._replace(images=images, labels=shares)

    def end_epoch(self, epoch: int, student: Classifier) -> None:
        """Add the epoch's weights to the average; after the last epoch the student gets it."""
        if epoch < self.first_averaged:
            return
        self.average.update_parameters(student.network)
        if epoch + 1 == self.epochs:
            with torch.no_grad():
                averages = self.average.module.parameters()
                for own, average in zip(student.network.parameters(), averages, strict=True):
                    own.copy_(average)

    def selectable(self, epoch: int) -> bool:
        """Where weights are averaged, only their average may be kept."""
        return self.first_averaged == self.epochs or epoch + 1 == self.epochs

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss"}``; ``hard_loss``, the cross-entropy, is there for comparison."""
        hard = hard_loss(student.logits.detach(), labels, self.class_weights)
        focal = focal_loss(student.logits, labels, self.options.gamma, self.class_weights)
        return {"loss": focal, "hard_loss": hard}
