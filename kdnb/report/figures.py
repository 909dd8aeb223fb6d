"""Figures of the ledger: differences with their intervals by dataset, and paper B's grids."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from kdnb import plots
from kdnb.report import pages, results
from kdnb.report.claims import CLAIMS
from kdnb.report.results import Result
from kdnb.report.verdicts import Row


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 seed``, ``1,200 seeds``."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def _networks(teacher: str, student: str) -> str:
    """Teacher and student in a figure's label, several teachers as their number."""
    teachers = teacher.split("+")
    return f"{teacher if len(teachers) == 1 else f'{len(teachers)} teachers'} → {student}"


def differences(rows: Sequence[Row]) -> Figure | None:
    """Every measured difference of accuracy with its interval, by dataset; None without any."""
    chosen = [row for row in rows if row.difference]
    if not chosen:
        return None
    records = []
    for row in sorted(chosen, key=lambda row: (row.evidence.dataset, row.claim.id)):
        found, e = row.evidence, row.evidence.estimate
        origin = (
            f"{found.split}, {_networks(found.teacher, found.student)}, n {e.n:,}, "
            f"{plural(e.seeds, 'seed')}"
        )
        records.append(
            {
                "group": pages.short(found.dataset),
                "label": f"{row.claim.subject} − {row.claim.against}  ({origin})",
                "difference": e.value,
                "low": e.low,
                "high": e.high,
            }
        )
    return plots.forest(pd.DataFrame(records), "Differences that the papers claim, as measured")


def effects(found: Sequence[Result]) -> Figure | None:
    """Distilled − baseline in each setting, by dataset; None without any distillation."""
    frame = results.headline(results.distillations(found))
    if frame.empty:
        return None
    labels = [
        f"{row['split']}, {_networks(row['teacher'], row['student'])}, {row['method']}, "
        f"{row['px']} px, {plural(row['seeds'], 'seed')}"
        for row in frame.to_dict("records")
    ]
    return plots.forest(
        frame.assign(label=labels, group=frame["dataset"].map(pages.short)),
        "Distilled student minus the same student without a teacher",
    )


def leaks(found: Sequence[Result]) -> Figure | None:
    """The papers' split minus the group split for each dataset; None without notebook 08."""
    frame = results.leaks(found)
    if frame.empty:
        return None
    labels = [
        f"{row['student']}, {row['split']} − group, {plural(row['seeds'], 'seed')}; "
        f"{row['copies'] / row['n']:.0%} of test images have a relative"
        for row in frame.to_dict("records")
    ]
    return plots.forest(
        frame.assign(label=labels, group=frame["dataset"].map(pages.short)),
        "Effect of the papers' split on measured accuracy",
        "balanced accuracy",
    )


def heat_maps(found: Sequence[Result]) -> dict[str, Figure]:
    """Paper B's α × T grids: title → figure for each dataset and split, with the paper's best cell
    framed."""
    drawn = {}
    splits = sorted({result.split for result in results.real(found, "distill")})
    grids = [claim for claim in CLAIMS if claim.kind == "optimum"]
    for claim, split in ((claim, split) for claim in grids for split in splits):
        cells = results.grid(found, claim.dataset, split)
        if len(cells) > 1:
            estimates = {cell: pool.accuracy("distilled") for cell, pool in cells.items()}
            values = pd.Series({cell: e.value for cell, e in estimates.items()}).unstack()
            pool = next(iter(cells.values()))
            title = (
                f"{pages.short(pool.first.title)}, split {split}: distilled student, "
                f"n {pool.accuracy('distilled').n:,}, seeds {' '.join(map(str, pool.seeds))}"
            )
            marked = claim.wanted["alpha"], claim.wanted["temperature"]
            drawn[title] = plots.accuracy_grid(values, marked, title)
    return drawn
