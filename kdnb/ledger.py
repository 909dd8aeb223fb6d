"""The ledger of claims in print: a table, one page to attach to a submission, and the numbers of the README.

``python -m kdnb.ledger`` writes them all from the result files: ``outputs/claims.csv``, ``outputs/claims.html``,
``outputs/claims.pdf`` where a Chromium is installed, and what stands between markers in ``README.md``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from kdnb import claims, figures, files, results
from kdnb.claims import Row
from kdnb.results import Result
from kdnb.verdicts import RULES, VERDICTS

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))[:15]  # the rest explains, and stands on the page


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with the columns of ``outputs/claims.csv``; differences of accuracy are shares of 1."""
    return pd.DataFrame([dataclasses.asdict(row) for row in rows], columns=COLUMNS).astype({"n": "Int64"})


def short(title: str) -> str:
    """A dataset's title with its caveat in one word: ``COVID-QU-Ex (stand-in)``."""
    return re.sub(r":[^)]*\)", ")", title)


def measured(row: Row) -> str:
    """What was measured, as a reader reads it, with its interval; empty if nothing was."""
    if row.measured is None:
        return ""
    scale, form = (100, "{:+.1f}") if row.unit == "points" else (1, "{:+.2f}" if row.unit.startswith("in ") else "{:.3f}")
    text = form.format(scale * row.measured)
    if row.low is not None and row.low != row.high:
        text += f" [{form.format(scale * row.low)}, {form.format(scale * row.high)}]"
    return (text if row.unit == "accuracy" else f"{text} {row.unit}").replace("-", "−")


def summary(rows: Sequence[Row]) -> list[str]:
    """The ledger in sentences, every number counted from its rows."""
    tested = [row for row in rows if row.measured is not None]
    said = Counter(row.verdict for row in tested)
    gains = [row for row in tested if row.id.endswith("-gain")]
    told = [f"{len({row.id for row in rows})} claims of the two papers make {len(rows)} rows here; for {len(tested)} of them "
            "something was measured. " + "; ".join(f"{verdict}: {said[verdict]}" for verdict in VERDICTS) + "."]  # fmt: skip
    if gains:
        above, below = sum(row.low > 0 for row in gains), sum(row.high < 0 for row in gains)
        told.append(f"Whether distillation makes a student better than the same student without a teacher was measured in "
                    f"{len(gains)} setting{'s' * (len(gains) > 1)}: the 95 % interval lies above zero in {above}, below zero in "
                    f"{below}, and holds zero in {len(gains) - above - below}.")  # fmt: skip
    stand_ins = sorted({short(row.dataset) for row in tested if "stand-in" in row.dataset or "partial" in row.dataset})
    if stand_ins:
        told.append(f"Not the published images: {', '.join(stand_ins)}. Their rows hold no more than in part.")
    return told


def differences(rows: Sequence[Row]) -> Figure | None:
    """Every measured difference of accuracy with its interval, by dataset; None where there is none."""
    chosen = sorted((row for row in rows if row.unit == "points" and row.low is not None), key=lambda row: (row.dataset, row.id))
    if not chosen:
        return None
    what = {"teacher": "student − teacher", "gain": "distilled − alone", "released": "published loss − alone",
            "optimum": "claimed α, T − best other cell"}  # fmt: skip
    frame = pd.DataFrame([
        {"group": short(row.dataset), "difference": row.measured, "low": row.low, "high": row.high,
         "label": f"{what[row.id.split('-')[-1]]}  ({row.split}, {row.setting.split(' → ')[0]}, {_count(row)})"}
        for row in chosen])  # fmt: skip
    return figures.forest(frame, "Differences that the papers claim, as measured here")


def _count(row: Row) -> str:
    seeds = len(row.seeds.split())
    return f"n {row.n:,}, {seeds} seed" + "s" * (seeds > 1)


def heat_maps(found: Sequence[Result]) -> dict[str, Figure]:
    """Paper B's α × T grids where they were run: a title → figure for each dataset and split; the paper's best cell is framed."""
    drawn = {}
    for claim in claims.CLAIMS:
        for split in sorted({r.split for r in results.real(found, "distill")}) if claim.id.endswith("-optimum") else ():
            runs = results.grid(found, claim.dataset, split)
            if len(runs) > 1:
                values = pd.Series({key: pool.accuracy("distilled").value for key, pool in runs.items()}).unstack()
                first = next(iter(runs.values()))
                wanted = dict(claim.wanted)
                title = f"{short(first.first.title)}, split {split}: distilled student, n {first.accuracy('distilled').n:,}"
                drawn[title] = figures.cells(values, (wanted["alpha"], wanted["temperature"]), title)
    return drawn


def described(rows: Sequence[Row]) -> str:
    """The figure of differences in words, for those who do not see it."""
    return "Differences in test accuracy with 95 % intervals. " + "; ".join(
        f"{short(row.dataset)}, {row.split}, {row.claim}: {measured(row)}"
        for row in rows if row.unit == "points" and row.low is not None)  # fmt: skip


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
{% if figure %}<figure><img src="data:image/png;base64,{{ figure }}" alt="{{ alt }}">
<figcaption>Points: mean over seeds; bars: 95 % intervals, paired over test images and joined with the spread over seeds where
there are several. A stand-in or partial copy is called so.</figcaption></figure>{% endif %}
<h2>How verdicts are reached</h2><ul>{% for rule in rules %}<li>{{ rule }}</li>{% endfor %}</ul>
<h2>What was measured</h2>{{ measured }}
{% if missing %}<h2>What was not run here</h2>{{ missing }}{% endif %}
</body></html>
""")


def fragment(rows: Sequence[Row], link: str = "") -> str:
    """Rows as an HTML table, every text escaped; ``link`` is put before the result files' names as their address."""
    return _TABLE.render(rows=[(row, measured(row), row.verdict.replace(" ", "-")) for row in rows], link=link)


def page(rows: Sequence[Row]) -> str:
    """The ledger as one HTML file that needs no other."""
    figure, encoded = differences(rows), ""
    if figure is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        encoded = base64.b64encode(buffer.getvalue()).decode()
    # what is marked as safe is our own style and fragments whose every value the template escaped
    return _PAGE.render(style=Markup(STYLE), summary=summary(rows), figure=encoded, alt=described(rows), rules=RULES,  # nosec B704
                        measured=Markup(fragment([row for row in rows if row.measured is not None])),  # nosec B704
                        missing=Markup(fragment([row for row in rows if row.measured is None])))  # nosec B704  # fmt: skip


def chromium() -> str | None:
    """The installed Chromium or Chrome, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def print_pdf(source: Path, target: Path) -> Path | None:
    """Print an HTML file as PDF through Chromium; None, and nothing written, where there is none."""
    browser = chromium()
    if browser is None:
        return None
    with tempfile.TemporaryDirectory() as profile, files.atomic(target) as temporary:
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                        "--no-pdf-header-footer", f"--print-to-pdf={temporary}", Path(source).resolve().as_uri()],
                       check=True, capture_output=True, timeout=120)  # fmt: skip
    return target


def save(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``claims.csv``, ``claims.html`` and, where a Chromium is installed, ``claims.pdf`` into a folder."""
    with files.atomic(folder / "claims.csv") as temporary:
        table(rows).to_csv(temporary, index=False, float_format="%.6g")
    html = files.write_text(folder / "claims.html", page(rows))
    return [folder / "claims.csv", html, *filter(None, [print_pdf(html, folder / "claims.pdf")])]


_BLOCK = re.compile(r"(<!-- results -->\n).*?(\n<!-- /results -->)", re.DOTALL)
_INLINE = re.compile(r"(<!-- (outputs/\S+\.json) (\S+) (\S+) -->).*?(<!-- / -->)")


def refresh(text: str, root: Path = files.ROOT) -> str:
    """A document with its numbers taken from result files again.

    ``<!-- results -->`` … ``<!-- /results -->`` becomes the summary and the table of distillations. Between
    ``<!-- outputs/x.json results.a.b .1f -->`` and ``<!-- / -->`` stands that value of that file in that format.
    """
    found = results.load(root / "outputs")

    def value(match):
        node = files.read_json(root / match[2])
        for key in match[3].split("."):
            node = node[int(key)] if isinstance(node, list) else node[key]
        return f"{match[1]}{format(node, match[4])}{match[5]}"

    frame = results.distillations(found)
    shown = _headline(frame)
    lines = [f"- {told}" for told in summary(claims.ledger(found))]
    if len(frame) > len(shown):
        lines.append(f"- {len(frame) - len(shown)} more cells (other α and T, fewer seeds) stand in `09_report` as heat maps.")
    current = results.BATCH_STATISTICS[max(results.BATCH_STATISTICS)]
    if older := sum(row != current for row in frame.get("batch statistics", ())):
        lines.append(f"- {older} of all {len(frame)} settings are of an earlier training loop, whose batch statistics were those "
                     "of augmented views; networks with batch norm (the teachers, OFA-595) may do better now.")  # fmt: skip
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
    head = ["dataset", "split", "teacher → student", "method", "px", "seeds", "n", "teacher", "distilled", "alone",
            "distilled − alone, points"]  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in frame.to_dict("records"):
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * row[key] for key in ("difference", "low", "high"))).replace("-", "−")
        cells = [short(row["dataset"]), row["split"], f"{row['teacher']} → {row['student']}",
                 f"{row['method']} α {row['α']:g} T {row['T']:g}", row["px"], row["seeds"], row["n"],
                 *(row[f"{role} accuracy"] for role in ("teacher", "distilled", "alone")), gain]  # fmt: skip
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return rows


# what looks measured: shares with two decimals or more, percentages, points, factors
MEASURED = re.compile(r"(?<![\w./])0\.\d{2,}|\d\s?%|[+−-]\d+(?:\.\d+)? points|\d\s?(?:×|times) (?:as|faster|smaller|fewer)")


def stray(text: str) -> list[str]:
    """Lines of a document with a number that looks measured and has no result file behind it.

    Code, formulas, and what :func:`refresh` keeps up to date are left out; a 95 % interval is a name, not a number.
    """
    for pattern in (_BLOCK, _INLINE, re.compile(r"```.*?```|\$\$.*?\$\$", re.DOTALL), re.compile(r"`[^`\n]*`|95 %")):
        text = pattern.sub("", text)
    return [line for line in text.splitlines() if MEASURED.search(line)]


def main() -> int:
    """Write everything, and say what was written."""
    rows = claims.ledger(results.load())
    for path in save(rows, files.outputs_dir()):
        print(f"wrote {files.shown(path)}")
    readme = files.ROOT / "README.md"
    if (fresh := refresh(readme.read_text())) != readme.read_text():
        files.write_text(readme, fresh)
        print("wrote README.md")
    print("\n".join(summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
