"""All executed notebooks of a dataset as one PDF: ``python -m kdnb.report supplement <dataset>``.

It is printed by WeasyPrint from the pages under ``outputs/``, with the fonts that matplotlib
brings: no browser, no installed font, no network.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from bs4 import BeautifulSoup, Tag  # nbconvert brings it
from pygments.formatters import HtmlFormatter

import kdnb
from kdnb import data, extras, files
from kdnb.report import citation, formulas, pages, results
from kdnb.report.claims import CLAIMS
from kdnb.report.results import INITIAL_WEIGHTS, Result

weasyprint = extras.late("weasyprint")

NAME = "supplement.pdf"
COLUMNS = {"many": 8, "most": 12}  # columns from which a table is set small, and smaller
SHORT = 12  # rows up to which a table stands on one page
LONG = 24  # characters from which a cell's text may break anywhere
# family of the style sheet: style and weight → font of matplotlib
FONTS = {
    "kdnb serif": {
        ("normal", "normal"): "STIXGeneral",
        ("normal", "bold"): "STIXGeneralBol",
        ("italic", "normal"): "STIXGeneralItalic",
        ("italic", "bold"): "STIXGeneralBolIta",
    },
    "kdnb sans": {
        ("normal", "normal"): "DejaVuSans",
        ("normal", "bold"): "DejaVuSans-Bold",
        ("italic", "normal"): "DejaVuSans-Oblique",
        ("italic", "bold"): "DejaVuSans-BoldOblique",
    },
    "kdnb mono": {
        ("normal", "normal"): "DejaVuSansMono",
        ("normal", "bold"): "DejaVuSansMono-Bold",
        ("italic", "normal"): "DejaVuSansMono-Oblique",
        ("italic", "bold"): "DejaVuSansMono-BoldOblique",
    },
}


class NotPrinted(
    files.UserError,
    RuntimeError,
    code="KD804",
    way_out="run what the message names, then make supplement again",
):
    """A supplement that could not be printed; the message says what to run or to install."""


@dataclass(frozen=True)
class Part:
    """One executed notebook: its ``title``, its ``headings`` (id and text), its ``body`` without
    code, and the ``code`` of its cells, all as HTML."""

    id: str
    title: str
    headings: tuple[tuple[str, str], ...]
    body: str
    code: tuple[str, ...]


def report(dataset: str) -> None:
    """Print the supplement of a dataset and say where it is."""
    pages.written(write(files.outputs_dir() / data.describe(dataset).slug))


def write(folder: Path) -> Path:
    """Print the executed notebooks of a dataset's folder as ``supplement.pdf`` there; returns it.

    Raises :class:`NotPrinted` where Pango or an executed notebook is missing, and
    :class:`~kdnb.extras.MissingExtra`.
    """
    document = _document(html(folder))
    with warnings.catch_warnings(), files.atomic(folder / NAME) as temporary:
        # it warns of a machine without fonts, and this document brings its own
        warnings.filterwarnings("ignore", "No fonts configured")
        document.write_pdf(temporary, optimize_images=True, pdf_variant="pdf/ua-1")
    return folder / NAME


def html(folder: Path) -> str:
    """The supplement of a dataset's folder as one HTML document. Raises :class:`NotPrinted` where
    no notebook was executed."""
    found = sorted(folder.rglob("[0-9][0-9]_*.html"), key=lambda p: (len(p.parts), p))
    made = [results.read(path, folder.parent) for path in sorted(folder.rglob("distill-*.json"))]
    made = [each for each in made if each]
    if not found or not made:
        raise NotPrinted(
            f"{files.shown(folder)} has no {'result of notebook 03' if found else 'pages'}: "
            f"python -m kdnb.run -p dataset {folder.name} executes and renders the notebooks"
        )
    return pages.fill(
        "supplement.html.j2",
        parts=[_part(path, path.parent.relative_to(folder).as_posix()) for path in found],
        fonts=_faces(),
        highlight=HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        keywords=", ".join(citation.KEYWORDS),
        author=citation.AUTHORS[0]["name"],
        version=kdnb.__version__,
        **_cover(made, folder.name),
    )


def _document(text: str) -> weasyprint.HTML:
    """What WeasyPrint can print. Raises :class:`NotPrinted`."""
    try:
        return weasyprint.HTML(string=text)
    except OSError as error:  # the library loads Pango when it is imported, which is here
        raise NotPrinted(
            f"WeasyPrint needs the library Pango ({str(error).splitlines()[0]}): apt install "
            "libpango-1.0-0 libpangoft2-1.0-0, or brew install pango"
        ) from None


def _faces() -> str:
    """The style sheet's fonts."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return "".join(
        f'@font-face {{ font-family: "{family}"; font-style: {style}; font-weight: {weight}; '
        f"src: url({(folder / f'{name}.ttf').as_uri()}); }}\n"
        for family, faces in FONTS.items()
        for (style, weight), name in faces.items()
    )


def _cover(made: Sequence[Result], dataset: str) -> dict[str, object]:
    """Title, settings, sources and provenance, from the results of notebook 03."""
    stored = made[0].stored
    titled = {"title": made[0].title, "citation": stored["data"]["citation"]}
    names = {claim.paper.name for claim in CLAIMS if claim.dataset == made[0].config["dataset"]}
    commits = sorted({each.stored["provenance"]["commit"] for each in made})
    return {
        "title": f"Supplement: {titled['title']}",
        "data": titled,
        "description": f"{citation.DESCRIPTION}: every executed notebook on {titled['title']}",
        "time": max(each.stored["provenance"]["time"] for each in made),
        "commit": ", ".join(commits),
        "command": f"python -m kdnb.run -p dataset {dataset}",
        "settings": [_settings(each) for each in made],
        "papers": [
            {"text": _reference(paper), "url": paper["url"]}
            for name, paper in citation.PAPERS.items()
            if name in names
        ],
    }


def _reference(paper: dict) -> str:
    """A paper as a line of a bibliography."""
    people = [f"{each['given-names']} {each['family-names']}" for each in paper["authors"]]
    place = paper.get("journal") or f"{paper['collection-title']} {paper['volume']}"
    return f"{', '.join(people)} ({paper['year']}). {paper['title']}. {place}."


def _settings(result: Result) -> dict[str, object]:
    """One result of notebook 03: what was trained, on what, and its accuracy."""
    config, stored = result.config, result.stored["results"]
    images, where = result.stored["data"], result.stored["provenance"]
    shares = {
        role: f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
        for role, key in (("teacher", "teacher"), ("student", "distilled"), ("baseline", "alone"))
        for score in [stored[key]]
        for low, high in [score["intervals"]["accuracy"]]
    }
    return {
        "images": f"{images['images']:,}, checksum {images['checksum']}",
        "split": images["split"],
        "networks": f"{config['teacher']} → {config['student']}, {config['image_size']} px, "
        f"{INITIAL_WEIGHTS[config['pretrained']]} initial weights",
        "method": f"{config['method']}, α {config['alpha']}, T {config['temperature']}",
        "budget": f"at most {config['teacher_epochs']} + {config['student_epochs']} epochs, batch "
        f"{config['batch_size']}, seed {config['seed']}",
        "test accuracy": "; ".join(f"{role} {text}" for role, text in shares.items())
        + f" (95 % intervals, n = {stored['distilled']['n']})",
        "run": f"commit {where['commit']}, {where['time'][:10]}",
    }


def _part(path: Path, split: str) -> Part:
    """A rendered notebook as a part of the document; ``split`` is its folder below the
    dataset's."""
    soup = BeautifulSoup(pages.harmless(path.read_text(encoding="utf-8")), "html.parser")
    body, name = soup.body or soup, "-".join(filter(None, (split.strip("."), path.stem)))
    for tag in body.find_all("footer") + body.find_all("a", class_="anchor-link"):
        tag.decompose()
    for cell in body.find_all(id=re.compile("^cell-id")):
        del cell["id"]  # every notebook has the same ones
    code = [str(pre) for each in body.find_all("details") for pre in each.find_all("pre")]
    for each in body.find_all("details"):
        each.decompose()
    for table in body.find_all("table"):
        _fit(table)
    formulas.as_html(soup)
    _own_figures(body, path)
    title, *headings = _headings(body, name)
    if split != ".":
        title = title[0], f"{title[1]} (split {split})"
        body.find("h1").append(f" (split {split})")
    return Part(*title, tuple(headings), body.decode_contents(), tuple(code))


def _own_figures(body: Tag, path: Path) -> None:
    """Free the figures of fixed sizes. Raises :class:`NotPrinted` for one that lies elsewhere: a
    document must not depend on the network."""
    for image in body.find_all("img"):
        if not image.get("src", "").startswith("data:image/"):
            raise NotPrinted(
                f"{files.shown(path)} refers to an image outside itself: render the notebook "
                "again with python -m kdnb.run"
            )
        for name in ("width", "height"):
            image.attrs.pop(name, None)


def _headings(body: Tag, name: str) -> list[tuple[str, str]]:
    """Give the headings of the first two levels ids that no other notebook has; ids and texts."""
    found = []
    for number, heading in enumerate(body.find_all(re.compile("h[1-6]"))):
        heading["id"] = f"{name}-{number}"
        if heading.name in ("h1", "h2"):
            found.append((heading["id"], " ".join(heading.get_text().split())))
    return found


def _fit(table: Tag) -> None:
    """Fit a table to a page: few rows stay together, many columns are set small, long texts may
    break anywhere, names only after an underscore."""
    rows = table.find_all("tr")
    columns = max((len(row.find_all(["th", "td"])) for row in rows), default=0)
    kinds = [name for name, fewest in COLUMNS.items() if columns >= fewest]
    kinds += ["short"] if len(rows) <= SHORT else []
    table["class"] = [*table.get("class", []), *kinds]
    for cell in table.find_all(["th", "td"]):
        if len(cell.get_text()) > LONG:
            cell["class"] = [*cell.get("class", []), "long"]
        for text in cell.find_all(string=re.compile("_")):
            text.replace_with(text.replace("_", "_\u200b"))
