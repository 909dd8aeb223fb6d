"""Cost of each method beside plain soft targets, and of a grid of cells on kept answers: ``make
bench``.

Times are CPU seconds of the training loop, which other programs change little: those of three
epochs minus those of one, so that building networks and opening the data are not in them. Each is
the least of several repeats, in which method and reference take turns: other programs only add.
Teachers are asked for every batch, except where a row says that their answers were kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import seaborn as sns

from kdnb import data, files, provenance
from kdnb.distillation import Method, create
from kdnb.plots import style
from kdnb.study import Study
from kdnb.training import answers, loop
from kdnb.training.checkpoints import Run
from kdnb.training.curation import Curation
from kdnb.training.methods import named

GRID_TEACHER, GRID_STUDENT, CELLS = "vgg19", "ofa595", 13
REFERENCE = "hybrid"
GOALS = {"logits only": 1.03, "features": 1.4, "ssd_kd": 2.5, "crckd": 2.5, "grid": 0.45}
KEPT = "4"  # gigabytes of kept answers


@dataclass(frozen=True)
class Setup:
    """What is measured on: networks, size and batch, images a class, and repeats of each time. A
    teacher that costs little makes a method's own work the larger share."""

    teacher: str = "tf_efficientnet_lite0"
    student: str = "kdfmv5"
    size: int = 96
    batch: int = 16
    per_class: int = 32
    repeats: int = 5


TOY = Setup("resnet10t", "resnet10t", 32, 8, 4, 2)


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """A cache without earlier runs; the environment is what it was afterwards."""
    data.load("phantom_cxr", per_class=1)  # drawn once, for every cache
    folder.mkdir()
    (folder / "phantom_cxr").symlink_to(files.cache_dir().resolve() / "phantom_cxr")
    before = {name: os.environ.get(name) for name in ("KDNB_CACHE", answers.LIMIT)}
    os.environ["KDNB_CACHE"] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def answers_within(gigabytes: str) -> Iterator[None]:
    """Teachers' answers are kept within this limit. With ``"0"`` those that are kept already are
    out of sight, so that the teacher is asked: training reads whatever answers it finds."""
    os.environ[answers.LIMIT] = gigabytes
    kept = answers.folder()
    aside = kept.with_name("answers-aside")
    if gigabytes == "0" and kept.exists():
        kept.rename(aside)
    try:
        yield
    finally:
        if aside.exists():
            shutil.rmtree(kept, ignore_errors=True)
            aside.rename(kept)


def seconds(
    study: Study,
    dataset: data.Dataset,
    method: Method,
    teacher: Run,
    lengths: Sequence[int] = (1, 3),
    curation: Curation | None = None,
) -> float:
    """CPU seconds of the epochs by which the longest of these lengths exceeds the others."""
    spent = []
    for epochs in lengths:
        begun = time.process_time()
        settings = study, dataset, study.student, method, epochs, [teacher]
        run = loop.fit(*settings, curation=curation)
        spent.append(time.process_time() - begun)
        shutil.rmtree(run.folder)  # a run that is only loaded would cost nothing
    return spent[-1] - sum(spent[:-1])


def prepared(setup: Setup) -> tuple[Study, data.Dataset, Run]:
    """Study, images and a teacher, whose knowledge does not matter here."""
    study = Study(
        dataset="phantom_cxr",
        teacher=setup.teacher,
        student=setup.student,
        image_size=setup.size,
        batch_size=setup.batch,
        profile="smoke",
    )
    dataset = data.load("phantom_cxr", per_class=setup.per_class)
    return study, dataset, loop.fit(study, dataset, setup.teacher, create("hard"), 1)


def kind(method: Method) -> str:
    """The group of methods that share a goal."""
    if method.name in GOALS:
        return method.name
    return "features" if method.taps else "logits only"


def least(repeats: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The least value of each measure in so many repeats, in each of which all take turns: the
    speed of a machine changes within minutes."""
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(repeats)]
    return {name: min(each[name] for each in rounds) for name in measures}


def methods(names: Sequence[str], setup: Setup) -> Iterator[dict]:
    """One row a method: its cost in units of plain soft targets, asked and with kept answers."""
    study, dataset, teacher = prepared(setup)
    images = 2 * len(dataset.pixels(setup.size, "train"))

    def timed(method: Method, kept: str) -> Callable[[], float]:
        def measure():
            with answers_within(kept):
                return seconds(study, dataset, method, teacher)

        return measure

    for name in names:
        method = create(name)
        measures = {"reference": timed(create(REFERENCE), "0"), "own": timed(method, "0")}
        if method.cacheable and method.needs_teacher:
            measures["kept"] = timed(method, KEPT)
            measures["kept"]()  # the first run asks the teacher
        spent = least(setup.repeats, measures)
        row = {"method": name, "kind": kind(method), "images_per_cpu_second": images / spent["own"]}
        row["times_soft_targets"] = spent["own"] / spent["reference"]
        if "kept" in spent:
            row["times_soft_targets_with_kept_answers"] = spent["kept"] / spent["reference"]
        yield row | {"cpu_seconds": spent, "repeats": setup.repeats}


def grid(setup: Setup) -> dict:
    """A grid of cells in which the teacher answers once, in units of one in which it is asked."""
    study, dataset, teacher = prepared(setup)

    def measured(alpha: float, kept: str, epochs: Sequence[int] = (1, 3)) -> float:
        with answers_within(kept):
            return seconds(study, dataset, create(REFERENCE, alpha=alpha), teacher, epochs)

    first = measured(0.5, KEPT, [3])  # asks the teacher once for all cells
    cell = {"asked": lambda: measured(0.5, "0"), "kept": lambda: measured(0.3, KEPT)}
    spent = least(setup.repeats, cell)
    size = sum(path.stat().st_size for path in answers.folder().rglob("*.safetensors"))
    return {
        "cells": CELLS,
        "asked_cpu_seconds": spent["asked"],
        "kept_cpu_seconds": spent["kept"],
        "first_run_cpu_seconds": first,
        "share_of_time": (spent["asked"] + (CELLS - 1) * spent["kept"]) / (CELLS * spent["asked"]),
        "answers_bytes_per_image_and_epoch": size / (3 * len(dataset.pixels(setup.size, "train"))),
        "repeats": setup.repeats,
    }


def draw(rows: Sequence[dict], setup: Setup, path: Path) -> None:
    """The cost of each method as bars."""
    drawn, axes = style.start(size=(6.4, 4.2))
    table = pd.DataFrame(rows).sort_values("times_soft_targets")
    sns.barplot(table, y="method", x="times_soft_targets", hue="kind", ax=axes[0, 0])
    axes[0, 0].axvline(1, color="0.4", linewidth=0.8)
    axes[0, 0].set(ylabel="", xlabel="cost of an image (plain soft targets: 1)")
    axes[0, 0].legend(title="")
    sns.despine(drawn)
    title = f"{setup.teacher} teaches {setup.student}, {setup.size} px, batches of {setup.batch}"
    with files.atomic(path) as picture:
        style.done(drawn, f"{title}, teacher asked").savefig(picture, dpi=110, bbox_inches="tight")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.methods", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", type=named, default=named("all"), help="a+b, or all")
    parser.add_argument("--repeats", type=int, help=f"of each time ({Setup.repeats})")
    parser.add_argument("--toy", action="store_true", help="try the script: tiny networks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write ``outputs/benchmarks/methods.json`` after every row, and its figure; rows
    of other methods stay. A toy's rows prove nothing and go into the cache."""
    asked = parsed(arguments)
    setup = TOY if asked.toy else Setup()
    setup = replace(setup, repeats=asked.repeats) if asked.repeats else setup
    place = (files.cache_dir() if asked.toy else files.outputs_dir()) / "benchmarks"
    path = place / "methods.json"
    stored = files.read_json(path) if path.exists() else {"grid": {}, "results": []}
    facts = {"data": "phantom radiographs", "image_size": setup.size, "batch_size": setup.batch}
    facts |= {"hardware": provenance.hardware(), "commit": provenance.collect()["commit"]}
    pair = {"teacher": setup.teacher, "student": setup.student}
    cells = setup if asked.toy else replace(setup, teacher=GRID_TEACHER, student=GRID_STUDENT)
    with TemporaryDirectory() as folder, own_cache(Path(folder, "cache")):
        for row in methods([name for name in asked.methods if name != "hard"], setup):
            print(pd.Series(row).to_string(), end="\n\n", flush=True)
            others = [each for each in stored["results"] if each["method"] != row["method"]]
            stored |= {"goals": GOALS, "results": [*others, row | pair | facts]}
            files.write_json(path, stored)
        if asked.methods == named("all"):
            taught = {"teacher": cells.teacher, "student": cells.student}
            files.write_json(path, stored | {"grid": taught | grid(cells) | facts})
    draw(stored["results"], setup, place / "methods.png")
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
