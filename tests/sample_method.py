"""A method that uses every hook: two views, a projector, a bank by row, a moving average of the
student, and a schedule over epochs. For tests of the loop only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.distillation import Batch, Course, Method, Seen, hard_loss, register
from kdnb.distillation.base import see
from kdnb.parameters import parameter


@register("sample")
class Sample(Method):
    """Labels, a consistency of two views with a moving average, and a pull to the bank."""

    title, paper = "every hook", "none"
    taps = 1

    @dataclass(frozen=True)
    class Options(Method.Options):
        """Ours."""

        momentum: float = parameter(0.5, "share of the old average that stays", low=0, high=1)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        self.head = nn.Linear(student.features[0].shape[1], 8)
        self.average = copy.deepcopy(course.student).requires_grad_(False)
        self.register_buffer("bank", torch.zeros(len(course.labels), 8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def change_batch(self, batch: Batch, student: nn.Module, generator: torch.Generator) -> Batch:
        return batch._replace(images=torch.cat([batch.images, batch.images.flip(3)]))

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        with torch.no_grad():
            smooth = see(self.average.eval(), images)
        own = self.head(student.features[0].mean((2, 3)))
        return Seen(student.logits, (own,)), [smooth, *(Seen(each.logits) for each in teachers)]

    def start_epoch(self, epoch: int, student: nn.Module) -> None:
        self.weight = 0.1 * epoch

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        count = len(labels)
        first, second = student.logits.split(count)
        own, banked = student.features[0][:count], self.bank[rows]
        smooth, *others = [each.logits.split(count)[0] for each in teachers]
        hard = hard_loss(first, labels, self.class_weights)
        both = sum(F.mse_loss(second, each) for each in (smooth, *others))
        pull = (own - banked).square().mean()
        self.bank[rows] = (0.5 * banked + 0.5 * own).detach()
        return {"loss": hard + 0.1 * both + self.weight * pull, "hard_loss": hard, "pull": pull}

    def after_step(self, student: nn.Module, step: int) -> None:
        self.steps += 1
        kept = self.options.momentum
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - kept)
