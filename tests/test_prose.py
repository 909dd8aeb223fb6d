"""The prose of notebooks: exercises that can be run as printed, and words that the project uses."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys

import nbformat
import pytest

from kdnb import cells, files, parameters
from kdnb.distillation import METHODS
from kdnb.study import Study

# former words for concepts that have a standard term
FORMER = r"lone student|− alone|\b(?:families|signatures?|planted|likeness|chances|what is paid)\b"


def markdown(path) -> list[str]:
    stored = nbformat.read(path, as_version=4)
    return [cell.source for cell in stored.cells if cell.cell_type == "markdown"]


def commands(text: str) -> list[list[str]]:
    """The shell words of each papermill command in a text."""
    return [shlex.split(line) for line in re.findall(r"^\s*(papermill .+)$", text, re.MULTILINE)]


def value(text: str) -> object:
    """A ``-p`` value as papermill reads it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def options(words: list[str]) -> dict[str, object]:
    """The parameters of a command by name."""
    found = [n for n, word in enumerate(words) if word in ("-p", "-r")]
    return {words[n + 1]: value(words[n + 2]) for n in found}


def refuse_unknown(words: list[str]) -> None:
    """Raise unless the notebook of a command takes each parameter with its value."""
    stored = nbformat.read(files.ROOT / "notebooks" / words[1], as_version=4)
    taken = cells.taken(stored)
    for name in options(words):
        files.lookup(name, taken, "parameter")
    Study.of(*cells.WINGS).from_parameters(options(words))


@pytest.mark.parametrize("path", cells.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_ends_with_two_exercises_that_can_be_run(path):
    stored = nbformat.read(path, as_version=4)
    last = stored.cells[-1]
    assert last.cell_type == "markdown" and last.source.startswith("## Exercises")
    exercises = re.findall(r"^\d\. .*\?$", last.source, re.MULTILINE)
    assert len(exercises) == len(commands(last.source)) == 2, "two questions, two commands"
    for words in commands(last.source):
        assert words[2] == "out.ipynb" and options(words)
        refuse_unknown(words)


EXERCISES = sorted(
    {shlex.join(words) for path in cells.notebooks() for words in commands(markdown(path)[-1])}
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, str]:
    """Folders that all exercises share, so that networks are trained once."""
    folder = tmp_path_factory.mktemp("exercises")
    names = ("KDNB_DATA", "KDNB_CACHE", "KDNB_OUTPUTS", "KDNB_WEIGHTS")
    return {name: str(folder / name) for name in names} | {"KDNB_PROFILE": "smoke"}


@pytest.mark.slow
@pytest.mark.parametrize("command", EXERCISES)
def test_an_exercise_runs_as_printed(command, shared, tmp_path):
    words = shlex.split(command.replace("out.ipynb", str(tmp_path / "out.ipynb")))
    done = subprocess.run(
        [sys.executable, "-m", *words, "--no-progress-bar"],
        cwd=files.ROOT / "notebooks",
        env=os.environ | shared,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_command_with_an_unknown_parameter_is_refused():
    for line in ("-p studnet ofa595", "-p latency_budget_ms 5", "-p student ofa5950"):
        words = shlex.split(f"papermill 03_distill.ipynb out.ipynb {line}")
        with pytest.raises(files.UnknownName):
            refuse_unknown(words)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "notebooks/00_start_here.ipynb"])
def test_commands_of_the_documents_name_parameters_that_exist(name):
    path = files.ROOT / name
    text = "\n".join(markdown(path)) if path.suffix == ".ipynb" else path.read_text()
    text = re.sub(r"`(papermill [^`\n]+)`", r"\n\1\n", text)
    assert commands(text)
    for words in commands(text):
        refuse_unknown(words)


def test_every_option_in_prose_is_a_parameter():
    options = {name for method in METHODS.values() for name in parameters.declared(method.Options)}
    for path in [files.ROOT / "README.md", *cells.notebooks()]:
        text = "\n".join(markdown(path)) if path.suffix == ".ipynb" else path.read_text()
        named = set(re.findall(r"-p ([a-z]\w+)", text))
        assert named <= {*cells.declared(), *options}, path.name


@pytest.mark.parametrize("path", cells.notebooks(), ids=lambda path: path.stem)
def test_titles_state_the_topic(path):
    """Short noun phrases; a question belongs in the text below the title."""
    titles = re.findall(r"^##? (.+)$", "\n".join(markdown(path)), re.MULTILINE)
    assert len(titles) > 3
    for title in titles:
        assert not title.endswith("?") and len(title) <= 60, title


def test_the_standard_term_is_used():
    documents = [files.ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    for path in [*documents, *cells.notebooks()]:
        text = "\n".join(markdown(path)) if path.suffix == ".ipynb" else path.read_text()
        text = re.sub(r"<!-- results -->.*?<!-- /results -->", "", text, flags=re.DOTALL)
        found = re.findall(FORMER, re.sub(r"`[^`\n]*`", "", text))
        assert not found, f"{path.name}: {found}"


def test_markdown_is_stored_line_by_line():
    """One line of prose is one line of the file, so that a change can be read in a diff."""
    for path in cells.notebooks():
        for cell in json.loads(path.read_text())["cells"]:
            assert isinstance(cell["source"], list)
