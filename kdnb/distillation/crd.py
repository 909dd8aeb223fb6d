"""Contrastive representation distillation: student and teacher recognise each other's embedding of
an image among those of other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.distillation.base import Course, Method, Mismatch, Seen, mean_features, register
from kdnb.distillation.memory import Memory, noise_contrast
from kdnb.distillation.soft_targets import hard_loss
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


@register("crd")
class CRD(Method):
    """Cross-entropy + β · noise-contrastive estimation of student against teacher and of teacher
    against student: Tian et al. 2020, section 3.2 and equations 17 to 19.

    Linear heads embed both networks on the unit sphere, and both learn. A memory for each holds the
    embedding of every row of the dataset as a moving average. An image's positive is its own row,
    its negatives are images of other classes. Equation 19 compares e^s with N/M; here, as in the
    authors' code, with its mean in the first batch.

    Ours: the features are the mean of the last map over its cells; each teacher has a head, a head
    of the student and two memories; images of one class in a batch share their negatives, which are
    all images of other classes where there are fewer than ``negatives``.
    """

    # pytorch-metric-learning keeps queues of recent embeddings of one network and torchdistill
    # exponentials that overflow; neither has memories by row that survive an interruption
    title, paper = "contrast of images", "Tian et al. 2020, arXiv:1910.10699"
    idea = (
        "The student's embedding of an image should be close to the teacher's of the same image, "
        "and far from those of many images of other classes, which a memory keeps."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) - \beta \Big[ \log h_{ii} + \sum_{j}"
        r" \log(1 - h_{ij}) \Big]_{s, t} - \beta\, [\cdots]_{t, s}"
        r" \\ h_{ij} = \frac{e^{v_i \cdot u_j / \tau}}{e^{v_i \cdot u_j / \tau} + \mathrm{const}}"
    )
    reported = "the contrast of embeddings teaches better than soft targets"
    reported_on = "natural images (CIFAR-100, ImageNet)"
    transfers = ("labels", "memory")
    version = 2
    taps = 1
    pooled = True

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The values of the authors' code."""

        contrast_weight: float = parameter(0.8, "weight of the contrast, beta", low=0)
        contrast_temperature: float = parameter(0.07, "divides the scores, above 0", low=0.001)
        negatives: int = parameter(16384, "most negatives of an image", low=1)
        embedding_size: int = parameter(128, "dimensions of an embedding", low=1)
        memory_momentum: float = parameter(0.5, "share of a memory's row that stays", low=0, high=1)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Heads and memories. Raises ``ValueError`` where all training images are of one class."""
        self.classes = course.labels.cpu()
        known = self.classes[self.classes >= 0]
        if len(known.unique()) < 2:
            raise Mismatch(
                f"crd contrasts an image with images of other classes, and all {len(known)} "
                "training images are of one class: train on more classes, or choose another method"
            )
        size, width = self.options.embedding_size, student.features[0].shape[1]
        self.student_heads = nn.ModuleList(nn.Linear(width, size) for _ in teachers)
        self.teacher_heads = nn.ModuleList(
            nn.Linear(each.features[0].shape[1], size) for each in teachers
        )
        self.student_memories, self.teacher_memories = (
            nn.ModuleList(
                Memory(len(self.classes), size, self.options.memory_momentum) for _ in teachers
            )
            for _ in range(2)
        )
        self.start_epoch(0, course.student)

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Draw negatives anew. The loop's seed of this epoch is the same in all processes."""
        self.draws = torch.Generator().manual_seed(torch.initial_seed())

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """Embeddings ``(N, D)`` of norm 1 in place of maps: the student's for each teacher."""
        own = [_embedded(head, student) for head in self.student_heads]
        others = [
            Seen(teacher.logits, (_embedded(head, teacher),))
            for head, teacher in zip(self.teacher_heads, teachers, strict=True)
        ]
        return Seen(student.logits, tuple(own)), others

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "contrast_loss"}``; the memories move on by one batch.

        Raises ``ValueError`` for missing rows and for rows that are no training images.
        """
        hard = hard_loss(student.logits, labels, self.class_weights)
        groups, terms = self._negatives(rows), []
        memories = zip(self.student_memories, self.teacher_memories, strict=True)
        for own, teacher, pair in zip(student.features, teachers, memories, strict=True):
            answers = own, teacher.features[0]
            terms.append(
                sum(
                    self._contrast(anchors, memory, rows, groups)
                    for anchors, memory in zip(answers, reversed(pair), strict=True)
                )
            )
            for memory, answer in zip(pair, answers, strict=True):
                memory.update(rows, answer)
        contrast = self.averaged(terms)
        loss = hard + self.options.contrast_weight * contrast
        return {"loss": loss, "hard_loss": hard, "contrast_loss": contrast}

    def _negatives(self, rows: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """For each class of a batch, the places of its images and the rows of their negatives."""
        if rows is None:
            raise ValueError("crd has a memory by row of the dataset: give the rows of the batch")
        classes = self.classes[rows.cpu()]
        if (classes < 0).any():
            wrong = int(rows[(classes < 0).to(rows.device)][0])
            raise ValueError(f"row {wrong} is no training image, so crd has no class for it")
        groups = []
        for label in classes.unique():
            others = ((self.classes >= 0) & (self.classes != label)).nonzero()[:, 0]
            if len(others) > self.options.negatives:
                drawn = torch.randperm(len(others), generator=self.draws)
                others = others[drawn[: self.options.negatives]]
            places = (classes == label).nonzero()[:, 0]
            groups.append((places.to(rows.device), others.to(rows.device)))
        return groups

    def _contrast(
        self, anchors: Tensor, memory: Memory, rows: Tensor, groups: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Mean over the anchors ``(N, D)``."""
        temperature = self.options.contrast_temperature
        scores = [
            memory.scores(anchors[places], rows[places, None], others, temperature)
            for places, others in groups
        ]
        memory.measure_level([each for both in scores for each in both])
        return torch.cat([noise_contrast(*both, memory.level) for both in scores]).mean()


def _embedded(head: nn.Linear, answer: Seen) -> Tensor:
    return F.normalize(head(mean_features(answer)).float(), dim=1)
