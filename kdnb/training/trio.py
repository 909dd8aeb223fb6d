"""Teachers, distilled student and baseline: trained together, compared on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from kdnb.data import Dataset
from kdnb.distillation import soft_targets
from kdnb.evaluation import calibration, metrics, predictions
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run

TOGETHER = "teachers averaged"  # the name of several teachers that answer as one
# each role and the key of its results in a file
ROLES = {"teacher": "teacher", "distilled": "distilled", "baseline": "alone"}


def trio(study: Study, dataset: Dataset) -> Trio:
    """Train the study's teachers, its student with them, and the same student without a teacher.

    What was trained before with the same configuration is loaded.
    """
    teachers = loop.train_teachers(study, dataset)
    return Trio(
        tuple(teachers),
        loop.distil(study, dataset, teachers),
        loop.train_baseline(study, dataset),
        study.teacher_weights,
        study.mirrored(dataset),
    )


@dataclass(frozen=True)
class Trio:
    """The runs of one study by role: ``teachers``, the ``distilled`` student, and the ``baseline``,
    which is the same student without a teacher. ``flips`` are the mirrorings over which the
    teachers are tested (:func:`kdnb.models.predict`).

    Mappings go from the name that a figure shows (``teacher densenet121``) to what it is of, the
    teachers first; ``roles`` gives the role of each name.
    """

    teachers: tuple[Run, ...]
    distilled: Run
    baseline: Run
    teacher_weights: Sequence[float] | None = None
    flips: str = ""

    @property
    def runs(self) -> dict[str, Run]:
        """Each network's run by its name."""
        teachers = {name: run for name, run in zip(self.teacher_names, self.teachers, strict=True)}
        return teachers | {
            self.distilled_name: self.distilled,
            self.baseline_name: self.baseline,
        }

    @property
    def models(self) -> dict[str, Classifier]:
        """Each network by its name."""
        return {name: run.model for name, run in self.runs.items()}

    @property
    def pair(self) -> dict[str, Classifier]:
        """The teachers and the distilled student, without the baseline."""
        return {name: m for name, m in self.models.items() if name != self.baseline_name}

    @property
    def roles(self) -> dict[str, str]:
        """``teacher``, ``distilled`` or ``baseline`` of every name, that of the teachers together
        too."""
        return {
            **dict.fromkeys((*self.teacher_names, self.teacher_name), "teacher"),
            self.distilled_name: "distilled",
            self.baseline_name: "baseline",
        }

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The name of each teacher."""
        return tuple(f"teacher {name}" for name in by_name(self.teachers))

    @property
    def teacher_name(self) -> str:
        """The name of what the student is compared with: the teacher, or all of them together."""
        return self.teacher_names[0] if len(self.teachers) == 1 else TOGETHER

    @property
    def distilled_name(self) -> str:
        """The name of the distilled student."""
        return f"distilled {self.distilled.model.name}"

    @property
    def baseline_name(self) -> str:
        """The name of the student without a teacher."""
        return f"baseline {self.baseline.model.name}"

    @property
    def histories(self) -> dict[str, pd.DataFrame]:
        """Each network's learning curve by its name."""
        return {name: run.history for name, run in self.runs.items()}

    def history_table(self) -> pd.DataFrame:
        """All learning curves below one another, with columns ``run`` and ``role``."""
        return pd.concat(
            [
                history.assign(run=name, role=self.roles[name])
                for name, history in self.histories.items()
            ]
        )

    def with_first_teacher(self) -> Trio:
        """The trio without its other teachers, for what is shown of one teacher only."""
        return dataclasses.replace(self, teachers=self.teachers[:1], teacher_weights=None)

    def predict(self, pixels: Pixels) -> dict[str, np.ndarray]:
        """Logits ``(N, K)`` of each network, and of several teachers together, which is what the
        student learns from."""
        flips = dict.fromkeys(self.teacher_names, self.flips)
        logits = {
            name: predict(model, pixels, flips=flips.get(name, ""))
            for name, model in self.models.items()
        }
        if len(self.teachers) > 1:
            answers = [logits[name] for name in self.teacher_names]
            logits[TOGETHER] = soft_targets.average(answers, self.teacher_weights)
        return logits

    def test(self, dataset: Dataset) -> Comparison:
        """All networks on the test images of a dataset."""
        pixels = dataset.pixels(self.distilled.model.image_size, "test")
        labels = pixels.labels[pixels.rows].numpy()
        return Comparison(self, dataset, labels, self.predict(pixels), dataset.groups("test"))

    def calibrate(self, dataset: Dataset) -> Calibration:
        """Fit a temperature to each network on validation images and apply it to test images."""
        size = self.distilled.model.image_size
        val, test = (dataset.pixels(size, part) for part in ("val", "test"))
        of_val, of_test = (part.labels[part.rows].numpy() for part in (val, test))
        temperatures, errors = {}, {}
        for name, model in self.models.items():
            logits = predict(model, val), predict(model, test)
            found = calibration.calibrate(of_val, logits[0], of_test, logits[1])
            temperatures[name] = found.temperature
            errors[name] = {"before": found.before, "after": found.after}
        return Calibration(temperatures, errors)

    def with_role(self, table: pd.DataFrame, column: str = "model") -> pd.DataFrame:
        """A table with the role of each network beside its name."""
        return table.assign(role=table[column].map(self.roles))


def by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the names of their networks; equal names are numbered: ``resnet18 1``,
    ``resnet18 2``."""
    names = [run.model.name for run in runs]
    return {
        name if names.count(name) == 1 else f"{name} {names[: place + 1].count(name)}": runs[place]
        for place, name in enumerate(names)
    }


@dataclass(frozen=True)
class Calibration:
    """The fitted ``temperatures`` of each network, and its ``errors`` on test images before and
    after: expected calibration error, Brier score, cross-entropy."""

    temperatures: dict[str, float]
    errors: dict[str, dict[str, dict[str, float]]]

    def table(self) -> pd.DataFrame:
        """One row a network; columns measure × before or after, and the temperature."""
        rows = {name: pd.DataFrame(errors) for name, errors in self.errors.items()}
        table = pd.concat(rows).unstack().round(4)
        table["fitted temperature", ""] = pd.Series(self.temperatures).round(2)
        return table


@dataclass(frozen=True)
class Comparison:
    """The trio's answers on the same images: ``labels`` ``(N,)``, ``logits`` by name ``(N, K)``,
    and ``groups`` ``(N,)`` of images that are drawn together in every bootstrap."""

    trio: Trio
    dataset: Dataset
    labels: np.ndarray
    logits: Mapping[str, np.ndarray]
    groups: np.ndarray

    @cached_property
    def scores(self) -> dict[str, dict]:
        """What ``evaluation.evaluate`` says of each network, by name."""
        classes, split = self.dataset.classes, self.dataset.split_name
        return {
            name: metrics.evaluate(self.labels, logits, classes, split, self.groups)
            for name, logits in self.logits.items()
        }

    @cached_property
    def differences(self) -> dict[str, dict]:
        """Paired differences in accuracy, macro F1 and macro AUC between the roles."""
        names = {
            "teacher": self.trio.teacher_name,
            "distilled": self.trio.distilled_name,
            "baseline": self.trio.baseline_name,
        }
        pairs = (("distilled", "baseline"), ("distilled", "teacher"), ("baseline", "teacher"))
        return {f"{one} − {other}": self.compare(names[one], names[other]) for one, other in pairs}

    def compare(self, name: str, other: str) -> dict:
        """One network minus another, by name."""
        return metrics.compare(self.labels, self.logits[name], self.logits[other], self.groups)

    def table(self) -> pd.DataFrame:
        """Role, metrics with intervals, millions of parameters and billions of MACs of each."""
        table = metrics.table(self.scores)
        table.insert(0, "role", [self.trio.roles[name] for name in table.index])
        nets = {name: [model] for name, model in self.trio.models.items()}
        nets[TOGETHER] = [run.model for run in self.trio.teachers]
        table["parameters (M)"] = [
            sum(zoo.count_parameters(m) for m in nets[name]) / 1e6 for name in table.index
        ]
        table["MACs (G)"] = [
            sum(zoo.count_macs(m.name, m.num_classes, m.image_size) for m in nets[name]) / 1e9
            for name in table.index
        ]
        return table.round(3)

    def by_class(self, measure: str = "recall") -> pd.DataFrame:
        """One measure of each class (rows) and network (columns)."""
        columns = {
            name: pd.DataFrame(score["per_class"]).set_index("class")[measure]
            for name, score in self.scores.items()
        }
        return pd.DataFrame(columns).astype(float).round(3).rename_axis(f"{measure} by class")

    @property
    def confusion(self) -> dict[str, list]:
        """Counts by true (rows) and predicted class of each network."""
        return {name: score["confusion"] for name, score in self.scores.items()}

    def stored(self) -> dict:
        """The results as a file holds them, by role."""
        trio = self.trio
        roles = {
            "teacher": trio.teacher_name,
            "distilled": trio.distilled_name,
            "baseline": trio.baseline_name,
        }
        keys = {
            name: f"{ROLES[role]} {name.removeprefix(role + ' ')}"
            for name, role in trio.roles.items()
        }
        return {
            **{ROLES[role]: self.scores[name] for role, name in roles.items()},
            "distilled_minus_alone": self.differences["distilled − baseline"],
            "distilled_minus_teacher": self.differences["distilled − teacher"],
            "test": predictions.truth(self.labels, self.groups)
            | {
                "predicted": {
                    ROLES[role]: predictions.as_text(self.logits[name].argmax(1))
                    for role, name in roles.items()
                }
            },
            "training": {
                keys[name]: run.record | {"role": trio.roles[name]}
                for name, run in trio.runs.items()
            },
        }
