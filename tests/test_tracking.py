"""Trainings in a tracker: its numbers are those of history.csv, and the run is the same without."""

import importlib.util

import pandas as pd
import pytest
from conftest import study

from kdnb import distillation
from kdnb.parameters import BadParameter
from kdnb.report import results
from kdnb.study import Study
from kdnb.training import loop, tracking

pytest.importorskip("tensorboard")


def trained(mine, **choices):
    return loop.fit(study(**choices), mine, "resnet10t", distillation.create("hard"), 2)


def test_tensorboard_has_the_numbers_of_the_history(mine, home, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(mine, track="tensorboard", seed=1)
    logs = home / "cache" / "tracking" / "folder" / run.folder.name
    (file,) = logs.glob("kdnb/events*")
    events = EventAccumulator(str(file))
    events.Reload()
    for name in ("loss", "val_loss", "val_balanced_accuracy", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == list(run.history["epoch"]) == [1, 2]
        assert [value for _, value in found] == pytest.approx(list(run.history[name]), rel=1e-4)
    settings = "\n".join(path.read_text() for path in logs.rglob("hparams.yml"))
    assert "model: resnet10t" in settings and "settings.seed: 1" in settings
    # the same name and weights without a tracker
    monkeypatch.setenv("KDNB_CACHE", str(home / "other"))
    plain = trained(mine, seed=1)
    assert plain.folder != run.folder and plain.folder.name == run.folder.name
    assert plain.checksum == run.checksum and plain.record["key"] == run.record["key"]
    pd.testing.assert_frame_equal(
        plain.history.drop(columns="seconds"), run.history.drop(columns="seconds")
    )
    assert not (home / "other" / "tracking").exists()


def test_a_missing_tracker_is_answered_with_its_installation(monkeypatch):
    found = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "wandb" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(BadParameter, match="track wandb: .* pip install wandb"):
        Study(track="wandb")
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        Study(track="tensorbord")


def test_a_followed_run_is_the_same_experiment():
    plain, followed = (Study(track=track).config() for track in (None, "tensorboard"))
    assert plain != followed and results.setting(plain) == results.setting(followed)


def test_settings_are_flat():
    """Trackers take numbers and texts by name."""
    key = {"a": {"b": (1, 2), "c": None}, "d": True, "e": [1]}
    assert tracking.flat(key) == {"a.b": "(1, 2)", "a.c": "None", "d": True, "e": "[1]"}
