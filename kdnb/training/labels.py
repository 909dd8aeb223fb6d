"""What to learn from: fewer labels, and fewer images, each with the budget of what it is compared
with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from kdnb.data import Dataset
from kdnb.parameters import BadParameter, Parameters, parameter
from kdnb.study import Study
from kdnb.training import curation, loop, methods, recipes, schedule
from kdnb.training.checkpoints import Run
from kdnb.training.curation import SUPER
from kdnb.training.recipes import TrainingRecipe
from kdnb.training.schedule import Settings

PLAIN, SELF = "hard", "self_training"
EQUAL_IMAGES, EQUAL_COST = "equal images", "equal cost"


def shares(stated: str | float, name: str = "label_shares") -> tuple[float, ...]:
    """The shares that ``a+b`` joins, in order, each above 0 and below 1; ``name`` is that of the
    parameter. Raises :class:`BadParameter`."""
    try:
        found = sorted({float(part) for part in str(stated).split("+")})
    except ValueError:
        found = []
    if not found or not all(0 < share < 1 for share in found):
        whole = "; all labels are always among them" if name == "label_shares" else ""
        raise BadParameter(
            f"{name} must be numbers between 0 and 1 joined by +, for example 0.1+0.3, got "
            f"{stated!r}{whole}"
        )
    return tuple(found)


@dataclass(frozen=True)
class LabelParameters(Parameters):
    """Settings of notebook 11."""

    extras: ClassVar[tuple[str, ...]] = ("auc",)

    label_shares: str | float | None = parameter(
        None,
        "shares of the labels: a+b",
        valid=shares,
        profiles={"smoke": "0.25", "quick": "0.15+0.3", "paper": "0.05+0.15+0.3"},
    )
    positive_shares: str | float | None = parameter(
        None,
        "of the first class: a+b",
        valid=partial(shares, name="positive_shares"),
        profiles={"smoke": "0.5", "quick": "0.05+0.2+0.5", "paper": "0.05+0.2+0.5"},
    )


def ways(study: Study) -> dict[str, Study]:
    """The study of each way to learn: labels alone, the study's own method, self-training."""
    own = {"alpha": None, "temperature": None, "teacher_weights": None, "options": {}}
    others = {name: dataclasses.replace(study, method=name, **own) for name in (PLAIN, SELF)}
    return {PLAIN: others[PLAIN], study.method: study, SELF: others[SELF]} | {study.method: study}


def steps_an_epoch(study: Study, images: int) -> int:
    """Steps of an epoch of this many training images."""
    return len(schedule.Batches(images, Settings(1, study.batch_size, 1.0, study.seed)))


def budget(study: Study) -> int:
    """Epochs of all images that every student's training is worth, whatever it learns from: at
    least the study's, and a whole number for each round of self-training."""
    rounds = ways(study)[SELF].make_method().rounds
    return rounds * math.ceil(study.student_epochs / rounds)


def with_equal_steps(study: Study, whole: Dataset, part: Dataset) -> Study:
    """The study with as many epochs of ``part`` as make the steps of its budget on ``whole``, all
    rounds of its method together; its teachers get the steps of theirs."""
    method = study.make_method()
    every, labelled, seen = (
        steps_an_epoch(study, each.train_size)
        for each in (whole, part, part.with_unlabelled() if method.unlabelled else part)
    )
    return dataclasses.replace(
        study,
        student_epochs=math.ceil(budget(study) * every / (method.rounds * seen)),
        teacher_epochs=math.ceil(study.teacher_epochs * every / labelled),
    )


def to_the_end(recipe: TrainingRecipe) -> TrainingRecipe:
    """A recipe without early stopping, so that equal budgets are used up: the few validation images
    of a small share would stop a training by chance."""
    return dataclasses.replace(recipe, patience=0)


def train_on_shares(study: Study, dataset: Dataset) -> Iterator[dict]:
    """Train and test each of :func:`ways` on each share of the labels, drawn by the seed, with
    equal steps; yields one row a training, teachers too.

    Teachers know the labels of the share alone. With all labels there is nothing to self-train on.
    Raises :class:`BadParameter` where the study has a share, or a curation, of its own.
    """
    if dataset.labelled_from or study.curation:
        raise BadParameter(
            "this notebook draws its own shares of the labels (-p label_shares) and compares all "
            "rules of curation: leave out -p label_share and -p curation"
        )
    for share in (*shares(study.label_shares), 1.0):
        part = dataset.labelled(share, study.seed)
        about = {"share": share, "labelled": part.train_size}
        recipe = to_the_end(recipes.of_teacher(study.teacher_recipe))
        teachers = loop.train_teachers(with_equal_steps(study, dataset, part), part, recipe)
        for run in teachers:
            yield about | {"method": f"teacher {run.model.name}"} | tested([run], dataset)
        for name, own in ways(study).items():
            if own.make_method().unlabelled and share == 1:
                continue
            fitted = with_equal_steps(own, dataset, part)
            recipe = to_the_end(recipes.of_student(study.recipe))
            runs = loop.distil_rounds(fitted, part, teachers, recipe)
            yield about | {"method": name} | tested(runs, dataset)


def tested(runs: Sequence[Run], dataset: Dataset, scale: float = 1.0) -> dict:
    """Test results of the last of a student's runs, and the budget of all of them together:
    steps, images that were learnt from, images that were only scored, at this share of their
    sides, and the cost of both (:func:`~kdnb.training.curation.passes`)."""
    spent = {
        name: sum(run.record["budget"][name] for run in runs)
        for name in ("steps", "images", "scored_images")
    }
    cost = round(curation.passes(spent["images"], spent["scored_images"], scale))
    return methods.measured(runs[-1], dataset) | spent | {"forward_passes": cost}


def curated(study: Study, dataset: Dataset) -> dict[str, Study]:
    """The study of each comparison of curation, by ``<method>, <rule>``, with the control of equal
    cost as ``<method>, random, equal cost``. The batch is made small enough for a super-batch."""
    images = dataset.train_size
    small = dataclasses.replace(study, batch_size=min(study.batch_size, images // SUPER))
    times = curation.passes(1, SUPER, study.curation_scale) / curation.passes(1, 0)
    longer = math.ceil(study.student_epochs * times)
    found = {}
    for method, own in ways(small).items():
        if own.make_method().unlabelled:
            continue
        for rule in curation.RULES:
            found[f"{method}, {rule}"] = dataclasses.replace(own, curation=rule)
        random = {"curation": "random", "student_epochs": longer}
        found[f"{method}, random, {EQUAL_COST}"] = dataclasses.replace(own, **random)
    return found


def train_curated(study: Study, dataset: Dataset) -> Iterator[dict]:
    """Train and test each of :func:`curated`; yields one row a training.

    The reference is the study's teacher. Rules are compared with ``random`` at an equal number of
    images that are learnt from, and at equal cost, which counts the images that a rule scores.
    """
    teachers = loop.train_teachers(study, dataset)
    for name, own in curated(study, dataset).items():
        recipe = to_the_end(recipes.of_student(study.recipe))
        runs = loop.distil_rounds(own, dataset, teachers, recipe)
        about = {"name": name, "method": own.method, "curation": own.curation}
        yield about | tested(runs, dataset, own.curation_scale)
