"""What notebook 12 compares: pipelines on all parts and on some of them, on views without shapes,
networks beside them, and students that a pipeline taught."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from joblib import Memory

from kdnb import distillation
from kdnb.classical import blocks as sources
from kdnb.classical import pipelines
from kdnb.classical.blocks import Block
from kdnb.classical.pipelines import Fitted
from kdnb.classical.settings import HANDCRAFTED
from kdnb.data import Dataset
from kdnb.evaluation import metrics, predictions
from kdnb.models.predict import predict
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run
from kdnb.training.methods import MEASURES
from kdnb.training.teachers import GivenLogits
from kdnb.training.trio import by_name

TOGETHER = "all parts"
LEARNT = "all networks"
ALONE, WITHOUT = "alone", "left out"
BY_PIPELINE, BY_ENSEMBLE = "taught by the pipeline", "taught by the ensemble"
UNTAUGHT = "no teacher, same views"


def rows(dataset: Dataset, part: str) -> np.ndarray:
    """Rows ``(n,)`` of the table that belong to a part of the split."""
    return np.flatnonzero(dataset.table["split"] == part)


def fit(
    blocks: Sequence[Block], study: Study, dataset: Dataset, memory: Memory | None = None
) -> Fitted:
    """A pipeline on these blocks, fitted on the dataset's training images."""
    groups = dataset.table["group"].to_numpy()
    train, count = rows(dataset, "train"), len(dataset.classes)
    return pipelines.fit(blocks, dataset.labels, train, groups, count, study.seed, memory)


def subsets(blocks: Sequence[Block]) -> dict[tuple[str, str], list[Block]]:
    """The blocks of each pipeline by (part, kind): all parts; each alone; all but one; and the
    networks, or the handcrafted features, alone where there are several. None is listed twice."""
    learnt = [block for block in blocks if block.learnt]
    crafted = [block for block in blocks if not block.learnt]
    wanted = {(TOGETHER, ALONE): list(blocks)}
    wanted |= {(block.name, ALONE): [block] for block in blocks}
    wanted |= {(LEARNT, ALONE): learnt, (HANDCRAFTED, ALONE): crafted}
    for block in blocks:
        wanted[block.name, WITHOUT] = [other for other in blocks if other is not block]
    kept: dict[tuple[str, str], list[Block]] = {}
    for key, members in wanted.items():
        if members and members not in kept.values():
            kept[key] = members
    return kept


def fit_parts(
    blocks: Sequence[Block], study: Study, dataset: Dataset
) -> dict[tuple[str, str], Fitted]:
    """A pipeline for each of :func:`subsets`."""
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(folder, verbose=0)
        parts = subsets(blocks).items()
        return {key: fit(members, study, dataset, memory) for key, members in parts}


def fit_shortcuts(
    study: Study, dataset: Dataset, teachers: Sequence[Run] = ()
) -> dict[str, Fitted]:
    """The same pipeline on what shows no disease: the features of the border alone, the statistics
    of grey values and sizes, and the colour mode of the files."""
    border = sources.load(study, dataset, teachers, "border only")
    found = {name: [block] for name, block in sources.of_files(dataset).items()}
    found = {"border only": border} | found
    return {name: fit(own, study, dataset) for name, own in found.items()}


def scores(logits: Mapping[object, np.ndarray], dataset: Dataset) -> dict[object, dict]:
    """Test results (:func:`kdnb.evaluation.evaluate`) of each classifier from its logits ``(n, K)``
    for the test images."""
    labels, groups = dataset.labels[rows(dataset, "test")], dataset.groups("test")
    classes, split = dataset.classes, dataset.split_name
    return {
        name: metrics.evaluate(labels, each, classes, split, groups)
        for name, each in logits.items()
    }


def on_test(fitted: Fitted, dataset: Dataset) -> np.ndarray:
    """Logits ``(n, K)`` of a pipeline for the test images."""
    return fitted.logits[rows(dataset, "test")]


def importance(fitted: Fitted, blocks: Sequence[Block], dataset: Dataset) -> pd.DataFrame:
    """Permutation importance of each block on the test images (:mod:`kdnb.classical.pipelines`)."""
    groups, test = dataset.table["group"].to_numpy(), rows(dataset, "test")
    return pipelines.importance(fitted, blocks, test, dataset.labels, groups)


def members(teachers: Sequence[Run], student: Run) -> dict[str, Run]:
    """The networks that learnt from labels alone, by name; teachers of equal name are numbered."""
    found = {f"teacher {name}": run for name, run in by_name(teachers).items()}
    return found | {f"student {student.model.name}": student}


def by_networks(runs: Mapping[str, Run], dataset: Dataset) -> dict[str, np.ndarray]:
    """Logits ``(n, K)`` of trained networks for the test images."""
    return {
        name: predict(run.model, dataset.pixels(run.model.image_size, "test"))
        for name, run in runs.items()
    }


def by_view(found: Mapping[object, dict], model: str = "pipeline") -> pd.DataFrame:
    """Balanced accuracy with its interval for ``plots.accuracy_by_view``: a row a result of
    :func:`scores`, whose keys are views, or pairs of view and model."""
    lines = []
    for key, score in found.items():
        low, high = score["intervals"]["balanced_accuracy"]
        view, of = key if isinstance(key, tuple) else (key, model)
        lines.append(
            {"view": view, "model": of}
            | {"balanced_accuracy": score["balanced_accuracy"], "low": low, "high": high}
        )
    return pd.DataFrame(lines)


def against(logits: Mapping[str, np.ndarray], reference: str, dataset: Dataset) -> dict[str, dict]:
    """Paired differences of each classifier to ``reference`` on the test images
    (:func:`kdnb.evaluation.compare`); ``logits`` name → ``(n, K)``."""
    labels, groups = dataset.labels[rows(dataset, "test")], dataset.groups("test")
    return {
        f"{name} − {reference}": metrics.compare(labels, each, logits[reference], groups)
        for name, each in logits.items()
        if name != reference
    }


def teach(
    study: Study, dataset: Dataset, fitted: Fitted, teachers: Sequence[Run] = ()
) -> dict[str, Run]:
    """The study's student on fixed views: with the pipeline as its only teacher, with the ensemble
    of ``teachers`` where there are several, and without a teacher.

    The pipeline's soft targets of a training image come from pipelines that were fitted on other
    groups. Raises ``ValueError`` for a method that needs more than logits.
    """
    own = dataclasses.replace(study, augment=False)
    answers = GivenLogits("pipeline", torch.from_numpy(fitted.logits.astype(np.float32)))
    given = {BY_PIPELINE: [answers]} | ({BY_ENSEMBLE: list(teachers)} if len(teachers) > 1 else {})
    method, given_to = own.make_method(), (own, dataset, own.student)
    pupils = {
        name: loop.fit(*given_to, method, own.student_epochs, each) for name, each in given.items()
    }
    alone = loop.fit(*given_to, distillation.create("hard"), own.student_epochs)
    return pupils | {UNTAUGHT: alone}


def stored(logits: Mapping[object, np.ndarray], found: Mapping[object, dict]) -> dict[object, dict]:
    """What a result file holds of each classifier, from its logits ``(n, K)`` and its
    :func:`scores`: the measures with intervals, and its class for every test image as text."""
    return {
        name: {measure: found[name][measure] for measure in MEASURES}
        | {"predicted": predictions.as_text(each.argmax(1))}
        for name, each in logits.items()
    }


def search(fitted: Fitted) -> dict[str, object]:
    """What was chosen and found in a pipeline's search, as a file holds it."""
    return {
        "parts": list(fitted.names),
        "C": fitted.cost,
        "temperature": round(fitted.temperature, 4),
        "validated": round(fitted.validated, 4),
        "components": fitted.components,
        "seconds": fitted.seconds,
    }
