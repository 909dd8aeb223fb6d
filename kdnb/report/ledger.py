"""The ledger of claims in print: a table, one page to attach to a submission, and the numbers of
the README.

``python -m kdnb.report.ledger`` writes them all from the result files: ``outputs/claims.csv``,
``outputs/claims.html``, ``outputs/claims.pdf`` where a Chromium is installed, and what stands
between markers in ``README.md``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from kdnb import files, plots
from kdnb.report import claims, pages, readme, results
from kdnb.report.measures import Row
from kdnb.report.results import Result
from kdnb.report.verdicts import HOLDS, NOT, PART, RULES, SEEDS, UNTESTED, VERDICTS

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))[
    :15
]  # the rest explains, and stands on the page


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with the columns of ``outputs/claims.csv``; differences of accuracy are shares of 1."""
    return pd.DataFrame([dataclasses.asdict(row) for row in rows], columns=COLUMNS).astype(
        {"n": "Int64"}
    )


def csv(rows: Sequence[Row]) -> str:
    """The text of ``outputs/claims.csv``."""
    return table(rows).to_csv(index=False, float_format="%.6g")


def measured(row: Row) -> str:
    """What was measured, as a reader reads it, with its interval; empty if nothing was."""
    if row.measured is None:
        return ""
    scale, form = (
        (100, "{:+.1f}")
        if row.unit == "points"
        else (1, "{:+.2f}" if row.unit.startswith("in ") else "{:.3f}")
    )
    text = form.format(scale * row.measured)
    if row.low is not None and row.low != row.high:
        text += f" [{form.format(scale * row.low)}, {form.format(scale * row.high)}]"
    return (text if row.unit == "accuracy" else f"{text} {row.unit}").replace("-", "−")


def summary(rows: Sequence[Row], found: Sequence[Result] = ()) -> list[str]:
    """The ledger in sentences, every number counted from its rows or taken from the result files
    ``found``."""
    tested = [row for row in rows if row.measured is not None]
    by_claim: dict[str, list[Row]] = {}
    for row in tested:
        by_claim.setdefault(row.id, []).append(row)
    said = {
        verdict: [rows[0] for rows in by_claim.values() if whole(rows) == verdict]
        for verdict in VERDICTS
    }
    asked, implied = {row.id for row in rows}, {row.id for row in rows if "implied" in row.claimed}
    told = [
        f"{len(asked)} claims of the two papers, {len(implied)} of them implied by what a paper says and not stated, make "
        f"{len(rows)} rows here; for {len(by_claim)} of the claims something was measured. Each over all its rows: "
        + "; ".join(f"{verdict}: {len(said[verdict])}" for verdict in VERDICTS)
        + "."
    ]
    told += [
        f"What {verdict}: {'; '.join(_briefly(said[verdict]))}."
        for verdict in (HOLDS, NOT)
        if said[verdict]
    ]
    if gains := [row for row in tested if row.id.endswith("-gain")]:
        above, below = sum(row.low > 0 for row in gains), sum(row.high < 0 for row in gains)
        told.append(
            "Whether distillation makes a student better than the same student without a teacher has "
            f"{len(gains)} row{'s' * (len(gains) > 1)}: the 95 % interval lies above zero in {above}, below zero in "
            f"{below}, and holds zero in {len(gains) - above - below}; {sum(_runs(row) >= SEEDS for row in gains)} of them "
            f"have {SEEDS} training runs or more."
        )
    if tested and not any(row.profile == "paper" for row in tested):
        told.append(
            "No row is of a paper's own setting (224 px, ImageNet weights, its length): what speaks for or against a claim "
            "does so in a smaller one, named in the row."
        )
    stand_ins = sorted(
        {
            pages.short(row.dataset)
            for row in tested
            if "stand-in" in row.dataset or "partial" in row.dataset
        }
    )
    if stand_ins:
        told.append(
            f"Not the published images: {', '.join(stand_ins)}. No accuracy and no map of theirs holds more than in part, "
            "and none refutes."
        )
    if worth := [_leak(leak) for leak in results.leaks(found).to_dict("records")]:
        told.append(
            "What the papers' split is worth to the student alone, in points of balanced accuracy over the split that "
            f"keeps copies together: {'; '.join(worth)}."
        )
    return told


def _leak(leak: dict) -> str:
    return (
        f"{pages.short(leak['dataset'])} {pages.points(leak)}, where {leak['copies']:,} of {leak['n']:,} test images have a "
        "relative in training"
    )


def _briefly(rows: Sequence[Row]) -> list[str]:
    """Claims in words, one that is made of several datasets once."""
    by_claim: dict[str, list[str]] = {}
    for row in rows:
        claim, _, dataset = row.claim.partition(" on ")
        by_claim.setdefault(claim, []).append(dataset)
    return [
        f"{claim} on {', '.join(names)}" if any(names) else claim
        for claim, names in by_claim.items()
    ]


def whole(rows: Sequence[Row]) -> str:
    """One verdict for all rows of a claim: that of every row, else the doubt: it holds in part
    where some rows speak for it and none against, and does not hold where some speak against it and
    none for it."""
    said = {row.verdict for row in rows}
    if len(said) == 1:
        return said.pop()
    speaks_for, against = said & {HOLDS, PART}, NOT in said
    return PART if speaks_for and not against else NOT if against and not speaks_for else UNTESTED


def differences(rows: Sequence[Row]) -> Figure | None:
    """Every measured difference of accuracy with its interval, by dataset; None where there is
    none."""
    chosen = sorted(
        (row for row in rows if row.unit == "points" and row.low is not None),
        key=lambda row: (row.dataset, row.id),
    )
    if not chosen:
        return None
    what = {
        "teacher": "student − teacher",
        "gain": "distilled − alone",
        "released": "published loss − alone",
        "optimum": "claimed α, T − best other cell",
    }
    frame = pd.DataFrame(
        [
            {
                "group": pages.short(row.dataset),
                "difference": row.measured,
                "low": row.low,
                "high": row.high,
                "label": f"{what[row.id.split('-')[-1]]}  ({row.split}, {row.setting.split(',')[0]}, {_count(row)})",
            }
            for row in chosen
        ]
    )
    return plots.forest(frame, "Differences that the papers claim, as measured here")


def leaks(found: Sequence[Result]) -> Figure | None:
    """The papers' split minus the group split for each dataset, with its interval; None where
    notebook 08 was not run."""
    frame = results.leaks(found)
    if frame.empty:
        return None
    labels = [
        f"{row['student']}, {row['split']} − group, {row['seeds']} seeds; {row['copies'] / row['n']:.0%} have a relative"
        for row in frame.to_dict("records")
    ]
    return plots.forest(
        frame.assign(label=labels, group=frame["dataset"].map(pages.short)),
        "What the papers' split is worth",
        "balanced accuracy",
    )


def _runs(row: Row) -> int:
    return len(row.seeds.split())


def _count(row: Row) -> str:
    seeds = _runs(row)
    return f"n {row.n:,}, {seeds} seed" + "s" * (seeds > 1)


def heat_maps(found: Sequence[Result]) -> dict[str, Figure]:
    """Paper B's α × T grids where they were run: a title → figure for each dataset and split; the
    paper's best cell is framed."""
    drawn = {}
    for claim in claims.CLAIMS:
        for split in (
            sorted({r.split for r in results.real(found, "distill")})
            if claim.id.endswith("-optimum")
            else ()
        ):
            runs = results.grid(found, claim.dataset, split)
            if len(runs) > 1:
                values = pd.Series(
                    {key: pool.accuracy("distilled").value for key, pool in runs.items()}
                ).unstack()
                first = next(iter(runs.values()))
                wanted = dict(claim.wanted)
                title = (
                    f"{pages.short(first.first.title)}, split {split}: distilled student, "
                    f"n {first.accuracy('distilled').n:,}, seeds {first.seeds}"
                )
                best = wanted["alpha"], wanted["temperature"]
                drawn[title] = plots.accuracy_grid(values, best, title)
    return drawn


def described(rows: Sequence[Row]) -> str:
    """The figure of differences in words, for those who do not see it."""
    return "Differences in test accuracy with 95 % intervals. " + "; ".join(
        f"{pages.short(row.dataset)}, {row.split}, {row.claim}: {measured(row)}"
        for row in rows
        if row.unit == "points" and row.low is not None
    )


STYLE = """
.ledger { border-collapse: collapse; width: 100%; font: .82rem/1.4 system-ui, sans-serif; }
.ledger th, .ledger td { padding: .45rem .6rem; border-bottom: 1px solid #bbb8; text-align: left; vertical-align: top; }
.ledger td { overflow-wrap: anywhere; }
.ledger small { font-size: .72rem; line-height: 1.3; color: inherit; opacity: .85; }
.ledger { table-layout: fixed; }
.ledger th:nth-child(1), .ledger th:nth-child(2), .ledger th:nth-child(5) { width: 18%; }
.ledger th:nth-child(3) { width: 13%; } .ledger th:nth-child(4) { width: 20%; } .ledger th:nth-child(6) { width: 13%; }
.verdict { display: inline-block; padding: .1rem .5rem; border-radius: 1rem; border: 1.5px solid; font-weight: 600;
           color: #1a1a1a; }
.v-holds { background: #bfe5d6; border-color: #00785a; } .v-holds::before { content: "● "; }
.v-holds-in-part { background: #fbe7b2; border-color: #9a6700; } .v-holds-in-part::before { content: "◐ "; }
.v-does-not-hold { background: #f6cdb9; border-color: #b03a00; } .v-does-not-hold::before { content: "○ "; }
.v-not-testable-here { background: #e6e6e6; border-color: #666; } .v-not-testable-here::before { content: "– "; }
@media (max-width: 46rem) {
  .ledger thead { display: none; }
  .ledger, .ledger tbody, .ledger tr, .ledger td { display: block; width: auto; }
  .ledger tr { border: 1px solid #bbb8; border-radius: .4rem; margin: 0 0 .8rem; padding: .3rem; }
  .ledger td { border: 0; padding: .2rem .4rem; }
  .ledger td::before { content: attr(data-label) ": "; font-weight: 600; }
  .ledger td:empty { display: none; }
}
@media print {
  .ledger { font-size: 7.5pt; } .ledger small { font-size: 6.5pt; }
  .ledger tr { break-inside: avoid; } .verdict { print-color-adjust: exact; }
}
"""

_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TABLE = _TEMPLATES.from_string("""
<table class="ledger"><thead><tr>
<th>claim</th><th>the paper says</th><th>measured here</th><th>on</th><th>verdict</th><th>files</th></tr></thead><tbody>
{% for row, number, slug in rows %}
<tr id="{{ row.id }}-{{ loop.index }}">
<td data-label="claim"><strong>{{ row.paper }}</strong> {{ row.claim }}</td>
<td data-label="the paper says">{{ row.claimed }}<br><small>{{ row.claimed_source }}</small></td>
<td data-label="measured here">{{ number }}</td>
<td data-label="on">{{ row.dataset }}{% if row.split %}, split {{ row.split }}{% endif %}
{%- if row.n %}, n {{ row.n }}{% endif %}{% if row.seeds %}, seeds {{ row.seeds }}{% endif %}
{%- if row.setting %}<br><small>{{ row.setting }}{% if row.profile %}; profile {{ row.profile }}{% endif %}</small>{% endif %}</td>
<td data-label="verdict"><span class="verdict v-{{ slug }}">{{ row.verdict }}</span><br><small>{{ row.why }}</small></td>
<td data-label="files">{% if row.result_file %}<small>
{%- for file in row.result_file.split() %}{% if link %}<a href="{{ link }}{{ file }}">{% endif %}{{ file.split("/")[-1] }}
{%- if link %}</a>{% endif %} {% endfor %}</small>{% endif %}</td></tr>
{% endfor %}
</tbody></table>""")
_PAGE = _TEMPLATES.from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>kdnb: ledger of claims</title><style>
body { max-width: 76rem; margin: 1.5rem auto; padding: 0 1rem; font: 16px/1.5 Georgia, serif; color: #1a1a1a; }
h1, h2 { font-family: system-ui, sans-serif; } img { max-width: 100%; } figure { margin: 1rem 0; } li { margin: .3rem 0; }
@page { size: A4 landscape; margin: 12mm; } @media print { body { max-width: none; margin: 0; font-size: 10pt; } }
{{ style }}</style></head><body>
<h1>What holds of two papers on explainable distillation, on public data</h1>
<p><strong>A</strong>: Mir &amp; Rizvi 2025, arXiv 2508.15251. <strong>B</strong>: Jiang, Zhao, Wu &amp; Chaddad, AAAI-25,
arXiv 2502.15959. Research use only, no medical advice. Every number below was computed from the result files it names.</p>
{% for sentence in summary %}<p>{{ sentence }}</p>{% endfor %}
{% for figure, caption, alt in figures %}<figure><img src="data:image/png;base64,{{ figure }}" alt="{{ alt }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
<h2>How verdicts are reached</h2><ul>{% for rule in rules %}<li>{{ rule }}</li>{% endfor %}</ul>
<h2>What was measured</h2>{{ measured }}
{% if missing %}<h2>What was not run here</h2>{{ missing }}{% endif %}
</body></html>
""")


def fragment(rows: Sequence[Row], link: str = "") -> str:
    """Rows as an HTML table, every text escaped; ``link`` is put before the result files' names as
    their address."""
    return _TABLE.render(
        rows=[(row, measured(row), row.verdict.replace(" ", "-")) for row in rows], link=link
    )


def pictures(rows: Sequence[Row], found: Sequence[Result]) -> list[tuple[Figure, str, str]]:
    """The figures of the ledger, each with its caption and with what it shows in words."""
    drawn = []
    if (figure := differences(rows)) is not None:
        caption = (
            "Points: mean over seeds; bars: 95 % intervals, paired over test images and joined with the spread over seeds "
            "where there are several. A stand-in or partial copy is called so."
        )
        drawn.append((figure, caption, described(rows)))
    if (figure := leaks(found)) is not None:
        words = "; ".join(_leak(leak) for leak in results.leaks(found).to_dict("records"))
        caption = (
            "The same student without a teacher under the papers' split and under the one that keeps copies and patients "
            "together. Bars: 95 % intervals over images and seeds; the two splits test on different images."
        )
        drawn.append(
            (figure, caption, f"Differences in balanced accuracy with 95 % intervals. {words}")
        )
    for title, figure in heat_maps(found).items():
        values = figure.axes[0].collections[0].get_array()
        words = (
            f"Heat map of test accuracy by α and temperature. {title}. From {values.min():.1f} to {values.max():.1f} %; the "
            "cell that the paper found best is framed."
        )
        drawn.append(
            (
                figure,
                f"Paper B's α and temperature. {title}. Framed: the cell that the paper found best.",
                words,
            )
        )
    return drawn


def _inside(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def page(rows: Sequence[Row], found: Sequence[Result] = ()) -> str:
    """The ledger as one HTML file that needs no other."""
    # what is marked as safe is our own style and fragments whose every value the template escaped
    return _PAGE.render(
        style=Markup(STYLE),
        summary=summary(rows, found),
        rules=RULES,  # nosec B704
        figures=[(_inside(figure), caption, alt) for figure, caption, alt in pictures(rows, found)],
        measured=Markup(fragment([row for row in rows if row.measured is not None])),  # nosec B704
        missing=Markup(fragment([row for row in rows if row.measured is None])),
    )  # nosec B704


def chromium() -> str | None:
    """The installed Chromium or Chrome, if there is one."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def print_pdf(source: Path, target: Path) -> Path | None:
    """Print an HTML file as PDF through Chromium; None, and nothing written, where there is none."""
    browser = chromium()
    if browser is None:
        return None
    with tempfile.TemporaryDirectory() as profile, files.atomic(target) as temporary:
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={profile}",
                "--no-pdf-header-footer",
                f"--print-to-pdf={temporary}",
                Path(source).resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return target


def save(rows: Sequence[Row], folder: Path, found: Sequence[Result] = ()) -> list[Path]:
    """Write ``claims.csv``, ``claims.html`` and, where a Chromium is installed, ``claims.pdf`` into
    a folder."""
    files.write_text(folder / "claims.csv", csv(rows))
    html = files.write_text(folder / "claims.html", page(rows, found))
    return [folder / "claims.csv", html, *filter(None, [print_pdf(html, folder / "claims.pdf")])]


def refresh(text: str, root: Path = files.ROOT) -> str:
    """A document with its numbers taken from the result files of a repository again, see
    :func:`kdnb.report.readme.refresh`."""
    found = results.load(root / "outputs")
    return readme.refresh(text, root, found, summary(claims.ledger(found), found))


def main() -> int:
    """Write everything, and say what was written."""
    found = results.load()
    rows = claims.ledger(found)
    for path in save(rows, files.outputs_dir(), found):
        print(f"wrote {files.shown(path)}")
    document = files.ROOT / "README.md"
    if (fresh := refresh(document.read_text())) != document.read_text():
        files.write_text(document, fresh)
        print("wrote README.md")
    print("\n".join(summary(rows, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
