"""Recipes: how the training of a network departs from the study's settings, by name.

A recipe states settings of the optimiser, the augmentation, and how a teacher learns the labels.
``TEACHERS`` holds the values of ``-p teacher_recipe``, ``STUDENTS`` those of ``-p recipe``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from timm.optim import param_groups_weight_decay
from torch import Generator, Tensor, nn

from kdnb import distillation, files
from kdnb.data import Dataset
from kdnb.distillation.base import Lesson, Method
from kdnb.images.augmentation import RandAugment
from kdnb.models.zoo import Classifier
from kdnb.training import schedule
from kdnb.training.schedule import Settings

Views = Callable[[Tensor, Generator], Tensor]  # images and a generator to images of the same shape


@dataclass(frozen=True)
class TrainingRecipe:
    """What a recipe changes; the defaults change nothing.

    ``lr`` is the peak learning rate, ``backbone_rate`` the share of it for all layers but the
    classifier. Both are rates of fine-tuning: they hold for networks that start from published
    weights, and random weights start at the network's own rate. ``warmup_epochs`` are at most half
    of all epochs. ``patience`` 0 means no early stopping. ``class_weights`` says whether rare
    classes weigh more. ``labels`` is the method by which a
    teacher learns the labels. Weights are averaged after the share ``averaged_from`` of the epochs,
    while the rate of all layers stays at the share ``averaged_rate`` of the peak; the method must
    have an option ``averaged_from``. A network that is ``started`` first learns, without labels,
    which views are of one image, for as many epochs. ``version`` is raised when a recipe changes.
    """

    name: str = ""
    paper: str = ""
    lr: float | None = None
    backbone_rate: float = 1.0
    weight_decay: float | None = None
    warmup_epochs: int | None = None
    patience: int | None = None
    class_weights: bool | None = None
    augmentation: RandAugment | None = None
    labels: str = "hard"
    averaged_from: float = 1.0
    averaged_rate: float = 1.0
    started: bool = False
    version: int = 1

    @property
    def key(self) -> dict[str, object]:
        """Its part of a run's key, without a default; so a plain run is found again after a recipe
        was added, and a run of this recipe after a field was."""
        values, plain = dataclasses.asdict(self), dataclasses.asdict(PLAIN)
        changed = {name: value for name, value in values.items() if value != plain[name]}
        return {"recipe": changed} if changed else {}

    def adapted(self, settings: Settings) -> Settings:
        """The settings with those that the recipe states."""
        stated = {"weight_decay": self.weight_decay, "class_weights": self.class_weights}
        if self.warmup_epochs is not None:
            stated["warmup"] = min(0.5, self.warmup_epochs / settings.epochs)
        if self.patience is not None:
            stated["patience"] = self.patience or settings.epochs
        return dataclasses.replace(
            settings, **{name: value for name, value in stated.items() if value is not None}
        )

    def method(self) -> Method:
        """What a teacher learns from."""
        averaging = {} if self.averaged_from == 1 else {"averaged_from": self.averaged_from}
        return distillation.create(self.labels, **averaging)

    def views(self, dataset: Dataset) -> Views:
        """The augmentation of training images: the recipe's, else that of the dataset."""
        return self.augmentation or dataset.augment()

    def groups(self, lesson: Lesson, settings: Settings) -> list[dict]:
        """Parameter groups of the optimiser, with ``rate``, their share of the learning rate."""
        groups = param_groups_weight_decay(lesson, settings.weight_decay)
        if self.backbone_rate == 1 or not settings.pretrained:
            return groups
        head = {id(weights) for weights in classifier(lesson.student).parameters()}
        backbone = {id(weights) for weights in lesson.student.parameters()} - head
        parts = [
            group
            | {"params": [p for p in group["params"] if (id(p) in backbone) == slow]}
            | {"rate": self.backbone_rate if slow else 1.0}
            for group in groups
            for slow in (True, False)
        ]
        return [part for part in parts if part["params"]]

    def rate(self, step: int, steps: int, settings: Settings, share: float = 1.0) -> float:
        """The learning rate of ``step``, 0 to ``steps`` − 1, for layers whose share of it is
        ``share``."""
        per_epoch = steps // settings.epochs
        if step // per_epoch >= int(self.averaged_from * settings.epochs):
            return self.averaged_rate * settings.lr
        return share * schedule.learning_rate(step, steps, settings)


def classifier(model: Classifier) -> nn.Module:
    """The layers that answer with classes: as timm names them, else the last linear layer."""
    if hasattr(model.network, "get_classifier"):
        found = model.network.get_classifier()
        return nn.ModuleList(found) if isinstance(found, tuple) else found
    return [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)][-1]


PLAIN = TrainingRecipe()
SIMCLR = TrainingRecipe("a start without labels", "arXiv:2002.05709", started=True)

# Not part of the recipe: 384 px (-p image_size 384), five folds by patient (-p folds 5 -p fold 0
# to 4), test-time augmentation (-p teacher_flips True; its views are not given, ours are the mirror
# images that the modality allows, when the teacher is tested). Ours: weights are averaged after two
# thirds of the epochs (the paper: from epoch 100, of how many is not given), and training does not
# stop before.
TEACHERS = {
    "kd_oct": TrainingRecipe(
        "kd_oct of the teacher",
        "arXiv:2512.09069",
        lr=1e-4,
        backbone_rate=0.2,  # 2e-5
        weight_decay=0.05,
        patience=0,
        augmentation=RandAugment(2, 9),
        labels="focal",
        averaged_from=2 / 3,
        averaged_rate=0.1,  # 1e-5
    ),
    "deep_auc": TrainingRecipe("deep AUC maximisation", "arXiv:2112.08363", labels="aucm"),
    "simclr": SIMCLR,
}
STUDENTS = {
    "kd_oct": TrainingRecipe(
        "kd_oct of the student",
        "arXiv:2512.09069",
        lr=1e-3,
        weight_decay=0.01,
        warmup_epochs=5,
        patience=20,
        augmentation=RandAugment(2, 7),
    ),
    "simclr": SIMCLR,
}


def of_teacher(name: str | None) -> TrainingRecipe:
    """The recipe of a teacher; None changes nothing. Raises ``UnknownName``."""
    return PLAIN if name is None else TEACHERS[files.lookup(name, TEACHERS, "teacher_recipe")]


def of_student(name: str | None) -> TrainingRecipe:
    """The recipe of a student; None changes nothing. Raises ``UnknownName``."""
    return PLAIN if name is None else STUDENTS[files.lookup(name, STUDENTS, "recipe")]
