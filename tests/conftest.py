"""Shared fixtures: each test has its own folders, and its images are drawn when it runs."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb import data
from kdnb.images import index, phantoms
from kdnb.images.catalogue import DATASETS
from kdnb.leakage import detector
from kdnb.study import Study
from kdnb.training import loop

REAL = os.environ.get("KDNB_DATA")
FOLDERS = ("KDNB_DATA", "KDNB_CACHE", "KDNB_OUTPUTS", "KDNB_WEIGHTS")


@pytest.fixture(autouse=True)
def own_profile(monkeypatch):
    """make test sets KDNB_PROFILE for the notebooks; unit tests choose their own profile."""
    monkeypatch.delenv("KDNB_PROFILE", raising=False)


@pytest.fixture(scope="session")
def shared_phantoms(tmp_path_factory) -> Path:
    """Where each phantom dataset is drawn, and its files are indexed, by the first test of any
    process that needs it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "phantoms"
    for name in (*phantoms.DRAWINGS, "index"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


def lend(phantom_sets: Path, cache: Path) -> None:
    """Link the phantoms, and the index of files, into a cache of its own."""
    cache.mkdir(exist_ok=True)
    for folder in phantom_sets.iterdir():
        if folder.is_dir():
            (cache / folder.name).symlink_to(folder)


@pytest.fixture
def home(tmp_path, monkeypatch, shared_phantoms) -> Path:
    """Empty data, outputs and weights folders below a temporary one, and a cache with phantoms."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name.removeprefix("KDNB_").lower()))
    (tmp_path / "data").mkdir()
    lend(shared_phantoms, tmp_path / "cache")
    return tmp_path


@pytest.fixture
def few_phantoms(home, monkeypatch) -> dict[str, int]:
    """Phantom datasets of a few images a class, drawn in the test's own cache; images by split."""
    for name in phantoms.DRAWINGS:
        (home / "cache" / name).unlink()
    monkeypatch.setattr(phantoms, "PER_CLASS", {"Train": 8, "Val": 3, "Test": 2})
    return phantoms.PER_CLASS


@pytest.fixture
def real(home, monkeypatch) -> Path:
    """The folder of the real datasets; caches belong to the test."""
    if not REAL:
        pytest.skip("KDNB_DATA is not set, so there are no real images")
    monkeypatch.setenv("KDNB_DATA", REAL)
    return Path(REAL)


def number_of(*parts: object) -> int:
    """A seed derived from names, equal in every process (unlike ``hash`` of a string)."""
    return zlib.crc32(repr(parts).encode())


def paint(path: Path, seed: int, level: int | None = None, size: int = 40, mode: str = "L") -> Path:
    """Draw a noise image unique to ``seed``; its mean grey ``level`` identifies the class."""
    rng = np.random.default_rng(seed)
    shape = (size, size) if mode == "L" else (size, size, 3)
    values = rng.integers(0, 60, shape) + (rng.integers(0, 190) if level is None else level)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return path


def paint_folder(root: Path) -> Path:
    """Draw a ``<split>/<class>/*`` tree of three classes that differ in grey level.

    Each class has 24, 9 and 9 images in train, val and test.
    """
    seed = 0
    for split, count in (("train", 24), ("val", 9), ("test", 9)):
        for label, level in (("dark", 10), ("grey", 90), ("light", 180)):
            for _ in range(count):
                seed += 1
                paint(root / split / label / f"{seed}.png", seed, level)
    return root


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Path:
    """The result of the search for duplicates in the tree of ``folder``.

    It is shared by all tests that do not change the tree.
    """
    root = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(root / "cache"))
        tree = paint_folder(root / "mine")
        detector.find(index.build(DATASETS["folder"], tree), "folder")
    return root / "cache" / "leakage"


@pytest.fixture
def folder(home, searched) -> Path:
    """The tree of :func:`paint_folder`, searched for copies already."""
    shutil.copytree(searched, home / "cache" / "leakage")
    return paint_folder(home / "data" / "mine")


def study(**changes) -> Study:
    """A study of the tree of ``folder`` with small networks that train for two epochs."""
    small = {
        "dataset": "folder",
        "data_root": "mine",
        "teacher": "resnet10t",
        "student": "kdfmv5",
        "image_size": 32,
        "teacher_epochs": 2,
        "student_epochs": 2,
        "batch_size": 16,
    }
    return Study(**small | changes)


@pytest.fixture(scope="session")
def taught(searched, tmp_path_factory) -> Path:
    """The run of the teacher of :func:`study`, which most trainings below start with."""
    root = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(root / "cache"))
        shutil.copytree(searched, root / "cache" / "leakage")
        mine = data.load("folder", paint_folder(root / "mine"))
        loop.train_teachers(study(), mine)
    return root / "cache" / "runs"


@pytest.fixture
def mine(folder, home, taught) -> data.Dataset:
    """The tree of :func:`paint_folder` as a dataset, whose teacher is trained already."""
    shutil.copytree(taught, home / "cache" / "runs")
    return data.load("folder", folder)
