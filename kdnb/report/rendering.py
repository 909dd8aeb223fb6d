"""Executed notebooks as pages that open without a network.

Apart from :mod:`kdnb.report.pages`, because nbconvert and nbformat take seconds to import and a
notebook that saves its results needs neither.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters import Highlight2HTML
from pygments.formatters import HtmlFormatter

from kdnb import files
from kdnb.report import pages


def render(executed: Path, page: Path, about: str = "") -> Path:
    """Write an executed notebook as one HTML file: figures inside, code folded, formulas as MathML,
    no script, nothing from the network. Returns ``page``.

    ``about``, the name of the images, becomes the caption of every figure.
    """
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _formulas(cell.source)
        else:
            _clean(cell)
    title = re.sub(r"[#*`]", "", notebook.cells[0].source.splitlines()[0]).strip()
    exporter = HTMLExporter(
        template_file="nbconvert.html.j2",
        extra_loaders=[pages.TEMPLATES.loader],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="python"))
    body, _ = exporter.from_notebook_node(notebook)
    values = {
        "title": title,
        "highlight": HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        "body": pages.describe(pages.harmless(body), about),
        "source": executed.name,
    }
    return files.write_text(page, pages.fill("notebook.html.j2", **values))


def _clean(cell: nbformat.NotebookNode) -> None:
    """Take the progress bars (stderr) out of a code cell, and make its figures small."""
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            # as HTML, because nbconvert knows no WebP
            address = pages.embedded(base64.b64decode(output.data["image/png"]))
            output.data = {"text/html": f'<img src="{address}">'}


def _formulas(markdown: str) -> str:
    """``$…$`` and ``$$…$$`` outside code as MathML, which browsers show without a script."""
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
