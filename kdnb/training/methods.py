"""Methods on equal terms: the same teachers, student, images and epochs, one method after the
other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from kdnb import distillation, files
from kdnb.data import Dataset
from kdnb.evaluation import metrics, predictions
from kdnb.models.predict import predict
from kdnb.parameters import Parameters, parameter
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run
from kdnb.training.trio import by_name

REFERENCES = ("hard", "hybrid")  # what every method is compared with: no teacher, soft targets
EVERY = "all"
MEASURES = (
    "n",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_auc",
    "cross_entropy",
    "ece",
    "brier",
    "intervals",
)


def named(methods: str) -> tuple[str, ...]:
    """Methods that ``a+b`` joins; ``all`` stands for each of them. Raises ``UnknownName``."""
    if methods == EVERY:
        return tuple(distillation.METHODS)
    names = tuple(name.strip() for name in methods.split("+") if name.strip())
    for name in names:
        files.lookup(name, [*distillation.METHODS, EVERY], "method")
    return names


@dataclass(frozen=True)
class MethodParameters(Parameters):
    """Settings of notebook 10."""

    extras: ClassVar[tuple[str, ...]] = ("ranking",)

    methods: str = parameter(
        "dkd+attention_transfer+rkd",
        "more methods with their papers' options: a+b, or all",
        valid=named,
    )


def contestants(study: Study) -> dict[str, Study]:
    """The study of each method: the two references and ``study.methods`` by name, with the options
    of their papers, and ``study`` itself, whose name states the options that differ."""
    own = {"alpha": None, "temperature": None, "teacher_weights": None, "options": {}}
    others = dict.fromkeys((*REFERENCES, *named(study.methods)))
    return {name: dataclasses.replace(study, method=name, **own) for name in others} | {
        labelled(study.make_method()): study
    }


def labelled(method: distillation.Method) -> str:
    """The name of a method, with the options that differ from its paper's."""
    given, known = dataclasses.asdict(method.options), method.defaults()
    changed = [f"{name} {value}" for name, value in given.items() if value != known[name]]
    return f"{method.name} ({', '.join(changed)})" if changed else method.name


def measured_teachers(study: Study, dataset: Dataset) -> dict[str, dict]:
    """What a result file holds of each teacher of soft targets; teachers of equal name are
    numbered."""
    flips = study.mirrored(dataset)
    trained = by_name(loop.train_teachers(contestants(study)["hybrid"], dataset))
    return {name: measured(run, dataset, flips) for name, run in trained.items()}


def train_methods(study: Study, dataset: Dataset) -> Iterator[tuple[str, dict]]:
    """Train and test each method of :func:`contestants`; yields its name and what a result file
    holds of it, as soon as it is there.

    One of ``study.methods`` that cannot be run with these networks and images is left out with its
    reason; the study's own method and the references raise ``ValueError``.
    """
    for name, own in contestants(study).items():
        method = own.make_method()
        try:
            asked = method.needs_teacher or own.curation not in (None, "random")
            taught_by = loop.train_teachers(own, dataset) if asked else []
            trained = loop.distil(own, dataset, taught_by)
        except ValueError as error:
            if own == study or name in REFERENCES:
                raise
            print(f"{name} is left out: {error}")
            continue
        yield name, {"summary": method.summary} | measured(trained, dataset)


def measured(run: Run, dataset: Dataset, flips: str = "") -> dict:
    """Test results of one network, its budget, and its answer for every test image, averaged over
    the mirrorings ``flips``."""
    pixels = dataset.pixels(run.model.image_size, "test")
    labels, logits = pixels.labels[pixels.rows].numpy(), predict(run.model, pixels, flips=flips)
    groups = dataset.groups("test")
    scores = metrics.evaluate(labels, logits, dataset.classes, dataset.split_name, groups)
    epochs = len(run.history)
    # runs of earlier versions do not state what they learnt from
    images = epochs * dataset.train_size
    return {name: scores[name] for name in MEASURES} | {
        "predicted": predictions.as_text(logits.argmax(1)),
        "epochs": epochs,
        "best_epoch": run.record["best_epoch"],
        "images": run.record.get("budget", {}).get("images", images),
        "seconds": round(float(run.history["seconds"].sum()), 1),
        "weights": run.checksum,
    }


def truth(dataset: Dataset) -> dict[str, str]:
    """Labels and groups of the test images, in the order of the answers, as texts."""
    test = (dataset.table["split"] == "test").to_numpy()
    return predictions.truth(dataset.labels[test], dataset.groups("test"))
