"""One list of dependencies, one lock, the same versions for pip and conda."""

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


def requirements() -> list[Requirement]:
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]


def requested() -> set[str]:
    """Packages that the lock attributes to pyproject.toml."""
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
    for requirement in requirements():
        assert requirement.name in pins, f"{requirement} is not locked: make lock"
        assert Version(pins[requirement.name]) in requirement.specifier, (
            f"the lock has another version of {requirement}: make lock"
        )
    assert requested() == {requirement.name for requirement in requirements()}, "make lock"


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
    """The lock is universal: it has markers for Windows and macOS."""
    assert "sys_platform == 'win32'" in LOCK and "sys_platform == 'darwin'" in LOCK


def test_the_conda_environment_is_python_and_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "kdnb" and environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert [name.split("=")[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.lock"]}  # pip refuses -e . beside hashes


def test_continuous_integration_runs_the_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in README and "make reproduce" in README


def test_readme_is_short_and_names_every_notebook():
    assert len(README.splitlines()) <= 150
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`{notebook.stem}`" in README


def test_links_of_the_documents_lead_to_files():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        links = re.findall(r"\]\(([^)#:\s]+)\)", text)
        missing = [link for link in links if not (ROOT / link).exists()]
        assert not missing, f"{document} links to {missing}"


@pytest.mark.slow
def test_the_pip_section_of_the_conda_environment_installs_the_lock(tmp_path):
    """Conda passes its pip section to pip as a file, and so does this test."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = environment["dependencies"][-1]["pip"]
    file = ROOT / ".conda-pip-section.txt"  # its relative paths start from its own folder
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
