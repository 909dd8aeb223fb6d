"""The lower bounds of pyproject.toml are true: the lowest versions are installed and tried."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kdnb import extras
from kdnb.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# extras that these tests import
USED = ("detector", "export", "features", "medical", "pretrained", "ranking", "search")
UNIT_TESTS = (
    "test_evaluation.py", "test_methods.py", "test_models.py", "test_maps.py", "test_training.py",
    "test_onnx_export.py", "test_search.py", "test_leakage.py", "test_classical.py",
    "test_own_images.py", "test_extras.py",
)  # fmt: skip


def run(*command: object, **options) -> str:
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5400, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def uv() -> str:
    found = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    return found or pytest.skip("uv is not installed")


def test_installing_replaces_no_torch_that_is_new_enough():
    """pip keeps what satisfies a requirement, so that bounds are lower ones only; and torch and
    torchvision name neither an index nor a build."""
    base = [Requirement(text) for text in PROJECT["dependencies"]]
    late = [
        Requirement(text)
        for name in extras.EXTRAS.keys() - {"pretrained"}  # files, not code: pinned
        for text in PROJECT["optional-dependencies"][name]
    ]
    for requirement in base + late:
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement
        assert requirement.url is None and not requirement.marker
    assert {"torch", "torchvision"} <= {requirement.name for requirement in base}


@pytest.fixture(scope="module")
def lowest(tmp_path_factory) -> Path:
    """The interpreter of an environment with the lowest version of every direct dependency."""
    folder = tmp_path_factory.mktemp("lowest")
    wanted = [f"--extra={name}" for name in (*USED, "test")]
    pins = folder / "pins.txt"
    resolve = (uv(), "pip", "compile", "--quiet", "--resolution", "lowest-direct", *wanted)
    run(*resolve, "--python", sys.executable, ROOT / "pyproject.toml", "-o", pins)
    run(uv(), "venv", "--quiet", "--python", sys.executable, folder / "env")
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(uv(), "pip", "install", "--quiet", "--python", python, "-r", pins)
    run(uv(), "pip", "install", "--quiet", "--python", python, "--no-deps", "-e", ROOT)
    return python


@pytest.mark.slow
def test_the_unit_tests_pass_with_the_lowest_versions(lowest):
    tests = [ROOT / "tests" / name for name in UNIT_TESTS]
    out = run(lowest, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, cwd=ROOT)
    assert " passed" in out


@pytest.mark.slow
def test_a_notebook_runs_with_the_lowest_versions_where_no_repository_is_around(lowest, tmp_path):
    """Opened alone: it finds the installed package, and its folders lie beside it."""
    shutil.copytree(ROOT / "kdnb", tmp_path / "site" / "kdnb")  # as a wheel lays it down
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(ROOT / "notebooks" / "03_distill.ipynb", alone)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KDNB_")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "KDNB_PROFILE": "smoke"}
    run(lowest, "-m", "papermill", "03_distill.ipynb", "out.ipynb", cwd=alone, env=environment)
    assert list((alone / "cache" / "smoke").rglob("distill-*.json"))


@pytest.mark.slow
def test_installing_beside_the_lowest_torch_changes_only_this_package(lowest):
    """What a service with a torch of its own would do: add kdnb, leave torch and numpy."""
    plan = run(uv(), "pip", "install", "--dry-run", "--python", lowest, f"{ROOT}[export]")
    changes = [line.split()[1] for line in plan.splitlines() if line.strip()[:1] in "+-~" and line]
    assert {change.split("==")[0] for change in changes} == {"kdnb"}, plan
