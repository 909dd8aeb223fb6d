"""Cost of each method beside plain soft targets, and of a grid of cells on kept answers: ``make
bench``.

Times are CPU seconds of the training loop, which other programs change little: those of three
epochs minus those of one, so that building networks and opening the data are not in them. Teachers
are asked for every batch, except where a row says that their answers were kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import seaborn as sns

from kdnb import data, files, provenance
from kdnb.distillation import METHODS, Method, create
from kdnb.plots import style
from kdnb.study import Study
from kdnb.training import answers, loop
from kdnb.training.checkpoints import Run

TEACHER, STUDENT, SIZE, BATCH, PER_CLASS = "densenet121", "kdfmv5", 96, 16, 32
GRID_TEACHER, GRID_STUDENT, CELLS = "vgg19", "ofa595", 13
REFERENCE = "hybrid"
GOALS = {"logits only": 1.03, "features": 1.4, "ssd_kd": 2.5, "crckd": 2.5, "grid": 0.45}


def seconds(study: Study, dataset: data.Dataset, method: Method, teacher: Run) -> float:
    """CPU seconds of two epochs."""
    spent = []
    for epochs in (1, 3):
        begun = time.process_time()
        run = loop.fit(study, dataset, study.student, method, epochs, [teacher])
        spent.append(time.process_time() - begun)
        shutil.rmtree(run.folder)  # a run that is only loaded would cost nothing
    return spent[1] - spent[0]


def prepared(teacher: str, student: str) -> tuple[Study, data.Dataset, Run]:
    """Study, images and a teacher, whose knowledge does not matter here."""
    study = Study(
        dataset="phantom_cxr",
        teacher=teacher,
        student=student,
        image_size=SIZE,
        batch_size=BATCH,
        profile="smoke",
    )
    dataset = data.load("phantom_cxr", per_class=PER_CLASS)
    return study, dataset, loop.fit(study, dataset, teacher, create("hard"), 1)


def kind(method: Method) -> str:
    """The group of methods that share a goal."""
    if method.name in GOALS:
        return method.name
    return "features" if method.taps else "logits only"


def methods(names: Sequence[str]) -> list[dict]:
    """One row a method: its cost in units of plain soft targets, asked and with kept answers."""
    study, dataset, teacher = prepared(TEACHER, STUDENT)
    images, rows = 2 * len(dataset.pixels(SIZE, "train")), []
    for name in names:
        os.environ[answers.LIMIT] = "0"
        method = create(name)
        # beside each, because the speed of the machine changes in an hour
        own, reference = (
            seconds(study, dataset, each, teacher) for each in (method, create(REFERENCE))
        )
        row = {"method": name, "kind": kind(method), "teacher": TEACHER, "student": STUDENT}
        row |= {"images_per_cpu_second": images / own, "times_soft_targets": own / reference}
        if method.cacheable and method.needs_teacher:
            del os.environ[answers.LIMIT]
            seconds(study, dataset, method, teacher)
            kept = seconds(study, dataset, method, teacher)
            row["times_soft_targets_with_kept_answers"] = kept / reference
        rows.append(row)
        print(pd.Series(row).to_string(), end="\n\n", flush=True)
    return rows


def grid() -> dict:
    """A grid of cells in which the teacher answers once, in units of one in which it is asked."""
    study, dataset, teacher = prepared(GRID_TEACHER, GRID_STUDENT)
    os.environ[answers.LIMIT] = "0"
    asked = seconds(study, dataset, create(REFERENCE), teacher)
    os.environ[answers.LIMIT] = "4"
    begun = time.process_time()
    run = loop.fit(study, dataset, GRID_STUDENT, create(REFERENCE), 3, [teacher])
    first = time.process_time() - begun
    shutil.rmtree(run.folder)
    kept = seconds(study, dataset, create(REFERENCE, alpha=0.3), teacher)
    size = sum(path.stat().st_size for path in answers.folder().rglob("*.safetensors"))
    return {
        "teacher": GRID_TEACHER,
        "student": GRID_STUDENT,
        "cells": CELLS,
        "asked_cpu_seconds": asked,
        "kept_cpu_seconds": kept,
        "first_run_cpu_seconds": first,
        "share_of_time": (asked + (CELLS - 1) * kept) / (CELLS * asked),
        "answers_bytes_per_image_and_epoch": size / (3 * len(dataset.pixels(SIZE, "train"))),
    }


def main() -> None:
    """Measure and write ``outputs/benchmarks/methods.json`` and its figure."""
    with TemporaryDirectory() as folder:
        os.environ["KDNB_CACHE"] = str(Path(folder, "cache"))
        measured, rows = grid(), methods([name for name in METHODS if name != "hard"])
    facts = {
        "data": "phantom radiographs",
        "image_size": SIZE,
        "batch_size": BATCH,
        "hardware": provenance.hardware(),
        "commit": provenance.collect()["commit"],
    }
    stored = {"goals": GOALS, "grid": measured | facts, "results": [row | facts for row in rows]}
    place = files.outputs_dir() / "benchmarks"
    print("wrote", files.write_json(place / "methods.json", stored))
    drawn, axes = style.start(size=(6.4, 4.2))
    table = pd.DataFrame(rows).sort_values("times_soft_targets")
    sns.barplot(table, y="method", x="times_soft_targets", hue="kind", ax=axes[0, 0])
    axes[0, 0].axvline(1, color="0.4", linewidth=0.8)
    axes[0, 0].set(ylabel="", xlabel="cost of an image (plain soft targets: 1)")
    axes[0, 0].legend(title="")
    sns.despine(drawn)
    with files.atomic(place / "methods.png") as picture:
        title = f"{TEACHER} teaches {STUDENT}, {SIZE} px, batches of {BATCH}, teacher asked"
        style.done(drawn, title).savefig(picture, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
