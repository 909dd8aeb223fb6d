"""Shared fixtures: every test gets folders of its own, and image trees are painted on the spot."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = os.environ.get("KDNB_DATA")
FOLDERS = ("KDNB_DATA", "KDNB_CACHE", "KDNB_OUTPUTS", "KDNB_WEIGHTS")


@pytest.fixture(autouse=True)
def own_profile(monkeypatch):
    """make test sets KDNB_PROFILE for the notebooks; unit tests choose their own."""
    monkeypatch.delenv("KDNB_PROFILE", raising=False)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Empty data, cache, outputs and weights folders below a temporary one."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name.removeprefix("KDNB_").lower()))
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def real(home, monkeypatch) -> Path:
    """The folder of the real datasets, with caches of the test's own."""
    if not REAL:
        pytest.skip("KDNB_DATA is not set: no real images here")
    monkeypatch.setenv("KDNB_DATA", REAL)
    return Path(REAL)


def number_of(*parts: object) -> int:
    """A seed that follows from names, the same in every process (``hash`` of text is not)."""
    return zlib.crc32(repr(parts).encode())


def paint(path: Path, seed: int, level: int | None = None, size: int = 40, mode: str = "L") -> Path:
    """A noise image that no other seed gives; ``level`` sets its mean grey, so that classes can be
    told apart."""
    rng = np.random.default_rng(seed)
    shape = (size, size) if mode == "L" else (size, size, 3)
    values = rng.integers(0, 60, shape) + (rng.integers(0, 190) if level is None else level)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def folder(home) -> Path:
    """A ``<split>/<class>/*`` tree of three classes that grey level tells apart; 24 / 9 / 9 images
    a class."""
    root, seed = home / "data" / "mine", 0
    for split, count in (("train", 24), ("val", 9), ("test", 9)):
        for label, level in (("dark", 10), ("grey", 90), ("light", 180)):
            for _ in range(count):
                seed += 1
                paint(root / split / label / f"{seed}.png", seed, level)
    return root
