"""Numbers in documents: what stands between markers in ``README.md`` is taken from result files,
the rest must hold none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdnb import files
from kdnb.report import pages, results
from kdnb.report.results import Result

_BLOCK = re.compile(r"(<!-- results -->\n).*?(\n<!-- /results -->)", re.DOTALL)
CURRENT = results.BATCH_STATISTICS[max(results.BATCH_STATISTICS)]
_INLINE = re.compile(r"(<!-- (outputs/\S+\.json) (\S+) (\S+) -->).*?(<!-- / -->)")


def refresh(text: str, root: Path, found: Sequence[Result], told: Sequence[str]) -> str:
    """A document with its numbers taken from result files again.

    ``<!-- results -->`` … ``<!-- /results -->`` becomes the sentences ``told`` and the table of
    distillations. Between ``<!-- outputs/x.json results.a.b .1f -->`` and ``<!-- / -->`` stands
    that value of that file in that format.
    """

    def value(match):
        node = files.read_json(root / match[2])
        for key in match[3].split("."):
            node = node[int(key)] if isinstance(node, list) else node[key]
        return f"{match[1]}{format(node, match[4])}{match[5]}"

    frame = results.distillations(found)
    shown = _headline(frame)
    lines = [f"- {sentence}" for sentence in told]
    if len(frame) > len(shown):
        lines.append(
            f"- {len(frame) - len(shown)} more cells (other α and T, fewer seeds) stand in `09_report` and "
            "`outputs/claims.html` as heat maps."
        )
    if older := sum(row != CURRENT for row in frame.get("batch statistics", ())):
        lines.append(
            f"- {older} of all {len(frame)} settings (†) are of an earlier training loop, whose batch statistics were "
            "those of augmented views; networks with batch norm (the teachers, OFA-595) may do better now."
        )
    lines += ["", *_markdown(shown)]
    return _INLINE.sub(value, _BLOCK.sub(lambda m: m[1] + "\n".join(lines) + m[2], text))


def _headline(frame: pd.DataFrame) -> pd.DataFrame:
    """Of the cells that differ in α and T alone, those on the most seeds."""
    if frame.empty:
        return frame
    alike = frame.groupby(["dataset", "split", "teacher", "student", "method", "px"])["seeds"]
    return frame[frame["seeds"] == alike.transform("max")]


def _markdown(frame: pd.DataFrame) -> list[str]:
    if frame.empty:
        return ["No distillation of real images under `outputs/` yet."]
    head = [
        "dataset",
        "split",
        "teacher → student",
        "method",
        "px",
        "seeds",
        "n",
        "teacher",
        "distilled",
        "alone",
        "distilled − alone, points",
    ]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in frame.to_dict("records"):
        cells = [
            pages.short(row["dataset"]),
            row["split"],
            f"{row['teacher']} → {row['student']}",
            f"{row['method']} α {row['α']:g} T {row['T']:g}",
            f"{row['px']}{'' if row['batch statistics'] == CURRENT else ' †'}",
            row["seeds"],
            row["n"],
            *(row[f"{role} accuracy"] for role in ("teacher", "distilled", "alone")),
            pages.points(row),
        ]
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return rows


# what looks measured: shares, percentages, points, times, factors, accuracies
MEASURED = re.compile(
    r"(?<![\w./])0\.\d+|\d\s?%|\d (?:points?|ms|images/s)\b|\d\s?(?:×|times\b)|accurac\w+ (?:of )?\d"
    r"|(?<![\w.])9\d\.\d"
)


def stray(text: str) -> list[str]:
    """Lines of a document with a number that looks measured and has no result file behind it.

    Code, formulas, and what :func:`refresh` keeps up to date are left out; a 95 % interval is a
    name, not a number.
    """
    for pattern in (
        _BLOCK,
        _INLINE,
        re.compile(r"```.*?```|\$\$.*?\$\$", re.DOTALL),
        re.compile(r"`[^`\n]*`|95 %"),
    ):
        text = pattern.sub("", text)
    return [line for line in text.splitlines() if MEASURED.search(line)]
