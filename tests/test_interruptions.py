"""After a kill at any moment, training resumes bit for bit; caches, searches and sweeps resume
without repeating work."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_captioning import draw, of

from kdnb import captioning, data, files
from kdnb.explanations import cache, registry
from kdnb.images import index, pixels, read
from kdnb.leakage import detector, fingerprints
from kdnb.models import zoo
from kdnb.study import Study
from kdnb.training import loop


@pytest.fixture
def child(monkeypatch):
    """Starts a function in a process of its own, in which the imports are done already."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def start(work, *arguments):
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    start(int).join()  # wait until the server that forks the others has imported everything
    return start


def _distil(folder, cache) -> None:
    """A teacher and its student, in a process of its own."""
    os.environ["KDNB_CACHE"] = str(cache)
    torch.set_num_threads(1)  # a fixed order of additions, independent of the machine's load
    study = Study(
        dataset="folder",
        data_root=str(folder),
        profile="smoke",
        image_size=32,
        batch_size=8,
        teacher="resnet10t",
        student="kdfmv5",
        method="fitnet",
        teacher_epochs=3,
        student_epochs=5,
    )
    dataset = study.load_data()
    loop.distil(study, dataset, loop.train_teachers(study, dataset))


def _runs(cache) -> dict:
    return {path.parent.name.split("-")[0]: path.parent for path in cache.glob("runs/*/*/run.json")}


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_training_that_is_killed_often_ends_with_the_same_bits(folder, home, child, times):
    begun, whole = time.monotonic(), child(_distil, folder, home / "whole")
    whole.join()
    assert whole.exitcode == 0
    # kills come later on a busy machine, where an epoch takes longer
    longest = 0.6 * (time.monotonic() - begun)
    moments, resumed, wanted = random.Random(0), [], _runs(home / "whole")
    assert wanted.keys() == {"resnet10t", "kdfmv5"}
    # the first kill comes when two of the teacher's three epochs are written, on any machine;
    # the others come at random moments, which may all lie outside the epochs
    keep = "kdnb.training.checkpoints", "keep_parts", 2
    first = child(_killed_in, *keep, _distil, folder, home / "killed")
    first.join()
    assert first.exitcode == -signal.SIGKILL
    kills = 1
    while kills < times or (home / "killed").exists():
        process = child(_distil, folder, home / "killed")
        if kills < times:
            process.join(moments.uniform(0.02, longest))
            process.kill()  # SIGKILL, without effect if the process has just ended
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        kills += process.exitcode != 0
        if process.exitcode == 0:
            ours = _runs(home / "killed")
            assert ours.keys() == wanted.keys()
            for name, run in ours.items():
                resumed.append(files.read_json(run / "run.json")["resumed_after_epoch"])
                mine, other = (load_file(path / "best.safetensors") for path in (run, wanted[name]))
                assert (
                    all(torch.equal(mine[key], other[key]) for key in other)
                    and mine.keys() == other.keys()
                )
                histories = [
                    pd.read_csv(path / "history.csv").drop(columns="seconds")
                    for path in (run, wanted[name])
                ]
                pd.testing.assert_frame_equal(*histories)
            shutil.rmtree(home / "killed")  # start again until there have been so many kills
    assert 2 in resumed, "the teacher that was killed after two epochs began again"


def _killed_in(module: str, name: str, calls: int, work, *arguments) -> None:
    """Run ``work``, and kill its own process once ``name`` has been called ``calls`` times."""
    function, left = getattr(sys.modules[module], name), iter(range(calls))

    def dies(*given, **options):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **options)

    setattr(sys.modules[module], name, dies)
    work(*arguments)


def _caption(root, cache) -> None:
    """A captioner with its encoder and its decoder, in a process of its own."""
    os.environ["KDNB_CACHE"] = str(cache)
    torch.set_num_threads(1)
    study = of(root)
    dataset = study.load_data()
    given = study, dataset, captioning.load(study, dataset)
    tokens = captioning.Tokens(given[2].of(given[2].rows(dataset, "train")))
    writer = captioning.pretrain(*given, tokens)
    encoder = captioning.encoder(study, dataset)
    captioning.caption(*given, tokens, encoder, writer, "encoder_lora")


def test_a_captioner_that_is_killed_ends_with_the_same_bits(home, child):
    root = draw(home / "data" / "chest", each=14)
    whole = child(_caption, root, home / "whole")
    whole.join()
    assert whole.exitcode == 0
    # three epochs of the decoder, then three of the captioner; the file of each is whole
    for calls, already in ((2, 0), (3, 1)):
        keep = "kdnb.training.checkpoints", "keep_parts", calls
        killed = child(_killed_in, *keep, _caption, root, home / "killed")
        killed.join()
        assert killed.exitcode == -signal.SIGKILL and len(_written(home / "killed")) == already
    again = child(_caption, root, home / "killed")
    again.join()
    ours, wanted = _written(home / "killed"), _written(home / "whole")
    assert again.exitcode == 0 and ours == wanted and len(wanted) == 2
    assert len({*wanted.values()}) == 2


def _written(cache) -> dict:
    """The checksums of the weights of finished decoders and captioners."""
    runs = [path for path in cache.glob("runs/*/*/run.json") if "resnet10t-hard" not in str(path)]
    return {path.parent.name: files.read_json(path)["weights"] for path in runs}


def _counted(work, calls: list):
    def counts(*arguments, **options):
        calls.append(arguments)
        return work(*arguments, **options)

    return counts


def _pixels(folder, cache) -> None:
    os.environ["KDNB_CACHE"], pixels.STEP = str(cache), 10
    data.load("folder", folder).pixels(32)


def test_a_pixel_cache_resumes(folder, home, monkeypatch, child):
    monkeypatch.setattr(pixels, "STEP", 10)
    killed, calls = (
        child(_killed_in, "kdnb.images.pixels", "read_image", 60, _pixels, folder, home / "cache"),
        [],
    )
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not list((home / "cache" / "pixels").glob("*.npy")), (
        "an incomplete cache must not look complete"
    )
    monkeypatch.setattr(pixels, "read_image", _counted(pixels.read_image, calls))
    dataset = data.load("folder", folder)
    grown = dataset.pixels(32).images
    assert 0 < len(calls) <= len(dataset.table) - 50
    monkeypatch.setenv("KDNB_CACHE", str(home / "other"))
    assert torch.equal(grown, data.load("folder", folder).pixels(32).images)
    assert not list((home / "cache" / "pixels").glob("*.p*")), "the partial files should be removed"


def _copies(folder, cache) -> None:
    os.environ["KDNB_CACHE"], fingerprints.PART = str(cache), 20
    detector.find(index.build(data.describe("folder"), folder), "mine")


def test_a_search_for_duplicates_resumes(folder, home, monkeypatch, child):
    found, calls = index.build(data.describe("folder"), folder), []
    monkeypatch.setattr(fingerprints, "PART", 20)
    wanted = detector.detect(folder, found.table)[0]
    for survives in (3, 5):
        killed = child(
            _killed_in,
            "kdnb.leakage.detector",
            "register",
            survives,
            _copies,
            folder,
            home / "cache",
        )
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    monkeypatch.setattr(read, "decode", _counted(read.decode, calls))
    pd.testing.assert_frame_equal(detector.find(found, "mine").links, wanted, check_dtype=False)
    assert not calls, "fingerprints were computed again"
    assert not list((home / "cache" / "leakage").glob("*/part-*"))


def _network_and_images() -> tuple:
    torch.manual_seed(0)
    return zoo.create("kdfmv5", 3, 32), torch.rand(40, 3, 32, 32)


def _maps(folder) -> None:
    os.environ["KDNB_CACHE"] = str(folder)
    cache.explain_cached(*_network_and_images(), "score_cam", np.arange(40) % 3, channels=8)


def test_a_sweep_of_maps_resumes(home, monkeypatch, child):
    killed = child(_killed_in, "kdnb.explanations.cache", "explain", 2, _maps, home / "cache")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (model, images), targets, calls = _network_and_images(), np.arange(40) % 3, []
    monkeypatch.setattr(cache, "explain", _counted(registry.explain, calls))
    found = cache.explain_cached(model, images, "score_cam", targets, channels=8)
    assert len(calls) == 1 and len(calls[0][1]) == 8  # only the third batch
    whole = registry.explain(model, images, "score_cam", targets.tolist(), channels=8)
    assert np.allclose(found.maps, whole.maps, atol=1e-5) and found.definition == whole.definition
    assert (found.targets == whole.targets).all() and np.allclose(
        found.effective_channels, whole.effective_channels, rtol=1e-4
    )
    cache.explain_cached(model, images, "score_cam", targets, channels=9)
    assert len(calls) == 4, "other options need other maps"


def test_stored_arrays_cannot_contain_code(tmp_path):
    np.savez(tmp_path / "bad.npz", maps=np.array([{"code": print}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        files.remembered(tmp_path / "bad.npz", dict)


@pytest.mark.parametrize("what", ["whole", "part"])
def test_a_full_disk_gives_a_clear_error(folder, home, monkeypatch, what):
    dataset = data.load("folder", folder)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        *((pixels.os, "posix_fallocate", full) if what == "whole" else (files.os, "fsync", full))
    )
    with pytest.raises(files.DiskFull, match="KDNB_CACHE"):
        dataset.pixels(32)
    monkeypatch.undo()


def test_a_stored_result_is_computed_once(home):
    assert files.remembered(home / "a.npz", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert files.remembered(home / "a.npz", lambda: pytest.fail("computed twice"))[
        "a"
    ].tolist() == [
        0,
        1,
        2,
    ]
