"""The claims of both papers that can be checked, and what result files say of each: one row a claim, dataset, split and teacher.

No number is written here but the papers' own; the rules of the verdicts stand in :mod:`kdnb.verdicts`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kdnb.catalogue import DATASETS
from kdnb.results import Estimate, Pool, Result, combine, grid, pools, real
from kdnb.verdicts import RANK, UNTESTED, Judged, about, best_cell, faster, fewer, gain, no_loss, reaches, settle

# whose student a network is: a claim is tested on its own paper's
PAPERS_STUDENT = {"ofa595": "A", "kdfmv5": "B", "kdfmv8": "B"}


@dataclass(frozen=True)
class Claim:
    """What a paper says and where, and ``measure``: from (claim, result files) to rows; none means that nothing was run.

    ``run`` is the command that would. ``value`` is the claimed number where there is one, ``wanted`` the paper's choices.
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
    """One line of the ledger. The first fifteen fields are the columns of ``outputs/claims.csv``; ``why`` explains the verdict,
    ``setting`` says how the number came about, ``unit`` what it is."""

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


def row(claim: Claim, e: Estimate | None, judged: Judged, *, dataset: str = "", split: str = "", profile: str = "",
        seeds: str = "", file: str = "", setting: str = "", unit: str = "accuracy") -> Row:  # fmt: skip
    """A row of a claim; ``e`` None leaves the measured columns empty."""
    e = e or Estimate(math.nan)
    value = None if math.isnan(e.value) else e.value
    return Row(claim.id, claim.paper, claim.claim, claim.claimed, claim.source, value, e.low, e.high, e.n, dataset, split, profile,
               seeds, judged[0], file, judged[1], setting, unit)  # fmt: skip


def ledger(results: Sequence[Result]) -> list[Row]:
    """Every claim against the result files. A claim that nothing was run for says so, with the command that would run it."""
    rows: list[Row] = []
    for claim in CLAIMS:
        title = DATASETS[claim.dataset].title if claim.dataset else ""
        nothing = row(claim, None, (UNTESTED, f"not run; this would: {claim.run}"), dataset=title, unit="")
        rows += claim.measure(claim, results) or [nothing]
    return rows


def nearest(found: Sequence[Pool], wanted: Sequence[tuple[str, object]]) -> Pool:
    """The pool that is most like the paper: by its choices in the order given, then by loop, image size, seeds and epochs.

    The order never looks at a result, so that no row is picked for its number.
    """
    def closeness(pool):
        c = pool.first.config
        size = (pool.first.training, c["image_size"], c["pretrained"], len(pool.members), c["student_epochs"])
        return (*(c[name] == value for name, value in wanted), *size)

    return max(found, key=closeness)


def _chosen(claim: Claim, results: Sequence[Result], method: str | None = None) -> list[Pool]:
    """One pool a split and teacher: of ``method``, or of any that distils (the published code's loss does not)."""
    groups: dict[tuple, list[Pool]] = {}
    for pool in pools(results, claim.dataset):
        config = pool.first.config
        asked = config["method"] == method if method else config["method"] not in ("hard", "kd_fmv_as_released")
        if asked and PAPERS_STUDENT.get(config["student"]) == claim.paper:
            groups.setdefault((pool.first.split, config["teacher"]), []).append(pool)
    return [nearest(groups[key], claim.wanted) for key in sorted(groups)]


def _of(claim: Claim, pool: Pool, e: Estimate, judged: Judged, unit: str = "accuracy") -> Row:
    return row(claim, e, judged, dataset=pool.first.title, split=pool.first.split, profile=pool.first.config["profile"],
               seeds=pool.seeds, file=pool.files, setting=pool.setting, unit=unit)  # fmt: skip


def accuracy(claim: Claim, results: Sequence[Result], role: str = "distilled") -> list[Row]:
    """Test accuracy of a role against the printed one, or by itself where no printed one is known."""
    rows = []
    for pool in _chosen(claim, results):
        e, config = pool.accuracy(role), pool.first.config
        if claim.value is None:
            judged = UNTESTED, "the paper's number is not known here"
        else:
            papers = config["profile"] == "paper" and config["image_size"] == 224 and config["pretrained"]
            judged = settle(reaches(e, claim.value, papers), e.seeds, pool.first.caveat)
        rows.append(_of(claim, pool, e, judged))
    return rows


def difference(claim: Claim, results: Sequence[Result], pair: str, rule: Callable[[Estimate], Judged],
               method: str | None = None) -> list[Row]:  # fmt: skip
    """A paired difference of accuracies under one of the rules."""
    rows = []
    for pool in _chosen(claim, results, method):
        e = pool.difference(pair)
        rows.append(_of(claim, pool, e, settle(rule(e), e.seeds, pool.first.caveat), "points"))
    return rows


def optimum(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """The best α and T, where at least two of each were run and the claimed cell among them."""
    rows, wanted = [], dict(claim.wanted)
    cell = wanted["alpha"], wanted["temperature"]
    for split in sorted({result.split for result in real(results, "distill", claim.dataset)}):
        cells = grid(results, claim.dataset, split)
        if len({alpha for alpha, _ in cells}) < 2 or len({t for _, t in cells}) < 2 or cell not in cells:
            continue
        ours = cells[cell]
        accuracies = {key: pool.accuracy("distilled").value for key, pool in cells.items()}
        e, judged = best_cell(cell, accuracies, ours.accuracy("distilled").n)
        every = " ".join(pool.files for pool in cells.values())
        rows.append(row(claim, e, settle(judged, min(len(pool.members) for pool in cells.values()), ours.first.caveat),
                        dataset=ours.first.title, split=split, profile=ours.first.config["profile"], seeds=ours.seeds,
                        setting=ours.setting, unit="points", file=every))  # fmt: skip
    return rows


def likeness(claim: Claim, results: Sequence[Result], method: str) -> list[Row]:
    """Rank correlation of student's and teacher's maps: that of the distilled student minus that of the lone one."""
    rows = []
    for members in _explained(claim, results):
        found = [m.stored["results"].get("likeness_distilled_minus_alone", {}).get(method, {}).get("spearman") for m in members]
        if all(entry and entry["n"] for entry in found):
            e = combine([Estimate(entry["mean"], entry["low"], entry["high"], entry["n"], 1) for entry in found])
            rows.append(_from(claim, members, e, settle(gain(e, RANK), e.seeds, members[0].caveat), "in Spearman's ρ"))
    return rows


def explanation_time(claim: Claim, results: Sequence[Result], title: str) -> list[Row]:
    """Seconds an image of an explanation: teacher's over student's, the median of the runs with the range as interval."""
    rows = []
    for members in _explained(claim, results):
        ratios = []
        for member in members:
            took = {entry["model"].split()[0]: entry["seconds"] for entry in member.stored["results"].get("met_seconds", [])
                    if entry["method"] == title}  # fmt: skip
            ratios += [took["teacher"] / took["distilled"]] if took.get("teacher") and took.get("distilled") else []
        if ratios:
            images = members[0].stored["results"].get("images")
            e = Estimate(statistics.median(ratios), min(ratios), max(ratios), images, len(ratios))
            rows.append(_from(claim, members, e, settle(faster(e, claim.value or 1.0), e.seeds), "times as fast"))
    return rows


def latency(claim: Claim, results: Sequence[Result]) -> list[Row]:
    """Time of one image, teacher's over student's, from notebook 06: ``results["speedups"]`` of its file, a list with
    teacher, student, runtime, times_as_fast, low and high. A clock's interval needs no seeds."""
    rows = []
    for result in real(results, "efficiency"):
        for found in result.stored["results"].get("speedups", []):
            if PAPERS_STUDENT.get(found["student"]) == claim.paper:
                e = Estimate(found["times_as_fast"], found["low"], found["high"])
                placed = row(claim, e, faster(e), dataset=result.title, split=result.split, profile=result.config["profile"],
                             file=result.file, unit="times as fast",
                             setting=f"{found['teacher']} → {found['student']}, {found['runtime']}")  # fmt: skip
                rows.append(placed)
    return rows


def _explained(claim: Claim, results: Sequence[Result]) -> list[list[Result]]:
    """Explanation results of the paper's student, by split, networks, method and size; seeds together."""
    groups: dict[tuple, list[Result]] = {}
    for result in real(results, "explain", claim.dataset):
        c = result.config
        if PAPERS_STUDENT.get(c["student"]) == claim.paper:
            groups.setdefault((result.split, c["teacher"], c["student"], c["method"], c["image_size"]), []).append(result)
    return [groups[key] for key in sorted(groups)]


def _from(claim: Claim, members: list[Result], e: Estimate, judged: Judged, unit: str) -> Row:
    first = members[0]
    c = first.config
    return row(claim, e, judged, dataset=first.title, split=first.split, profile=c["profile"], unit=unit,
               seeds=" ".join(str(m.config["seed"]) for m in members), file=" ".join(m.file for m in members),
               setting=f"{c['teacher']} → {c['student']}, {c['method']}, {c['image_size']} px")  # fmt: skip


def counted(claim: Claim, results: Sequence[Result], column: str, teachers: Sequence[str], students: Sequence[str],
            limit: float = 1.0) -> list[Row]:  # fmt: skip
    """Parameters or MACs, student's over teacher's, from the zoo's table (224 px, 1,000 classes)."""
    table = next((result for result in results if result.kind == "zoo"), None)
    zoo = table.stored["results"] if table else {}
    rows = []
    for teacher, student in ((t, s) for t in teachers for s in students if {t, s} <= zoo.keys()):
        ratio = zoo[student][column] / zoo[teacher][column]
        rows.append(row(claim, Estimate(float(ratio), float(ratio), float(ratio)), fewer(ratio, limit), unit="of the teacher's",
                        dataset="any", profile="any", file=table.file,
                        setting=f"{teacher} → {student}, 224 px, 1,000 classes"))  # fmt: skip
    return rows


_A = "abstract of arXiv:2508.15251; its tables could not be read here"
_B = "secondary summary of arXiv:2502.15959, not the paper itself"
_B_ABSTRACT = "abstract of arXiv:2502.15959"
_A_TEACHERS = ("vgg19_bn", "visformer_small", "autoformerv2_tiny")


def _run(dataset: str, teacher: str, student: str, number: str = "03", **more: object) -> str:
    given = {"dataset": dataset, "teacher": teacher, "student": student} | more
    return f"python -m kdnb.run {number} " + " ".join(f"-p {name} {value}" for name, value in given.items())


def _paper_a(dataset: str) -> list[Claim]:
    title = DATASETS[dataset].title
    run = _run(dataset, "visformer_small", "ofa595")
    common = {"paper": "A", "dataset": dataset, "source": _A, "run": run, "wanted": (("student", "ofa595"), ("method", "hybrid"))}
    return [
        Claim(f"A-{dataset}-accuracy", claim=f"Accuracy of the distilled OFA-595 on {title}",
              claimed="high; the number could not be read", measure=accuracy, **common),
        Claim(f"A-{dataset}-teacher", claim=f"The distilled OFA-595 keeps its teacher's accuracy on {title}",
              claimed="student maintains high classification performance",
              measure=partial(difference, pair="distilled_minus_teacher", rule=no_loss), **common),
        Claim(f"A-{dataset}-gain", claim=f"Labels and soft targets teach OFA-595 better than labels alone on {title}",
              claimed="hybrid supervision; implied, the abstract states no control",
              measure=partial(difference, pair="distilled_minus_alone", rule=gain), **common),
        Claim(f"A-{dataset}-focus", claim=f"Score-CAM: distillation makes OFA-595 look where its teacher looks on {title}",
              claimed="insight into the spatial focus of teacher and student; implied",
              measure=partial(likeness, method="score_cam"), **common | {"run": run.replace("run 03", "run 04")}),
    ]  # fmt: skip


def _paper_b(dataset: str, teacher: float | None, student: float, alpha: float, temperature: float) -> list[Claim]:
    title = DATASETS[dataset].title
    run = _run(dataset, "densenet121", "kdfmv5", method="kd_fmv", alpha=alpha, temperature=temperature)
    wanted = (("teacher", "densenet121"), ("method", "kd_fmv"), ("alpha", alpha), ("temperature", temperature),
              ("student", "kdfmv5"))  # fmt: skip
    common = {"paper": "B", "dataset": dataset, "source": _B, "run": run, "wanted": wanted}
    loses = teacher is None  # eye disease: the summary gives the distance, not the teacher's accuracy
    distance = -0.05 if loses else student - teacher
    how = "stays some points below" if loses else "is as good as"
    against = Claim(f"B-{dataset}-teacher", claim=f"The student {how} its teacher on {title}",
                    claimed=f"{100 * distance:+.2f} points" if not loses else "about 5 points below",
                    measure=partial(difference, pair="distilled_minus_teacher",
                                    rule=partial(about, claimed=distance) if loses else no_loss),
                    value=distance, **common)  # fmt: skip
    printed = [] if loses else [
        Claim(f"B-{dataset}-teacher-accuracy", claim=f"Accuracy of the DenseNet121 teacher on {title}", claimed=f"{teacher:.4f}",
              measure=partial(accuracy, role="teacher"), value=teacher, **common)]  # fmt: skip
    explained = run.replace("run 03", "run 04")
    released = common | {"run": run.replace("-p method kd_fmv", "-p method kd_fmv_as_released"),
                         "source": "published code, github.com/AIPMLab/KD-FMV"}  # fmt: skip
    return [
        *printed,
        Claim(f"B-{dataset}-student-accuracy", claim=f"Accuracy of the distilled student on {title}",
              claimed=f"{student:.4f} (α {alpha:g}, T {temperature:g})", measure=accuracy, value=student, **common),
        against,
        Claim(f"B-{dataset}-gain", claim=f"Distillation makes the student better than training alone does on {title}",
              claimed="implied; no control is printed", measure=partial(difference, pair="distilled_minus_alone", rule=gain),
              **common),
        Claim(f"B-{dataset}-optimum", claim=f"α {alpha:g} and T {temperature:g} are best on {title}",
              claimed=f"α {alpha:g}, T {temperature:g}", measure=optimum,
              **common | {"run": "make study SET=cpu"}),
        Claim(f"B-{dataset}-released", claim=f"The loss of the published code distils on {title}", claimed="it distils",
              measure=partial(difference, pair="distilled_minus_alone", rule=gain, method="kd_fmv_as_released"), **released),
        Claim(f"B-{dataset}-focus", claim=f"Grad-CAM: distillation makes the student look where its teacher looks on {title}",
              claimed="the student retains the teacher's features; implied",
              measure=partial(likeness, method="grad_cam"), **common | {"run": explained}),
        *(Claim(f"B-{dataset}-met-{method.lower()}", claim=f"{method} is faster on the student on {title}", claimed=claimed,
                measure=partial(explanation_time, title=method), **common | {"source": source, "run": explained},
                value=times)
          for method, claimed, source, times in (("SHAP", "about 60 s to about 15 s", _B, 4.0),
                                                 ("Grad-CAM", "less time for the analysis", _B_ABSTRACT, None))),
    ]  # fmt: skip


_ZOO = "python -m kdnb.run 00"
CLAIMS: tuple[Claim, ...] = (
    *_paper_a("covid_qu_ex"), *_paper_a("lc25000"),
    Claim("A-parameters", "A", "OFA-595 has fewer parameters than its teachers", "significantly reduced parameters", _A,
          partial(counted, column="parameters", teachers=_A_TEACHERS, students=("ofa595",)), _ZOO),
    Claim("A-macs", "A", "OFA-595 needs fewer multiply-accumulates than its teachers", "fewer FLOPs", _A,
          partial(counted, column="macs", teachers=_A_TEACHERS, students=("ofa595",)), _ZOO),
    Claim("A-latency", "A", "OFA-595 answers faster than its teachers", "significantly reduced inference time", _A, latency,
          _run("covid_qu_ex", "visformer_small", "ofa595", "06")),
    *_paper_b("brain_tumor", 0.9676, 0.9748, 0.7, 10.0),
    *_paper_b("eye_disease", None, 0.9351, 0.4, 15.0),
    *_paper_b("alzheimer", 0.9938, 0.9946, 0.4, 5.0),
    Claim("B-macs", "B", "The student needs less than half of the teacher's FLOPs", "less than half", _B,
          partial(counted, column="macs", teachers=("densenet121",), students=("kdfmv5", "kdfmv8"), limit=0.5), _ZOO),
    Claim("B-parameters", "B", "The student has fewer parameters than its teacher",
          "a simplified architecture; parameters are not named", _B_ABSTRACT,
          partial(counted, column="parameters", teachers=("densenet121",), students=("kdfmv5", "kdfmv8")), _ZOO),
)  # fmt: skip
