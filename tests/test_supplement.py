"""The supplement of a dataset as PDF: contents, page numbers, figures and tables within the page,
text that can be copied, fonts inside, nothing from outside."""

import base64
import io
import re
import shutil
import sys

import nbformat
import pytest
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as mathml
from matplotlib import pyplot as plt
from nbformat import v4

from kdnb import files
from kdnb.report import formulas, pages, rendering, supplement
from kdnb.report.__main__ import main

pypdf = pytest.importorskip("pypdf")
pytest.importorskip("weasyprint")
LARGEST = 8e6  # bytes
OUTPUTS = files.ROOT / "outputs"
RESULT = "distill-densenet121-kdfmv5-kd_fmv.json"
TEXT = r"""# 0NUMBER · Title NUMBER

Text with $\alpha_1$.

## Part A

$$L = \frac{\sum_k p_k}{N^2}$$"""


def figure(width, height):
    made = plt.figure(figsize=(width, height))
    made.gca().plot([0, 1])
    plt.close(made)
    return {"image/png": base64.b64encode(pages.png(made)).decode()}


def table(columns):
    names = "".join(f"<th>balanced_accuracy_{n}</th>" for n in range(columns))
    cells = "".join("<td>0.919 [0.886, 0.943]</td>" for _ in range(columns))
    body = f"<thead><tr><th></th>{names}</tr></thead><tr><th>teacher densenet121</th>{cells}</tr>"
    return {"text/html": f'<table class="dataframe">{body}</table>'}


def executed(number, *outputs):
    """A notebook with its outputs, as papermill leaves it."""
    shown = [v4.new_output("display_data", data=data) for data in outputs]
    shown.append(v4.new_output("stream", name="stdout", text="word " * 60 + "x" * 300))
    cells = [
        v4.new_markdown_cell(TEXT.replace("NUMBER", str(number))),
        v4.new_code_cell(f"first_{number} = 1  # a comment", outputs=shown),
        v4.new_code_cell("second = 2"),
    ]
    return v4.new_notebook(cells=cells)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A dataset of two notebooks, one of them under another split too, and its PDF."""
    folder = tmp_path_factory.mktemp("outputs") / "brain_tumor"
    wide, tall, small = figure(30, 3), figure(4, 40), figure(4, 3)
    notebooks = {
        "03_a.html": executed(3, wide, tall, table(3), table(14)),
        "04_b.html": executed(4, small),
        "official/03_a.html": executed(3, small),
    }
    for name, notebook in notebooks.items():
        source = folder.parent / "executed.ipynb"
        nbformat.write(notebook, source)
        rendering.render(source, folder / name, "Brain <Tumor>")
    shutil.copyfile(OUTPUTS / "brain_tumor" / RESULT, folder / RESULT)
    return pypdf.PdfReader(supplement.write(folder))


def placed(page):
    """Left, bottom, right and top of every figure of a page, in points."""
    found = []

    def visit(operator, operands, matrix, *_):
        if operator == b"Do":
            a, b, c, d, x, y = matrix
            corners = [(x, y), (x + a + c, y + b + d)]
            (left, right), (low, high) = (sorted(each) for each in zip(*corners, strict=True))
            found.append((left, low, right, high))

    page.extract_text(visitor_operand_before=visit)
    return found


def assert_within(reader):
    """Figures and the beginnings of texts lie inside the pages."""
    for number, page in enumerate(reader.pages, 1):
        width, height = float(page.mediabox.width), float(page.mediabox.height)
        for left, low, right, high in placed(page):
            inside = left >= 40 and low >= 40 and right <= width - 40 and high <= height - 40
            assert inside and right > left and high > low, f"page {number}: a figure is cut"


def pages_of(reader):
    """Title → page number, from 1, of every entry of the outline."""
    found = {}

    def walk(entries):
        for entry in entries:
            if isinstance(entry, list):
                walk(entry)
            else:
                found.setdefault(entry.title, reader.get_destination_page_number(entry) + 1)

    walk(reader.outline)
    return found


def test_the_contents_name_the_page_of_every_notebook(printed):
    known = pages_of(printed)
    text = printed.pages[1].extract_text()
    assert text.startswith("Contents") or "Contents" in text
    for title in (
        "03 · Title 3",
        "04 · Title 4",
        "03 · Title 3 (split official)",
        "Appendix: code",
    ):
        line = re.search(rf"^{re.escape(title)}\s*\.*\s*(\d+)$", text, re.MULTILINE)
        assert line and int(line[1]) == known[title], title
    assert len(set(known.values())) >= 4


def test_pages_are_numbered_and_have_running_heads(printed):
    count = len(printed.pages)
    assert 6 <= count <= 12
    for number, page in enumerate(printed.pages, 1):
        text = page.extract_text()
        assert f"{number} of {count}" in text and "Research use only" in text
    first = pages_of(printed)["04 · Title 4"]
    assert printed.pages[first - 1].extract_text().count("04 · Title 4") == 2  # head and title
    assert (
        "(split official)" in printed.pages[pages_of(printed)["Appendix: code"] - 2].extract_text()
    )


def test_no_figure_is_cut(printed):
    assert_within(printed)
    assert sum(len(placed(page)) for page in printed.pages) == 4


def test_no_text_leaves_the_page(printed, tmp_path):
    """Boxes of the layout end before the margin: wide tables and long lines are broken."""
    import weasyprint

    folder = tmp_path / "brain_tumor"
    nbformat.write(executed(3, table(14)), tmp_path / "x.ipynb")
    rendering.render(tmp_path / "x.ipynb", folder / "03_a.html")
    shutil.copyfile(OUTPUTS / "brain_tumor" / RESULT, folder / RESULT)
    document = weasyprint.HTML(string=supplement.html(folder)).render()
    seen = 0
    for page in document.pages:
        for box in page._page_box.descendants():
            if type(box).__name__ == "TextBox" and box.text.strip():
                assert box.position_x + box.width <= page.width - 40, box.text
                seen += 1
    assert seen > 100


def test_text_can_be_copied_and_code_is_an_appendix(printed):
    known, texts = pages_of(printed), [page.extract_text() for page in printed.pages]
    whole, code = "\n".join(texts), known["Appendix: code"] - 1
    assert "Text with" in whole and "α" in whole and "∑" in whole and "word word" in whole
    assert not any("first_3" in text for text in texts[:code])
    after = "\n".join(texts[code:])
    assert "first_3 = 1" in after and "first_4 = 1" in after and "second = 2" in after
    assert "Brain <Tumor>" in whole  # the caption of a figure


def test_the_cover_has_settings_and_citation(printed):
    text = printed.pages[0].extract_text()
    stored = files.read_json(OUTPUTS / "brain_tumor" / RESULT)
    for word in (stored["data"]["checksum"], "kd_fmv", "Ahmad Chaddad", "Nickparvar", "split"):
        assert word in text
    assert f"{stored['results']['distilled']['accuracy']:.3f}" in text
    links = [a.get_object()["/A"]["/URI"] for a in printed.pages[0]["/Annots"]]
    assert links == ["https://arxiv.org/abs/2502.15959"]
    inside = [a.get_object() for a in printed.pages[1]["/Annots"]]
    assert len(inside) >= 6 and all("/Dest" in a or a["/A"]["/S"] == "/GoTo" for a in inside)


def test_metadata_and_fonts_are_inside(printed):
    about = printed.metadata
    assert about.title == "Supplement: Brain Tumor MRI" and about.author == "The kdnb authors"
    assert "distillation" in about.keywords and about.creation_date
    assert printed.trailer["/Root"]["/Lang"] == "en" and printed.trailer["/Root"]["/MarkInfo"]
    fonts = {}
    for page in printed.pages:
        for font in page["/Resources"]["/Font"].values():
            (inner,) = font.get_object()["/DescendantFonts"]
            described = inner.get_object()["/FontDescriptor"]
            fonts[str(font.get_object()["/BaseFont"])] = any("FontFile" in key for key in described)
    assert len(fonts) >= 4 and all(fonts.values())
    assert all("kdnb" in name for name in fonts), "fonts of this package's style sheet alone"


def test_formulas_keep_their_order():
    soup = BeautifulSoup(mathml(r"\frac{a_1}{b^2} = \sqrt{c}"), "html.parser")
    formulas.as_html(soup)
    assert not soup.find("math")
    assert re.sub(r"\s", "", soup.get_text()) == "a1b2=√c"
    assert [tag.name for tag in soup.find_all(["sub", "sup"])] == ["sub", "sup"]


def test_what_is_missing_is_said(home, capsys, monkeypatch):
    assert main(["supplement", "brain_tumor"]) == 1
    assert "python -m kdnb.run -p dataset brain_tumor" in capsys.readouterr().err
    page = home / "outputs" / "brain_tumor" / "03_a.html"
    files.write_text(page, "<body><h1>x</h1></body>")
    shutil.copyfile(OUTPUTS / "brain_tumor" / RESULT, page.parent / RESULT)
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    assert main(["supplement", "brain_tumor"]) == 1
    assert "pip install 'kdnb[pdf]'" in capsys.readouterr().err
    assert main(["supplement", "brain_tumour"]) == 1
    assert "Did you mean 'brain_tumor'" in capsys.readouterr().err


def test_a_figure_from_elsewhere_is_refused(tmp_path):
    page = tmp_path / "brain_tumor" / "03_a.html"
    files.write_text(page, '<body><h1>x</h1><img src="https://example.org/x.png"></body>')
    shutil.copyfile(OUTPUTS / "brain_tumor" / RESULT, page.parent / RESULT)
    with pytest.raises(supplement.NotPrinted, match="outside itself"):
        supplement.html(page.parent)


@pytest.mark.slow
def test_the_supplement_of_a_published_dataset(tmp_path):
    """Every page and figure of outputs/brain_tumor, in a file that can be sent by mail."""
    folder = shutil.copytree(OUTPUTS / "brain_tumor", tmp_path / "brain_tumor")
    path = supplement.write(folder)
    reader = pypdf.PdfReader(io.BytesIO(path.read_bytes()))
    assert path.stat().st_size <= LARGEST
    assert_within(reader)
    figures = sum(p.read_text().count("<img") for p in folder.rglob("[0-9][0-9]_*.html"))
    assert sum(len(placed(page)) for page in reader.pages) == figures > 30
    titles = [title for title in pages_of(reader) if re.match(r"\d\d ·", title)]
    assert len(titles) == len(list(folder.rglob("[0-9][0-9]_*.html")))
    assert 30 < len(reader.pages) < 120
