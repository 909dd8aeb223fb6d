"""Every notebook as JupyterLab executes it: twice in one kernel, with a parameter changed."""

import os

import nbformat
import pytest
from conftest import FOLDERS, lend
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.parameterize import parameterize_notebook

from kdnb import cells, files, kernels

NOTEBOOKS = {path.stem[:2]: path for path in cells.notebooks()}
# what a reader changes before the second pass, cheap to compute again
CHANGED = {
    "01": {"image_size": 48},
    "02": {"lr": 0.002},
    "03": {"alpha": 0.25},
    "04": {"explained": 5},
    "05": {"explained": 5},
    "06": {"method": "kd_fmv"},
    "07": {"generations": 1},
    "08": {"audit_epochs": 2},
    "10": {"methods": "dist"},
    "11": {"label_shares": "0.5"},
    "12": {"features": "fft+wavelets"},
    "13": {"weighting": "equal"},
    "14": {"tune": "probe+all"},
}
LONG = ("04", "07", "10", "11", "12", "13", "14")  # their second pass takes a minute or more


@pytest.fixture(scope="module")
def lab(tmp_path_factory, shared_phantoms):
    """One cache for all notebooks, so that a network is trained once."""
    home = tmp_path_factory.mktemp("lab")
    lend(shared_phantoms, home / "cache")
    chosen = {name: str(home / name.removeprefix("KDNB_").lower()) for name in FOLDERS}
    before = dict(os.environ)
    os.environ.update(chosen)
    with kernels.own_kernel():
        yield home
    os.environ.clear()
    os.environ.update(before)


class Kernel:
    """A notebook that is open in a kernel."""

    def __init__(self, path):
        self.notebook = nbformat.read(path, as_version=4)
        self.client = NotebookClient(
            self.notebook,
            timeout=580,
            kernel_name=kernels.NAME,
            resources={"metadata": {"path": str(path.parent)}},
        )

    def run(self, cell):
        """Execute one cell, which need not be one of the notebook's."""
        if cell not in self.notebook.cells:
            self.notebook.cells.append(cell)
        return self.client.execute_cell(cell, self.notebook.cells.index(cell))

    def execute(self, source):
        """Execute code in a cell of its own and return the text it prints or shows."""
        return text_of(self.run(nbformat.v4.new_code_cell(source)))

    def run_all(self):
        """Execute all code cells in order, as *Run All Cells* does."""
        for cell in list(self.notebook.cells):
            if cell.cell_type == "code":
                self.run(cell)

    def study_cell(self):
        """The cell that turns the parameters into a study."""
        return next(cell for cell in self.notebook.cells if "Study.from_notebook" in cell.source)


def text_of(cell):
    return "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


def with_values(source, values):
    """A parameters cell in which a reader has changed some values."""
    lines = source.splitlines()
    for name, value in values.items():
        lines = [line for line in lines if not line.startswith(f"{name} =")]
        lines.append(f"{name} = {value!r}")
    return "\n".join(lines)


def injected(kernel, **values):
    """The cell that papermill would add for ``-p``."""
    kernel.client.nb.metadata.setdefault("papermill", nbformat.NotebookNode())
    for cell in kernel.client.nb.cells:
        cell.metadata.setdefault("tags", [])  # as papermill does for every cell it reads
    notebook = parameterize_notebook(kernel.client.nb, values)
    return next(c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))


@pytest.fixture
def opened(request, lab, monkeypatch):
    """The kernel of a notebook at smoke size, its parameters cell with small networks, and the
    output of its checked cell."""
    monkeypatch.setenv("KDNB_PROFILE", "smoke")
    kernel = Kernel(NOTEBOOKS[request.param])
    parameters = cells.cell(kernel.notebook)
    stored = next(c for c in kernel.notebook.cells if "keep_output" in c.metadata.get("tags", []))
    facts = text_of(stored)
    taken = cells.taken(kernel.notebook)
    cheap = {"teacher": "resnet10t", "encoder": "resnet10t", "image_size": 32}
    if not request.node.get_closest_marker("slow"):
        cheap["runtime"] = "eager"  # 07 exports each of 90 blocks otherwise
    cheap = {name: value for name, value in cheap.items() if name in taken}
    parameters.source = with_values(parameters.source, cheap)
    with kernel.client.setup_kernel():
        kernel.run_all()
        assert text_of(stored) == facts, "the checked facts changed"
        yield request.param, kernel, parameters


@pytest.mark.parametrize("opened", LONG, indirect=True)
def test_a_long_notebook_runs_and_takes_its_parameters(opened):
    number, kernel, parameters = opened
    papermill_passes_what_the_notebook_takes(kernel, parameters)
    parameters.source = with_values(parameters.source, CHANGED[number])
    kernel.run(parameters)
    kernel.run(kernel.study_cell())
    assert_shown(kernel, CHANGED[number])


@pytest.mark.parametrize(
    "opened",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in NOTEBOOKS],
    indirect=True,
)
def test_a_notebook_runs_twice_in_one_kernel(opened):
    number, kernel, parameters = opened
    # variables of one's own, some of them named like parameters that the cell does not show
    kernel.execute("my_images = [1, 2]; labels = 3; tune_epochs = 'mine'; lr_of_mine = None")
    changed = CHANGED.get(number, {})
    parameters.source = with_values("own_root = 'x'\n" + parameters.source, changed)
    parameters.source = with_mark_first(parameters.source)
    kernel.run_all()
    study = assert_shown(kernel, changed)
    assert "own_root" not in study and "tune_epochs" not in study.replace("tune_epochs  ", "")
    papermill_passes_what_the_notebook_takes(kernel, parameters)


def assert_shown(kernel, changed):
    """The study that the notebook prints has the changed values; returns what it prints."""
    study = text_of(kernel.study_cell())
    for name, value in changed.items():
        assert f"{name:17} {value}" in study
    return study


def with_mark_first(source):
    """The cell's first lines stay first when a reader adds a variable below it."""
    lines = source.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    return "\n".join([*comments, *(line for line in lines if line not in comments)])


def papermill_passes_what_the_notebook_takes(kernel, parameters):
    """A parameter outside the cell arrives, and a wrong one stops with the nearest match."""
    taken = cells.taken(kernel.notebook)
    kernel.run(parameters)
    name, value = ("seed", 7) if "seed" in taken else ("image_size", 40)
    kernel.run(injected(kernel, **{name: value}))
    kernel.run(kernel.study_cell())
    assert kernel.execute(f"study.{name}") == str(value)

    kernel.run(parameters)
    kernel.run(injected(kernel, porfile="smoke"))
    with pytest.raises(CellExecutionError, match="Did you mean 'profile'"):
        kernel.run(kernel.study_cell())
    (error,) = [o for o in kernel.study_cell().outputs if o.output_type == "error"]
    assert error.ename == "UnknownName" and error.evalue.startswith("unknown parameter 'porfile'")
    assert len(error.traceback) <= 4 and "File" not in "".join(error.traceback)
    trace = kernel_trace(kernel)
    assert "from_notebook" in trace and "UnknownName" in trace


def kernel_trace(kernel):
    """The whole trace of the last error, on request."""
    cell = nbformat.v4.new_code_cell("%env KDNB_TRACEBACK=1\n%tb")
    kernel.run(cell)
    return "".join(
        line for o in cell.outputs for line in [o.get("text", ""), *o.get("traceback", [])]
    )


def test_what_cannot_work_is_refused_before_anything_is_trained(lab, monkeypatch):
    monkeypatch.setenv("KDNB_PROFILE", "smoke")
    kernel = Kernel(NOTEBOOKS["04"])
    with kernel.client.setup_kernel():
        kernel.run(cells.cell(kernel.notebook))
        kernel.run(injected(kernel, image="nowhere.png"))
        with pytest.raises(CellExecutionError, match="there is no file .*nowhere.png"):
            kernel.run(kernel.study_cell())

        kernel.run(cells.cell(kernel.notebook))
        kernel.run(injected(kernel, teacher="visformer_small", image_size=65))
        with pytest.raises(CellExecutionError, match="visformer_small cannot take images of 65 px"):
            kernel.run(kernel.study_cell())
    runs = files.cache_dir() / "runs"
    assert not any(path.name.startswith("densenet121") for path in runs.rglob("*"))
