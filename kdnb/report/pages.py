"""Results as files, and executed notebooks as pages that open without a network."""

from __future__ import annotations

import base64
import io
import re
import textwrap
import time
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path

import nbformat
import pandas as pd
from bs4 import BeautifulSoup  # nbconvert brings it
from jinja2 import DictLoader
from latex2mathml.converter import convert as mathml
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from nbconvert.filters import Highlight2HTML
from PIL import Image
from pygments.formatters import HtmlFormatter

from kdnb import files, provenance
from kdnb.data import Dataset
from kdnb.study import Study
from kdnb.training import loop

STARTED = (
    time.monotonic()
)  # a notebook imports this first: the wall time of its results counts from here


def save(study: Study, dataset: Dataset, name: str, results: dict) -> Path:
    """Write one result file under the study's outputs: the results and all they rest on. Returns
    the path."""
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
    """The rows of a table as JSON-ready dictionaries; what is missing is None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def save_figure(study: Study, name: str, figure: Figure) -> Path:
    """Write a figure as PNG under the study's outputs. Returns the path."""
    path = study.outputs() / f"{name}.png"
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
    return path


def short(title: str) -> str:
    """A dataset's title with its caveat in one word: ``COVID-QU-Ex (stand-in)``."""
    return re.sub(r":[^)]*\)", ")", title)


def points(row: Mapping[str, object]) -> str:
    """A difference of shares with its interval in percentage points: ``+1.4 [−0.2, +3.1]``; keys
    difference, low, high."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(
        *(100 * row[key] for key in ("difference", "low", "high"))
    ).replace("-", "−")


def written(*paths: Path) -> None:
    """Say which files a notebook wrote."""
    for path in paths:
        print(f"wrote {files.shown(path)} ({path.stat().st_size / 1024:.0f} kB)")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 Georgia, serif; color: #1a1a1a; }}
h1, h2, h3, table, summary {{ font-family: system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.25rem; margin-top: 2.2rem; }}
img {{ max-width: 100%; height: auto; }}
.caption {{ display: block; color: #777; font: .8rem system-ui, sans-serif; }}
a.anchor-link {{ display: none; }}
table {{ border-collapse: collapse; border: 0; font-size: .85rem; margin: .8rem 0; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .7rem; border: 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
table.dataframe td, table.dataframe thead th {{ text-align: right; }}
pre {{ font-size: .82rem; line-height: 1.4; overflow-x: auto; background: #f7f7f7; padding: .6rem .8rem; border-radius: 4px; }}
details > summary {{ color: #777; font-size: .8rem; cursor: pointer; }}
math[display="block"] {{ margin: 1rem 0; }}
footer {{ margin-top: 3rem; color: #777; font-size: .8rem; }}
{highlight}
</style></head><body>
{body}
<footer>kdnb · research use only, no medical advice · rendered from {source}</footer>
</body></html>
"""
_TEMPLATE = (
    "{%- extends 'basic/index.html.j2' -%}"
    "{%- block input_group -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock input_group -%}"
)


def render(executed: Path, page: Path, about: str = "") -> Path:
    """An executed notebook as one HTML file: figures inside, code folded, formulas as MathML, no
    script and no network.

    ``about`` names the images, a stand-in as one: it becomes the caption of every figure.
    """
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _formulas(cell.source)
        else:
            # progress bars live on stderr; a page is read after the work is done
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _slim(output.data["image/png"])
    title = re.sub(r"[#*`]", "", notebook.cells[0].source.splitlines()[0]).strip()
    exporter = HTMLExporter(
        template_file="kdnb.html.j2",
        extra_loaders=[DictLoader({"kdnb.html.j2": _TEMPLATE})],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="python"))
    body, _ = exporter.from_notebook_node(notebook)
    body = describe(harmless(body), about)
    style = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return files.write_text(
        page, _PAGE.format(title=title, highlight=style, body=body, source=executed.name)
    )


_MARKS = re.compile(
    r"<h[1-4]\b[^>]*>(?P<heading>.*?)</h[1-4]>|<p>(?P<text>.*?)</p>|<img\b[^>]*>", re.DOTALL
)
_NO_ALT = (
    "",
    "figure",
    "No description has been provided for this image",
)  # what nbconvert and older pages say


def describe(html: str, about: str = "") -> str:
    """Give every image that has none an alternative text: the heading it stands under and what is
    said there first.

    A page's argument stands above its figure, so that is what a reader who does not see the figure
    should hear again. ``about`` (the dataset) comes first in it and becomes a caption below the
    figure, once.
    """
    heading, said, number = "", "", 0
    before, caption = (
        (f"{escape(about)}: ", f'<small class="caption">{escape(about)}</small>')
        if about
        else ("", "")
    )

    def visit(match):
        nonlocal heading, said, number
        if match["heading"] is not None:
            heading, said, number = _plain(match["heading"]), "", 0
        elif match["text"] is not None:
            said = said or _plain(match["text"])
        else:
            number += 1
            alt = re.search(r'alt="([^"]*)"', match[0])
            text = alt[1] if alt else ""
            if text in _NO_ALT:
                text = escape(
                    textwrap.shorten(
                        f"Figure {number} of: {heading or 'this page'}. {said}",
                        240,
                        placeholder=" …",
                    )
                )
            elif text.startswith(before):
                return match[0]
            bare = match[0] if alt is None else match[0].replace(alt[0], "")
            return f'<img alt="{before}{text}"' + bare.removeprefix("<img") + caption
        return match[0]

    return _MARKS.sub(visit, html)


def harmless(html: str) -> str:
    """HTML without what a browser would run or fetch: names of files and classes reach a page
    through tables of pandas."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.find_all(
        ["script", "iframe", "object", "embed", "form", "base", "meta", "link"]
    ):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in [name for name in tag.attrs if name.lower().startswith("on")]:
            del tag[name]
        for name in ("href", "src", "xlink:href", "action", "formaction"):
            scheme = re.match(
                r"[\x00-\x20]*([a-z][\x00-\x20a-z0-9+.-]*):", str(tag.get(name, "")), re.IGNORECASE
            )
            if scheme and re.sub(r"\s", "", scheme[1].lower()) not in (
                "http",
                "https",
                "mailto",
                "data",
            ):
                del tag[name]
    return str(soup)


def _plain(html: str) -> str:
    """The text of a piece of HTML, without formulas and the pilcrows of headings."""
    return " ".join(
        unescape(re.sub(r"<math.*?</math>|<[^>]+>|¶", " ", html, flags=re.DOTALL)).split()
    )


def _slim(png: str) -> str:
    """A base64 PNG with a palette of 256 colours: a third of the size, and a page of photographs
    stays light."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _formulas(markdown: str) -> str:
    """``$…$`` and ``$$…$$`` outside code as MathML, which browsers draw without a script."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)
    for number in range(0, len(parts), 2):
        text = re.sub(
            r"\$\$(.+?)\$\$",
            lambda m: mathml(m[1].strip(), display="block"),
            parts[number],
            flags=re.DOTALL,
        )
        parts[number] = re.sub(r"(?<![\\$])\$([^$\n]+?)\$", lambda m: mathml(m[1]), text)
    return "".join(parts)
