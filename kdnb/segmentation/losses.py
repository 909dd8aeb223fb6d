"""What a network that segments learns from: masks alone, or masks and limit-trained teachers
(arXiv:2303.09494)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from kdnb import extras
from kdnb.distillation.base import Course, Method, Seen, projected
from kdnb.distillation.limit_trained import feature_divergence
from kdnb.parameters import parameter

smp = extras.late("segmentation_models_pytorch")

TARGET = 1  # the class of a pixel that counts; 0 is the background


def overlap_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 − (2 Σ p·y + 1) / (Σ p + Σ y + 1) of each image, ``(N,)`` in float32 from logits
    ``(N, 2, H, W)`` and masks ``(N, H, W)``: the smoothed Dice loss, near 0 for an empty mask where
    nothing is marked (Milletari et al. 2016, arXiv:1606.04797, with 1 added)."""
    shares, truth = logits.float().softmax(1)[:, TARGET].flatten(1), masks.float().flatten(1)
    both = (shares * truth).sum(1)
    return 1 - (2 * both + 1) / (shares.sum(1) + truth.sum(1) + 1)


def image_weights(logits: Sequence[Tensor], masks: Tensor) -> Tensor:
    """softmax over teachers of −:func:`overlap_loss`, for every image: ``(M, N)`` from M teachers'
    logits ``(N, 2, H, W)``."""
    return torch.softmax(-torch.stack([overlap_loss(each, masks) for each in logits]), dim=0)


class Masks(Method):
    """Dice + Lovász-Softmax of the masks, both of the whole batch, which may hold empty masks.

    Milletari et al. 2016, arXiv:1606.04797; Berman et al. 2018, arXiv:1705.08790, equation 11;
    computed by segmentation-models-pytorch.
    """

    name = "masks"
    title, paper = "masks alone", "arXiv:1606.04797, arXiv:1705.08790"
    needs_teacher = False

    @cached_property
    def _terms(self) -> dict[str, nn.Module]:
        return {
            "dice_loss": smp.losses.DiceLoss("multiclass", classes=[TARGET]),
            "lovasz_loss": smp.losses.LovaszLoss("multiclass"),
        }

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "dice_loss", "lovasz_loss"}`` of logits ``(N, 2, H, W)`` and
        masks ``(N, H, W)``; the first two are the sum of the others."""
        logits, masks = student.logits.float(), labels.long()
        found = {name: term(logits, masks) for name, term in self._terms.items()}
        total = torch.stack([*found.values()]).sum()
        return {"loss": total, "hard_loss": total, **found}


class LimitTrainedMasks(Masks):
    """``Dice + Lovász + feature_weight · Σₘ wₘ(x) KL(fₘ ‖ f)``: the student's features f follow
    those of teachers m, each of which was trained on its own patients, arXiv:2303.09494.

    Ours, because the paper leaves it open: the features are the answer of the decoder's last block,
    as softmax over channels in each cell, through a 1×1 convolution for each teacher; weights of
    the teachers are equal, or for each image softmax(−loss), the loss being a smoothed Dice loss
    that empty masks have too; M = 3; each teacher sees as many images as one teacher of all
    patients would, in more epochs of its fewer images.
    """

    name = "limit_trained_masks"
    title, paper = "masks and teachers of disjoint patients", "arXiv:2303.09494"
    idea = (
        "Several teachers, each trained to segment on other patients, teach one student their "
        "features; each is trusted by how well it segments the image."
    )
    equation = (
        r"\mathcal{L} = \mathrm{Dice} + \mathrm{Lov\acute{a}sz} + \gamma \sum_m w_m(x)\,"
        r" \mathrm{KL}(f_m \,\|\, f_s) \\ w_m(x) = \mathrm{softmax}_m(-\ell_m(x))"
    )
    reported = "+9 % Dice of a student with several limit-trained teachers"
    reported_on = "prostate MRI"
    command = "python -m kdnb.run 13 -p dataset lgg_mri -p pretrained teacher"
    transfers = ("features",)
    needs_teacher = True
    taps = 1

    @dataclass(frozen=True)
    class Options(Masks.Options):
        """All of them are ours."""

        weighting: str = parameter(
            "loss",
            "weights of the teachers: equal, or by their loss on each image",
            choices=("loss", "equal"),
        )
        feature_weight: float = parameter(1.0, "weight of the KL of features", low=0)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """A regressor for each teacher."""
        self.regressors = nn.ModuleList(
            nn.Conv2d(student.features[0].shape[1], teacher.features[0].shape[1], 1)
            for teacher in teachers
        )

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """The student's regressed map for each teacher, and the teachers' maps."""
        return projected(self.regressors, student, teachers)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses of :class:`Masks` and ``"feature_loss"``."""
        found = super().loss(student, teachers, labels, rows)
        pairs = zip(student.features, teachers, strict=True)
        terms = torch.stack([feature_divergence(own, t.features[0]) for own, t in pairs])
        weights = self.teacher_weights(teachers).to(terms)[:, None]
        if self.options.weighting == "loss":
            weights = weights * image_weights([t.logits for t in teachers], labels)
        features = (weights / weights.sum(0) * terms).sum(0).mean()
        loss = found["loss"] + self.options.feature_weight * features
        return found | {"loss": loss, "feature_loss": features}
