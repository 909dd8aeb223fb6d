"""Nothing is half there: files appear whole or not at all."""

import errno
import json
import os

import numpy as np
import pytest
from filelock import SoftFileLock, Timeout
from safetensors import SafetensorError

from kdnb import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    path = files.write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads(path.read_text()) == files.read_json(path) == {"x": 1}


def test_a_digest_names_the_value_not_its_order():
    assert (
        files.digest({"a": 1, "b": 2})
        == files.digest({"b": 2, "a": 1})
        != files.digest({"a": 1, "b": 3})
    )


def test_folders_follow_the_environment(home, monkeypatch):
    assert files.data_dir() == home / "data"
    monkeypatch.delenv("KDNB_DATA")
    assert files.data_dir() == files.ROOT / "data"
    monkeypatch.setenv("KDNB_DATA", "somewhere/else")
    assert files.data_dir() == files.ROOT / "somewhere" / "else"


def test_pages_print_no_path_of_this_machine(home):
    assert files.shown(home / "cache" / "runs" / "x") == "cache/runs/x"
    assert files.shown(home / "outputs" / "y.json") == "outputs/y.json"
    assert files.shown(files.ROOT / "kdnb" / "run.py") == "kdnb/run.py"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_readable_error_and_loses_nothing(tmp_path, monkeypatch, step):
    path = files.write_text(tmp_path / "result.json", "before")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(files.DiskFull, match="no space left to write .*result.json.*KDNB_CACHE"):
        files.write_text(path, "after")
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_full_disk_inside_the_block_too(tmp_path):
    with pytest.raises(files.DiskFull), files.atomic(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="other"), files.atomic(tmp_path / "x"):
        raise OSError(errno.EIO, "other")
    with pytest.raises(files.DiskFull, match="KDNB_CACHE") as error, files.atomic(tmp_path / "x"):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError, match="other"), files.atomic(tmp_path / "x"):
        raise SafetensorError("other")
    assert not list(tmp_path.iterdir())


def test_scratch_is_an_array_without_a_name(home, monkeypatch):
    before = set((home / "cache").iterdir())
    array = files.scratch((3, 4), np.dtype("uint8"))
    array[:] = 7
    assert isinstance(array, np.memmap) and array.sum() == 84
    assert set((home / "cache").iterdir()) == before

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(files.DiskFull, match="KDNB_CACHE"):
        files.scratch((3, 4), np.dtype("uint8"))


def test_what_is_written_is_on_the_disk(tmp_path, monkeypatch):
    synced, real = [], files.os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(handle) or real(handle))
    files.write_text(tmp_path / "x", "text")
    assert len(synced) == 2  # the file and its name in the folder


def test_a_long_name_is_written_too(tmp_path):
    assert files.write_text(tmp_path / ("n" * 240 + ".json"), "text").read_text() == "text"


@pytest.mark.parametrize("step", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch, step):
    """Windows opens no folder; SMB and FUSE may refuse to sync one."""
    real = getattr(os, step)

    def refuse(target, *arguments):
        if os.path.isdir(target):  # noqa: PTH112 - a path, or a number of an open file
            raise OSError(errno.EINVAL if step == "fsync" else errno.EACCES, "no folders")
        return real(target, *arguments)

    monkeypatch.setattr(files.os, step, refuse)
    assert files.write_text(tmp_path / "x", "text").read_text() == "text"


def test_a_file_that_cannot_be_written_through_still_is_one(tmp_path, monkeypatch):
    def failing(number):
        raise OSError(number, "fsync")

    monkeypatch.setattr(files.os, "fsync", lambda handle: failing(errno.EINVAL))
    assert files.write_text(tmp_path / "x", "text").read_text() == "text"
    monkeypatch.setattr(files.os, "fsync", lambda handle: failing(errno.EIO))
    with pytest.raises(OSError, match="fsync"):
        files.write_text(tmp_path / "y", "text")
    assert not (tmp_path / "y").exists()


def test_without_locks_a_file_stands_in_for_one(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    other = SoftFileLock(tmp_path / "x.softlock")
    warned = pytest.warns(UserWarning, match="file system without locks .*x.softlock takes")
    with warned, files.lock(tmp_path / "x"), pytest.raises(Timeout):
        other.acquire(timeout=0.01)
    with other.acquire(timeout=1):
        pass


def test_other_errors_of_a_lock_are_errors(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    with pytest.raises(PermissionError), files.lock(tmp_path / "x"):
        pass
