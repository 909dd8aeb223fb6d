"""The package works from a wheel, installed where no repository is around it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdnb import files

IMPORT_ALL = """
import importlib, pkgutil, kdnb
from kdnb import files
names = [module.name for module in pkgutil.walk_packages(kdnb.__path__, "kdnb.")]
for name in names:
    importlib.import_module(name)
print(kdnb.__file__, files.ROOT, *names, sep="\\n")
"""


def pip(*arguments: object) -> None:
    """pip without a network: the build needs setuptools only, which is in the lock."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def contents(package: Path) -> set[str]:
    found = (path for path in package.rglob("*") if path.is_file())
    return {
        path.relative_to(package).as_posix() for path in found if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that the build leaves nothing in the repository
    unwanted = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(files.ROOT / "kdnb", source / "kdnb", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(files.ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()  # a second package, which must not be installed
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder / "dist", source)
    (wheel,) = (folder / "dist").glob("kdnb-*.whl")
    pip("install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


@pytest.fixture
def elsewhere(installed, home) -> dict:
    """Arguments of ``subprocess.run`` for a process that finds the installed copy first."""
    (home / "work").mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed), "KDNB_PROFILE": "smoke"}
    return dict(cwd=home / "work", env=environment, capture_output=True, text=True, timeout=500)


def test_the_wheel_holds_every_file_of_the_package(installed):
    assert contents(installed / "kdnb") == contents(files.ROOT / "kdnb")
    others = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert others == {"kdnb"}


def test_every_wing_and_module_of_the_wheel_is_imported(installed, elsewhere):
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], **elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    origin, root, *names = done.stdout.split()
    assert Path(origin) == installed / "kdnb" / "__init__.py"
    assert Path(root) == elsewhere["cwd"]
    modules = {path for path in contents(files.ROOT / "kdnb") if path.endswith(".py")}
    assert len(names) == len(modules) - 1 > 50  # the package itself is not among its modules


def test_a_notebook_runs_on_the_wheel(installed, elsewhere, folder, home):
    notebook = files.ROOT / "notebooks" / "01_data_prep.ipynb"
    shutil.copy(notebook, elsewhere["cwd"])
    command = [sys.executable, "-m", "papermill", notebook.name, "out.ipynb", "--no-progress-bar"]
    images = ["-p", "dataset", "folder", "-p", "data_root", str(folder)]
    done = subprocess.run([*command, *images], **elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = home.rglob("data.json")
    assert files.read_json(result)["results"]["counts"]
