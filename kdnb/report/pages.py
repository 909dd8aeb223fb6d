"""Results as files, and the parts that all pages share: templates, alternative texts, printing."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path

import pandas as pd
from bs4 import BeautifulSoup  # nbconvert brings it
from jinja2 import Environment, PackageLoader
from latex2mathml.converter import convert as mathml
from markupsafe import Markup  # jinja2 brings it
from matplotlib.figure import Figure
from PIL import Image

from kdnb import files, provenance
from kdnb.data import Dataset
from kdnb.study import Study
from kdnb.training import loop

# imported by a notebook's first cells: the wall time of its results counts from here
STARTED = time.monotonic()


def save(study: Study, dataset: Dataset, name: str, results: dict) -> Path:
    """Write a result file under the study's outputs: results, configuration, data and provenance.
    Returns the path."""
    return files.write_json(
        study.outputs() / f"{name}.json",
        {
            "results": results,
            "config": study.config(),
            "training": loop.VERSION,
            "data": {
                "title": dataset.title,
                "caveat": dataset.caveat,
                "split": dataset.split,
                "checksum": dataset.checksum,
                **({"labelled_from": dataset.labelled_from} if dataset.labelled_from else {}),
                "images": len(dataset.table),
                "classes": list(dataset.classes),
                "citation": dataset.spec.citation,
            },
            "provenance": provenance.collect(),
            "wall_seconds": round(time.monotonic() - STARTED, 1),
        },
    )


def save_table(study: Study, name: str, table: pd.DataFrame) -> Path:
    """Write a table as CSV under the study's outputs. Returns the path."""
    path = study.outputs() / f"{name}.csv"
    with files.atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return path


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table as JSON-ready dictionaries, with None for missing values."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def save_figure(study: Study, name: str, figure: Figure) -> Path:
    """Write a figure as PNG under the study's outputs. Returns the path."""
    return write_png(study.outputs() / f"{name}.png", figure)


def png(figure: Figure, about: str = "") -> bytes:
    """A figure as PNG. ``about`` is stored in it as its description; there is no version or date in
    it, so the same figure gives the same bytes."""
    buffer, metadata = io.BytesIO(), {"Software": None, "Description": about or None}
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def embedded(png: bytes) -> str:
    """A PNG as the ``data:`` address of a lossless WebP of 256 colours, a quarter of the size.

    The palette spans all colours: one of the most frequent would give small areas, as of a legend,
    another colour.
    """
    with Image.open(io.BytesIO(png)) as image:
        buffer = io.BytesIO()
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        few.convert("RGB").save(buffer, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_png(path: Path, figure: Figure, about: str = "") -> Path:
    """Write a figure as PNG, see :func:`png`. Returns the path."""
    with files.atomic(path) as temporary:
        temporary.write_bytes(png(figure, about))
    return path


def short(title: str) -> str:
    """A dataset's title with its caveat cut short: ``COVID-QU-Ex (stand-in)``."""
    return re.sub(r":[^)]*\)", ")", title)


def points(row: Mapping[str, object]) -> str:
    """A difference of shares (keys difference, low, high) in percentage points:
    ``+1.4 [−0.2, +3.1]``."""
    values = (100 * row[key] for key in ("difference", "low", "high"))
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values).replace("-", "−")


def setting(row: object) -> str:
    """Data, split, networks and budget of a row of the ledger, in words."""
    e = row.evidence
    return f"{e.dataset}, split {e.split}: {e.teacher} → {e.student}, {e.setting}"


def equation(latex: str) -> Markup:
    """Lines of LaTeX, with ``\\\\`` between them, as MathML, which browsers show without a script;
    the text of each line stays readable as LaTeX."""
    lines = [line.strip() for line in latex.split(r"\\")]
    shown = [(line, mathml(line, display="block")) for line in lines]
    return Markup(
        "".join(
            html.replace("<math ", f'<math alttext="{escape(line)}" ', 1) for line, html in shown
        )
    )


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


TEMPLATES = Environment(
    loader=PackageLoader("kdnb.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {
    "short": short,
    "points": points,
    "setting": setting,
    "mathml": equation,
    "sentence": sentence,
}


def fill(template: str, **values: object) -> str:
    """A file of ``templates/`` filled in. Every value is escaped, unless the template marks it as
    safe."""
    return TEMPLATES.get_template(template).render(values)


def written(*paths: Path) -> None:
    """Print the paths and sizes of files that were written."""
    for path in paths:
        print(f"wrote {files.shown(path)} ({path.stat().st_size / 1024:.0f} kB)")


_MARKS = re.compile(
    r"<h[1-4]\b[^>]*>(?P<heading>.*?)</h[1-4]>|<p>(?P<text>.*?)</p>|<img\b[^>]*>", re.DOTALL
)
# the empty texts of nbconvert and of older pages
_NO_ALT = ("", "figure", "No description has been provided for this image")


def describe(html: str, about: str = "") -> str:
    """Give every image without an alternative text one: the heading above it and the first
    paragraph under that heading, where a page makes its argument.

    ``about`` (the dataset) comes first in it and becomes a caption below the figure, once.
    """
    heading, paragraph, number = "", "", 0
    before = f"{escape(about)}: " if about else ""
    caption = f'<small class="caption">{escape(about)}</small>' if about else ""

    def visit(match):
        nonlocal heading, paragraph, number
        if match["heading"] is not None:
            heading, paragraph, number = _plain(match["heading"]), "", 0
            return match[0]
        if match["text"] is not None:
            paragraph = paragraph or _plain(match["text"])
            return match[0]
        number += 1
        alt = re.search(r'alt="([^"]*)"', match[0])
        text = alt[1] if alt else ""
        if text in _NO_ALT:
            words = f"Figure {number} of: {heading or 'this page'}. {paragraph}"
            text = escape(textwrap.shorten(words, 240, placeholder=" …"))
        elif text.startswith(before):
            return match[0]
        bare = match[0] if alt is None else match[0].replace(alt[0], "")
        return f'<img alt="{before}{text}"' + bare.removeprefix("<img") + caption

    return _MARKS.sub(visit, html)


_ACTIVE = ("script", "iframe", "object", "embed", "form", "base", "meta", "link")
_ADDRESSES = ("href", "src", "xlink:href", "action", "formaction")
_SCHEME = re.compile(r"[\x00-\x20]*([a-z][\x00-\x20a-z0-9+.-]*):", re.IGNORECASE)


def harmless(html: str) -> str:
    """HTML without anything that a browser would run or fetch: names of files and classes, which
    may hold anything, reach a page through tables of pandas."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.find_all(_ACTIVE):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in [name for name in tag.attrs if name.lower().startswith("on")]:
            del tag[name]
        for name in _ADDRESSES:
            scheme = _SCHEME.match(str(tag.get(name, "")))
            known = ("http", "https", "mailto", "data")
            if scheme and re.sub(r"\s", "", scheme[1].lower()) not in known:
                del tag[name]
    return str(soup)


def _plain(html: str) -> str:
    """The text of a piece of HTML, without formulas and the pilcrows of headings."""
    return " ".join(
        unescape(re.sub(r"<math.*?</math>|<[^>]+>|¶", " ", html, flags=re.DOTALL)).split()
    )


def chromium() -> str | None:
    """The path of an installed Chromium or Chrome; None without one."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


def print_pdf(source: Path, target: Path) -> Path | None:
    """Print an HTML file as PDF through Chromium. Returns ``target``, or None, with nothing
    written, where no Chromium is installed."""
    browser = chromium()
    if browser is None:
        return None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer")
    with tempfile.TemporaryDirectory() as profile, files.atomic(target) as temporary:
        places = (f"--user-data-dir={profile}", f"--print-to-pdf={temporary}")
        command = [browser, *options, *places, Path(source).resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target
