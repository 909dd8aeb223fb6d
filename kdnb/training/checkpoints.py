"""What a training leaves on disk: enough after every epoch to go on from there, and the finished
run with its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdnb import device, files
from kdnb.distillation.base import Lesson
from kdnb.models import zoo
from kdnb.models.zoo import Classifier

SCORES = ("val_balanced_accuracy", "val_dice")  # of classes, of masks


@dataclass(frozen=True)
class Run:
    """A trained network, a classifier or another module: the weights of its best epoch, the history
    of all epochs, and the record of how it was made."""

    model: nn.Module
    history: pd.DataFrame
    record: dict
    folder: Path

    @property
    def checksum(self) -> str:
        """Names the weights."""
        return self.record["weights"]


@dataclass
class State:
    """Where an unfinished run stands after its last whole epoch; ``best`` is (score, −loss) on
    validation, where the score is one of ``SCORES``, or 0 where none is measured."""

    epoch: int = 0
    history: list[dict] = field(default_factory=list)
    best: tuple[float, float] | None = None
    epochs_without_improvement: int = 0

    def add(self, row: dict, selectable: bool = True) -> bool:
        """Add an epoch's row of the history; whether its weights are the best so far.

        An epoch that is not ``selectable`` counts neither for the best nor for early stopping.
        """
        self.history.append(row)
        self.epoch += 1
        if not selectable:
            return False
        improved = self.best is None or _score(row) > self.best
        if improved:
            self.best = _score(row)
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        return improved


def score_of(row: dict) -> str:
    """The name of the score in a row of the history by which the best epoch is chosen."""
    return next(name for name in SCORES if name in row)


def in_words(score: str) -> str:
    """A score's name for messages."""
    return score.removeprefix("val_").replace("_", " ")


def _score(row: dict) -> tuple[float, float]:
    return next((row[name] for name in SCORES if name in row), 0.0), -row["val_loss"]


def load(folder: Path) -> Run:
    """A finished run from its folder, its network on the device for training."""
    record = files.read_json(folder / "run.json")
    key = record["key"]
    model = zoo.create(key["model"], len(key["classes"]), key["image_size"])
    model.network.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    model.eval().to(device.default())
    return Run(model, pd.read_csv(folder / "history.csv"), record, folder)


def keep(
    folder: Path,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    state: State,
    improved: bool,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write an epoch of a lesson down, see :func:`keep_parts`."""
    keep_parts(folder, _parts(lesson), optimizer, state, improved, scaler)


def _parts(lesson: Lesson) -> dict[str, nn.Module]:
    return {"model": lesson.student.network, "method": lesson.method}


def keep_parts(
    folder: Path,
    parts: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: State,
    improved: bool,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write an epoch down: best weights first, then all that resuming needs in one file, so that a
    kill loses one epoch.

    ``parts`` are modules by name; the weights of ``model`` are those that a finished run has.
    ``scaler`` is that of gradients in fp16, None elsewhere. The schedule, the order of images and
    every random number follow from (seed, epoch): the epoch's number is their state.
    """
    weights = {part: _on_cpu(module.state_dict()) for part, module in parts.items()}
    if improved:
        with files.atomic(folder / "best.safetensors") as temporary:
            save_file(weights["model"], temporary)
    tensors = {
        f"{part}.{name}": value for part, own in weights.items() for name, value in own.items()
    }
    for number, moments in optimizer.state_dict()["state"].items():
        moments = _on_cpu(moments)
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    progress = {
        "epoch": state.epoch,
        "history": state.history,
        "best": state.best,
        "stale": state.epochs_without_improvement,
    } | ({"scaler": scaler.state_dict()} if scaler else {})
    with files.atomic(folder / "last.safetensors") as temporary:
        save_file(tensors, temporary, {"progress": json.dumps(progress)})
    write_history(folder, state.history)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def write_history(folder: Path, history: list[dict]) -> None:
    """Write ``history.csv``, one row an epoch."""
    with files.atomic(folder / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False, float_format="%.6g")


def restore(
    folder: Path,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> State:
    """Bring student, method, optimiser and scaler to where an interrupted run stood, see
    :func:`restore_parts`."""
    return restore_parts(folder, _parts(lesson), optimizer, lesson.student.name, scaler)


def restore_parts(
    folder: Path,
    parts: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    name: str,
    scaler: torch.amp.GradScaler | None = None,
) -> State:
    """Bring the modules of :func:`keep_parts`, optimiser and scaler to where an interrupted run
    stood, and return that state; ``name`` is printed.

    A fresh state where there is nothing to resume.
    """
    path = folder / "last.safetensors"
    if not path.exists():
        return State()
    tensors = load_file(path)
    for part, module in parts.items():
        module.load_state_dict(_below(tensors, f"{part}."), strict=True)
    _restore_moments(_below(tensors, "optimizer."), optimizer)
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    if scaler and "scaler" in progress:
        scaler.load_state_dict(progress["scaler"])
    print(f"{name}: resumes after epoch {progress['epoch']} of an interrupted run")
    best = tuple(progress["best"]) if progress["best"] else None
    return State(progress["epoch"], progress["history"], best, progress["stale"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore_moments(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, part = name.split(".")
        moments.setdefault(int(number), {})[part] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    # a fused optimiser walks through memory: moments must lie in memory as their weights do
    for weights, kept in optimizer.state.items():
        kept |= {
            name: torch.empty_like(weights).copy_(value)
            for name, value in kept.items()
            if value.shape == weights.shape
        }


def finish(folder: Path, model: Classifier, state: State, record: dict) -> None:
    """Give the model its best weights and write ``run.json``: its presence says that the run is
    whole."""
    model.network.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    # killed between the last epoch's weights and its row, a run would lack that row
    write_history(folder, state.history)
    best = next(row for row in state.history if _score(row) == state.best)
    seconds, score = round(sum(row["seconds"] for row in state.history), 1), score_of(best)
    files.write_json(
        folder / "run.json",
        record
        | {
            "weights": zoo.checksum(model.network),
            "epochs_run": len(state.history),
            "best_epoch": best["epoch"],
            f"best_{score}": best[score],
            "training_seconds": seconds,
        },
    )
    (folder / "last.safetensors").unlink(missing_ok=True)
    print(
        f"{model.name} ({record['key']['objective']['method']}): {len(state.history)} "
        f"epoch{'s' if len(state.history) > 1 else ''} in "
        f"{seconds:.0f} s, best epoch {best['epoch']} with validation {in_words(score)} "
        f"{best[score]:.3f}"
    )
