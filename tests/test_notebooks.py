"""The contract of a notebook, and notebooks run the ways their readers run them."""

import ast
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
import pytest
import requests
import websocket
from conftest import number_of, paint
from test_index import covid_tree

from kdnb import cells, files, kernels, parameters, run
from kdnb.deployment import recipe
from kdnb.notebook import SERVICE, assigned
from kdnb.study import Study

NOTEBOOKS = run.notebooks()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def checked(notebook):
    return [
        cell for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.metadata.get("tags", [])
    ]


def test_metadata_is_clean(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "kdnb"}
    assert notebook.metadata.kernelspec.name == "python3" and dict(
        notebook.metadata.language_info
    ) == {"name": "python"}
    assert {"smoke", "quick"} <= notebook.metadata.kdnb.seconds.keys()
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}


def test_only_the_checked_cell_has_outputs(notebook):
    (cell,) = checked(notebook)
    assert "# NBVAL_CHECK_OUTPUT" in cell.source and "keep_output" in cell.metadata.tags
    assert cell.execution_count  # nbval passes over a cell that seems never to have run
    assert {(output.output_type, output.get("name")) for output in cell.outputs} == {
        ("stream", "stdout")
    }
    text = "".join(output.text for output in cell.outputs)
    assert len(text.split()) > 10 and any(c.isdigit() for c in text)
    assert " at 0x" not in text and str(files.ROOT) not in text
    for other in notebook.cells:
        if other.cell_type == "code":
            assert other is cell or not other.outputs


def test_it_opens_with_title_parameters_and_study(notebook):
    first, second, third = notebook.cells[:3]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert (
        "aper" in first.source
        and ("writes" in first.source)
        and ("second" in first.source or "minute" in first.source)
    )
    assert second.metadata.tags == ["parameters"]
    assert "Study.from_notebook(" in third.source


def test_its_parameters_cell_is_written_from_the_declarations(notebook):
    source = cells.cell(notebook).source
    shown = list(assigned(source))
    assert source == cells.written(shown), "run python -m kdnb.cells"
    assert "profile" in shown and len(shown) <= 13
    # a group of which the cell shows nothing is not taken: what trains shows its teacher
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    trains = ("training.train", "training.trio", "segmentation.train")
    assert ("lr" in cells.taken(notebook)) == any(call in code for call in trains)


def test_it_asks_for_the_wings_whose_parameters_its_cell_shows(notebook):
    taken = set(cells.taken(notebook))
    for wing in cells.WINGS:
        shown = taken >= parameters.declared(wing).keys()
        assert (f".{wing.__name__}" in notebook.cells[2].source) == shown, wing


def test_it_is_short(notebook):
    assert len(notebook.cells) <= 30
    whole = Path(recipe.__file__).read_text()
    for cell in notebook.cells:
        # 06 repeats the file that travels with every exported network, whole
        if cell.cell_type == "code" and cell.source.strip() not in whole:
            lines = [line for line in cell.source.splitlines() if not line.startswith(SERVICE)]
            assert len(lines) <= 15 and max(map(len, lines)) <= 100, cell.source
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ClassDef | ast.While)
                assert not isinstance(node, ast.FunctionDef) or len(node.body) <= 4


def test_it_asserts_and_writes(notebook):
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    saves = ("report.save", "ledger.save", "files.write_json")
    assert "assert " in code and any(save in code for save in saves) and "report.written" in code


def as_typed(*arguments, home, **environment):
    """A command line as a user types it in ``notebooks/``."""
    return subprocess.run(
        [sys.executable, "-m", "papermill", *arguments],
        cwd=files.ROOT / "notebooks",
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=580,
    )


def test_papermill_as_typed(home):
    """papermill 03_distill.ipynb out.ipynb -p dataset covid_qu_ex, with KDNB_DATA set."""
    covid_tree(home / "data" / "covid_qu_ex")
    out = home / "out.ipynb"
    done = as_typed(
        "03_distill.ipynb",
        str(out),
        "-p",
        "dataset",
        "covid_qu_ex",
        "-p",
        "teacher",
        "resnet10t",
        "-p",
        "student",
        "ofa595",
        home=home,
        KDNB_PROFILE="smoke",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = files.read_json(
        home / "cache" / "smoke" / "covid_qu_ex" / "distill-resnet10t-ofa595-hybrid.json"
    )
    assert results["config"]["student"] == "ofa595" and results["data"]["images"] == 54
    assert "stand-in" in results["data"]["title"]
    assert {"commit", "packages", "hardware", "time"} <= results["provenance"].keys()
    assert out.exists()


def test_papermill_with_a_mistake_fails_at_once_and_says_why(home):
    arguments = ("-p", "datset", "covid_qu_ex")
    done = as_typed("01_data_prep.ipynb", str(home / "out.ipynb"), *arguments, home=home)
    assert done.returncode == 1
    assert "unknown parameter 'datset'. Did you mean 'dataset'?" in done.stderr


@pytest.mark.parametrize(
    "parameters",
    [
        {"student": "kdfmv5", "augment": True, "teacher": "resnet10t+resnet14t"},
        {"student": "resnet10t", "method": "kd_fmv", "augment": False, "temperature": 2.0},
    ],
    ids=lambda p: p["student"],
)
def test_runs_with_two_sets_of_parameters(folder, home, parameters):
    """Classes that grey level tells apart: every network must find them on images it never saw."""
    fixed = {
        "dataset": "folder",
        "data_root": str(folder),
        "teacher": "resnet10t",
        "image_size": 32,
        "teacher_epochs": 8,
        "student_epochs": 8,
        "lr": 0.003,
        "batch_size": 16,
    }
    with kernels.own_kernel() as kernel:
        papermill.execute_notebook(
            files.ROOT / "notebooks" / "03_distill.ipynb",
            home / "out.ipynb",
            fixed | parameters,
            cwd=files.ROOT / "notebooks",
            kernel_name=kernel,
            progress_bar=False,
        )
    (path,) = (home / "outputs" / "folder").glob("distill-*.json")
    stored = json.loads(path.read_text())
    assert stored["config"].items() >= (fixed | parameters).items()
    for role in ("teacher", "distilled", "alone"):
        score = stored["results"][role]
        assert score["accuracy"] == pytest.approx(1.0, abs=0.12)
        assert score["n"] == 27 and sum(
            score["confusion"][k][k] for k in range(3)
        ) == pytest.approx(27 * score["accuracy"])
    gain = stored["results"]["distilled"]["accuracy"] - stored["results"]["alone"]["accuracy"]
    assert stored["results"]["distilled_minus_alone"]["difference"] == pytest.approx(gain)
    assert stored["results"]["soft_targets"] == (
        "batch by batch" if parameters["augment"] else "cached"
    )
    # several teachers are scored as the student knows them: together
    assert ("<th>teachers averaged</th>" in (home / "out.ipynb").read_text()) == (
        "teacher" in parameters
    )


def test_the_runner_passes_each_notebook_what_it_takes_and_renders(home, monkeypatch, capsys):
    """The kernel is that of this interpreter, also where a ``python3`` kernel is another's."""
    elsewhere = home / "jupyter" / "kernels" / "python3" / "kernel.json"
    argv = ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    files.write_json(elsewhere, {"argv": argv, "display_name": "Python 3", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(home / "jupyter"))
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            paint(
                home / "two" / split / "ab"[number % 2] / f"{number}.png", number_of(split, number)
            )
    assert (
        run.main(
            [
                "01",
                "-p",
                "dataset",
                "folder",
                "-p",
                "data_root",
                str(home / "two"),
                "-p",
                "student",
                "ofa595",
            ]
        )
        == 0
    )
    page = (home / "outputs" / "folder" / "01_data_prep.html").read_text()
    assert "Your own images" in page and "data:image/webp;base64" in page
    printed = capsys.readouterr().out
    assert "[1/1] 01_data_prep on folder, profile quick: about" in printed and "wrote" in printed
    assert os.environ["JUPYTER_PATH"] == str(home / "jupyter")


def test_the_help_of_the_runner_lists_every_parameter(capsys):
    with pytest.raises(SystemExit):
        run.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} = " in printed for name in cells.declared())


def test_the_runner_refuses_a_mistake_before_it_starts(home, capsys):
    assert run.main(["-p", "studnet", "ofa595"]) == 1
    assert "Did you mean 'student'?" in capsys.readouterr().err
    assert run.main(["99"]) == 1


def test_time_left_follows_the_speed_of_this_machine(home):
    """A machine that was three times as slow so far is expected to stay so; a notebook that ran
    before takes what it took."""
    first, second = NOTEBOOKS[1:3]
    timings = run._Timings(Study.of(*cells.WINGS)())
    stated = {path: timings.expected(path) for path in (first, second)}
    timings.note(first, 3 * stated[first])
    again = run._Timings(Study.of(*cells.WINGS)())
    assert again.expected(first) == pytest.approx(3 * stated[first])
    assert again.expected(second) == pytest.approx(3 * stated[second])


def test_a_failing_notebook_stops_the_series(home, capsys):
    assert run.main(["01", "02", "-p", "dataset", "eye_disease"]) == 1
    printed = capsys.readouterr()
    assert "01_data_prep failed" in printed.err and "DatasetMissing" in printed.err
    assert "kaggle.com/datasets/" in printed.err
    assert "[2/2]" not in printed.out


@contextmanager
def served(home, folder, *options):
    """The address and token of a JupyterLab server over ``folder``, as ``jupyter lab`` starts it,
    on a free port."""
    runtime = home / "runtime"
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "KDNB_PROFILE": "smoke",
        "PYTHONPATH": str(files.ROOT),
    }
    fixed = ("--no-browser", "--allow-root", "--ServerApp.port=0")
    command = [sys.executable, "-m", "jupyterlab", *fixed, *options]
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(480):
            found = list(runtime.glob("jpserver-*.json"))
            if found and found[0].stat().st_size:
                break
            assert server.poll() is None, (home / "lab.log").read_text()
            time.sleep(0.25)
        facts = json.loads(found[0].read_text())
        yield facts["url"].rstrip("/"), facts["token"]
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture
def lab(home):
    with served(home, files.ROOT) as address:
        yield address


def test_jupyterlab_executes_start_here_through_its_api(lab):
    url, token = lab
    session = requests.Session()
    session.headers["Authorization"] = f"token {token}"
    assert session.get(f"{url}/lab").status_code == 200
    content = session.get(f"{url}/api/contents/notebooks/00_start_here.ipynb").json()["content"]
    kernel = session.post(
        f"{url}/api/sessions",
        json={
            "path": "notebooks/00_start_here.ipynb",
            "name": "start",
            "type": "notebook",
            "kernel": {"name": "python3"},
        },
    ).json()["kernel"]["id"]
    socket = websocket.create_connection(
        f"{url.replace('http', 'ws')}/api/kernels/{kernel}/channels",
        header=[f"Authorization: token {token}"],
        timeout=240,
    )
    figures = 0
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            figures += sum(
                "image/png" in reply.get("data", {}) for reply in execute(socket, cell["source"])
            )
    socket.close()
    assert figures >= 2


def execute(socket, code):
    """Send one cell and return what it shows; an error in it fails the test."""
    identity = uuid.uuid4().hex
    header = {
        "msg_id": identity,
        "msg_type": "execute_request",
        "username": "test",
        "session": "test",
        "version": "5.3",
        "date": "2025-01-01T00:00:00Z",
    }
    content = {
        "code": code,
        "silent": False,
        "store_history": True,
        "allow_stdin": False,
        "stop_on_error": True,
    }
    socket.send(
        json.dumps(
            {
                "header": header,
                "parent_header": {},
                "metadata": {},
                "content": content,
                "channel": "shell",
            }
        )
    )
    shown = []
    while True:
        reply = json.loads(socket.recv())
        if reply["parent_header"].get("msg_id") != identity:
            continue
        kind, content = reply["header"]["msg_type"], reply["content"]
        assert kind != "error", "\n".join(content.get("traceback", []))
        if kind in ("display_data", "execute_result"):
            shown.append(content)
        if kind == "status" and content["execution_state"] == "idle":
            return shown
