"""Controls in a running JupyterLab, moved in a real browser."""

import chromium
import nbformat
import pytest
from test_notebooks import served

from kdnb import files

APP = "window.jupyterapp"
# a page that was never clicked has no current widget, but its notebook is there
PANEL = f"[...{APP}.shell.widgets('main')][0]"
PICTURE = "[...document.querySelectorAll('.jupyter-widgets img')].map((i) => i.src).at(-1)"


def opened(page, address, name):
    """Open a notebook in JupyterLab and run all its cells; returns as soon as they are sent."""
    url, token = address
    page.look(1400, 1000)
    page.open(f"{url}/doc/tree/{name}?token={token}&reset")
    page.wait(f"!!{APP}?.shell && !!{PANEL}?.context?.isReady")
    page.wait(f"{PANEL}.sessionContext.session?.kernel?.status == 'idle'")
    page.run(f"{APP}.shell.activateById({PANEL}.id)")
    page.run(f"void {APP}.commands.execute('notebook:run-all-cells')")


def shorten(name, last, folder):
    """A copy of a notebook up to the cell with some text."""
    notebook = nbformat.read(files.ROOT / "notebooks" / name, as_version=4)
    (end,) = [n for n, cell in enumerate(notebook.cells) if last in cell.source]
    notebook.cells = notebook.cells[: end + 1]
    folder.mkdir()
    nbformat.write(notebook, folder / name)
    return end


@pytest.mark.slow
def test_a_slider_moves_the_figure(home):
    """03 on phantoms: the key → on the slider of the temperature changes the picture below it."""
    pytest.importorskip("ipywidgets", reason="no ipywidgets here: pip install -e .[widgets]")
    end = shorten("03_distill.ipynb", "explore_targets", home / "work")
    options = ("--LabApp.expose_app_in_browser=True",)
    with chromium.page() as page, served(home, home / "work", *options) as address:
        opened(page, address, "03_distill.ipynb")
        content = f"{PANEL}.content"
        page.wait(f"{content}.widgets[{end}].model.outputs.length", 500)
        page.run(f"void {content}.scrollToItem({end})")
        before = page.wait(PICTURE)
        page.run("[...document.querySelectorAll('.noUi-handle')].at(-1).focus()")
        page.key("ArrowRight", 39)
        after = page.wait(f"{PICTURE} != {before!r} && {PICTURE}")
        assert before.startswith("data:image/png;base64,") and after.startswith("data:image/png")
        page.wait("document.body.innerText.includes('4.50')", 20)
