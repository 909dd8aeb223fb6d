"""Trainings in the tracker that a reader uses, through accelerate: nothing is installed for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdnb import files
from kdnb.parameters import BadParameter
from kdnb.training import processes

TRACKERS = ("tensorboard", "wandb", "mlflow")
PROJECT = "kdnb"


def installed(name: str) -> None:
    """Raise :class:`~kdnb.parameters.BadParameter`, with the line that installs it, where a tracker
    is missing."""
    files.lookup(name, TRACKERS, "track")
    if importlib.util.find_spec(name) is None:
        raise BadParameter(f"track {name}: it is not installed here: pip install {name}")


@contextmanager
def run(
    tracker: str | None, folder: Path, key: Mapping[str, object]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Follow one training: yields what takes an epoch's row of the history.

    ``folder`` is that of the run, whose name the tracker shows; ``key`` is what names the run.
    What a tracker writes here lies in ``cache/tracking`` (``tensorboard --logdir cache/tracking``).
    Without a ``tracker`` nothing happens. A run has the same name and weights with and without.
    """
    if tracker is None:
        yield lambda row: None
        return
    root = files.cache_dir() / "tracking"
    logs = root / folder.parent.name / folder.name
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(root / 'mlflow.db').as_posix()}")
    launch = processes.accelerator(tracker=tracker, logs=logs)
    named = {"wandb": {"name": folder.name, "dir": str(logs)}, "mlflow": {"run_name": folder.name}}
    launch.init_trackers(PROJECT, flat(key), {k: v for k, v in named.items() if k == tracker})
    try:
        yield lambda row: launch.log(dict(row), step=int(row["epoch"]))
    finally:
        for each in launch.trackers:  # end_training would also end the processes' group
            each.finish()


def flat(values: Mapping[str, object], above: str = "") -> dict[str, object]:
    """Nested settings as one level of names; what is no number or text becomes text."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{above}{name}"] = value if plain else str(value)
    return found
