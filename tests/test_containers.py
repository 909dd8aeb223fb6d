"""Files for Binder, Codespaces, Docker and GitHub: each calls the two commands that install, and
the one that tests."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from kdnb.files import ROOT

INSTALL = (
    "python -m pip install --require-hashes -r requirements.lock",
    "python -m pip install --no-deps -e .",
)
TEST = "python -m pytest -n2 --dist worksteal tests"
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
DEVCONTAINER = ROOT / ".devcontainer"


def checked(schema: str, path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_workflow_is_valid_and_a_broken_one_is_not(tmp_path):
    done = checked("vendor.github-workflows", ROOT / ".github" / "workflows" / "test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "test.yml"
    broken.write_text(yaml.safe_dump({**WORKFLOW, "jobs": {"test": {"run-on": "ubuntu-latest"}}}))
    assert checked("vendor.github-workflows", broken).returncode == 1


def test_the_workflow_covers_every_system_and_python_with_the_same_commands():
    test, lowest = WORKFLOW["jobs"]["test"], WORKFLOW["jobs"]["lowest"]
    assert {name.split("-")[0] for name in test["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "macos",
        "windows",
    }
    assert test["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    slow = ["python -m pip install uv", "python -m pytest -m slow tests/test_lowest.py"]
    for job, last in ((test, [TEST]), (lowest, slow)):
        assert [step["run"] for step in job["steps"] if "run" in step] == [*INSTALL, *last]
    assert (ROOT / "tests" / "test_lowest.py").exists()
    makefile = (ROOT / "Makefile").read_text()
    assert TEST.removeprefix("python ") in makefile  # what make test runs
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_binder_installs_the_environment_and_then_the_package():
    path = ROOT / "postBuild"
    first, *lines = path.read_text().splitlines()
    assert first == "#!/bin/bash" and os.access(path, os.X_OK)
    assert [line for line in lines if not line.startswith("#")] == [INSTALL[1]]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.lock"]}
    assert not (ROOT / "Dockerfile").exists(), "Binder would take it in place of environment.yml"


def test_the_container_of_an_editor_runs_the_two_commands():
    settings = json.loads((DEVCONTAINER / "devcontainer.json").read_text())
    assert settings["postCreateCommand"] == " && ".join(INSTALL)
    known = {"name", "image", "postCreateCommand", "forwardPorts", "hostRequirements"}
    assert settings.keys() == known | {"customizations"}
    assert settings["image"].endswith(":3.12")


def test_the_dockerfile_runs_the_two_commands_and_leaves_out_what_is_made():
    text = (DEVCONTAINER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "CMD"}
    assert {line.split()[0] for line in lines} == words
    runs = [line.removeprefix("RUN ").replace("--no-cache-dir ", "") for line in lines]
    assert [line for line in runs if " pip " in line] == list(INSTALL)
    assert json.loads(lines[-1].removeprefix("CMD "))[:2] == ["jupyter", "lab"]
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert ignored >= {".git", ".venv", "data", "cache", "weights"}


@pytest.mark.parametrize("name", ["README.md", "environment.yml"])
def test_documents_name_the_same_two_commands(name):
    text = re.sub(r"\s+", " ", (ROOT / name).read_text())
    assert "pip install --no-deps -e ." in text
