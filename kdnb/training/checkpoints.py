"""What a training leaves on disk: enough after every epoch to go on from there, and the finished
run with its record."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdnb import files
from kdnb.models import zoo
from kdnb.models.zoo import Classifier


@dataclass(frozen=True)
class Run:
    """A trained network: the weights of its best epoch, the history of all, and the record of how
    it was made."""

    model: Classifier
    history: pd.DataFrame
    record: dict
    folder: Path

    @property
    def checksum(self) -> str:
        """Names the weights."""
        return self.record["weights"]


@dataclass
class State:
    """Where an unfinished run stands after its last whole epoch; ``best`` is (balanced accuracy,
    −loss) on validation."""

    epoch: int = 0
    history: list[dict] = field(default_factory=list)
    best: tuple[float, float] | None = None
    epochs_without_improvement: int = 0


def load(folder: Path) -> Run:
    """A finished run from its folder."""
    record = files.read_json(folder / "run.json")
    model = zoo.create(
        record["key"]["model"], len(record["key"]["classes"]), record["key"]["image_size"]
    )
    model.network.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    return Run(model.eval(), pd.read_csv(folder / "history.csv"), record, folder)


def keep(
    folder: Path, model: Classifier, optimizer: torch.optim.Optimizer, state: State, improved: bool
) -> None:
    """Write an epoch down: best weights first, then all that resuming needs in one file, so that a
    kill loses one epoch.

    The schedule, the order of images and every random number follow from (seed, epoch): the epoch's
    number is their state.
    """
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.network.state_dict().items()
    }
    if improved:
        with files.atomic(folder / "best.safetensors") as temporary:
            save_file(weights, temporary)
    tensors = {f"model.{name}": value for name, value in weights.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{number}.{name}": value.detach().cpu().contiguous()
            for name, value in moments.items()
        }
    progress = {
        "epoch": state.epoch,
        "history": state.history,
        "best": state.best,
        "stale": state.epochs_without_improvement,
    }
    with files.atomic(folder / "last.safetensors") as temporary:
        save_file(tensors, temporary, {"progress": json.dumps(progress)})
    _write_history(folder, state.history)


def _write_history(folder: Path, history: list[dict]) -> None:
    with files.atomic(folder / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False, float_format="%.6g")


def restore(folder: Path, model: Classifier, optimizer: torch.optim.Optimizer) -> State:
    """Bring model and optimizer to where an interrupted run stood, and return that state; a fresh
    one where there is none."""
    path = folder / "last.safetensors"
    if not path.exists():
        return State()
    tensors = load_file(path)
    model.network.load_state_dict(
        {name[6:]: value for name, value in tensors.items() if name.startswith("model.")},
        strict=True,
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, part = name.split(".")
            moments.setdefault(int(number), {})[part] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    for (
        weights,
        kept,
    ) in (
        optimizer.state.items()
    ):  # a fused optimiser walks through memory: moments lie as their weights do
        kept |= {
            name: torch.empty_like(weights).copy_(value)
            for name, value in kept.items()
            if value.shape == weights.shape
        }
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    print(f"{model.name}: resumes after epoch {progress['epoch']} of an interrupted run")
    best = tuple(progress["best"]) if progress["best"] else None
    return State(progress["epoch"], progress["history"], best, progress["stale"])


def finish(folder: Path, model: Classifier, history: list[dict], record: dict) -> None:
    """Give the model its best weights and write ``run.json``: its presence says that the run is
    whole."""
    model.network.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    _write_history(
        folder, history
    )  # killed after its last epoch was kept and before its table was, a run would lack a row
    best = max(history, key=lambda row: (row["val_balanced_accuracy"], -row["val_loss"]))
    seconds = round(sum(row["seconds"] for row in history), 1)
    files.write_json(
        folder / "run.json",
        record
        | {
            "weights": zoo.checksum(model.network),
            "epochs_run": len(history),
            "best_epoch": best["epoch"],
            "best_val_balanced_accuracy": best["val_balanced_accuracy"],
            "training_seconds": seconds,
        },
    )
    (folder / "last.safetensors").unlink(missing_ok=True)
    print(
        f"{model.name} ({record['key']['objective']['method']}): {len(history)} epochs in {seconds:.0f} s, best epoch"
        f" {best['epoch']} with validation balanced accuracy {best['val_balanced_accuracy']:.3f}"
    )
