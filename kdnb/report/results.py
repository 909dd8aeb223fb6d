"""Result files, read back: runs pooled over seeds, and estimates with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from kdnb import files, parameters
from kdnb.cells import WINGS
from kdnb.distillation.base import METHODS, SHARED
from kdnb.evaluation import crossed, predictions
from kdnb.images.catalogue import DATASETS
from kdnb.study import Study

# Choices that leave the training of teacher and student as it is: where the images lie (their
# checksum and split stand beside them), the seed, and what wings do with trained networks.
_NOT_TRAINING = {"data_root", "download", "split", "seed", "track"} | {
    name for wing in WINGS for name in parameters.declared(wing)
}
MASKS = "segmentation"  # the kind of files whose classes are those of a pixel
# where a network's batch statistics come from, by the version of the training loop
BATCH_STATISTICS = {1: "augmented views", 2: "clean images"}
# initial weights in words, by study.pretrained
INITIAL_WEIGHTS = {
    "none": "random",
    "teacher": "ImageNet (teacher) and random (student)",
    "student": "random (teacher) and ImageNet (student)",
    "both": "ImageNet",
}


def role(name: str) -> str:
    """The role of a network that a result file names with its model, ``alone kdfmv5``: ``teacher``,
    ``distilled`` or ``baseline``."""
    first = name.split()[0]
    return "baseline" if first == "alone" else first


def stored_role(role: str) -> str:
    """The name of a role in the keys of result files, where the baseline is ``alone``."""
    return "alone" if role == "baseline" else role


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, the number of test images ``n`` and of training runs
    ``seeds``; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Result:
    """One result file: ``kind`` is the first word of its name (distill, explain, …), ``file`` its
    path as it may be shown."""

    kind: str
    file: str
    stored: dict

    @property
    def config(self) -> dict:
        """Every choice of the run, resolved."""
        return self.stored["config"]

    @property
    def title(self) -> str:
        """The dataset with its caveat: a stand-in is named as one wherever its numbers appear,
        with the number of classes if some are missing."""
        data, spec = self.stored["data"], DATASETS.get(self.config["dataset"])
        here, published = len(data.get("classes", ())), len(spec.classes) if spec else 0
        few = (
            f", {here} of {published} classes"
            if 0 < here < published and "classes" not in data["title"] and self.kind != MASKS
            else ""
        )
        return data["title"].replace(":", f"{few}:", 1) if self.caveat else data["title"]

    @property
    def caveat(self) -> str:
        """How the images differ from the published set; empty if they do not."""
        return self.stored["data"]["caveat"]

    @property
    def split(self) -> str:
        """The split that was used, in one word: official, pooled, random or group."""
        return self.stored["data"]["split"].split()[0].rstrip(":,")

    @property
    def images(self) -> str:
        """The checksum of images and splits; runs on a share of the labels, which each seed draws
        anew, have that of the whole set."""
        data = self.stored["data"]
        return data.get("labelled_from", data["checksum"])

    @property
    def label_share(self) -> float:
        """The share of the training labels that was used."""
        return self.config.get("label_share", 1.0)

    @property
    def training(self) -> int:
        """The version of the training loop; files that do not name one are of the first."""
        return self.stored.get("training", 1)

    @property
    def synthetic(self) -> bool:
        """Whether the images were drawn, according to the file or the catalogue."""
        spec = DATASETS.get(self.config["dataset"])
        return self.caveat == "synthetic" or (spec is not None and spec.synthetic)


def load(folder: Path | None = None) -> list[Result]:
    """Every result file under ``outputs/``, without smoke runs and without copies of the same run.

    Files about networks, whatever they were trained on, have neither configuration nor data: the
    counts of notebook 00 (kind ``zoo``) and the times of :mod:`benchmarks.latency` (``latency``).
    """
    folder = folder or files.outputs_dir()
    networks = {"zoo": folder / "zoo.json", "latency": folder / "benchmarks" / "latency.json"}
    found = {
        kind: Result(kind, _shown(path, folder), files.read_json(path))
        for kind, path in networks.items()
        if path.exists()
    }
    for path in sorted(folder.rglob("*.json"), key=lambda path: (len(path.parts), path)):
        result = read(path, folder)
        if result is None or result.config.get("profile") == "smoke":
            continue
        same = [result.kind, result.config, result.stored["data"]["checksum"], result.training]
        found.setdefault(files.digest(same), result)
    return list(found.values())


def read(path: Path, folder: Path) -> Result | None:
    """The result of a notebook in a file below ``folder``; None for any other file."""
    stored = files.read_json(path)
    if not is_run(stored) or not {"dataset", "seed"} <= stored["config"].keys():
        return None
    stored["config"]["pretrained"] = _pretrained(stored["config"])
    return Result(path.stem.split("-")[0], _shown(path, folder), stored)


def is_run(stored: object) -> bool:
    """Whether the content of a JSON file is the result of a notebook, and not of a benchmark."""
    return isinstance(stored, dict) and {"results", "config", "data"} <= stored.keys()


def _pretrained(config: dict) -> str:
    """Which networks started from published weights; older files hold a boolean, which meant all
    but paper B's student."""
    given = config.get("pretrained", False)
    if not isinstance(given, bool):
        return given
    if not given:
        return "none"
    return "teacher" if str(config.get("student", "")).startswith("kdfmv") else "both"


def _shown(path: Path, folder: Path) -> str:
    """A file's path relative to the repository, wherever ``outputs/`` is."""
    return Path("outputs", path.relative_to(folder)).as_posix()


def real(
    results: Iterable[Result], kind: str, dataset: str | None = None, every_share: bool = False
) -> list[Result]:
    """Results of one kind on the published datasets. Phantoms, a reader's own folders, and, without
    ``every_share``, runs on a part of the labels are no evidence about the papers."""
    return [
        result
        for result in results
        if result.kind == kind
        and not result.synthetic
        and result.config["dataset"] in DATASETS
        and result.config["dataset"] != "folder"
        and (every_share or result.label_share == 1)
        and dataset in (None, result.config["dataset"])
    ]


@dataclass(frozen=True)
class Pool:
    """Results of one kind that differ in nothing but the seed."""

    members: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The run with the lowest seed; it shares its setting with the others."""
        return self.members[0]

    @property
    def options(self) -> str:
        """The method's own options in words, ``beta 2``; empty if it has none."""
        return _words(self.first.config.get("options", {}))

    @property
    def setting(self) -> str:
        """The setting in words, networks and data apart."""
        c = self.first.config
        weights = f"{INITIAL_WEIGHTS[c['pretrained']]} initial weights"
        recipe = (c["method"], _words({"α": c["alpha"], "T": c["temperature"]}), self.options)
        return (
            f"{' '.join(filter(None, recipe))}, {c['image_size']} px, "
            f"at most {c['teacher_epochs']} + {c['student_epochs']} epochs, {weights}, "
            f"batch statistics of {BATCH_STATISTICS[self.first.training]}{self._best_epochs()}"
        )

    def _best_epochs(self) -> str:
        """The epoch with the best validation score, seed by seed: where it is the last one, a
        longer training may have been better."""
        best: dict[str, list[dict]] = {"teacher": [], "distilled": [], "baseline": []}
        for member in self.members:
            for name, run in member.stored["results"].get("training", {}).items():
                if role(name) in best and "best_epoch" in run:
                    best[role(name)].append(run)
        parts = [
            f"{name} {' '.join(str(run['best_epoch']) for run in runs)} of {runs[0]['epochs_run']}"
            for name, runs in best.items()
            if runs
        ]
        return f"; best epochs: {', '.join(parts)}" if parts else ""

    @property
    def files(self) -> tuple[str, ...]:
        """The result files."""
        return tuple(member.file for member in self.members)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in order."""
        return tuple(member.config["seed"] for member in self.members)

    def accuracy(self, role: str) -> Estimate:
        """Test accuracy of ``teacher``, ``distilled`` or ``baseline`` (a share of 1), its interval
        over test images and seeds within [0, 1]."""
        key = stored_role(role)
        e = combine([_share(member.stored["results"][key]) for member in self.members])
        return replace(e, low=max(0.0, e.low), high=min(1.0, e.high))

    def balanced_accuracy(self, role: str) -> Estimate | None:
        """Balanced test accuracy of a role (a share of 1), images and runs as crossed random
        effects; None for a single run, and where not every run keeps its answers."""
        tests = self.answers(several=True)
        if not tests:
            return None
        labels, groups = predictions.labels_and_groups(tests[0])
        values = crossed.balanced(labels)[:, None] * right(tests, stored_role(role))
        mean = crossed.difference(values, groups)
        low, high = max(0.0, mean.low), min(1.0, mean.high)
        return Estimate(mean.value, low, high, len(labels), mean.runs)

    def difference(self, against: str) -> Estimate:
        """Test accuracy of the distilled student minus that of ``teacher`` or ``baseline`` (shares
        of 1).

        Where every run keeps its answers, images and runs are crossed random effects
        (:mod:`kdnb.evaluation.crossed`). One run has the paired bootstrap over images; older files
        of several runs join it with the variation between runs, which gives too wide an interval.
        """
        if tests := self.answers(several=True):
            return _crossed(tests, stored_role(against))
        key = f"distilled_minus_{stored_role(against)}"
        stored = [member.stored["results"][key] for member in self.members]
        return combine([Estimate(d["difference"], d["low"], d["high"], d["n"], 1) for d in stored])

    def balanced_difference(self, against: str) -> Estimate | None:
        """The same in balanced accuracy; None where not every run keeps its answers."""
        tests = self.answers(several=True)
        return _crossed(tests, stored_role(against), balanced=True) if tests else None

    def spread(self) -> float | None:
        """Standard deviation between runs of distilled − baseline in accuracy; None for fewer than
        three runs."""
        gaps = [m.stored["results"]["distilled_minus_alone"]["difference"] for m in self.members]
        return float(np.std(gaps, ddof=1)) if len(gaps) > 2 else None

    def answers(self, several: bool = False) -> list[dict]:
        """What each run answered for each image; empty for older files, and with ``several`` for
        one run."""
        tests = [member.stored["results"].get("test") for member in self.members]
        return tests if all(tests) and len(tests) > several else []


def right(tests: Sequence[dict], role: str) -> np.ndarray:
    """Whether each image was classified correctly in each run, boolean ``(N, S)``, by the network
    of a role as result files name it."""
    labels = predictions.labels_and_groups(tests[0])[0]
    return np.stack([predictions.from_text(t["predicted"][role]) == labels for t in tests], 1)


def _crossed(tests: Sequence[dict], against: str, balanced: bool = False) -> Estimate:
    """The difference in accuracy, or balanced accuracy, of several runs that answered for the same
    images."""
    labels, groups = predictions.labels_and_groups(tests[0])
    weights = crossed.balanced(labels)[:, None] if balanced else 1.0
    gaps = weights * right(tests, "distilled") - weights * right(tests, against)
    gap = crossed.difference(gaps, groups)
    return Estimate(gap.value, gap.low, gap.high, len(labels), gap.runs)


def _words(options: dict) -> str:
    """Options in words, without those that have no value."""
    given = {name: value for name, value in options.items() if value is not None}
    return " ".join(
        f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in given.items()
    )


def setting(config: dict) -> dict:
    """The part of a configuration that makes two runs the same experiment: all but the seed and
    what only concerns trained networks.

    Derived, so that a choice this module has never heard of still keeps two settings apart. An
    older file lacks newer choices: they had their defaults.
    """
    declared = parameters.declared(Study)
    defaults = {name: parameters.default(field) for name, field in declared.items()}
    method = METHODS.get(config.get("method"))
    known = method.defaults() if method else {}
    options = {name: value for name, value in known.items() if name not in SHARED}
    whole = defaults | config | {"options": options | config.get("options", {})}
    return {name: value for name, value in whole.items() if name not in _NOT_TRAINING}


def pools(
    results: Iterable[Result],
    dataset: str | None = None,
    kind: str = "distill",
    every_share: bool = False,
) -> list[Pool]:
    """Real results of a kind by setting, split, data and training loop, each with its seeds in
    order; ``every_share`` as in :func:`real`."""
    groups: dict[str, dict[int, Result]] = {}
    for result in real(results, kind, dataset, every_share):
        key = [setting(result.config), result.split, result.images, result.training]
        groups.setdefault(files.digest(key), {}).setdefault(result.config["seed"], result)
    return [Pool(tuple(by_seed[seed] for seed in sorted(by_seed))) for by_seed in groups.values()]


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds. Its half-width joins two sources of uncertainty in quadrature: the test
    images, which are the same for every seed (mean half-width of the single intervals), and
    training (Student's t over the seeds).

    With one seed the second is unknown, and the interval covers the images alone.
    """
    values = np.array([e.value for e in estimates])
    middle, count = float(values.mean()), len(values)
    training = (
        float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
        if count > 1
        else 0.0
    )
    below = float(np.hypot(np.mean([e.value - e.low for e in estimates]), training))
    above = float(np.hypot(np.mean([e.high - e.value for e in estimates]), training))
    return Estimate(middle, middle - below, middle + above, estimates[0].n, count)


def _share(score: dict) -> Estimate:
    """An accuracy with Wilson's interval, which is not empty at 0 and 1, or the bootstrap's where
    groups of images make it wider."""
    right = round(score["accuracy"] * score["n"])
    wilson = stats.binomtest(right, score["n"]).proportion_ci(method="wilson")
    low, high = score.get("intervals", {}).get("accuracy", wilson)
    return Estimate(
        score["accuracy"], min(float(wilson.low), low), max(float(wilson.high), high), score["n"], 1
    )


def distillations(results: Iterable[Result]) -> pd.DataFrame:
    """Every distillation on the published datasets, one row a setting, with seeds pooled.

    ``difference``, ``low`` and ``high`` are distilled − baseline in accuracy (shares of 1);
    accuracies are text with their 95 % interval.
    """
    rows = []
    for pool in pools(results):
        gain, config = pool.difference("baseline"), pool.first.config
        shares = {name: pool.accuracy(name) for name in ("teacher", "distilled", "baseline")}
        accuracy = {
            f"{name} accuracy": f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
            for name, e in shares.items()
        }
        rows.append(
            {
                "dataset": pool.first.title,
                "split": pool.first.split,
                "teacher": config["teacher"],
                "student": config["student"],
                "method": f"{config['method']} {pool.options}".rstrip(),
                "α": config["alpha"],
                "T": config["temperature"],
                "px": config["image_size"],
                "epochs": f"{config['teacher_epochs']} + {config['student_epochs']}",
                "initial weights": INITIAL_WEIGHTS[config["pretrained"]],
                "batch statistics": BATCH_STATISTICS[pool.first.training],
                "seeds": gain.seeds,
                "n": gain.n,
                **accuracy,
                "difference": gain.value,
                "low": gain.low,
                "high": gain.high,
            }
        )
    order = ["dataset", "split", "teacher", "student", "method"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True) if rows else pd.DataFrame()


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of :func:`distillations` that differ in α and T alone, those with most seeds."""
    if table.empty:
        return table
    alike = table.groupby(["dataset", "split", "teacher", "student", "method", "px"])["seeds"]
    return table[table["seeds"] == alike.transform("max")]


def grid(
    results: Iterable[Result], dataset: str, split: str, method: str = "kd_fmv"
) -> dict[tuple[float, float], Pool]:
    """(α, temperature) → distillations of a dataset and split; empty where nothing was run.

    Of several students, sizes or lengths, the setting with the most cells is taken, and of its
    seeds those that every cell has: a mean of three runs does not compare with a single run.
    """
    by_setting: dict[str, dict[tuple[float, float], Pool]] = {}
    for pool in pools(results, dataset):
        config = pool.first.config
        if pool.first.split == split and config["method"] == method:
            rest = setting(config) | {"alpha": None, "temperature": None}
            cell = config["alpha"], config["temperature"]
            by_setting.setdefault(files.digest([rest, pool.first.training]), {})[cell] = pool
    cells = max(by_setting.values(), key=len, default={})
    seeds = [{member.config["seed"] for member in pool.members} for pool in cells.values()]
    common = set.intersection(*seeds) if seeds else set()
    kept = {
        cell: tuple(m for m in pool.members if m.config["seed"] in common)
        for cell, pool in cells.items()
    }
    return {cell: Pool(members) for cell, members in kept.items() if members}


def leaks(results: Iterable[Result]) -> pd.DataFrame:
    """Balanced accuracy of the baseline (shares of 1) under the papers' split minus that under the
    group split.

    One row for each result of notebook 08: dataset, student, split, difference, low, high, seeds,
    and copies, the number of the n test images with a relative in training. The splits test on
    different images, so their half-widths, each over images and seeds, join in quadrature.
    """
    rows = []
    for result in real(results, "integrity"):
        stored, under = result.stored["results"], {}
        for run in stored["headline"]:  # the papers' split first
            one = Estimate(run["balanced_accuracy"], run["low"], run["high"], run["n"], 1)
            under.setdefault(run["split"], []).append(one)
        (split, theirs), (_, ours) = ((name, combine(runs)) for name, runs in under.items())
        first, middle = stored["leaks"][0], theirs.value - ours.value
        rows.append(
            {
                "dataset": result.title,
                "student": result.config["student"],
                "split": split,
                "difference": middle,
                "low": middle - float(np.hypot(theirs.value - theirs.low, ours.high - ours.value)),
                "high": middle + float(np.hypot(theirs.high - theirs.value, ours.value - ours.low)),
                "seeds": theirs.seeds,
                "n": first["test images"],
                "copies": first["with a relative in training"],
            }
        )
    return pd.DataFrame(rows)
