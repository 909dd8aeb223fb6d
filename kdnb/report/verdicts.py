"""When a claim holds: rules that turn an estimate with its interval into a verdict and the reason.
Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from kdnb.report.results import Estimate, combine

HOLDS, PART, NOT, UNTESTED = VERDICTS = (
    "holds",
    "holds in part",
    "does not hold",
    "not testable here",
)
MARGIN = 0.01  # a point of accuracy
SEEDS = 3
LIKENESS = (
    0.05  # a difference of rank correlations of maps, or of CKA of layers, that is worth naming
)
Judged = tuple[str, str]  # the verdict, and why
RULES = (
    "A difference is judged by its 95 % interval, never by its middle. What matters is one point of accuracy, or "
    f"{LIKENESS:g} of a likeness (rank correlation of maps, CKA of layers): a gain below it is none worth naming, a loss below it "
    "is no loss.",
    f"“Holds” and “does not hold” need {SEEDS} training runs. On two, what speaks for a claim makes it hold in part. One decides "
    "nothing: its interval knows the chance of the images, not that of training. The number is shown all the same.",
    "An interval that allows both answers leaves a claim not testable here: too few images or runs to tell.",
    "On a stand-in or a partial copy of the published images no claim about accuracies or maps holds more than in part, and none "
    "is refuted.",
    "A teacher that is no better than the lone student has nothing to hand on: what it fails to teach is no verdict on teaching.",
    "Maps that stay when the weights are gone (04's sanity check) decide nothing about what a network looks at.",
    "A printed accuracy can be reached in any setting; only the paper's own (224 px, pretrained weights, its length) refutes it. "
    "That a student is as good as its teacher holds in full only there: a teacher of few epochs may not be at its best.",
    "Counts of layers, parameters and operations are exact; that the published loss has no gradient for the student is a proof. "
    "Neither needs runs. Clocks do not mind what an image shows, nor how weights came: times of explanations are judged over runs "
    f"and their range (fewer than {SEEDS} make them hold in part), times of one image over quartiles or rounds; neither range is a "
    "95 % interval.",
)


def _worth(margin: float) -> str:
    return "one point" if margin == MARGIN else f"{margin:g}"


def gain(e: Estimate, margin: float = MARGIN) -> Judged:
    """Is it better? Above 0 with its whole interval: yes; below the margin with its whole interval:
    no."""
    if e.low > 0:
        return HOLDS, "the whole interval lies above 0"
    if e.high < margin:
        return NOT, f"the interval leaves no room for a gain of {_worth(margin)}"
    return (
        UNTESTED,
        f"the interval holds both 0 and a gain of {_worth(margin)}: too few images or runs to tell",
    )


def no_loss(e: Estimate, margin: float = MARGIN) -> Judged:
    """Is it as good? Above minus the margin with its whole interval: yes; below it with the whole
    interval: no."""
    if e.low >= -margin:
        return HOLDS, f"a loss of more than {_worth(margin)} lies outside the interval"
    if e.high < -margin:
        return NOT, f"the whole interval is a loss of more than {_worth(margin)}"
    return (
        UNTESTED,
        f"the interval holds both no loss and one of more than {_worth(margin)}: too few images or runs to tell",
    )


def about(e: Estimate, claimed: float, tolerance: float = 0.02) -> Judged:
    """Is it about the claimed value? The whole interval within the tolerance: yes; the whole
    interval outside: no."""
    low, high = claimed - tolerance, claimed + tolerance
    band = f"{100 * tolerance:g} points of {100 * claimed:+.1f}"
    if low <= e.low and e.high <= high:
        return HOLDS, f"the interval lies within {band}"
    if e.high < low or e.low > high:
        return NOT, f"the interval lies outside {band}"
    return UNTESTED, f"the interval reaches into {band} and beyond: too few images or runs to tell"


def reaches(e: Estimate, claimed: float, papers_setting: bool) -> Judged:
    """Is a printed accuracy reached, less the margin? Only the paper's own setting can refute it."""
    verdict, why = no_loss(Estimate(e.value - claimed, e.low - claimed, e.high - claimed))
    if verdict == NOT and not papers_setting:
        return (
            UNTESTED,
            "not reached, but this is not the paper's setting (size, length, pretrained weights)",
        )
    return verdict, why + " against the printed value"


def best_cell(
    claimed: tuple[float, float], cells: dict[tuple[float, float], Sequence[float]], n: int
) -> tuple[Estimate, Judged]:
    """Is the claimed (α, T) the best of the cells that were run? ``cells`` (α, T) → accuracies of
    the same seeds, ``n`` images.

    A run's interval is that of two independent shares, which is wider than a paired one (the files
    hold no predictions), and wider again (Bonferroni) because the rival is the best of several;
    over seeds as everywhere.
    """
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    others = {key: value for key, value in means.items() if key != claimed}
    best = max(others, key=others.get)
    z = stats.norm.ppf(1 - 0.025 / len(others))
    runs = [
        (ours - rival, z * math.sqrt((ours * (1 - ours) + rival * (1 - rival)) / n))
        for ours, rival in zip(cells[claimed], cells[best], strict=True)
    ]
    e = combine([Estimate(gap, gap - half, gap + half, n, 1) for gap, half in runs])
    rank = 1 + sum(other > means[claimed] for other in others.values())
    told = f"number {rank} of {len(cells)} cells run; the best other one is α {best[0]:g}, T {best[1]:g}"
    if e.low > 0:
        return e, (HOLDS, told)
    if e.high < 0:
        return e, (NOT, told)
    return e, (UNTESTED, f"{told}, not told apart from it: too few images or runs to tell")


def fewer(ratio: float, limit: float) -> Judged:
    """Is a counted ratio (student / teacher) below a limit? Counts are exact and need no seeds."""
    return (
        HOLDS if ratio < limit else NOT
    ), f"counted, not estimated: {ratio:.3f} of the teacher's"


def faster(e: Estimate, claimed: float = 1.0) -> Judged:
    """Is the student that many times as fast (within a fifth)? ``e`` the ratio teacher / student,
    its range as interval."""
    if e.low > 1 and e.value >= 0.8 * claimed:
        return HOLDS, "faster over the whole range" + (
            f", by about the {claimed:g} times that are claimed" if claimed > 1 else ""
        )
    if e.low > 1:
        return (
            PART,
            f"faster over the whole range, but by less than the {claimed:g} times that are claimed",
        )
    if e.high <= 1:
        return NOT, "nowhere in the range faster"
    return UNTESTED, "faster in a part of the range only"


def settle(judged: Judged, seeds: int, caveat: str = "", clock: bool = False) -> Judged:
    """The verdict after the rules on the number of runs (trained, or timed by a clock) and on
    images that are not the published ones."""
    verdict, why = judged
    if seeds < SEEDS and verdict in (HOLDS, NOT):
        runs = (
            f"{seeds} run{'s' * (seeds > 1)} {'timed' if clock else 'trained'}, {SEEDS} are needed"
        )
        if verdict == HOLDS and (clock or seeds > 1):
            verdict, why = PART, f"{why}; {runs}"
        else:
            verdict, why = (
                UNTESTED,
                f"speaks {'for' if verdict == HOLDS else 'against'} it: {why}; {runs}",
            )
    if caveat:
        images = caveat.split(":")[0]
        if verdict == NOT:
            return UNTESTED, f"speaks against it: {why}; {images}, which refutes nothing"
        return (PART if verdict == HOLDS else verdict), f"{why}; {images}"
    return verdict, why


def taught(judged: Judged, teacher: float, alone: float) -> Judged:
    """What a teacher failed to teach is no verdict where its accuracy is not above that of the
    student alone."""
    verdict, why = judged
    if verdict == NOT and teacher <= alone:
        return (
            UNTESTED,
            f"{why}; but the teacher ({teacher:.3f}) is no better than the lone student ({alone:.3f})",
        )
    return verdict, why + (
        "; the teacher is no better than the lone student" if teacher <= alone else ""
    )


def undertrained(judged: Judged, papers_setting: bool) -> Judged:
    """A student as good as its teacher says less where the teacher was trained for less than the
    paper's setting."""
    verdict, why = judged
    if verdict == HOLDS and not papers_setting:
        return (
            PART,
            f"{why}; but the teacher, too, had less than the paper's setting (size, length, pretrained weights)",
        )
    return judged
