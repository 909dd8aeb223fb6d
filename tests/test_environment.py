"""One list of dependencies, one lock, the same versions for pip and conda."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from kdnb.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
README = (ROOT / "README.md").read_text()
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; ([^\\]+))? \\$", re.MULTILINE)


def wanted() -> list[Requirement]:
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]


def asked_for() -> set[str]:
    """Packages that the lock says it holds because pyproject.toml asks for them."""
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)
    return {
        block.split("==")[0]
        for block in blocks
        if re.search(r"#.*\bkdnb \(pyproject\.toml\)", block)
    }


def locked() -> dict[str, str]:
    """Versions by package, for this Python and platform."""
    return {
        name: version
        for name, version, here in PIN.findall(LOCK)
        if not here or Marker(here).evaluate()
    }


def test_the_lock_is_up_to_date_with_pyproject():
    pins = locked()
    for requirement in wanted():
        assert requirement.name in pins, f"{requirement} is not locked: make lock"
        assert Version(pins[requirement.name]) in requirement.specifier, (
            f"{requirement} is locked otherwise: make lock"
        )
    assert asked_for() == {requirement.name for requirement in wanted()}, "make lock"


def test_every_pin_has_hashes_and_no_index_is_named():
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    for block in blocks:
        assert PIN.match(block) and "--hash=sha256:" in block, block[:80]
    assert "://" not in LOCK and "index-url" not in LOCK
    for path in (
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        ROOT / "environment.yml",
        ROOT / ".ci" / "run",
    ):
        assert "index-url" not in path.read_text() and "extra-index" not in path.read_text()


def test_the_lock_is_for_every_platform():
    """Universal: Windows and macOS have their own markers in it."""
    assert "sys_platform == 'win32'" in LOCK and "sys_platform == 'darwin'" in LOCK


def test_conda_takes_python_and_the_lock_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "kdnb" and environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert [name.split("=")[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.lock"]}  # -e . beside hashes fails


def test_continuous_integration_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in README and "make reproduce" in README


def test_readme_names_every_module_and_notebook():
    """A newcomer finds the right file by its name: a new module gets a room in README's table."""
    files = [
        file
        for folder in ("kdnb/*.py", "notebooks/*.ipynb")
        for file in ROOT.glob(folder)
        if file.stem != "__init__"
    ]
    assert len(files) > 40 and [file.stem for file in files if f"`{file.stem}`" not in README] == []


def test_a_module_imports_only_what_readme_lists_above_it():
    order = [
        name
        for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.MULTILINE)
        for name in re.findall(r"\w+", row)
    ]
    modules = [name for name in order if (ROOT / "kdnb" / f"{name}.py").exists()]
    assert len(modules) == len(set(modules)) > 40
    for number, name in enumerate(modules):
        tree = ast.parse((ROOT / "kdnb" / f"{name}.py").read_text())
        for node in (
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
        ):
            package, _, module = node.module.partition(".")
            used = {module} if module else {alias.name for alias in node.names}
            assert package != "kdnb" or not used & set(modules[number:]), (
                f"{name} imports {used & set(modules[number:])}"
            )


@pytest.mark.slow
def test_the_pip_section_of_conda_installs_what_the_lock_says(tmp_path):
    """Conda hands its pip section to pip as a file; the same is done here in a fresh environment."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = environment["dependencies"][-1]["pip"]
    file = ROOT / ".conda-pip-section.txt"  # relative paths in it count from its own folder
    python = tmp_path / "env" / "bin" / "python"
    try:
        file.write_text("\n".join(lines) + "\n")
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", file], check=True)
    finally:
        file.unlink(missing_ok=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", ROOT], check=True)
    frozen = subprocess.run(
        [python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True
    ).stdout
    installed = dict(re.findall(r"^([A-Za-z0-9._-]+)==(.+)$", frozen, flags=re.MULTILINE))
    installed = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed.items()
    }
    pins = locked()
    assert len(installed) > 100
    assert {name: version for name, version in installed.items() if pins.get(name) != version} == {}
    subprocess.run(
        [python, "-c", "import kdnb.training.loop, torchvision"], check=True, cwd=tmp_path
    )
