"""Killed at any moment, everything goes on: training to the last bit; caches, searches and sweeps without doing work twice."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kdnb import audit, data, explain, files, index, leakage, models, pixels, signatures, training
from kdnb.study import Study


def _distil(folder, cache) -> None:
    """A teacher and its student, in a process of its own."""
    os.environ["KDNB_CACHE"] = str(cache)
    torch.set_num_threads(1)  # one order of additions, whatever else the machine does
    study = Study(dataset="folder", data_root=str(folder), profile="smoke", image_size=32, batch_size=8, teacher="resnet10t",
                  student="kdfmv5", teacher_epochs=6, student_epochs=12)  # fmt: skip
    dataset = study.load_data()
    training.distil(study, dataset, training.train_teachers(study, dataset))


def _runs(cache) -> dict:
    return {path.parent.name.split("-")[0]: path.parent for path in cache.glob("runs/*/*/run.json")}


def test_killed_at_twenty_random_moments_training_ends_with_the_same_bits(folder, home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # its processes start with everything imported

    def start(cache):
        process = context.Process(target=_distil, args=(folder, home / cache))
        process.start()
        return process

    first = context.Process(target=int)  # waits until the server that forks the others has its imports
    first.start()
    first.join()
    begun, whole = time.monotonic(), start("whole")
    whole.join()
    assert whole.exitcode == 0
    longest = 0.2 * (time.monotonic() - begun)  # on a busy machine an epoch takes longer, and the kills come later
    moments, kills = random.Random(0), 0
    while kills < 20:
        process = start("killed")
        process.join(moments.uniform(0.02, longest))
        process.kill()  # SIGKILL; nothing where it was done a moment before
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        if process.exitcode == 0:
            break
        kills += 1
    process = start("killed")
    process.join()
    assert process.exitcode == 0 and kills >= 10, f"done after {kills} kills: the moments are too late to test anything"
    ours, theirs = _runs(home / "killed"), _runs(home / "whole")
    assert ours.keys() == theirs.keys() == {"resnet10t", "kdfmv5"}
    assert any(files.read_json(run / "run.json")["resumed_after_epoch"] for run in ours.values())
    for name, run in ours.items():
        mine, other = (load_file(folder / "best.safetensors") for folder in (run, theirs[name]))
        assert all(torch.equal(mine[key], other[key]) for key in other) and mine.keys() == other.keys()
        histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (run, theirs[name])]
        pd.testing.assert_frame_equal(*histories)


def _dies_after(calls: int, work):
    """``work``, but the process is gone at one of its calls."""
    left = iter(range(calls))

    def dies(*arguments, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt  # no block above can tell it from the end
        return work(*arguments, **options)

    return dies


def _counted(work, calls: list):
    def counts(*arguments, **options):
        calls.append(arguments)
        return work(*arguments, **options)

    return counts


def test_a_pixel_cache_goes_on(folder, home, monkeypatch):
    dataset, read, calls = data.load("folder", folder), pixels.read_image, []
    monkeypatch.setattr(pixels, "STEP", 10)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pixels, "read_image", _dies_after(60, read))
        dataset.pixels(32)
    assert not list((home / "cache" / "pixels").glob("*.npy")), "a half-written cache may not look whole"
    monkeypatch.setattr(pixels, "read_image", _counted(read, calls))
    grown = dataset.pixels(32).images
    assert 0 < len(calls) <= len(dataset.table) - 50
    monkeypatch.setenv("KDNB_CACHE", str(home / "other"))
    assert torch.equal(grown, data.load("folder", folder).pixels(32).images)
    assert not list((home / "cache" / "pixels").glob("*.p*")), "what was needed to go on is gone"


def test_a_search_for_copies_goes_on(folder, home, monkeypatch):
    found, calls = index.build(data.describe("folder"), folder), []
    monkeypatch.setattr(signatures, "PART", 20)
    wanted = leakage.detect(folder, found.table)[0]
    for name, survives in (("register", 3), ("register", 5)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(leakage, name, _dies_after(survives, getattr(leakage, name)))
            leakage.find(found, "mine")
    monkeypatch.setattr(pixels, "decode", _counted(pixels.decode, calls))
    pd.testing.assert_frame_equal(leakage.find(found, "mine").links, wanted, check_dtype=False)
    assert not calls, "signatures were known"
    assert not list((home / "cache" / "leakage").glob("*/part-*"))


def test_a_sweep_of_maps_goes_on(home, monkeypatch):
    model, calls = models.create("kdfmv5", 3, 32), []
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = np.arange(40) % 3
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audit, "explain", _dies_after(2, explain.explain))
        audit.remembered(model, images, "score_cam", targets, channels=8)
    monkeypatch.setattr(audit, "explain", _counted(explain.explain, calls))
    found = audit.remembered(model, images, "score_cam", targets, channels=8)
    assert len(calls) == 1 and len(calls[0][1]) == 8  # the third batch alone
    whole = explain.explain(model, images, "score_cam", targets.tolist(), channels=8)
    assert np.allclose(found.maps, whole.maps, atol=1e-5) and found.definition == whole.definition
    assert (found.targets == whole.targets).all() and np.allclose(found.effective_channels, whole.effective_channels, rtol=1e-4)
    audit.remembered(model, images, "score_cam", targets, channels=9)
    assert len(calls) == 4, "other options, other maps"


def test_kept_arrays_cannot_carry_code(tmp_path):
    np.savez(tmp_path / "bad.npz", maps=np.array([{"code": print}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        files.remembered(tmp_path / "bad.npz", dict)


@pytest.mark.parametrize("what", ["whole", "part"])
def test_a_full_disk_stops_a_pixel_cache_in_words(folder, home, monkeypatch, what):
    dataset = data.load("folder", folder)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((pixels.os, "posix_fallocate", full) if what == "whole" else (files.os, "fsync", full)))
    with pytest.raises(files.DiskFull, match="KDNB_CACHE"):
        dataset.pixels(32)
    monkeypatch.undo()


def test_what_is_remembered_is_computed_once(home):
    assert files.remembered(home / "a.npz", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert files.remembered(home / "a.npz", lambda: pytest.fail("asked twice"))["a"].tolist() == [0, 1, 2]
