"""The front page: five questions about both papers, each answered from result files with a number,
its interval, and what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdnb.distillation.base import METHODS
from kdnb.report import pages, results
from kdnb.report.claims import CLAIMS
from kdnb.report.figures import plural
from kdnb.report.measures import KINDS
from kdnb.report.results import Estimate, Pool, Result
from kdnb.report.verdicts import HOLDS, MARGIN, NOT, SEEDS, Judged, gain, no_loss

METHOD = "score_cam"
# whose share of a place is shown, and how it is called
SHARES = {role: role for role in ("teacher", "distilled", "alone")} | {
    "chance": "share of the image"
}
YES = {HOLDS: "yes", NOT: "no"}
# quantities that a student should have less of, or be faster in: in words, and when it does
BETTER: dict[str, tuple[str, Callable[[float], bool]]] = {
    "parameters": ("parameters", lambda ratio: ratio < 1),
    "macs": ("operations", lambda ratio: ratio < 1),
    "latency": ("time", lambda times: times > 1),
}
PLACES = {"lesion": "infection or lesion", "organ": "organ"}
STUDENTS = {claim.dataset: claim.wanted["student"] for claim in CLAIMS if claim.dataset}


@dataclass(frozen=True)
class Answer:
    """A question with its answer in words, the numbers with their intervals, what they rest on, and
    the result files."""

    question: str
    answer: str
    numbers: tuple[str, ...]
    basis: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Pooled:
    """A difference over several datasets by random effects: the mean with its 95 % interval
    (``estimate``), and ``heterogeneity`` I², the share of the variation that is not chance, in
    [0, 1]."""

    estimate: Estimate
    heterogeneity: float


def pooled(estimates: Sequence[Estimate]) -> Pooled:
    """Independent estimates as one: DerSimonian & Laird 1986, doi:10.1016/0197-2456(86)90046-2,
    with the interval of Hartung & Knapp 2001, doi:10.1002/sim.791, never narrower than that of
    equal effects (Röver et al. 2015, doi:10.1186/s12874-015-0091-1, section 2).

    A standard error is taken from an estimate's 95 % interval. One estimate stays as it is. Ours
    because ``combine_effects`` of statsmodels lets the variance between datasets become negative.
    """
    if len(estimates) == 1:
        return Pooled(estimates[0], 0.0)
    values = np.array([e.value for e in estimates])
    weights = (2 * 1.96 / np.array([e.high - e.low for e in estimates])) ** 2
    free, mean = len(values) - 1, np.average(values, weights=weights)
    spread = float((weights * (values - mean) ** 2).sum())  # Cochran's Q
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    between = max(0.0, (spread - free) / scale)
    weights = 1 / (1 / weights + between)
    mean = float(np.average(values, weights=weights))
    wider = max(1.0, float((weights * (values - mean) ** 2).sum()) / free)
    half = float(stats.t.ppf(0.975, free) * np.sqrt(wider / weights.sum()))
    count = sum(e.n for e in estimates), sum(e.seeds for e in estimates)
    return Pooled(
        Estimate(mean, mean - half, mean + half, *count),
        max(0.0, 1 - free / spread) if spread else 0.0,
    )


def settings(found: Sequence[Result]) -> tuple[list[Pool], list[str]]:
    """The settings that can test distillation, one a dataset, and the titles of datasets that have
    none.

    Of the pools with :data:`~kdnb.report.verdicts.SEEDS` runs or more whose teacher is better than
    the student alone, the one with the largest images, then the most runs, then the split that
    keeps relatives together, then the paper's student. The difference that is asked for plays no
    part in the choice.
    """
    by_set: dict[str, list[Pool]] = {}
    for pool in results.pools(found):
        by_set.setdefault(pool.first.config["dataset"], []).append(pool)
    kept, without = [], []
    for name in sorted(by_set):
        able = [pool for pool in by_set[name] if len(pool.members) >= SEEDS and _knows_more(pool)]
        if able:
            kept.append(max(able, key=_weight))
        else:
            without.append(pages.short(by_set[name][0].first.title))
    return kept, without


def _knows_more(pool: Pool) -> bool:
    return pool.accuracy("teacher").value > pool.accuracy("baseline").value


def _weight(pool: Pool) -> tuple:
    c = pool.first.config
    papers = STUDENTS.get(c["dataset"]) == c["student"]
    return c["image_size"], len(pool.members), pool.first.split == "group", papers, pool.files


def _difference(
    found: Sequence[Result], question: str, against: str, rule: Callable[[Estimate], Judged]
) -> Answer:
    """The distilled student against ``teacher`` or ``baseline``, over all datasets, judged by a
    rule of the ledger."""
    pools, without = settings(found)
    if not pools:
        return Answer(question, "no setting can tell yet", (), "", ())
    each = [pool.difference(against) for pool in pools]
    whole = pooled(each)
    numbers = [
        f"all: {points(whole.estimate)}, I² {whole.heterogeneity:.0%}",
        *(_one(pool, e, against) for pool, e in zip(pools, each, strict=True)),
    ]
    basis = (
        f"distilled − {against} in accuracy; {whole.estimate.n:,} test images, "
        f"{whole.estimate.seeds} runs; teachers that know more than the student alone"
    )
    if without:
        basis += f"; no such teacher yet: {', '.join(without)}"
    verdict, why = rule(whole.estimate)
    files = tuple(file for pool in pools for file in pool.files)
    return Answer(question, f"{YES.get(verdict, verdict)}: {why}", tuple(numbers), basis, files)


def _one(pool: Pool, e: Estimate, against: str) -> str:
    balanced = pool.balanced_difference(against)
    also = f"; in balanced accuracy {points(balanced)}" if balanced else ""
    return f"{_named(pool)}: {points(e)}{also}"


def plan(found: Sequence[Result]) -> tuple[float, int] | None:
    """The median standard deviation of distilled − alone between the runs of a setting (a share of
    1), and the number of runs whose mean is then known to one point (95 %, Student's t); None
    without settings of three runs or more."""
    spreads = [s for pool in results.pools(found) if (s := pool.spread()) is not None]
    if not spreads:
        return None
    middle = float(np.median(spreads))
    runs = next(
        n for n in range(2, 10_000) if stats.t.ppf(0.975, n - 1) * middle / np.sqrt(n) <= MARGIN
    )
    return middle, runs


def _named(pool: Pool) -> str:
    c = pool.first.config
    return (
        f"{pages.short(pool.first.title)}, {pool.first.split}, {c['teacher']} → {c['student']}, "
        f"{c['image_size']} px, {plural(len(pool.members), 'run')}"
    )


def points(e: Estimate) -> str:
    """A difference of shares in points with its interval."""
    return f"{pages.points({'difference': e.value, 'low': e.low, 'high': e.high})} points"


def helps(found: Sequence[Result]) -> Answer:
    """Distilled student against the same student alone."""
    return _difference(found, "Does distillation help?", "baseline", gain)


def as_good(found: Sequence[Result]) -> Answer:
    """Distilled student against its teacher."""
    return _difference(found, "Is the student as good as its teacher?", "teacher", no_loss)


def smaller(found: Sequence[Result]) -> Answer:
    """Size, operations and time of the papers' students, relative to their teachers."""
    numbers, files, larger = [], [], {}
    for claim in CLAIMS:
        if claim.quantity not in BETTER:
            continue
        what, better = BETTER[claim.quantity]
        unit = KINDS[claim.kind].unit + (f" {what}" if claim.kind == "count" else "")
        evidence = list(KINDS[claim.kind].measure(claim, found))
        for student in dict.fromkeys(each.student for each in evidence):
            own = [each for each in evidence if each.student == student]
            values = [each.estimate.value for each in own]
            numbers.append(f"{student}: {_span(values)} {unit}")
            files += [file for each in own for file in each.files]
            larger.setdefault(what, []).extend([] if all(map(better, values)) else [student])
    answers = [
        f"smaller in {what}" + (f" (not {', '.join(students)})" if students else "")
        for what, students in larger.items()
    ]
    return Answer(
        "How much smaller and faster is it?",
        ", ".join(answers) or "not measured yet",
        tuple(numbers),
        "224 px; exact counts; times on the runtime that is least favourable to the student",
        tuple(dict.fromkeys(files)),
    )


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.2g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def looks(found: Sequence[Result]) -> Answer:
    """Where the student's Score-CAM lies: like its teacher's, and in the lesion and organ."""
    likeness, places, files = {}, [], []
    for pool in results.pools(found, kind="explain"):
        method = METHODS.get(pool.first.config["method"])
        if method is not None and not method.needs_teacher:
            continue  # its student learnt nothing from this teacher
        stored = [member.stored["results"] for member in pool.members]
        entries = [each.get("likeness_distilled_minus_alone", {}).get(METHOD) for each in stored]
        if all(entry and entry["spearman"]["n"] for entry in entries):
            likeness[_named(pool)] = _combined([entry["spearman"] for entry in entries])
            files += pool.files
        for place in stored[0].get("places", {}).get(METHOD, {}):
            held = [each["places"][METHOD][place] for each in stored]
            places.append(f"{_named(pool)}: map in the {PLACES[place]}: {_shares(held)}")
    text = "likeness to the teacher's map minus that of the student alone"
    nearer = sum(e.low > 0 for e in likeness.values())
    answer = f"nearer to its teacher's maps than alone in {nearer} of {len(likeness)} settings"
    return Answer(
        "Does it look at the same places, and at the right ones?",
        answer if likeness else "not measured yet",
        (*places, *(f"{name}: {text} {_number(e, '+.2f')}" for name, e in likeness.items())),
        "Score-CAM, notebook 04; Spearman's ρ of maps, and the share of a map within a mask",
        tuple(dict.fromkeys(files)),
    )


def _shares(held: Sequence[dict]) -> str:
    """The shares of the maps of all networks in a place, an entry a run."""
    return ", ".join(
        f"{name} {_number(_combined([each[role] for each in held]), '.0%')}"
        for role, name in SHARES.items()
    )


def _combined(entries: Sequence[dict]) -> Estimate:
    return results.combine([Estimate(e["mean"], e["low"], e["high"], e["n"], 1) for e in entries])


def _number(e: Estimate, form: str) -> str:
    value, low, high = (format(each, form) for each in (e.value, e.low, e.high))
    return f"{value} [{low}, {high}]".replace("-", "−")


def leakage(found: Sequence[Result]) -> Answer:
    """What the papers' splits add to a measured accuracy."""
    rows = results.leaks(found).to_dict("records")
    numbers = tuple(
        f"{pages.short(row['dataset'])}: {pages.points(row)} points; "
        f"{row['copies']:,} of {row['n']:,} test images have a relative in training"
        for row in rows
    )
    above = [pages.short(row["dataset"]) for row in rows if row["low"] > 0]
    answer = f"above zero on {', '.join(above)}" if above else "no interval lies above zero"
    return Answer(
        "How much of the published accuracy is leakage?",
        answer if rows else "not measured yet",
        numbers,
        "student alone, balanced accuracy: the papers' split minus the one that keeps relatives "
        "together",
        tuple(result.file for result in results.real(found, "integrity")),
    )


QUESTIONS = (helps, as_good, smaller, looks, leakage)


def answers(found: Sequence[Result]) -> list[Answer]:
    """The five questions in order."""
    return [ask(found) for ask in QUESTIONS]


def markdown(rows: Sequence[Answer]) -> list[str]:
    """The answers as lines of a Markdown table: each with its first number, and how many there are
    on the claims page."""
    lines = ["| question | answer | first number | rests on |", "| --- | --- | --- | --- |"]
    for row in rows:
        rest = len(row.numbers) - 1
        more = f" (and {rest} more)" if rest > 0 else ""
        first = f"{row.numbers[0]}{more}" if row.numbers else "–"
        lines.append(
            f"| {row.question} | {row.answer} | {first} | {plural(len(row.files), 'file')} |"
        )
    return lines
