"""CRCKD: contrast of images and relations to classes, learnt from a mean teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdnb.distillation.base import Course, Method, Mismatch, Seen, mean_features, register, see
from kdnb.distillation.memory import Memory, noise_contrast, others_of_class
from kdnb.distillation.soft_targets import hard_loss, soft_loss
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter


def sigmoid_ramp(epoch: int, epochs: float) -> float:
    """exp(−5·(1 − epoch/epochs)²), and 1 from ``epochs`` on: Laine & Aila 2017, arXiv:1610.02242,
    section 3.1."""
    return math.exp(-5 * (1 - min(1.0, epoch / epochs)) ** 2) if epochs else 1.0


@register("crckd")
class CRCKD(Method):
    """Cross-entropy + ω(t) · KL(mean teacher ‖ student) + λ · CCD + CRP (Xing et al. 2021).

    The mean teacher is a moving average of the student, so a given teacher is not used. CCD,
    class-guided contrastive distillation: linear heads embed student and mean teacher on the unit
    sphere, a memory of each holds the embeddings of all training images, and each network is
    contrasted with the other's memory; an image's positives are other images of its class, its
    negatives images of other classes. CRP, categorical relation preserving: KL between the
    similarities of an image to the class means in the two memories. KL and CRP begin after a
    quarter of the epochs.

    Ours: student and mean teacher see the same view; the moving average includes the buffers of
    batch norm; the features are the mean of the last map over its cells; the images of one class in
    a batch share their negatives, all images of other classes where there are fewer than
    ``negatives``; an image without another of its class is in no contrast.
    """

    # the publication's code counts an image among its own positives and squares lambda from epoch
    # 20 on. pytorch-metric-learning keeps queues of one network's recent embeddings, no rows
    title = "class relations of a mean teacher (no given teacher)"
    paper = "Xing et al. 2021, arXiv:2107.03225"
    idea = (
        "The teacher is a moving average of the student. Both are contrasted with a memory of all "
        "training images by class, and an image should relate to the classes alike for both."
    )
    equation = (
        r"\mathcal{L} = \mathrm{CE}(y, p_s) + \omega(t)\, \mathrm{KL}(\bar p \,\|\, p_s)"
        r" + \lambda\, \mathcal{L}_{\mathrm{CCD}} + \mathrm{KL}(r_t \,\|\, r_s)"
        r" \\ r = \mathrm{softmax}_k\left(\frac{f \cdot c_k}{\tau}\right)"
    )
    reported = "class relations of a mean teacher teach better than labels alone"
    reported_on = "skin lesions and fundus images"
    transfers = ("labels", "probabilities", "relations", "memory")
    version = 2
    needs_teacher = False
    taps = 1

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values. Its schedule counts epochs of 80; here they are shares, so that a
        short training has all terms."""

        ema_decay: float = parameter(0.99, "share of the mean teacher that stays", low=0, high=1)
        consistency_weight: float = parameter(
            1.0, "largest weight of the mean teacher, omega", low=0
        )
        ramp_share: float = parameter(
            0.375, "share of epochs that omega rises (30 of 80)", low=0, high=1
        )
        begin_share: float = parameter(
            0.25, "share of epochs before KL and CRP (20 of 80)", low=0, high=1
        )
        contrast_weight: float = parameter(0.1, "weight of the contrast, lambda", low=0)
        contrast_temperature: float = parameter(0.07, "divides the contrast's scores", low=0.001)
        positives: int = parameter(20, "most positives of an image", low=1)
        negatives: int = parameter(4096, "most negatives of an image", low=1)
        relation_weight: float = parameter(1.0, "weight of the relations to classes", low=0)
        relation_temperature: float = parameter(0.07, "divides the relations' scores", low=0.001)
        embedding_size: int = parameter(128, "dimensions of an embedding", low=2)
        memory_momentum: float = parameter(0.5, "share of a memory's row that stays", low=0, high=1)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Mean teacher, heads and memories; ``ValueError`` where an image has no negatives."""
        options, size, labels = self.options, self.options.embedding_size, course.labels
        known = labels[labels >= 0].unique()
        if len(known) < 2:
            raise Mismatch(
                f"crckd contrasts an image with images of other classes, and the training images "
                f"are of {len(known)} class: train on more classes, or choose another method"
            )
        self.begin, self.ramp = (
            share * course.epochs for share in (options.begin_share, options.ramp_share)
        )
        # a decay of 1 − 1/(step + 1) at first, as in Tarvainen & Valpola 2017, arXiv:1703.01780
        self.mean_teacher = ModelEmaV3(
            course.student, options.ema_decay, use_warmup=True, warmup_gamma=1, warmup_power=1
        ).requires_grad_(False)
        width = student.features[0].shape[1]
        self.heads = nn.ModuleList(nn.Linear(width, size) for _ in range(2))
        self.memories = nn.ModuleList(
            Memory(len(labels), size, options.memory_momentum) for _ in range(2)
        )
        self.classes = labels.cpu()
        members = (labels == known[:, None]).float()
        self.register_buffer("shares", members / members.sum(1, keepdim=True), persistent=False)
        self.start_epoch(0, course.student)

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Set the weights of KL and CRP; draw positives and negatives anew."""
        options, begun = self.options, epoch >= int(self.begin)
        self.consistency = options.consistency_weight * begun * sigmoid_ramp(epoch, self.ramp)
        self.relating = options.relation_weight * begun
        # the loop has seeded this epoch, equally in all processes
        self.draws = torch.Generator().manual_seed(torch.initial_seed())

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """Embeddings ``(N, D)`` of norm 1 in place of maps, of the student and its mean teacher."""
        with torch.no_grad():
            smooth = see(self.mean_teacher.module.eval(), images, self.taps)
        own, other = (
            Seen(answer.logits, (F.normalize(head(mean_features(answer)).float(), dim=1),))
            for head, answer in zip(self.heads, (student, smooth), strict=True)
        )
        return own, [other]

    def after_step(self, student: Classifier, step: int) -> None:
        """Move the mean teacher, its buffers included."""
        self.mean_teacher.update(student, step + 1)

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "consistency_loss", "contrast_loss", "relation_loss"}``.

        ``teachers`` is the mean teacher as :meth:`embed` gives it. The memories move on by one
        batch. Raises ``ValueError`` for missing rows and for rows that are no training images.
        """
        hard = hard_loss(student.logits, labels, self.class_weights)
        targets = F.log_softmax(teachers[0].logits.float(), dim=1)
        consistency = soft_loss(student.logits, targets, 1.0)
        embedded, pairs = (student.features[0], teachers[0].features[0]), self._pairs(rows)
        contrast = sum(
            self._contrast(anchors, memory, pairs)
            for anchors, memory in zip(embedded, reversed(self.memories), strict=True)
        )
        for memory, points in zip(self.memories, embedded, strict=True):
            memory.update(rows, points)
        relation = self._relation(*embedded)
        weighted = self.options.contrast_weight * contrast + self.relating * relation
        return {
            "loss": hard + self.consistency * consistency + weighted,
            "hard_loss": hard,
            "consistency_loss": consistency,
            "contrast_loss": contrast,
            "relation_loss": relation,
        }

    def _pairs(self, rows: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each class of a batch: the places of its images that have another image of their
        class, their positives ``(n, P)``, and their negatives ``(Q,)``."""
        if rows is None:
            raise ValueError("crckd has a memory by row of the dataset: give the batch's rows")
        rows, device = rows.cpu(), rows.device
        classes = self.classes[rows]
        if (classes < 0).any():
            wrong = int(rows[classes < 0][0])
            raise ValueError(f"row {wrong} is no training image, so crckd has no class for it")
        pairs = []
        for label in classes.unique():
            members = (self.classes == label).nonzero()[:, 0]
            others = ((self.classes >= 0) & (self.classes != label)).nonzero()[:, 0]
            if len(members) > 1:
                places = (classes == label).nonzero()[:, 0]
                drawn = torch.randperm(len(others), generator=self.draws)[: self.options.negatives]
                found = places, self._positives(rows[places], members), others[drawn]
                pairs.append(tuple(each.to(device) for each in found))
        return pairs

    def _positives(self, rows: Tensor, members: Tensor) -> Tensor:
        return others_of_class(rows, members, self.options.positives, self.draws)

    def _contrast(
        self, anchors: Tensor, memory: Memory, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Tensor:
        """Mean over the anchors that have positives; zero where none has."""
        if not pairs:
            return 0 * anchors.sum()
        temperature = self.options.contrast_temperature
        scores = [
            memory.scores(anchors[places], positives, negatives, temperature)
            for places, positives, negatives in pairs
        ]
        memory.measure_level([each for both in scores for each in both])
        return torch.cat([noise_contrast(*both, memory.level) for both in scores]).mean()

    def _relation(self, own: Tensor, other: Tensor) -> Tensor:
        """KL of the mean teacher's similarities to its class means and the student's to its own."""
        logs = []
        for points, memory in zip((own, other), self.memories, strict=True):
            scores = points.float() @ memory.class_directions(self.shares).T
            logs.append(F.log_softmax(scores / self.options.relation_temperature, dim=1))
        return F.kl_div(logs[0], logs[1].detach(), reduction="batchmean", log_target=True)
