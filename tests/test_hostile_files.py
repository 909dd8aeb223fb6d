"""Files from elsewhere run no code, read nothing beside them, and write nothing outside their
folder."""

import io
import os
import re
import shutil
import struct
import sys
import tarfile
import zipfile
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from test_models import Evil

from kdnb import data, files
from kdnb.deployment import onnx_export
from kdnb.models import zoo
from kdnb.training import checkpoints


def test_weights_from_other_files_are_not_read(tmp_path):
    model = zoo.create("kdfmv5", 3, 32).eval()
    path = onnx_export.export(model, tmp_path / "in" / "honest.onnx", ["a", "b", "c"])
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10_000_000)
    graph = onnx.load(path)
    tensor = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", "../secret.bin"),
        ("offset", "0"),
        ("length", str(len(tensor.raw_data))),
    ):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(onnx_export.NotOurs, match="wants weights from other files"):
        onnx_export.open(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x07", b"\x80\x04K\x01.", b"<html>", bytes(range(256)) * 40]
)
def test_rubbish_named_onnx_is_named(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(onnx_export.NotOurs, match="x.onnx"):
        onnx_export.open(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "name",
    ["hf-hub:somebody/model", "hf_hub:somebody/model", "local-dir:/etc", "../../etc/passwd", "a/b"],
)
def test_a_checkpoint_cannot_name_code_from_the_network(home, name):
    """What a run's record calls its network is looked up here, never fetched or imported."""
    folder = home / "cache" / "runs" / "x"
    files.write_json(
        folder / "run.json", {"key": {"model": name, "classes": ["a", "b"], "image_size": 32}}
    )
    save_file({"w": torch.zeros(1)}, folder / "best.safetensors")
    with pytest.raises(files.UnknownName, match="unknown model"):
        checkpoints.load(folder)


def test_a_pickle_in_place_of_safetensors_is_refused(home, tmp_path):
    folder = home / "cache" / "runs" / "x"
    files.write_json(
        folder / "run.json", {"key": {"model": "kdfmv5", "classes": ["a", "b"], "image_size": 32}}
    )
    torch.save({"network": Evil()}, folder / "best.safetensors")
    with pytest.raises(Exception, match="[Hh]eader"):
        checkpoints.load(folder)
    torch.save(Evil(), home / "evil.pt")
    with pytest.raises(Exception, match="weights_only|Unsupported"):
        torch.load(home / "evil.pt", weights_only=True)


class Touches:
    """Leaves a file where its pickle is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_an_archive_of_objects_is_no_dataset(home):
    """MedMNIST comes as ``.npz``, a format that can hold pickles: numpy is not allowed to open
    them."""
    path, trace = home / "data" / "medmnist" / "pneumoniamnist.npz", home / "trace"
    path.parent.mkdir(parents=True)
    evil = np.array([Touches(trace)], dtype=object)
    np.savez(
        path,
        **{
            f"{part}_{kind}": evil
            for part in ("train", "val", "test")
            for kind in ("images", "labels")
        },
    )
    with np.load(path, allow_pickle=True) as opened:
        opened["train_images"]
    assert trace.exists(), "who allows pickles runs this one"
    trace.unlink()
    with pytest.raises(
        data.DatasetMissing, match=r"cannot be read .*allow_pickle=False.*delete it"
    ):
        data.load("medmnist:pneumoniamnist")
    assert not trace.exists()


GOOD = "Alzheimer_s Dataset/train/NonDemented/1.png"


@pytest.fixture
def sent(home, monkeypatch):
    """Where a test puts the archive that kagglehub then downloads; kagglehub is as it is, but for
    the network."""
    from kagglehub import http_resolver

    monkeypatch.setattr(http_resolver, "build_kaggle_client", MagicMock())
    monkeypatch.setattr(http_resolver, "_get_current_version", lambda client, handle: 1)
    monkeypatch.setattr(http_resolver, "_build_dataset_download_request", lambda handle, path: None)
    monkeypatch.setattr(
        http_resolver,
        "download_file",
        lambda response, path, handle: shutil.copy(home / "sent", path),
    )
    return home / "sent"


def _zip(path, entries, declared=None):
    """A zip of names (or ``ZipInfo``) and bytes; ``declared`` replaces a true size by another."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    if declared:
        path.write_bytes(path.read_bytes().replace(*(struct.pack("<L", size) for size in declared)))


def _link(target):
    entry = zipfile.ZipInfo("Alzheimer_s Dataset/train/NonDemented/2.png")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return {entry: str(target)}


def _tar(path, *members):
    """A tar of (name, kind, what it links to); a file holds one byte."""
    with tarfile.open(path, "w") as archive:
        for name, kind, target in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, target, int(kind == tarfile.REGTYPE)
            archive.addfile(entry, io.BytesIO(b"x") if entry.size else None)


def _past_the_filter(path):
    """Links too long for ``realpath``; the end is a folder above: CVE-2025-4517."""
    members, at, long = [], "", "d" * 200
    for letter in "abcdefghijklmnopqrst":
        members += [(f"{at}{long}", tarfile.DIRTYPE, ""), (f"{at}{letter}", tarfile.SYMTYPE, long)]
        at += f"{long}/"
    end = "/".join("abcdefghijklmnopqrst") + "/" + "l" * 254
    members += [
        (end, tarfile.SYMTYPE, "../" * 20),
        ("escape", tarfile.SYMTYPE, f"{end}/../../outside"),
        ("escape/evil.png", tarfile.REGTYPE, ""),
    ]
    _tar(path, *members)


OUTSIDE = {
    "zip: absolute path": lambda sent, out: _zip(sent, {f"{out}/evil.png": b"x"}),
    "zip: parent": lambda sent, out: _zip(sent, {"../../outside/evil.png": b"x"}),
    "zip: link": lambda sent, out: _zip(sent, _link(out)),
    "tar: absolute path": lambda sent, out: _tar(sent, (f"{out}/evil.png", tarfile.REGTYPE, "")),
    "tar: parent": lambda sent, out: _tar(sent, ("../../outside/evil.png", tarfile.REGTYPE, "")),
    "tar: link": lambda sent, out: _tar(
        sent, ("a", tarfile.SYMTYPE, str(out)), ("a/evil.png", tarfile.REGTYPE, "")
    ),
    "tar: hard link": lambda sent, out: _tar(sent, ("a.png", tarfile.LNKTYPE, str(out / "secret"))),
    "tar: past the filter": lambda sent, out: _past_the_filter(sent),
    "no archive": lambda sent, out: sent.write_bytes(b"<html>sign in</html>"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_an_archive_writes_and_links_nothing_outside_its_folder(home, sent, case):
    for lent in (home / "cache").iterdir():
        lent.unlink()  # phantoms, so that every link below is one that the archive made
    outside = home / "outside"
    outside.mkdir()
    (outside / "secret").write_text("mine")
    OUTSIDE[case](sent, outside)
    if case == "tar: past the filter" and sys.version_info < (3, 11, 13):
        pytest.skip("CVE-2025-4517 is open in the tarfile of this Python")
    # Python strips the leading slash of a tar entry, and what is unpacked holds no image
    match = "no usable image|is a link|could not be downloaded"
    with pytest.raises(FileNotFoundError, match=match) as caught:
        data.fetch("alzheimer")
    assert (
        "alzheimer" in str(caught.value)
        and "layout" in str(caught.value)
        or "unpack to" in str(caught.value)
    )
    assert [path.name for path in outside.iterdir()] == ["secret"] and (
        outside / "secret"
    ).stat().st_nlink == 1
    assert {path.name for path in home.iterdir()} <= {"data", "cache", "outside", "sent"}
    assert {path.name for path in (home / "data").iterdir()} <= {"alzheimer", "alzheimer.lock"}
    assert not any(path.is_symlink() for path in home.rglob("*"))


def test_a_bomb_is_refused_and_removed(home, sent):
    _zip(sent, {GOOD: bytes(130_000_000)})
    assert sent.stat().st_size < 1_000_000
    with pytest.raises(data.DatasetMissing, match="holds 0.13 GB, where 0.04 GB are published"):
        data.fetch("alzheimer")
    assert not list(home.rglob("alzheimer.part")) and not (home / "data" / "alzheimer").exists()


def test_no_private_function_of_kagglehub_is_touched():
    text = (files.ROOT / "kdnb" / "images" / "downloads.py").read_text()
    assert "kagglehub.dataset_download(" in text
    assert not re.search(r"kagglehub[\w.]*\._|http_resolver|setattr", text)


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_told(home, sent):
    _zip(sent, {GOOD: bytes(5_000_000)}, declared=(5_000_000, 10))
    with pytest.raises(data.DatasetMissing, match="Bad CRC"):
        data.fetch("alzheimer")
    assert sum(path.stat().st_size for path in home.rglob("*.png")) == 0


def _hollow(folder, secret):
    with open(folder / "big.png", "wb") as file:
        file.truncate(130_000_000)


LINKED = {
    "a link out": (lambda folder, secret: (folder / "a.png").symlink_to(secret), "a.png is a link"),
    "a folder out": (
        lambda folder, secret: (folder / "train").symlink_to(secret.parent),
        "train is a link",
    ),
    "a second name": (lambda folder, secret: os.link(secret, folder / "a.png"), "a.png is a link"),
    "too much": (_hollow, "holds 0.13 GB, where 0.04 GB are published"),
}


@pytest.mark.parametrize("case", LINKED)
def test_a_tree_with_links_or_of_another_size_is_refused(home, monkeypatch, case):
    """Whatever unpacked it: kagglehub has other ways than the one above, and they may change."""
    import kagglehub

    plant, words = LINKED[case]
    (home / "elsewhere").mkdir()
    secret = home / "elsewhere" / "secret"
    secret.write_text("mine")

    def bring(handle, output_dir):
        folder = home / "data" / "alzheimer.part"
        assert str(folder) == output_dir
        folder.mkdir()
        plant(folder, secret)

    monkeypatch.setattr(kagglehub, "dataset_download", bring)
    with pytest.raises(data.DatasetMissing, match=words):
        data.fetch("alzheimer")
    assert secret.read_text() == "mine" and [path.name for path in (home / "data").iterdir()] == [
        "alzheimer.lock"
    ]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_dataset_cannot_name_a_folder_outside(home, name):
    with pytest.raises(ValueError):
        data.load(name)
    with pytest.raises(ValueError):
        data.load(f"medmnist:{name}")
    assert not list(home.rglob("outside*"))


def test_nothing_of_ours_unpickles_or_evaluates():
    """One look at the source for what runs code from data; a new use has to be argued for here."""
    words = (
        "pickle.load",
        "np.load(",
        "torch.load(",
        "eval(",
        "exec(",
        "yaml.load(",
        "extractall(",
        "shell=True",
        "__import__(",
    )
    allowed = {"allow_pickle=False", "weights_only=True", ".eval(", "literal_eval("}
    for path in (files.ROOT / "kdnb").glob("*.py"):
        for line in path.read_text().splitlines():
            if any(word in line for word in words):
                assert any(word in line for word in allowed), f"{path.name}: {line.strip()}"
