"""When a claim holds: an ordered list of rules, from an estimate with its interval to a verdict and
its reason. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdnb.report.claims import Claim
from kdnb.report.measures import KINDS, Evidence
from kdnb.report.results import Estimate

# undecided: measured, and the interval allows both answers; not testable here: weights, images or
# the paper's number are missing
HOLDS, PART, NOT, UNDECIDED, UNTESTED = VERDICTS = (
    "holds",
    "holds in part",
    "does not hold",
    "undecided",
    "not testable here",
)
MARGIN = 0.01  # one point of accuracy
SIMILARITY = 0.05  # of rank correlations of maps, or of CKA of layers
SEEDS = 3
Judged = tuple[str, str]  # the verdict, and the reason


def gain(e: Estimate, margin: float = MARGIN) -> Judged:
    """Is it better? Yes if the whole interval lies above 0, no if it lies below the margin."""
    if e.low > 0:
        return HOLDS, "the whole interval lies above 0"
    if e.high < margin:
        return NOT, f"the interval excludes a gain of {_words(margin)}"
    why = f"the interval includes both 0 and a gain of {_words(margin)}"
    return UNDECIDED, why + _would_decide(e, max(e.value, margin - e.value))


def no_loss(e: Estimate, margin: float = MARGIN) -> Judged:
    """Is it as good? Yes if the whole interval lies above minus the margin, no if below."""
    if e.low >= -margin:
        return HOLDS, f"the interval excludes a loss of more than {_words(margin)}"
    if e.high < -margin:
        return NOT, f"the whole interval is a loss of more than {_words(margin)}"
    why = f"the interval includes losses below and above {_words(margin)}"
    return UNDECIDED, why + _would_decide(e, abs(e.value + margin))


def about(e: Estimate, claimed: float, tolerance: float = 0.02) -> Judged:
    """Is it about the claimed value? Yes if the whole interval lies within the tolerance, no if
    it lies outside."""
    low, high = claimed - tolerance, claimed + tolerance
    band = f"{100 * tolerance:g} points of the claimed {100 * claimed:+.1f}"
    if low <= e.low and e.high <= high:
        return HOLDS, f"the interval lies within {band}"
    if e.high < low or e.low > high:
        return NOT, f"the interval lies outside {band}"
    why = f"the interval lies only partly within {band}"
    return UNDECIDED, why + _would_decide(e, abs(abs(e.value - claimed) - tolerance))


def reaches(e: Estimate, claimed: float) -> Judged:
    """Is a printed accuracy reached, less the margin?"""
    verdict, why = no_loss(Estimate(e.value - claimed, e.low - claimed, e.high - claimed))
    return verdict, f"{why}, relative to the printed value"


def best(e: Estimate) -> Judged:
    """Is it better than the best other cell? Yes if the interval lies above 0, no if below."""
    if e.low <= 0 <= e.high:
        return UNDECIDED, "the interval includes 0" + _would_decide(e, abs(e.value))
    return (HOLDS, "better than every other cell") if e.low > 0 else (NOT, "another cell is better")


def fewer(e: Estimate, limit: float) -> Judged:
    """Is a counted ratio (student / teacher) below a limit? Counts are exact."""
    return (HOLDS if e.value < limit else NOT), f"an exact count: {e.value:.3f} of the teacher's"


def faster(e: Estimate, claimed: float = 1.0) -> Judged:
    """Is the student as many times as fast as claimed, within a fifth? The ratio is teacher /
    student, its range stands in place of an interval."""
    low, high = (e.value, e.value) if e.low is None else (e.low, e.high)
    if low <= 1:
        part = "not faster in any" if high <= 1 else "faster in only a part"
        return (NOT if high <= 1 else UNDECIDED), f"{part} of the range"
    if claimed <= 1:
        return HOLDS, "faster over the whole range"
    if e.value >= 0.8 * claimed:
        return HOLDS, f"faster over the whole range, and by about the claimed factor of {claimed:g}"
    return PART, f"faster over the whole range, but by less than the claimed factor of {claimed:g}"


def _would_decide(e: Estimate, distance: float) -> str:
    """How many times as many images and runs would decide, if the mean stayed: an interval's
    half-width falls with the root of their number, and must fall below ``distance``."""
    half = (e.high - e.low) / 2
    if distance < half / 30:  # 900 times: no plan for a study
        return ": the mean lies on the border, and no number of images and runs decides soon"
    times = float(f"{(half / distance) ** 2:.2g}")
    return f": about {times:,g} times as many images and runs would decide"


def _words(margin: float) -> str:
    return "one point" if margin == MARGIN else f"{margin:g}"


NO_GRADIENT = (
    "its soft term does not contain the student and has no gradient for it (shown in 03_distill): "
    "the measured difference is that of two trainings with labels alone"
)
TESTS: dict[str, Callable[[Claim, Estimate], Judged]] = {
    "gain": lambda claim, e: gain(e, SIMILARITY if claim.kind in ("maps", "layers") else MARGIN),
    "no loss": lambda claim, e: no_loss(e),
    "about": lambda claim, e: about(e, claim.value),
    "reaches": lambda claim, e: reaches(e, claim.value),
    "unknown": lambda claim, e: (UNTESTED, "the paper's number is not known here"),
    "best": lambda claim, e: best(e),
    "no gradient": lambda claim, e: (NOT, NO_GRADIENT),
    "fewer": lambda claim, e: fewer(e, claim.value or 1.0),
    "faster": lambda claim, e: faster(e, claim.value or 1.0),
}


def _interval(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    verdict, why = TESTS[claim.rule](claim, found.estimate)
    return verdict, f"{why}; {found.note}" if found.note else why


def _runs(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    (verdict, why), runs = judged, found.estimate.seeds
    if runs >= SEEDS or found.untrained or verdict not in (HOLDS, NOT):
        return judged
    timed = claim.kind == "explanation time"
    few = f"{runs} run{'s' * (runs > 1)} {'timed' if timed else 'trained'}, {SEEDS} are needed"
    if verdict == HOLDS and (timed or runs > 1):
        return PART, f"{why}; {few}"
    return UNDECIDED, f"evidence {'for' if verdict == HOLDS else 'against'} it: {why}; {few}"


def _images(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    (verdict, why), kind = judged, found.caveat.split(":")[0]
    if not kind:
        return judged
    if verdict == NOT:
        return UNTESTED, f"evidence against it: {why}; a {kind} cannot refute it"
    return (PART if verdict == HOLDS else verdict), f"{why}; on a {kind}"


def _setting(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    verdict, why = judged
    below = "smaller than the paper's setting (image size, length, pretrained weights)"
    if found.papers_setting or verdict not in (HOLDS, NOT):
        return judged
    if verdict == HOLDS:
        weak = claim.kind == "fidelity"
        return (PART, f"{why}; but the teacher's setting, too, is {below}") if weak else judged
    return (UNTESTED if claim.rule == "reaches" else NOT), f"{why}; {below}"


def _teacher(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    (verdict, why), shares = judged, found.accuracies
    if not shares or shares["teacher"] > shares["baseline"]:
        return judged
    why += "; the teacher ({teacher:.3f}) is no better than the baseline ({baseline:.3f})"
    return (UNTESTED if verdict == NOT else verdict), why.format(**shares)


CAPTIONS = (
    "neither captioner ({better:.3f} at most) is better than the report of another image "
    "({chance:.3f})"
)
NO_BETTER = {
    "reports": CAPTIONS,
    "captions": CAPTIONS,
    "areas": "neither loss orders the images better than chance: both intervals of the area "
    "include {chance}",
}


def _chance(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    (verdict, why), levels = judged, found.accuracies
    if not levels or levels["better"] > levels["chance"]:
        return judged
    why += "; " + NO_BETTER[claim.kind].format(**levels)
    return (UNTESTED if verdict == NOT else verdict), why


def _moved(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    runs = f"{found.unmoved} of {found.estimate.seeds} runs"
    stay = f"the maps stay the same when the weights are randomised, in {runs}"
    return (UNTESTED, stay) if found.unmoved else judged


def _timed(claim: Claim, found: Evidence, judged: Judged) -> Judged:
    verdict, why = judged
    if verdict != HOLDS or not found.untimed:
        return judged
    return PART, f"{why}; not timed: {', '.join(found.untimed)}"


@dataclass(frozen=True)
class Rule:
    """A rule in words, the kinds of claim that it applies to, and how it changes a verdict."""

    text: str
    kinds: tuple[str, ...]
    apply: Callable[[Claim, Evidence, Judged], Judged]


PAPERS = ("accuracy", "fidelity", "gain", "optimum", "maps", "layers")  # of papers A and B
NEIGHBOURS = ("features", "labels", "areas", "masks", "reports", "captions")  # of related systems
TRAINED = (*PAPERS, "method", *NEIGHBOURS)
RULES = (  # applied in this order
    Rule(
        "A difference is judged by its 95 % interval, not by its mean. One point of accuracy, or "
        f"{SIMILARITY:g} of a similarity (rank correlation of maps, CKA of layers), matters: a "
        "smaller gain is not a gain, a smaller loss is not a loss. Where the interval allows both "
        "answers, a claim is undecided; where weights, images or the paper's number are missing, "
        "it is not testable here. Counts of layers, parameters and operations are "
        "exact, and the published loss provably has no gradient for the student: neither needs "
        "runs. Speed-ups are judged by their range, which is not a 95 % interval.",
        tuple(KINDS),
        _interval,
    ),
    Rule(
        f"“Holds” and “does not hold” need {SEEDS} training runs. With two, evidence for a claim "
        "makes it hold in part. One run decides nothing, because its interval covers the choice "
        "of test images but not the randomness of training. A machine on features that nothing "
        "here has trained has no such randomness. Times of explanations from fewer than "
        f"{SEEDS} runs make a claim hold in part.",
        (*TRAINED, "explanation time"),
        _runs,
    ),
    Rule(
        "On a stand-in or a partial copy of the published images, a claim about accuracy or maps "
        "holds at most in part, and cannot be refuted.",
        TRAINED,
        _images,
    ),
    Rule(
        "A printed accuracy can be reached in any setting, but only the paper's own (224 px, "
        "pretrained weights, full length) can refute it. That a student is as good as its teacher "
        "holds fully only there, because a teacher trained for less may not be at its best.",
        PAPERS,
        _setting,
    ),
    Rule(
        "A teacher that is no better than the baseline (the same student without a teacher) cannot "
        "refute that distillation helps.",
        ("gain", "method", "masks"),
        _teacher,
    ),
    Rule(
        "Captioners that are no better than the report of another image, and losses that order "
        "images no better than chance, cannot refute that one of them is better than the other.",
        tuple(NO_BETTER),
        _chance,
    ),
    Rule(
        "Maps that stay the same when the weights are randomised (the sanity check of 04_explain) "
        "say nothing about a network.",
        ("maps", "layers"),
        _moved,
    ),
    Rule(
        "A claim about the speed of a network holds in part until every teacher was timed.",
        ("latency",),
        _timed,
    ),
)


def judge(claim: Claim, found: Evidence) -> Judged:
    """The verdict on a claim from one piece of evidence, after all rules of its kind."""
    judged = UNTESTED, ""
    for rule in RULES:
        if claim.kind in rule.kinds:
            judged = rule.apply(claim, found, judged)
    return judged


@dataclass(frozen=True)
class Row:
    """One line of the ledger: a claim, one piece of evidence, the verdict and its reason."""

    claim: Claim
    evidence: Evidence
    verdict: str
    why: str

    @property
    def measured(self) -> bool:
        """Whether any result file speaks to the claim."""
        return not math.isnan(self.evidence.estimate.value)

    @property
    def difference(self) -> bool:
        """Whether the number is a difference of accuracies with an interval."""
        unit, low = KINDS[self.claim.kind].unit, self.evidence.estimate.low
        return unit == "points" and low is not None

    @property
    def number(self) -> str:
        """The estimate with its interval and unit, in words; empty if there is none."""
        if not self.measured:
            return ""
        kind, e = KINDS[self.claim.kind], self.evidence.estimate
        value, low, high = (
            "" if x is None else kind.form.format(kind.scale * x) for x in (e.value, e.low, e.high)
        )
        interval = f" [{low}, {high}]" if e.low is not None and e.low != e.high else ""
        return f"{value}{interval}".replace("-", "−") + (f" {kind.unit}" if kind.unit else "")


def whole(rows: Sequence[Row]) -> str:
    """One verdict for all rows of a claim. If they differ: it holds in part if some rows support it
    and none refutes it, does not hold in the opposite case, and is else undecided."""
    verdicts = {row.verdict for row in rows}
    if len(verdicts) == 1:
        return verdicts.pop()
    supported, refuted = verdicts & {HOLDS, PART}, NOT in verdicts
    return PART if supported and not refuted else NOT if refuted and not supported else UNDECIDED
