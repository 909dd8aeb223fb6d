"""The comparison of methods: result files of notebook 10, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdnb import distillation, files, plots
from kdnb.data import Dataset, describe
from kdnb.evaluation import crossed, predictions, ranking
from kdnb.report import names, pages
from kdnb.report.results import INITIAL_WEIGHTS, Estimate, Result, is_run, setting
from kdnb.study import Study
from kdnb.training import methods

KIND = "methods"
_OF_THE_METHOD = ("method", "options", "alpha", "temperature", "teacher_weights")


def keep(study: Study, dataset: Dataset, teachers: dict, rows: dict[str, dict]) -> Path:
    """Write the methods that were run, beside those that a file of the same setting holds already.
    Returns the path."""
    name = names.comparison(study, KIND)
    path = study.outputs() / f"{name}.json"
    before = Result(KIND, path.name, files.read_json(path)) if path.exists() else None
    known = before.stored["results"]["methods"] if before and _same(before, study, dataset) else {}
    held = methods.truth(dataset) | {"teachers": teachers}
    return pages.save(study, dataset, name, held | {"methods": known | rows})


def _same(result: Result, study: Study, dataset: Dataset) -> bool:
    same_data = result.stored["data"]["checksum"] == dataset.checksum
    return same_data and _cell(result.config) == _cell(study.config())


def _cell(config: dict) -> dict:
    """What two runs share that differ in method and seed only."""
    return {name: v for name, v in setting(config).items() if name not in _OF_THE_METHOD}


def stored(study: Study) -> list[list[Result]]:
    """All result files of the comparison beside those of ``study``, as :func:`cells`; those of the
    study's own setting come first. Phantoms and real images are never ranked together."""
    root = study.outputs_root
    read = {path: files.read_json(path) for path in sorted(root.rglob(f"{KIND}*.json"))}
    found = [
        Result(KIND, path.relative_to(root).as_posix(), content)
        for path, content in read.items()
        if is_run(content)
    ]
    own, drawn = _cell(study.config()), describe(study.dataset).synthetic
    alike = cells(result for result in found if result.synthetic == drawn)
    return sorted(alike, key=lambda cell: _cell(cell[0].config) != own)


def published(results: Iterable[Result]) -> list[Result]:
    """Result files of the comparison on published sets: no phantoms, no folder of a reader's."""
    return [
        result
        for result in results
        if result.kind == KIND and not result.synthetic and result.config["dataset"] != "folder"
    ]


def cells(results: Iterable[Result]) -> list[list[Result]]:
    """Result files of the comparison by data, split, setting and training loop, each with its seeds
    in order; of two files of one seed, the one that holds more methods."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        if result.kind == KIND:
            setting = [_cell(result.config), result.stored["data"]["checksum"], result.training]
            seeds, seed = groups.setdefault(files.digest(setting), {}), result.config["seed"]
            seeds[seed] = max(seeds.get(seed, result), result, key=lambda each: len(_held(each)))
    return [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]


def _held(result: Result) -> dict[str, dict]:
    return result.stored["results"]["methods"]


def budget(cell: Sequence[Result]) -> str:
    """What the runs of a cell share besides data and networks, in words: image size, length,
    initial weights and recipes."""
    config = cell[0].config
    weights = INITIAL_WEIGHTS[config["pretrained"]]
    stated = [f"{name} {value}" for name, value in names.stated(config).items()]
    lengths = f"{config['teacher_epochs']} + {config['student_epochs']} epochs"
    words = [f"{config['image_size']} px", lengths, f"{weights} initial weights", *stated]
    return ", ".join(words)


def title(cell: Sequence[Result]) -> str:
    """A cell in words: data, networks, split and budget."""
    config = cell[0].config
    return (
        f"{pages.short(cell[0].title)}: {config['teacher']} → {config['student']}, "
        f"{cell[0].split} split, {budget(cell)}"
    )


def holding(cell: Sequence[Result], *methods: str) -> list[Result]:
    """The runs of a cell that hold all of these methods."""
    return [result for result in cell if set(methods) <= _held(result).keys()]


def known(cell: Sequence[Result]) -> list[str]:
    """Methods that any run of a cell holds, those of the first run first."""
    return list(dict.fromkeys(name for result in cell for name in _held(result)))


def scores(cells: Iterable[Sequence[Result]], measure: str = "balanced_accuracy") -> pd.DataFrame:
    """A measure of each method (columns) in each run (rows: cell and seed), of methods that every
    run holds."""
    rows = {
        (title(cell), result.config["seed"]): {
            name: row[measure] for name, row in _held(result).items()
        }
        for cell in cells
        for result in cell
    }
    table = pd.DataFrame(rows).T
    table.index = table.index.set_names(["cell", "seed"])
    return table.dropna(axis=1).astype(float)


def against(cell: Sequence[Result], reference: str) -> pd.DataFrame:
    """Balanced accuracy of each method minus that of ``reference``, over images and seeds.

    One row a method: label, difference, low, high (shares of 1), p, seeds and n, of the runs that
    hold both; the label says where these are not all. Images, in their groups, and seeds are
    crossed random effects (:mod:`kdnb.evaluation.crossed`).
    """
    rows = []
    for name in known(cell):
        runs = holding(cell, name, reference)
        if name == reference or not runs:
            continue
        gap, n = _gap(runs, name, reference)
        label = name if len(runs) == len(cell) else f"{name} ({len(runs)} of {len(cell)} seeds)"
        row = {"label": label, "difference": gap.value, "low": gap.low, "high": gap.high}
        rows.append(row | {"p": gap.p_value, "seeds": gap.runs, "n": n})
    table = pd.DataFrame(rows)
    return table.sort_values("difference", ascending=False, ignore_index=True)


def gain(cell: Sequence[Result], name: str, reference: str) -> Estimate:
    """One row of :func:`against`, as an estimate (shares of 1)."""
    gap, n = _gap(cell, name, reference)
    return Estimate(gap.value, gap.low, gap.high, n, gap.runs)


def _gap(cell: Sequence[Result], name: str, reference: str) -> tuple[crossed.Difference, int]:
    """A difference in balanced accuracy, and the number of images."""
    labels, groups = predictions.labels_and_groups(cell[0].stored["results"])
    one, other = (_right(cell, each, labels) for each in (name, reference))
    gaps = (one - other) * crossed.balanced(labels)[:, None]
    return crossed.difference(gaps, groups), len(labels)


def knowledge(cell: Sequence[Result]) -> dict[str, float]:
    """Balanced accuracy (a share of 1, mean over the runs) of the best teacher and of the student
    without one (``hard``)."""
    held = [result.stored["results"] for result in cell]
    taught = [
        np.mean([each["teachers"][name]["balanced_accuracy"] for each in held])
        for name in held[0]["teachers"]
    ]
    alone = np.mean([each["methods"]["hard"]["balanced_accuracy"] for each in held])
    return {"teacher": float(max(taught)), "baseline": float(alone)}


def _right(cell: Sequence[Result], name: str, labels: np.ndarray) -> np.ndarray:
    """Whether each image is classified correctly in each run, ``(N, S)`` of 0 and 1."""
    answers = [_held(each)[name]["predicted"] for each in cell]
    return np.stack([predictions.from_text(text) == labels for text in answers], 1).astype(float)


def table(cell: Sequence[Result]) -> pd.DataFrame:
    """One row a method and teacher: means of the measures over the seeds that hold it, and the
    budget."""
    held = [result.stored["results"] for result in cell]
    named = {name: [_held(each)[name] for each in holding(cell, name)] for name in known(cell)}
    taught = {
        f"teacher {name}": [each["teachers"][name] for each in held] for name in held[0]["teachers"]
    }
    rows = {}
    for name, runs in (taught | named).items():
        means = {
            measure.replace("_", " "): np.mean([run[measure] for run in runs])
            for measure in ("balanced_accuracy", "macro_auc", "cross_entropy", "ece")
        }
        budget = {
            "images trained on": round(np.mean([run["images"] for run in runs])),
            "epochs": round(np.mean([run["epochs"] for run in runs])),
        }
        rows[name] = means | {"seeds": len(runs)} | budget
    return pd.DataFrame(rows).T.astype({"seeds": int, "images trained on": int, "epochs": int})


def what_is_transferred() -> pd.DataFrame:
    """One row a method: title, paper, and what a student takes from the teacher (columns of
    booleans)."""
    return pd.DataFrame(
        {
            name: {"title": method.title, "paper": method.paper}
            | {what: what in method.transfers for what in distillation.TRANSFERS}
            for name, method in distillation.METHODS.items()
        }
    ).T


def _can_be_ranked(table: pd.DataFrame) -> bool:
    return len(table) > 1 and table.shape[1] > 2


def decide(table: pd.DataFrame) -> dict[str, object]:
    """Whether any method differs over the runs of :func:`scores`: Friedman's test, mean ranks, and
    the p values of Nemenyi's test against soft targets. Empty where too little was run."""
    if not _can_be_ranked(table):
        return {}
    pairs = ranking.nemenyi(table)
    return {
        "runs": len(table),
        "friedman": ranking.friedman(table),
        "mean_ranks": ranking.mean_ranks(table).round(3).to_dict(),
        "p_against_soft_targets": pairs["hybrid"].drop("hybrid").round(4).to_dict(),
    }


def ranks(table: pd.DataFrame) -> Figure | None:
    """The critical-difference diagram of :func:`scores`; None, and a sentence, where there are too
    few runs or methods to rank."""
    if not _can_be_ranked(table):
        print("ranks need two runs and three methods or more: other values of -p seed, -p methods")
        return None
    words = f"Mean rank of balanced accuracy over {len(table)} runs, best on the left"
    return plots.critical_difference(ranking.mean_ranks(table), ranking.nemenyi(table), words)
