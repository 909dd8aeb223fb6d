"""Result files with all they rest on, and pages that open without a network."""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from PIL import Image

from kdnb import data, files, provenance
from kdnb.report import pages, rendering, results
from kdnb.study import Study
from kdnb.training import loop


def page(home, *cells):
    executed = home / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), executed)
    return rendering.render(executed, home / "page.html").read_text()


def png():
    buffer = io.BytesIO()
    figure = plt.figure()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_page_needs_no_network_and_no_script(home):
    cell = nbformat.v4.new_code_cell("plot()")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"image/png": png()}),
        nbformat.v4.new_output("stream", name="stderr", text="100%|#####| 5/5"),
        nbformat.v4.new_output("stream", name="stdout", text="accuracy 0.9"),
    ]
    html = page(
        home, nbformat.v4.new_markdown_cell("# A *title*\n\n$a_b$ and $$x^2$$, but `$HOME`"), cell
    )
    assert "<script" not in html and not re.search(r"(?:src|href)=[\"']https?://", html)
    assert "<title>A title</title>" in html
    assert html.count("<math") == 2 and "$HOME" in html
    assert "data:image/webp;base64," in html and "accuracy 0.9" in html
    assert "5/5" not in html  # progress bars are for the one who waits
    assert "<details>" in html and "research use only" in html


def shown(address: str) -> bytes:
    """The file inside a ``data:`` address."""
    return base64.b64decode(address.partition(",")[2])


def test_figures_in_pages_are_small():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    slim = shown(pages.embedded(buffer.getvalue()))
    assert len(slim) < 0.5 * len(buffer.getvalue())
    assert Image.open(io.BytesIO(slim)).size == (200, 200)
    few = Image.fromarray(noise).quantize(256, Image.Quantize.MAXCOVERAGE).convert("RGB")
    assert np.array_equal(Image.open(io.BytesIO(slim)), few)  # nothing is lost but colours


def test_a_small_legend_keeps_its_colours_beside_pictures():
    """Blue that meant *missed* became the green of *found* beside the tints of a brain."""
    rng = np.random.default_rng(0)
    tints = rng.integers(0, 256, (300, 300, 1)) * [0.4, 1.0, 0.5]
    tints = tints + rng.integers(0, 9, (300, 300, 3))
    figure = tints.clip(0, 255).astype(np.uint8)
    legend = {(30, 100, 145): (290, 10), (213, 94, 0): (290, 30), (2, 158, 115): (290, 50)}
    for colour, (row, column) in legend.items():
        figure[row : row + 6, column : column + 12] = colour
    buffer = io.BytesIO()
    Image.fromarray(figure).save(buffer, "PNG")
    slim = shown(pages.embedded(buffer.getvalue()))
    seen = np.asarray(Image.open(io.BytesIO(slim)).convert("RGB"), int)
    for colour, (row, column) in legend.items():
        assert np.abs(seen[row + 3, column + 6] - colour).max() <= 8, colour
    assert np.abs(seen - figure).max() < 32


def test_a_result_file_holds_what_it_rests_on(folder, home):
    study = Study(dataset="folder", data_root=str(folder), seed=3)
    dataset = data.load("folder", folder)
    path = pages.save(study, dataset, "x", {"accuracy": 0.5})
    stored = files.read_json(path)
    assert path == home / "outputs" / "folder" / "x.json"
    assert stored["results"] == {"accuracy": 0.5} and stored["config"]["seed"] == 3
    assert (
        stored["config"] == study.config()
        and stored["training"] == loop.VERSION in results.BATCH_STATISTICS
    )
    assert stored["data"]["checksum"] == dataset.checksum and stored["wall_seconds"] >= 0
    found = stored["provenance"]
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?|unknown", found["commit"])
    assert (
        found["packages"].keys() >= {"torch", "timm", "accelerate", "kdnb"}
        and found["hardware"]["cores"] >= 1
    )


def test_the_commit_tells_when_code_was_changed(monkeypatch):
    assert provenance.collect()["commit"]
    monkeypatch.setattr(files, "ROOT", files.ROOT.parent / "nowhere")
    assert provenance._commit() == "unknown"
