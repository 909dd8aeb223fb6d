"""The ledger of claims: each claim of the papers with its evidence and verdict, as a table, in
sentences, in figures, and as one page to attach to a submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kdnb import files
from kdnb.report import figures, pages, questions, readme, results, shares, systems
from kdnb.report.claims import CLAIMS, PAPERS, Claim
from kdnb.report.measures import KINDS, Evidence
from kdnb.report.results import Result
from kdnb.report.verdicts import (
    RULES,
    UNTESTED,
    VERDICTS,
    Row,
    judge,
    whole,
)

COLUMNS = (
    *("id", "paper", "claim", "claimed", "claimed_source", "measured", "low", "high", "n"),
    *("dataset", "split", "profile", "seeds", "verdict", "result_file"),
)
MISSING = "no measurement yet"
STYLE = pages.fill("ledger.css")


def measure(found: Sequence[Result]) -> list[Row]:
    """Every claim against the result files. A claim without a measurement has a row that names the
    command for it."""
    rows: list[Row] = []
    for claim in CLAIMS:
        evidence = list(KINDS[claim.kind].measure(claim, found))
        rows += [Row(claim, one, *judge(claim, one)) for one in evidence]
        if not evidence:
            nothing = Evidence(dataset=claim.title, profile="")
            rows.append(Row(claim, nothing, UNTESTED, f"not run; to run it: {claim.run}"))
    return rows


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with the columns of ``outputs/claims.csv``; accuracies are shares of 1."""
    records = []
    for row in rows:
        claim, found, e = row.claim, row.evidence, row.evidence.estimate
        texts = (claim.id, claim.paper.name, claim.text, claim.claimed, claim.source)
        numbers = (e.value, e.low, e.high, e.n)
        seeds = " ".join(map(str, found.seeds))
        origin = (found.dataset, found.split, found.profile, seeds)
        records.append((*texts, *numbers, *origin, row.verdict, " ".join(found.files)))
    return pd.DataFrame(records, columns=COLUMNS).astype({"n": "Int64"})


def csv(rows: Sequence[Row]) -> str:
    """The text of ``outputs/claims.csv``."""
    return table(rows).to_csv(index=False, float_format="%.6g")


def tally(rows: Sequence[Row]) -> dict[str, list[Claim]]:
    """The claims of each verdict, one verdict a claim, then those without a measurement."""
    by_claim: dict[str, list[Row]] = {}
    for row in rows:
        by_claim.setdefault(row.claim.id, []).append(row)
    reached: dict[str, list[Claim]] = {verdict: [] for verdict in (*VERDICTS, MISSING)}
    for own in by_claim.values():
        verdict = whole(own) if own[0].measured else MISSING
        reached[verdict].append(own[0].claim)
    return reached


def summary(rows: Sequence[Row]) -> list[str]:
    """How many claims there are, counted from the rows, and how far the measurements are from the
    papers' settings and images: a sentence each."""
    tested = [row for row in rows if row.measured]
    claims = {row.claim.id: row.claim for row in rows}
    implied = sum(claim.implied for claim in claims.values())
    measured = len({row.claim.id for row in tested})
    counted = (
        f"Claims of the two papers: {len(claims)}, of which {implied} are implied rather than "
        f"stated; {measured} were measured, some in several settings ({len(tested)} measurements)."
    )
    return [counted, *_limits(tested)]


def _limits(tested: Sequence[Row]) -> list[str]:
    sentences = []
    if tested and not any(row.evidence.profile == "paper" for row in tested):
        sentences.append(
            "No measurement has a paper's own setting (224 px, ImageNet weights, full length)."
        )
    others = {pages.short(row.evidence.dataset) for row in tested if row.evidence.caveat}
    if others:
        sentences.append(f"Not the published images: {', '.join(sorted(others))}.")
    return sentences


def _leaks(table: pd.DataFrame) -> str:
    """The figure of the papers' splits as text."""
    parts = [
        f"{pages.short(leak['dataset'])} {pages.points(leak)}, where {leak['copies']:,} of "
        f"{leak['n']:,} test images have a relative in training"
        for leak in table.to_dict("records")
    ]
    return (
        "Balanced accuracy of the baseline under the papers' split minus that under the split that "
        f"keeps copies together, in percentage points: {'; '.join(parts)}."
        if parts
        else ""
    )


def shown(found: Sequence[Result]) -> str:
    """A digest of the numbers in the README's figure. The PNG stores it, so that a test can compare
    the file with the results whatever version of matplotlib drew it."""
    return files.digest(results.headline(results.distillations(found)).to_csv())


@dataclass(frozen=True)
class Picture:
    """A figure with its caption and an alternative text that says what it shows."""

    figure: Figure
    caption: str
    alt: str

    @property
    def address(self) -> str:
        """The figure itself as an address."""
        return pages.embedded(pages.png(self.figure))


def described(rows: Sequence[Row]) -> str:
    """The figure of differences as text."""
    return "Differences in test accuracy with 95 % intervals. " + "; ".join(
        f"{pages.short(row.evidence.dataset)}, {row.evidence.split}, {row.claim.text}: {row.number}"
        for row in rows
        if row.difference
    )


def pictures(rows: Sequence[Row], found: Sequence[Result]) -> list[Picture]:
    """The figures of the ledger: differences, effect of the papers' splits, curves over label
    shares, grids of α and T."""
    drawn = []
    if (figure := figures.differences(rows)) is not None:
        caption = (
            "Points: mean over seeds. Bars: 95 % intervals, paired over test images and joined "
            "with the spread over seeds where there are several."
        )
        drawn.append(Picture(figure, caption, described(rows)))
    if (figure := figures.leaks(found)) is not None:
        caption = (
            "The same student without a teacher under the papers' split and under the split that "
            "keeps copies and patients together. Bars: 95 % intervals over images and seeds; the "
            "two splits test on different images."
        )
        drawn.append(Picture(figure, caption, _leaks(results.leaks(found))))
    for curve in shares.curves(found):
        caption = (
            f"{shares.title(curve)}. Accuracy by the share of the training labels, which each run "
            "draws anew in whole groups; the test images are the same. Bars: 95 % intervals over "
            "images and runs."
        )
        drawn.append(Picture(shares.figure(curve), caption, shares.described(curve)))
    for title, figure in figures.heat_maps(found).items():
        values = figure.axes[0].collections[0].get_array()
        framed = "The cell that the paper found best is framed."
        alt = f"From {values.min():.1f} to {values.max():.1f} %. {framed}"
        caption = f"Paper B's α and temperature. {title}. {framed}"
        alt = f"Heat map of test accuracy by α and temperature. {title}. {alt}"
        drawn.append(Picture(figure, caption, alt))
    return drawn


def context(rows: Sequence[Row], found: Sequence[Result] = ()) -> dict:
    """What the template of the ledger shows; the claims page and the site's front share it."""
    return {
        "papers": PAPERS.values(),
        "answers": questions.answers(found),
        "summary": summary(rows),
        "tally": tally(rows),
        "verdicts": VERDICTS,
        "systems": systems.measure(found),
        "references": systems.REFERENCES,
        "about": systems.ABOUT,
        "others": systems.OTHERS,
        "pictures": pictures(rows, found),
        "rules": [rule.text for rule in RULES],
        "measured": [row for row in rows if row.measured],
        "missing": [row for row in rows if not row.measured],
        "distillations": results.distillations(found).to_dict("records"),
    }


def page(rows: Sequence[Row], found: Sequence[Result] = ()) -> str:
    """The ledger as one HTML file that needs no other."""
    return pages.fill("claims.html.j2", **context(rows, found))


def fragment(rows: Sequence[Row]) -> str:
    """Rows as an HTML table, every text escaped."""
    return pages.fill("ledger.html.j2", rows=rows)


def save(rows: Sequence[Row], folder: Path, found: Sequence[Result] = ()) -> list[Path]:
    """Write ``claims.csv``, ``claims.html``, ``systems.csv``, the README's figure and, where a
    Chromium is installed, ``claims.pdf`` into a folder. Returns the paths."""
    table = files.write_text(folder / "claims.csv", csv(rows))
    html = files.write_text(folder / "claims.html", page(rows, found))
    related = files.write_text(folder / "systems.csv", systems.csv(systems.measure(found)))
    saved = [table, html, related, pages.print_pdf(html, folder / "claims.pdf")]
    if (figure := figures.effects(found)) is not None:
        saved.append(pages.write_png(folder / readme.FIGURE, figure, shown(found)))
    return [path for path in saved if path]


def refresh(text: str, root: Path = files.ROOT) -> str:
    """A document with its numbers taken again from the result files of a repository, see
    :func:`kdnb.report.readme.refresh`."""
    found = results.load(root / "outputs")
    answers = questions.markdown(questions.answers(found))
    return readme.refresh(text, root, answers, figures.effects(found) is not None)


def write() -> None:
    """Write the ledger into ``outputs/`` and the numbers into ``README.md``, and say so."""
    found = results.load()
    rows = measure(found)
    for path in save(rows, files.outputs_dir(), found):
        print(f"wrote {files.shown(path)}")
    document = files.ROOT / "README.md"
    old = document.read_text(encoding="utf-8")
    if (new := refresh(old, files.ROOT)) != old:
        files.write_text(document, new)
        print("wrote README.md")
    counts = (f"{verdict} {len(claims)}" for verdict, claims in tally(rows).items())
    print(*summary(rows), f"Verdicts by claim: {', '.join(counts)}.", sep="\n")
