"""The curve over label shares: does a teacher help more where labels are few?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from kdnb import files, plots
from kdnb.report import pages, results
from kdnb.report.results import Pool, Result

ROLES = ("teacher", "distilled", "baseline")
# what may differ along a curve: a share of the labels has its own number of epochs
_ALONG = {"label_share": 1.0, "teacher_epochs": None, "student_epochs": None}


def curves(found: Sequence[Result]) -> list[list[Pool]]:
    """Settings that were run with two shares of the labels or more, each by share.

    Only settings of several runs that keep their answers take part. Of two lengths of training at
    one share, the one with more runs is shown, then the longer.
    """
    by_setting: dict[str, dict[float, Pool]] = {}
    for pool in results.pools(found, every_share=True):
        first = pool.first
        key = [results.setting(first.config) | _ALONG, first.split, first.images, first.training]
        own = by_setting.setdefault(files.digest(key), {})
        before = own.get(first.label_share)
        if pool.answers(several=True) and (before is None or _weight(pool) > _weight(before)):
            own[first.label_share] = pool
    return [[own[share] for share in sorted(own)] for own in by_setting.values() if len(own) > 1]


def _weight(pool: Pool) -> tuple[int, int]:
    return len(pool.members), pool.first.config["student_epochs"]


def table(curve: Sequence[Pool]) -> pd.DataFrame:
    """One row a share: ``share``, balanced accuracy of each role (``teacher``, ``distilled``,
    ``baseline``; shares of 1) and distilled − baseline (``difference``), each with ``… low`` and
    ``… high`` of its 95 % interval, ``seeds``, ``n`` and ``epochs``."""
    rows = []
    for pool in curve:
        config = pool.first.config
        measured = {role: pool.balanced_accuracy(role) for role in ROLES}
        measured["difference"] = pool.balanced_difference("baseline")
        row = {"share": pool.first.label_share}
        for name, e in measured.items():
            row |= {name: e.value, f"{name} low": e.low, f"{name} high": e.high}
        epochs = f"{config['teacher_epochs']} + {config['student_epochs']}"
        rows.append(row | {"seeds": e.seeds, "n": e.n, "epochs": epochs})
    return pd.DataFrame(rows)


def title(curve: Sequence[Pool]) -> str:
    """Data, split, networks, method and size of a curve, in words."""
    first, config = curve[0].first, curve[0].first.config
    return (
        f"{pages.short(first.title)}: {config['teacher']} → {config['student']}, "
        f"{config['method']}, {first.split} split, {config['image_size']} px"
    )


def figure(curve: Sequence[Pool]) -> Figure:
    """The figure of a curve."""
    return plots.label_shares(table(curve), title(curve))


def described(curve: Sequence[Pool]) -> str:
    """The differences of a curve as text."""
    parts = [
        f"{row['share']:.0%} of the labels {pages.points(row)}"
        for row in table(curve)
        .rename(columns={"difference low": "low", "difference high": "high"})
        .to_dict("records")
    ]
    return f"{title(curve)}. Distilled − baseline in points: {'; '.join(parts)}."
