"""Evidence for a claim: what the result files say of it. One function a kind of claim, named in
:data:`KINDS`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy import stats

from kdnb import files
from kdnb.distillation.base import METHODS
from kdnb.evaluation import crossed, predictions
from kdnb.report import methods, neighbours, results
from kdnb.report.claims import Claim
from kdnb.report.results import Estimate, Pool, Result
from kdnb.study import Study
from kdnb.training import labels as label_shares

NOTHING = Estimate(math.nan)


@dataclass(frozen=True)
class Evidence:
    """An estimate with its origin, and what the verdict rules need besides.

    ``note`` is added to the reason of the verdict. ``papers_setting``: the runs have the paper's
    image size, length, initial weights and split. ``accuracies`` (role → share), Dice of masks, are
    those of teacher and baseline, empty where no teacher is used; of reports and areas, what the
    ``better`` of the two reaches, and ``chance``. ``unmoved`` counts runs whose maps stay when the
    weights are randomised; ``untimed`` names teachers without a timing; ``untrained``: no weights
    were trained, so that runs differ in nothing that matters.
    """

    estimate: Estimate = NOTHING
    dataset: str = "any"
    split: str = ""
    profile: str = "any"
    seeds: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    teacher: str = ""
    student: str = ""
    setting: str = ""
    note: str = ""
    caveat: str = ""
    papers_setting: bool = False
    accuracies: dict[str, float] = field(default_factory=dict)
    unmoved: int = 0
    untimed: tuple[str, ...] = ()
    untrained: bool = False


def of_pool(pool: Pool, estimate: Estimate, **more: object) -> Evidence:
    """Evidence from trained runs."""
    first = pool.first
    c = first.config
    own = Study(profile="paper", student=c["student"])
    papers_setting = (
        c["teacher_epochs"] >= own.teacher_epochs
        and c["student_epochs"] >= own.student_epochs
        and c["image_size"] == own.image_size
        and c["pretrained"] == own.pretrained
        and first.split != "group"
    )
    given = {
        "dataset": first.title,
        "split": first.split,
        "profile": c["profile"],
        "seeds": pool.seeds,
        "files": pool.files,
        "teacher": c["teacher"],
        "student": c["student"],
        "setting": pool.setting,
        "caveat": first.caveat,
        "papers_setting": papers_setting,
    }
    return Evidence(estimate, **given | more)


def nearest(found: Sequence[Pool], claim: Claim) -> Pool:
    """The pool closest to the paper: by its choices in the order given, then by training loop,
    image size, pretrained weights, seeds and epochs. Results play no part in the choice."""

    def closeness(pool):
        c, loop = pool.first.config, pool.first.training
        size = (
            loop,
            c["image_size"],
            c["pretrained"] != "none",
            len(pool.members),
            c["student_epochs"],
        )
        return (*(c[name] == value for name, value in claim.wanted.items()), *size)

    return max(found, key=closeness)


def chosen(
    claim: Claim,
    found: Sequence[Result],
    kind: str = "distill",
    by: Sequence[str] = ("teacher", "student"),
) -> list[Pool]:
    """Of the runs with the claim's method and its paper's student, one pool for each split and
    combination of networks in ``by``."""
    groups: dict[tuple, list[Pool]] = {}
    for pool in results.pools(found, claim.dataset, kind):
        c = pool.first.config
        if c["method"] == claim.wanted["method"] and c["student"] in claim.paper.students:
            groups.setdefault((pool.first.split, *(c[name] for name in by)), []).append(pool)
    return [nearest(groups[key], claim) for key in sorted(groups)]


def accuracies(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Test accuracy of the claim's subject, a role."""
    by = ("teacher",) if claim.subject == "teacher" else ("teacher", "student")
    for pool in chosen(claim, found, by=by):
        yield of_pool(pool, pool.accuracy(claim.subject))


def differences(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Test accuracy of the distilled student minus that of teacher or baseline, paired by image."""
    for pool in chosen(claim, found):
        shares = {role: pool.accuracy(role).value for role in ("teacher", "baseline")}
        yield of_pool(pool, pool.difference(claim.against), accuracies=shares)


def optima(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """The claimed cell of the α × T grid against the best other one. Needs two values of each, and
    the claimed cell among them."""
    ours = claim.wanted["alpha"], claim.wanted["temperature"]
    splits = {result.split for result in results.real(found, "distill", claim.dataset)}
    for split in sorted(splits):
        cells = results.grid(found, claim.dataset, split)
        if ours in cells and all(len(set(values)) > 1 for values in zip(*cells, strict=True)):
            shares = {
                cell: [run.stored["results"]["distilled"]["accuracy"] for run in pool.members]
                for cell, pool in cells.items()
            }
            n = cells[ours].accuracy("distilled").n
            estimate, note = paired_cell(ours, cells) or best_cell(ours, shares, n)
            every = tuple(file for pool in cells.values() for file in pool.files)
            yield of_pool(cells[ours], estimate, note=note, files=every)


def best_cell(
    claimed: tuple[float, float], cells: dict[tuple[float, float], Sequence[float]], n: int
) -> tuple[Estimate, str]:
    """Accuracy of the claimed (α, T) minus that of the best other cell, with the claimed cell's
    rank in words. ``cells``: (α, T) → accuracies of the same seeds on ``n`` images.

    For files without the answers for each image. A run's interval is that of two independent
    shares, which is wider than a paired one, and wider again (Bonferroni) because the other cell
    is the best of several.
    """
    means = {cell: statistics.fmean(values) for cell, values in cells.items()}
    others = {cell: mean for cell, mean in means.items() if cell != claimed}
    best = max(others, key=others.get)
    z = stats.norm.ppf(1 - 0.025 / len(others))
    runs = []
    for ours, other in zip(cells[claimed], cells[best], strict=True):
        half = z * math.sqrt((ours * (1 - ours) + other * (1 - other)) / n)
        runs.append(Estimate(ours - other, ours - other - half, ours - other + half, n, 1))
    return results.combine(runs), _rank(claimed, means, best)


def paired_cell(
    claimed: tuple[float, float], cells: dict[tuple[float, float], Pool]
) -> tuple[Estimate, str] | None:
    """:func:`best_cell` from what each student answered for each image, paired by image and run;
    None where a run does not keep its answers. Images and runs are crossed random effects, and the
    level is Bonferroni's, because the other cell is the best of several."""
    answers = {cell: pool.answers() for cell, pool in cells.items()}
    if not all(answers.values()):
        return None
    right = {cell: results.right(tests, "distilled") for cell, tests in answers.items()}
    means = {cell: float(each.mean()) for cell, each in right.items()}
    others = {cell: mean for cell, mean in means.items() if cell != claimed}
    best = max(others, key=others.get)
    groups = predictions.labels_and_groups(answers[claimed][0])[1]
    gaps = right[claimed] * 1.0 - right[best]
    gap = crossed.difference(gaps, groups, level=1 - 0.05 / len(others))
    estimate = Estimate(gap.value, gap.low, gap.high, len(gaps), gap.runs)
    return estimate, _rank(claimed, means, best)


def _rank(
    claimed: tuple[float, float], means: dict[tuple[float, float], float], best: tuple[float, float]
) -> str:
    rank = 1 + sum(mean > means[claimed] for cell, mean in means.items() if cell != claimed)
    return f"rank {rank} of {len(means)} cells; best other cell: α {best[0]:g}, T {best[1]:g}"


def map_similarities(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Rank correlation of the student's and the teacher's maps, minus that of a control: the
    baseline's maps, or maps of another image."""
    key = f"likeness_distilled_minus_{results.stored_role(claim.against)}"
    return _similarities(
        claim,
        found,
        "explain",
        lambda run: run.get(key, {}).get(claim.quantity, {}).get("spearman", {}),
    )


def layer_similarities(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """CKA of the student's and the teacher's last layers, minus that of the baseline's."""
    return _similarities(
        claim, found, "layers", lambda run: run.get("cka_distilled_minus_alone", {})
    )


def _similarities(
    claim: Claim, found: Sequence[Result], kind: str, difference: Callable[[dict], dict]
) -> Iterator[Evidence]:
    for pool in chosen(claim, found, kind):
        runs = []
        for run in pool.members:
            e = difference(run.stored["results"])
            if e.get("n") and e.get("low") is not None:  # runs whose maps are all empty say nothing
                runs.append((run, Estimate(e["mean"], e["low"], e["high"], e["n"], 1)))
        if not runs:
            continue
        measured = Pool(tuple(run for run, _ in runs))
        stored = [run.stored["results"] for run in measured.members]
        cells = stored[0].get("map_cells")
        size = f"; maps of {cells[0]}×{cells[1]} cells" if cells else ""
        yield of_pool(
            measured,
            results.combine([e for _, e in runs]),
            setting=measured.setting + size,
            unmoved=sum(claim.quantity in s.get("not_moved_by_new_weights", ()) for s in stored),
        )


def explanation_times(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Seconds an image of an explanation: the teacher's over the student's. The median over runs,
    with their range in place of an interval."""
    for pool in (pool for kind in ("explain", "layers") for pool in chosen(claim, found, kind)):
        ratios = []
        for run in pool.members:
            took = {
                results.role(entry["model"]): entry["seconds"]
                for entry in run.stored["results"].get("met_seconds", [])
                if entry["method"].removesuffix(" ⚠") == claim.quantity  # ⚠: see ``unmoved``
            }
            if took.get("teacher") and took.get("distilled"):
                ratios.append(took["teacher"] / took["distilled"])
        if ratios:
            low, high = (min(ratios), max(ratios)) if len(ratios) > 1 else (None, None)
            yield of_pool(pool, Estimate(statistics.median(ratios), low, high, seeds=len(ratios)))


def latencies(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Time of one image, the teacher's over the student's, from notebook 06 and
    :mod:`benchmarks.latency`.

    They store ``results["speedups"]``, a list with teacher, student, runtime, times_as_fast, low
    and high. Each teacher and file gives one estimate: that of its least favourable runtime.
    """
    timed: dict[tuple, list[tuple[dict, Result]]] = {}
    networks = [result for result in found if result.kind == "latency"]
    for result in (*results.real(found, "efficiency"), *networks):
        for entry in result.stored["results"].get("speedups", []):
            if entry["student"] in claim.paper.students:
                timed.setdefault((result.file, entry["teacher"]), []).append((entry, result))
    teachers = {teacher for _, teacher in timed}
    untimed = [teacher for teacher in claim.paper.teachers if teacher not in teachers]
    for key in sorted(timed):
        least, result = min(timed[key], key=lambda pair: pair[0]["times_as_fast"])
        note = f"{least['runtime']} is the least favourable of {len(timed[key])} runtimes"
        yield replace(_timed(least, result), note=note, untimed=tuple(untimed))


def _timed(entry: dict, result: Result) -> Evidence:
    """Evidence from one timing. Times depend neither on weights nor on images: a file of
    :mod:`benchmarks.latency` names no dataset."""
    stored = result.stored["results"]
    origin, machine = {}, stored.get("hardware", {})
    if result.kind == "efficiency":
        profile = result.config["profile"]
        origin = {"dataset": result.title, "split": result.split, "profile": profile}
    size = stored.get("image_size") or result.config["image_size"]
    return Evidence(
        Estimate(entry["times_as_fast"], entry["low"], entry["high"]),
        files=(result.file,),
        teacher=entry["teacher"],
        student=entry["student"],
        setting=f"{entry['runtime']}, one image of {size} px, "
        f"{machine.get('torch_threads', '?')} threads, {machine.get('cpu', 'unknown machine')}",
        **origin,
    )


def counts(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Layers, parameters or MACs of the student over those of the teacher, as notebook 00 counts
    them (224 px, 1,000 classes)."""
    for table in (result for result in found if result.kind == "zoo"):
        zoo = table.stored["results"]
        pairs = [(t, s) for t in claim.paper.teachers for s in claim.paper.students]
        for teacher, student in (pair for pair in pairs if set(pair) <= zoo.keys()):
            ratio = float(zoo[student][claim.quantity] / zoo[teacher][claim.quantity])
            yield Evidence(
                Estimate(ratio, ratio, ratio),
                files=(table.file,),
                teacher=teacher,
                student=student,
                setting="224 px, 1,000 classes",
            )


def method_gains(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Balanced accuracy of a student that the claim's subject, a method, taught minus that of one
    which another method taught, in every cell of notebook 10. A claim about a teacher looks at its
    own cells only."""
    for cell in methods.cells(methods.published(found)):
        runs, config = methods.holding(cell, claim.subject, claim.against, "hard"), cell[0].config
        if not runs or config["teacher"] not in (claim.paper.teachers or (config["teacher"],)):
            continue
        taught = METHODS[claim.subject]
        own = "its own teachers, each of a part of the patients, were not measured"
        yield Evidence(
            methods.gain(runs, claim.subject, claim.against),
            dataset=cell[0].title,
            split=cell[0].split,
            profile=config["profile"],
            seeds=tuple(run.config["seed"] for run in runs),
            files=tuple(run.file for run in runs),
            teacher=config["teacher"],
            student=config["student"],
            setting=methods.budget(cell),
            note=own if taught.teacher_shards > 1 else "",
            caveat=cell[0].caveat,
            accuracies=methods.knowledge(runs) if taught.needs_teacher else {},
        )


def neighbour_gains(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Balanced accuracy of the claim's subject minus that of what it is compared with, both roles
    of :data:`kdnb.report.neighbours.ROLES`, over images and seeds."""
    for cell in neighbours.cells(found, claim.kind):
        pairs = [
            tuple(neighbours.ROLES[role](run) for role in (claim.subject, claim.against))
            for run in cell
        ]
        runs = [run for run, pair in zip(cell, pairs, strict=True) if all(pair)]
        held = [pair for pair in pairs if all(pair)]
        if not runs:
            continue
        labels, groups = predictions.labels_and_groups(runs[0].stored["results"])
        right = [
            np.stack([predictions.from_text(pair[side][0]["predicted"]) == labels for pair in held])
            for side in (0, 1)
        ]
        gaps = (right[0] * 1.0 - right[1]).T * crossed.balanced(labels)[:, None]
        gap = crossed.difference(gaps, groups)
        notes = dict.fromkeys(note for pair in held for _, note in pair if note)
        untrained = neighbours.fixed(runs[0], claim.subject)
        if untrained:
            notes["nothing is trained but the machine: other seeds only draw other folds"] = None
        trained = 1 if untrained else gap.runs
        estimate = Estimate(gap.value, gap.low, gap.high, len(labels), trained)
        size = f"{runs[0].config['image_size']} px"
        budget = size if untrained else methods.budget(runs)
        evidence = _of_neighbour(estimate, runs, "; ".join(notes), budget)
        yield replace(evidence, untrained=untrained)


def area_gains(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Area under the ROC curve of one loss minus that of another, at the smallest share of
    positives, as notebook 11 stores it; several seeds are joined."""
    for cell in neighbours.cells(found, "labels"):
        share = min(label_shares.shares(cell[0].config["positive_shares"], "positive_shares"))
        runs, estimates = [], []
        for run in cell:
            for row in run.stored["results"].get("positives", []):
                if (row["loss"], row["positives"]) == (claim.subject, share):
                    gap = row["against"]["auc"]
                    if gap["low"] is not None:
                        runs.append(run)
                        bounds = gap["difference"], gap["low"], gap["high"]
                        estimates.append(Estimate(*bounds, gap["n"], 1))
        if runs:
            note = f"{share:.0%} positives, AUC"
            joined = results.combine(estimates), runs, note, methods.budget(runs)
            yield replace(_of_neighbour(*joined), accuracies=_orders(runs, claim, share))


def _orders(runs: Sequence[Result], claim: Claim, share: float) -> dict[str, float]:
    """How well the better of a claim's two losses surely orders images: the lower end of its area's
    interval, a mean over runs. Chance is 0.5."""
    lowest = [
        np.mean(
            [
                row["auc_interval"][0]
                for run in runs
                for row in run.stored["results"]["positives"]
                if (row["loss"], row["positives"]) == (loss, share)
            ]
        )
        for loss in (claim.subject, claim.against)
    ]
    return {"better": float(max(lowest)), "chance": 0.5}


def _of_neighbour(estimate: Estimate, runs: Sequence[Result], note: str, budget: str) -> Evidence:
    first = runs[0]
    parts = f", features {first.config['features']}" if first.kind == "features" else ""
    return Evidence(
        estimate,
        dataset=first.title,
        split=first.split,
        profile=first.config["profile"],
        seeds=tuple(run.config["seed"] for run in runs),
        files=tuple(run.file for run in runs),
        teacher=first.config["teacher"],
        student=first.config["student"],
        setting=budget + parts,
        note=note,
        caveat=first.caveat,
    )


def mask_gains(claim: Claim, found: Sequence[Result]) -> Iterator[Evidence]:
    """Mean Dice, over test images that have a target, of the student of several limit-trained
    teachers minus that of another student, in every setting of notebook 13."""
    for runs in _mask_runs(found):
        config, tests = runs[0].config, [run.stored["results"]["test"] for run in runs]
        names = [*tests[0]["dice"]]
        other = names[-2] if claim.against == "one_teacher" else names[-3]
        ours, others = ([np.array(t["dice"][name]) for t in tests] for name in (names[-1], other))
        groups = np.array(tests[0]["groups"])
        gap = crossed.difference(np.stack(ours, 1) - np.stack(others, 1), groups)
        taught_by, alone = names[1:-3], names[-3]  # after the teacher of all patients
        limits = {"patient": config["per_group"], "class": config.get("per_class")}
        kept = "".join(f", {most} images of a {kind}" for kind, most in limits.items() if most)
        yield Evidence(
            Estimate(gap.value, gap.low, gap.high, len(groups), gap.runs),
            dataset=runs[0].title,
            split=runs[0].split,
            profile=config["profile"],
            seeds=tuple(run.config["seed"] for run in runs),
            files=tuple(run.file for run in runs),
            teacher=f"{config['teacher_shards']} × {config['teacher']}",
            student=config["student"],
            setting=f"{methods.budget(runs)} (each teacher sees as many images), "
            f"{config['target']} masks{kept}",
            note=f"{gap.groups} patients or groups",
            caveat=runs[0].caveat,
            accuracies={"teacher": _dice(tests, taught_by), "baseline": _dice(tests, [alone])},
        )


def _dice(tests: Sequence[dict], names: Sequence[str]) -> float:
    """Mean Dice of some networks over runs and test images that have a target."""
    return float(np.mean([test["dice"][name] for test in tests for name in names]))


def _mask_runs(found: Sequence[Result]) -> list[list[Result]]:
    """Runs of notebook 13 on published sets that differ in nothing but the seed."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results.real(found, "segmentation"):
        config = result.config
        stated = [config[name] for name in ("target", "weighting", "kl_weight")]
        key = [results.setting(config), stated, result.split, result.images, result.training]
        groups.setdefault(files.digest(key), {}).setdefault(config["seed"], result)
    return [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]


def report_gains(claim: Claim, found: Sequence[Result], measure: str) -> Iterator[Evidence]:
    """A measure of the reports of the claim's subject, a captioner, minus that of another, in every
    setting of notebook 14 that compares by this measure: ``f1`` of the facts where they can be
    read, and ``rouge_l``."""
    settings: dict[str, dict[int, Result]] = {}
    for result in results.real(found, "reports"):
        if _report_gap(result, claim, measure):
            key = [{**result.config, "seed": None}, result.images, result.split]
            settings.setdefault(files.digest(key), {})[result.config["seed"]] = result
    for by_seed in settings.values():
        runs, gaps = [by_seed[seed] for seed in sorted(by_seed)], []
        for run in runs:
            row, n = _report_gap(run, claim, measure), run.stored["results"]["images"]["test"]
            gaps.append(Estimate(row["difference"], row["low"], row["high"], n, 1))
        config = runs[0].config
        yield Evidence(
            results.combine(gaps),
            dataset=runs[0].title,
            split=runs[0].split,
            profile=config["profile"],
            seeds=tuple(run.config["seed"] for run in runs),
            files=tuple(run.file for run in runs),
            teacher=config["teacher"],
            student=config["student"],
            setting=f"{config['image_size']} px, {config['caption_epochs']} epochs on pairs",
            caveat=runs[0].caveat,
            accuracies=_report_levels(runs, claim, measure),
        )


def _report_levels(runs: Sequence[Result], claim: Claim, measure: str) -> dict[str, float]:
    """A measure's mean over runs: of the better captioner of a claim, and of chance."""
    of: dict[str, list[float]] = {}
    for run in runs:
        for row in run.stored["results"]["scores"]:
            if row["measure"] == measure:
                of.setdefault(row["writer"], []).append(row["value"])
    better = max(float(np.mean(of[name])) for name in (claim.subject, claim.against))
    return {"better": better, "chance": float(np.mean(of["report of another image"]))}


def _report_gap(result: Result, claim: Claim, measure: str) -> dict | None:
    wanted = measure, f"{claim.subject} − {claim.against}"
    rows = result.stored["results"]["differences"]
    return next((row for row in rows if (row.get("measure"), row["label"]) == wanted), None)


@dataclass(frozen=True)
class Kind:
    """How a kind of claim is measured, and how its numbers are printed: ``form`` formats ``scale``
    times the value."""

    measure: Callable[[Claim, Sequence[Result]], Iterator[Evidence]]
    unit: str = ""
    form: str = "{:.3f}"
    scale: float = 1


KINDS = {
    "accuracy": Kind(accuracies),
    "fidelity": Kind(differences, "points", "{:+.1f}", 100),
    "gain": Kind(differences, "points", "{:+.1f}", 100),
    "published loss": Kind(differences, "points", "{:+.1f}", 100),
    "optimum": Kind(optima, "points", "{:+.1f}", 100),
    "maps": Kind(map_similarities, "in Spearman's ρ", "{:+.2f}"),
    "layers": Kind(layer_similarities, "in CKA", "{:+.2f}"),
    "explanation time": Kind(explanation_times, "times as fast"),
    "latency": Kind(latencies, "times as fast"),
    "count": Kind(counts, "of the teacher's"),
    "method": Kind(method_gains, "points", "{:+.1f}", 100),
    "features": Kind(neighbour_gains, "points", "{:+.1f}", 100),
    "labels": Kind(neighbour_gains, "points", "{:+.1f}", 100),
    "areas": Kind(area_gains, "points", "{:+.1f}", 100),
    "masks": Kind(mask_gains, "points of Dice", "{:+.1f}", 100),
    "reports": Kind(partial(report_gains, measure="f1"), "points of F1", "{:+.1f}", 100),
    "captions": Kind(partial(report_gains, measure="rouge_l"), "points of ROUGE-L", "{:+.1f}", 100),
}
