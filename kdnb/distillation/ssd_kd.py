"""SSD-KD: soft targets, relations between images and between channels, and a self-supervised task
on rotated views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm import tqdm

from kdnb import device
from kdnb.distillation.base import (
    Batch,
    Course,
    Method,
    Mismatch,
    Seen,
    mean_features,
    on_one_grid,
    register,
    see,
)
from kdnb.distillation.relations import angles, distances, gram_distance
from kdnb.distillation.soft_targets import (
    ALPHA,
    TEMPERATURE,
    hard_loss,
    soft_loss,
    soft_targets,
)
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter

HEAD_BATCH = 64  # images of a step in which a teacher's projection head learns


QUARTERS = (1, 2, 3)


def rotated(images: Tensor, quarters: Sequence[int] = QUARTERS) -> Tensor:
    """Images ``(N, C, S, S)``, then the same turned by each number of quarters: ``(V·N, C, S, S)``,
    all images of a view together."""
    return torch.cat([images, *(images.rot90(each, (2, 3)) for each in quarters)])


def similarities(points: Tensor, views: int) -> Tensor:
    """Cosines ``((V−1)·N, N)`` of rotated images with all originals, of points ``(V·N, D)``."""
    first, *others = F.normalize(points.float(), dim=1).chunk(views)
    return torch.cat(others) @ first.T


def originals(count: int, views: int, place: torch.device) -> Tensor:
    """For each row of :func:`similarities` the column of its original: ``((V−1)·N,)``."""
    return torch.arange(count, device=place).repeat(views - 1)


def learnable_rows(similarity: Tensor, targets: Tensor, share: float) -> Tensor:
    """Rows of ``(M, N)`` whose largest entry is their target's, and a share of the others.

    ``targets`` ``(M,)`` are columns. Of the other rows those are kept whose target ranks best,
    rounded down in number: Xu et al. 2020, arXiv:2006.07114, section 3.3.
    """
    rank = (similarity > similarity.gather(1, targets[:, None])).sum(1)
    wrong = int((rank > 0).sum())
    return rank.argsort(stable=True)[: len(rank) - wrong + int(share * wrong)]


@register("ssd_kd")
class SSDKD(Method):
    """Labels, soft targets of each image and its rotated views, and four relations (Wang et al.
    2022, section 3).

    The relations: similarities of rotated images to all originals of the batch in a projection;
    distances and angles between images (:mod:`kdnb.distillation.relations`); and Gram matrices of
    channels on the last map, 1000·√mean((G_student − G_teacher)²). A projection head of each
    teacher first learns to find a rotated image's original, then stays.

    Ours: the head learns from training images without augmentation, before the first epoch, with
    AdamW; the student's map and its teacher's are averaged to the coarser grid of the two, then a
    1×1 convolution with batch norm and ReLU gives the student's the teacher's channels; distances,
    angles and Gram matrices are those of the originals.
    """

    title, paper = "relations and rotated views", "Wang et al. 2022, arXiv:2203.11490"
    idea = (
        "Soft targets of an image and of its rotated views, together with relations between images "
        "and between the channels of a map, pass on more than soft targets of the image alone."
    )
    equation = (
        r"\mathcal{L} = \alpha\, \mathrm{CE} + (1 - \alpha)\, T^2\, \mathrm{KL}"
        r" + w_r\, T_r^2\, \mathrm{KL}_{\mathrm{rotated}} + w_v\, T_v^2\,"
        r" \mathrm{KL}_{\mathrm{similarities}} \\ + w_D\, \mathcal{L}_D + w_A\, \mathcal{L}_A"
        r" + w_G \sqrt{\mathrm{mean}\,(G_s - G_t)^2}"
    )
    reported = "relations and rotated views teach better than soft targets alone"
    reported_on = "skin lesions (ResNet50 → MobileNetV2)"
    transfers = ("labels", "probabilities", "maps", "relations")
    version = 2
    taps = 1

    @dataclass(frozen=True)
    class Options(Method.Options):
        """The paper's values."""

        alpha: float = parameter(0.1, ALPHA, low=0, high=1)
        temperature: float = parameter(4.0, TEMPERATURE, low=0.01)
        rotated_views: int = parameter(
            3, "rotated views; fewer cost less, and are drawn anew each step", low=1, high=3
        )
        rotated_weight: float = parameter(2.7, "weight of the rotated views' soft targets", low=0)
        rotated_temperature: float = parameter(4.0, "temperature of rotated views", low=0.01)
        similarity_weight: float = parameter(10.0, "weight of the similarities", low=0)
        similarity_temperature: float = parameter(0.5, "temperature of similarities", low=0.01)
        wrong_share: float = parameter(
            0.75, "share kept of the similarities that the teacher ranks wrong", low=0, high=1
        )
        distance_weight: float = parameter(25.0, "weight of the distances", low=0)
        angle_weight: float = parameter(50.0, "weight of the angles", low=0)
        gram_weight: float = parameter(1000.0, "weight of the Gram matrices", low=0)
        head_epochs: int = parameter(60, "epochs of the teacher's projection head", low=0)
        head_lr: float = parameter(0.001, "learning rate of that head", low=0)

    @property
    def views(self) -> int:
        """Views of an image, the original included."""
        return 1 + self.options.rotated_views

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Projection heads, and a regressor for each teacher."""
        own, *widths = (each.features[0].shape[1] for each in (student, *teachers))
        self.course, self.head = course, _head(own)
        self.teacher_heads = nn.ModuleList(map(_head, widths)).requires_grad_(False)
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own, width, 1), nn.BatchNorm2d(width), nn.ReLU())
            for width in widths
        )

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Train the teachers' heads before the first epoch; later they come from the checkpoint.

        Raises ``ValueError`` without training images.
        """
        if epoch or not self.options.head_epochs:
            return
        if self.course.images is None:
            raise ValueError(
                "ssd_kd trains a projection head of the teacher on training images: give "
                "Course.images, or set head_epochs to 0"
            )
        for head, teacher in zip(self.teacher_heads, self.course.teachers, strict=True):
            train_head(head, self._teacher_views(teacher), self.options, teacher.name)

    def _teacher_views(self, teacher: Classifier) -> Tensor:
        """A teacher's mean features of all training images, ``(V, R, C)``."""
        rows, place, found = (self.course.labels >= 0).nonzero()[:, 0].cpu(), device.of(self), []
        parts = rows.split(HEAD_BATCH)
        for part in tqdm(parts, f"ssd_kd: views by {teacher.name}", leave=False, unit="batch"):
            images = rotated(self.course.images(part).to(place))
            with torch.no_grad(), device.autocast(place):
                answer = see(teacher.eval(), images, self.taps)
            found.append(mean_features(answer).unflatten(0, (-1, len(part))))
        return torch.cat(found, dim=1)

    def change_batch(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """Add the rotated views; sorted, so that processes differ only where views are left out."""
        drawn = torch.randperm(len(QUARTERS), generator=generator)[: self.options.rotated_views]
        quarters = sorted(QUARTERS[place] for place in drawn)
        return batch._replace(images=rotated(batch.images, quarters))

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """In place of maps: mean features of the originals ``(N, C)``, projections of all views
        ``(V·N, C)``, and maps of the originals for each pair of networks on one grid."""
        count = len(images) // self.views
        own, others, regressed = mean_features(student), [], []
        for teacher, head, regressor in zip(
            teachers, self.teacher_heads, self.regressors, strict=True
        ):
            mapped, target = on_one_grid(student.features[0][:count], teacher.features[0][:count])
            if self.training and count * mapped[0, 0].numel() < 2:
                raise Mismatch(
                    "ssd_kd normalises the student's map over a batch, and has one image with one "
                    "cell: raise -p batch_size or -p image_size"
                )
            regressed.append(regressor(mapped))
            points = mean_features(teacher)
            with torch.no_grad():
                others.append(Seen(teacher.logits, (points[:count], head(points), target)))
        return Seen(student.logits, (own[:count], self.head(own), *regressed)), others

    def loss(
        self, student: Seen, teachers: Sequence[Seen], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"loss", "hard_loss", "soft_loss", "rotated_loss", "similarity_loss", "distance_loss",
        "angle_loss", "gram_loss"}``, all but the first without their weights."""
        options, count = self.options, len(labels)
        hard = hard_loss(student.logits[:count], labels, self.class_weights)
        soft, turned = self._soft(student, teachers, count)
        points, projections, *regressed = student.features
        relations = {"similarity": [], "distance": [], "angle": [], "gram": []}
        for own, teacher in zip(regressed, teachers, strict=True):
            their_points, their_projections, target = teacher.features
            relations["similarity"].append(self._similarity(projections, their_projections))
            for name, relate in (("distance", distances), ("angle", angles)):
                pair = relate(points), relate(their_points)
                relations[name].append(F.smooth_l1_loss(*pair))
            relations["gram"].append(gram_distance(own, target))
        found = {name: self.averaged(terms) for name, terms in relations.items()}
        loss = options.alpha * hard + (1 - options.alpha) * soft + options.rotated_weight * turned
        for name, term in found.items():
            loss = loss + getattr(options, f"{name}_weight") * term
        first = {"loss": loss, "hard_loss": hard, "soft_loss": soft, "rotated_loss": turned}
        return first | {f"{name}_loss": term for name, term in found.items()}

    def _soft(self, student: Seen, teachers: Sequence[Seen], count: int) -> tuple[Tensor, Tensor]:
        """Soft losses of the originals and of the rotated views."""
        logits, weights = self.teacher_logits(student, teachers), self.teacher_weights(teachers)
        plain, turned = self.options.temperature, self.options.rotated_temperature
        first = soft_targets(logits[:, :count], plain, weights)
        others = soft_targets(logits[:, count:], turned, weights)
        return (
            soft_loss(student.logits[:count], first, plain),
            soft_loss(student.logits[count:], others, turned),
        )

    def _similarity(self, own: Tensor, other: Tensor) -> Tensor:
        """T² · KL of the teacher's similarities, the ones it ranks well, and the student's."""
        temperature = self.options.similarity_temperature
        theirs = similarities(other, self.views)
        targets = originals(theirs.shape[1], self.views, theirs.device)
        rows = learnable_rows(theirs, targets, self.options.wrong_share)
        pair = similarities(own, self.views), theirs
        logs = [F.log_softmax(each[rows] / temperature, dim=1) for each in pair]
        total = F.kl_div(*logs, reduction="sum", log_target=True)
        return temperature**2 * total / max(1, len(rows))


def train_head(head: nn.Module, points: Tensor, options: SSDKD.Options, name: str = "") -> None:
    """Teach a projection head to find each rotated image's original in its batch.

    ``points`` ``(V, R, C)`` are a teacher's features of V views of R images. Cross-entropy of
    cosines, Xu et al. 2020, arXiv:2006.07114, equation 2; the rate falls to a tenth after half of
    the epochs and again after three quarters. Afterwards the head is frozen.
    """
    head.requires_grad_(True)
    epochs, (views, count) = options.head_epochs, points.shape[:2]
    optimizer = torch.optim.AdamW(head.parameters(), options.head_lr)
    milestones = [epochs // 2, 3 * epochs // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    for _ in tqdm(range(epochs), f"ssd_kd: head of {name}", leave=False, unit="epoch"):
        for rows in torch.randperm(count).split(HEAD_BATCH):
            found = head(points[:, rows.to(points.device)].flatten(0, 1))
            targets = originals(len(rows), views, points.device)
            loss = F.cross_entropy(similarities(found, views), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    head.requires_grad_(False)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
