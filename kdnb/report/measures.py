"""What result files say of a claim: one function a kind of claim, from results to rows of the
ledger. The rules of the verdicts stand in :mod:`kdnb.report.verdicts`, the claims themselves in
:mod:`kdnb.report.claims`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from kdnb.report import verdicts
from kdnb.report.results import Estimate, Pool, Result, combine, grid, pools, real
from kdnb.report.verdicts import HOLDS, LIKENESS, NOT, PART, UNTESTED, Judged
from kdnb.study import Study

# whose student a network is: a claim is tested on its own paper's
PAPERS_STUDENT = {"ofa595": "A", "kdfmv5": "B", "kdfmv8": "B"}


@dataclass(frozen=True)
class Claim:
    """What a paper says and where, and ``measure``: from (claim, result files) to rows; none means
    that nothing was run.

    ``run`` is the command that would. ``value`` is the claimed number where there is one,
    ``wanted`` the paper's choices.
    """

    id: str
    paper: str
    claim: str
    claimed: str
    source: str
    measure: Callable[[Claim, Sequence[Result]], list[Row]]
    run: str
    dataset: str | None = None
    value: float | None = None
    wanted: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of the ledger. The first fifteen fields are the columns of ``outputs/claims.csv``;
    ``why`` explains the verdict, ``setting`` says how the number came ``unit`` what it is."""

    id: str
    paper: str
    claim: str
    claimed: str
    claimed_source: str
    measured: float | None
    low: float | None
    high: float | None
    n: int | None
    dataset: str
    split: str
    profile: str
    seeds: str
    verdict: str
    result_file: str
    why: str = ""
    setting: str = ""
    unit: str = ""


def row(
    claim: Claim,
    e: Estimate | None,
    judged: Judged,
    *,
    dataset: str = "",
    split: str = "",
    profile: str = "",
    seeds: str = "",
    file: str = "",
    setting: str = "",
    unit: str = "accuracy",
) -> Row:
    """A row of a claim; ``e`` None leaves the measured columns empty."""
    e = e or Estimate(math.nan)
    value = None if math.isnan(e.value) else e.value
    return Row(
        claim.id,
        claim.paper,
        claim.claim,
        claim.claimed,
        claim.source,
        value,
        e.low,
        e.high,
        e.n,
        dataset,
        split,
        profile,
        seeds,
        judged[0],
        file,
        judged[1],
        setting,
        unit,
    )


def nearest(found: Sequence[Pool], wanted: Sequence[tuple[str, object]]) -> Pool:
    """The pool that is most like the paper: by its choices in the order given, then by loop, image
    size, seeds and epochs.

    The order never looks at a result, so that no row is picked for its number.
    """

    def closeness(pool):
        c = pool.first.config
        size = (
            pool.first.training,
            c["image_size"],
            c["pretrained"],
            len(pool.members),
            c["student_epochs"],
        )
        return (*(c[name] == value for name, value in wanted), *size)

    return max(found, key=closeness)


def _chosen(
    claim: Claim,
    results: Sequence[Result],
    method: str | None = None,
    kind: str = "distill",
    by: Sequence[str] = ("teacher", "student"),
) -> list[Pool]:
    """One pool a split and networks named in ``by``: of ``method``, or of the paper's own."""
    groups: dict[tuple, list[Pool]] = {}
    method = method or dict(claim.wanted)["method"]
    for pool in pools(results, claim.dataset, kind):
        config = pool.first.config
        if config["method"] == method and PAPERS_STUDENT.get(config["student"]) == claim.paper:
            groups.setdefault((pool.first.split, *(config[name] for name in by)), []).append(pool)
    return [nearest(groups[key], claim.wanted) for key in sorted(groups)]


def _of(
    claim: Claim, pool: Pool, e: Estimate, judged: Judged, unit: str = "accuracy", more: str = ""
) -> Row:
    return row(
        claim,
        e,
        judged,
        dataset=pool.first.title,
        split=pool.first.split,
        profile=pool.first.config["profile"],
        seeds=pool.seeds,
        file=pool.files,
        setting=pool.setting + more,
        unit=unit,
    )


def _papers(pool: Pool) -> bool:
    """Does a pool have the paper's own setting: its size, length, initial weights and a split as it
    used them?"""
    c, own = pool.first.config, Study(profile="paper")
    length = c["teacher_epochs"] >= own.teacher_epochs and c["student_epochs"] >= own.student_epochs
    return bool(
        length
        and c["image_size"] == own.image_size
        and c["pretrained"]
        and pool.first.split != "group"
    )


def _settled(pool: Pool, e: Estimate, judged: Judged) -> Judged:
    verdict, why = verdicts.settle(judged, e.seeds, pool.first.caveat)
    return verdict, why + (
        "; in a smaller setting than the paper's (size, length, weights)"
        if verdict == NOT and not _papers(pool)
        else ""
    )


def accuracy(claim: Claim, results: Sequence[Result], role: str = "distilled") -> list[Row]:
    """Test accuracy of a role against the printed one, or by itself where no printed one is known."""
    rows = []
    for pool in _chosen(
        claim, results, by=("teacher",) if role == "teacher" else ("teacher", "student")
    ):
        e = pool.accuracy(role)
        if claim.value is None:
            judged = UNTESTED, "the paper's number is not known here"
        else:
            judged = _settled(pool, e, verdicts.reaches(e, claim.value, _papers(pool)))
        rows.append(_of(claim, pool, e, judged))
    return rows


def gains(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """The distilled student's accuracy minus the lone one's, paired."""
    rows = []
    for pool in _chosen(claim, results):
        e = pool.difference("distilled_minus_alone")
        judged = verdicts.taught(
            verdicts.gain(e), *(pool.accuracy(role).value for role in ("teacher", "alone"))
        )
        rows.append(_of(claim, pool, e, _settled(pool, e, judged), "points"))
    return rows


def against_teacher(
    claim: Claim, results: Sequence[Result], rule: Callable[[Estimate], Judged]
) -> list[Row]:
    """The distilled student's accuracy minus its teacher's, paired, under one of the rules."""
    rows = []
    for pool in _chosen(claim, results):
        e = pool.difference("distilled_minus_teacher")
        rows.append(
            _of(
                claim,
                pool,
                e,
                verdicts.undertrained(_settled(pool, e, rule(e)), _papers(pool)),
                "points",
            )
        )
    return rows


def released(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """The published code's loss: whatever is measured of it, it cannot distil
    (:func:`kdnb.distillation.soft_targets.released_soft_loss`)."""
    why = (
        "its soft term does not contain the student and has no gradient for it (03_distill shows that in numbers): "
        "what is measured is the chance of training alone"
    )
    return [
        _of(claim, pool, pool.difference("distilled_minus_alone"), (NOT, why), "points")
        for pool in _chosen(claim, results, "kd_fmv_as_released")
    ]


def optimum(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """The best α and T, where at least two of each were run and the claimed cell among them."""
    rows, wanted = [], dict(claim.wanted)
    cell = wanted["alpha"], wanted["temperature"]
    for split in sorted({result.split for result in real(results, "distill", claim.dataset)}):
        cells = grid(results, claim.dataset, split)
        if (
            len({alpha for alpha, _ in cells}) < 2
            or len({t for _, t in cells}) < 2
            or cell not in cells
        ):
            continue
        ours = cells[cell]
        accuracies = {
            key: [run.stored["results"]["distilled"]["accuracy"] for run in pool.members]
            for key, pool in cells.items()
        }
        e, judged = verdicts.best_cell(cell, accuracies, ours.accuracy("distilled").n)
        every = " ".join(pool.files for pool in cells.values())
        rows.append(
            row(
                claim,
                e,
                _settled(ours, e, judged),
                dataset=ours.first.title,
                split=split,
                seeds=ours.seeds,
                profile=ours.first.config["profile"],
                setting=ours.setting,
                unit="points",
                file=every,
            )
        )
    return rows


def likeness(
    claim: Claim, results: Sequence[Result], method: str, control: str = "alone"
) -> list[Row]:
    """Rank correlation of student's and teacher's maps: that of the distilled student minus that of
    a control, the lone student (``alone``: was it handed on?) or the map of another image
    (``other_image``: do they look alike at all?)."""
    return _alike(
        claim,
        results,
        "explain",
        (f"likeness_distilled_minus_{control}", method, "spearman"),
        "in Spearman's ρ",
    )


def features(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """Likeness of student's and teacher's last layers: that of the distilled student minus that of
    the lone one."""
    return _alike(claim, results, "layers", ("cka_distilled_minus_alone",), "in CKA")


def _alike(
    claim: Claim, results: Sequence[Result], kind: str, place: Sequence[str], unit: str
) -> list[Row]:
    """A difference of likenesses that stands at ``place`` in the results of each run."""
    rows = []
    for pool in _chosen(claim, results, kind=kind):
        gaps = [
            reduce(lambda part, key: part.get(key, {}), place, run.stored["results"])
            for run in pool.members
        ]
        runs = [
            (run, gap)
            for run, gap in zip(pool.members, gaps, strict=True)
            if gap.get("n") and gap.get("low") is not None
        ]
        if not runs:
            continue
        pool = Pool(tuple(run for run, _ in runs))  # runs whose maps are all empty tell nothing
        e = combine(
            [Estimate(gap["mean"], gap["low"], gap["high"], gap["n"], 1) for _, gap in runs]
        )
        judged = _settled(pool, e, verdicts.gain(e, LIKENESS))
        if stayed := [
            run
            for run, _ in runs
            if set(place) & set(run.stored["results"].get("not_moved_by_new_weights", []))
        ]:
            judged = (
                UNTESTED,
                f"the maps stay when the weights are gone, in {len(stayed)} of {len(runs)} runs",
            )
        cells = pool.first.stored["results"].get("map_cells")
        rows.append(
            _of(
                claim,
                pool,
                e,
                judged,
                unit,
                f"; maps of {cells[0]}×{cells[1]} cells" if cells else "",
            )
        )
    return rows


def explanation_time(
    claim: Claim, results: Sequence[Result], title: str, kind: str = "explain"
) -> list[Row]:
    """Seconds an image of an explanation: teacher's over student's, the median of the runs with
    their range as interval."""
    rows = []
    for pool in _chosen(claim, results, kind=kind):
        ratios = []
        for member in pool.members:
            took = {
                entry["model"].split()[0]: entry["seconds"]
                for entry in member.stored["results"].get("met_seconds", [])
                if entry["method"].removesuffix(" ⚠") == title
            }  # 04 marks maps that new weights do not move
            ratios += (
                [took["teacher"] / took["distilled"]]
                if took.get("teacher") and took.get("distilled")
                else []
            )
        if ratios:
            e = Estimate(statistics.median(ratios), min(ratios), max(ratios), seeds=len(ratios))
            judged = verdicts.settle(verdicts.faster(e, claim.value or 1.0), e.seeds, clock=True)
            shown = (
                e if len(ratios) > 1 else replace(e, low=None, high=None)
            )  # one run has no range
            rows.append(_of(claim, pool, shown, judged, "times as fast"))
    return rows


def latency(claim: Claim, results: Sequence[Result], teachers: Sequence[str]) -> list[Row]:
    """Time of one image, teacher's over student's, from notebook 06 and :mod:`benchmarks.latency`:
    ``results["speedups"]``, a list with teacher, student, runtime, times_as_fast, low and high. One
    row a teacher and file: of its runtimes the least favourable speaks. The verdict is in part
    where a teacher was timed nowhere."""
    timed: dict[tuple, list[dict]] = {}
    for result in (
        *real(results, "efficiency"),
        *(result for result in results if result.kind == "latency"),
    ):
        for found in result.stored["results"].get("speedups", []):
            if PAPERS_STUDENT.get(found["student"]) == claim.paper:
                timed.setdefault((result.file, found["teacher"]), []).append(
                    found | {"result": result}
                )
    missing = [teacher for teacher in teachers if teacher not in {teacher for _, teacher in timed}]
    rows = []
    for _, found in sorted(timed.items()):
        least = min(found, key=lambda entry: entry["times_as_fast"])
        verdict, why = verdicts.faster(
            Estimate(least["times_as_fast"], least["low"], least["high"])
        )
        why += f"; {least['runtime']} is the least favourable of {len(found)} runtimes"
        if missing and verdict == HOLDS:
            verdict, why = PART, f"{why}; not timed: {', '.join(missing)}"
        rows.append(_timed(claim, least, (verdict, why)))
    return rows


def _timed(claim: Claim, found: dict, judged: Judged) -> Row:
    result, e = found["result"], Estimate(found["times_as_fast"], found["low"], found["high"])
    machine = result.stored["results"].get("hardware", {})
    about = {"dataset": "any", "profile": "any"}  # weights, and so images, have no say in time
    if result.kind == "efficiency":
        about = {
            "dataset": result.title,
            "split": result.split,
            "profile": result.config["profile"],
        }
    size = result.stored["results"].get("image_size") or result.config["image_size"]
    return row(
        claim,
        e,
        judged,
        **about,
        file=result.file,
        unit="times as fast",
        setting=f"{found['teacher']} → {found['student']}, {found['runtime']}, one image of {size} px, "
        f"{machine.get('torch_threads', '?')} threads, {machine.get('cpu', 'unknown machine')}",
    )


def counted(
    claim: Claim,
    results: Sequence[Result],
    column: str,
    teachers: Sequence[str],
    students: Sequence[str],
    limit: float = 1.0,
) -> list[Row]:
    """Layers, parameters or MACs, student's over teacher's, from the zoo's counts (224 px, 1,000
    classes)."""
    table = next((result for result in results if result.kind == "zoo"), None)
    zoo = table.stored["results"] if table else {}
    rows = []
    for teacher, student in ((t, s) for t in teachers for s in students if {t, s} <= zoo.keys()):
        ratio = float(zoo[student][column] / zoo[teacher][column])
        rows.append(
            row(
                claim,
                Estimate(ratio, ratio, ratio),
                verdicts.fewer(ratio, limit),
                unit="of the teacher's",
                dataset="any",
                profile="any",
                file=table.file,
                setting=f"{teacher} → {student}, 224 px, 1,000 classes",
            )
        )
    return rows
