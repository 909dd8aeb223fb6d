"""One loop for teachers and students: any number of devices, bf16 where it is fast, resumable after
every epoch."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.data import Dataset
from kdnb.distillation import soft_targets
from kdnb.distillation.soft_targets import Objective
from kdnb.evaluation import metrics
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import batch_norm, checkpoints
from kdnb.training.checkpoints import Run, State

VERSION = 2  # part of every run's key: raise it when the loop changes what it learns


@dataclass(frozen=True)
class Settings:
    """How a network is trained: AdamW with linear warm-up and cosine decay, early stopping on
    validation.

    ``lr`` is the peak; ``patience`` the epochs without a better validation score before it stops;
    ``clip`` the largest gradient norm; ``class_weights`` weighs labels by inverse frequency.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    augment: bool = True
    pretrained: bool = False
    weight_decay: float = 0.05
    warmup: float = 0.1
    patience: int = 12
    clip: float = 1.0
    class_weights: bool = True


def train_teachers(study: Study, dataset: Dataset) -> list[Run]:
    """Train every teacher of the study on the labels, or load it if it was trained with the same
    configuration."""
    return [
        fit(study, dataset, name, Objective("hard"), study.teacher_epochs)
        for name in study.teachers
    ]


def distil(study: Study, dataset: Dataset, teachers: list[Run]) -> Run:
    """Train the study's student with its method."""
    return fit(study, dataset, study.student, study.objective(), study.student_epochs, teachers)


def train_baseline(study: Study, dataset: Dataset) -> Run:
    """Train the same student without a teacher: same seed, same budget, same data."""
    return fit(study, dataset, study.student, Objective("hard"), study.student_epochs)


def train_on_shuffled_labels(study: Study, dataset: Dataset) -> Run:
    """The student on labels out of a hat, a third as long, on fixed views: a control of maps
    (Adebayo et al. 2018, section 3.2)."""
    fixed = dataclasses.replace(study, augment=False)
    return fit(
        fixed,
        dataset.shuffled(),
        study.student,
        Objective("hard"),
        max(1, study.student_epochs // 3),
    )


def fit(
    study: Study,
    dataset: Dataset,
    name: str,
    objective: Objective,
    epochs: int,
    teachers: list[Run] = (),
    start: nn.Module | None = None,
) -> Run:
    """Train network ``name``; a finished run with the same key is loaded, an interrupted one goes
    on where it stood.

    The key holds the data's checksum, the sizes, the settings, the objective and the teachers'
    weights. ``start`` is a network of the same shape whose weights the training begins with (a
    tenth of the peak learning rate: it knows its task).
    """
    settings = Settings(
        epochs,
        study.batch_size,
        study.peak_lr(name),
        study.seed,
        study.augment,
        study.pretrained and not name.startswith("kdfmv"),
    )
    teachers = list(teachers) if objective.needs_teacher else []
    key = {
        "version": VERSION,
        "model": name,
        "classes": list(dataset.classes),
        "data": dataset.checksum,
        "image_size": study.image_size,
        "settings": dataclasses.asdict(settings),
        "objective": dataclasses.asdict(objective),
        "teachers": [run.checksum for run in teachers],
    }
    if start is not None:
        settings = dataclasses.replace(settings, lr=settings.lr / 10)
        key |= {"settings": dataclasses.asdict(settings), "start": zoo.checksum(start)}
    folder = (
        files.cache_dir()
        / "runs"
        / dataset.spec.slug
        / f"{name}-{objective.method}-{files.digest(key)}"
    )
    with _alone(folder):
        if not (folder / "run.json").exists():
            torch.manual_seed(settings.seed)
            model = zoo.create(
                name, len(dataset.classes), study.image_size, settings.pretrained and start is None
            )
            if start is not None:
                model.network.load_state_dict(start.state_dict(), strict=True)
            _train(
                model, dataset, settings, objective, [run.model for run in teachers], folder, key
            )
        else:
            print(
                f"{name} ({objective.method}): trained before with this configuration, loaded from {files.shown(folder)}"
            )
    return checkpoints.load(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two notebooks that want the same teacher train it once; the processes of one launch share
    their main one's lock."""
    launch = _accelerator()
    with files.lock(folder) if launch.is_main_process else nullcontext():
        launch.wait_for_everyone()
        yield
        launch.wait_for_everyone()


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up to the peak, then half a cosine to zero; ``step`` counts from 0 to ``steps`` -
    1."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return settings.lr * (step + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _accelerator(elastic: bool = False) -> Accelerator:
    # a supernet's step leaves out the weights that its four subnets do not have
    unused = DistributedDataParallelKwargs(find_unused_parameters=elastic)
    return Accelerator(mixed_precision=zoo.precision(), kwargs_handlers=[unused])


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse frequencies ``(K,)`` with mean 1 over the images: N / (K · count)."""
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts)


class _Batches(Sampler):
    """One process's equal part of every batch; the order of an ``epoch`` follows from (seed, epoch)
    alone.

    So a resumed run sees what it would have seen, and all processes of a launch together what one
    alone would see. Of a last, shorter batch as much is left out as does not part equally, all of
    it below two images a part: batch norm cannot learn from one. Raises ``ValueError`` where whole
    batches do not part so.
    """

    def __init__(self, size: int, settings: Settings, part: int = 0, parts: int = 1):
        batch = settings.batch_size
        if parts > 1 and (batch % parts or min(size, batch) < 2 * parts):
            raise ValueError(
                f"{size} training images in batches of {batch} do not part among {parts} processes, equally and with "
                f"two each: launch fewer, or choose a -p batch_size that is a multiple of {parts}"
            )
        rest = size % batch
        self.batch, self.seed, self.epoch, self.part, self.parts = (
            batch,
            settings.seed,
            0,
            part,
            parts,
        )
        self.rows, self.used = size, size - (rest if rest < 2 * parts else rest % parts) or size

    def __len__(self) -> int:
        return math.ceil(self.used / self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator)[: self.used]
        return (batch.chunk(self.parts)[self.part].tolist() for batch in order.split(self.batch))


def _train(
    model: Classifier,
    dataset: Dataset,
    settings: Settings,
    objective: Objective,
    teachers: list[Classifier],
    folder: Path,
    key: dict,
) -> None:
    accelerator = _accelerator(elastic=model.name == zoo.SUPERNET)
    train, val = (dataset.pixels(model.image_size, split) for split in ("train", "val"))
    batches = _Batches(len(train), settings, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(train, batch_sampler=batches, collate_fn=lambda batch: batch)
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(model.network, settings.weight_decay), lr=settings.lr, fused=True
    )
    # of several processes each normalises its part of a batch by itself; the statistics that stay
    # are counted anew every epoch
    prepared, optimizer = accelerator.prepare(
        model.to(memory_format=torch.channels_last), optimizer
    )
    labels = train.labels[train.rows]
    weights = (
        class_weights(labels, model.num_classes).to(accelerator.device)
        if settings.class_weights
        else None
    )
    # with fixed views the teachers' answers never change: asked once, kept on disk
    table = (
        soft_target_table(teachers, dataset, model.image_size)
        if teachers and not settings.augment
        else None
    )
    augment = dataset.augment() if settings.augment else None
    calibration = batch_norm.calibration_images(dataset, model.image_size)
    asked = (
        [_frozen(teacher).to(accelerator.device) for teacher in teachers] if table is None else []
    )

    state = checkpoints.restore(folder, model, optimizer)
    epoch, rows, best, epochs_without_improvement = (
        state.epoch,
        state.history,
        state.best,
        state.epochs_without_improvement,
    )
    steps, started = settings.epochs * len(loader), time.monotonic()
    bar = tqdm(
        total=steps,
        initial=epoch * len(loader),
        desc=f"{model.name} ({objective.method})",
        unit="batch",
        leave=False,
        mininterval=0.5,
        disable=not accelerator.is_main_process,
    )
    while epoch < settings.epochs and epochs_without_improvement < settings.patience:
        # all randomness of an epoch follows from (seed, epoch): nothing of it has to be stored
        torch.manual_seed(settings.seed * 100_003 + epoch)
        # each process draws views of its own, all the same subnets of a supernet
        views = torch.Generator().manual_seed(
            settings.seed * 100_003 + epoch + 10_007 * accelerator.process_index
        )
        batches.epoch = epoch
        prepared.train()
        begun, sums, seen = time.monotonic(), {}, 0
        for batch, (images, target, row) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(loader) + batch, steps, settings)
            images, target = images.to(accelerator.device), target.to(accelerator.device)
            images = augment(images, views) if augment else images
            images = images.contiguous(memory_format=torch.channels_last)
            taught = None
            if teachers:
                taught = (
                    _ask(asked, images, accelerator)
                    if table is None
                    else table[:, row].to(images.device)
                )
            with accelerator.autocast():
                logits = prepared(images)
            if (
                accelerator.num_processes > 1
            ):  # one loss of the whole batch: class weights make it another than the parts' mean
                logits = _together(
                    logits.float().unflatten(0, (-1, len(target))), accelerator
                ).flatten(0, 1)
                taught = _together(taught, accelerator) if teachers else None
                target = accelerator.gather(target)
            parts = soft_targets.sandwich(
                objective, logits, target, taught, weights
            )  # a supernet answers for several subnets
            accelerator.backward(
                parts["loss"] * accelerator.num_processes
            )  # the processes' gradients are averaged, not added
            accelerator.clip_grad_norm_(prepared.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            parts["accuracy"] = (logits[: len(target)].argmax(1) == target).float().mean()
            for part, value in parts.items():
                sums[part] = sums.get(part, 0.0) + value.detach() * len(target)
            seen += len(target)
            bar.update()
        batch_norm.recalibrate(model, calibration)
        (scores,) = broadcast_object_list(
            [_validate(model, val, settings.batch_size)]
        )  # all must stop at the same epoch
        means = {part: float(value) / seen for part, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"{model.name}: the loss is {means['loss']} in epoch {epoch + 1}; try a lower -p lr"
            )
        rows.append(
            {
                "epoch": epoch + 1,
                "lr": learning_rate((epoch + 1) * len(loader) - 1, steps, settings),
                **means,
                **scores,
                "seconds": round(time.monotonic() - begun, 2),
            }
        )
        bar.set_postfix_str(
            f"epoch {epoch + 1}/{settings.epochs}, val balanced accuracy {scores['val_balanced_accuracy']:.3f}"
        )
        score = (scores["val_balanced_accuracy"], -scores["val_loss"])
        improved = best is None or score > best
        best, epochs_without_improvement, epoch = (
            (score, 0, epoch + 1) if improved else (best, epochs_without_improvement + 1, epoch + 1)
        )
        if accelerator.is_main_process:
            checkpoints.keep(
                folder,
                model,
                optimizer,
                State(epoch, rows, best, epochs_without_improvement),
                improved,
            )
    bar.close()
    if accelerator.is_main_process:
        checkpoints.finish(
            folder,
            model,
            rows,
            {
                "key": key,
                "wall_seconds": round(time.monotonic() - started, 1),
                "resumed_after_epoch": state.epoch or None,
                "precision": accelerator.mixed_precision,
                "processes": accelerator.num_processes,
                "provenance": provenance.collect(),
            },
        )


def _together(part: Tensor, accelerator: Accelerator) -> Tensor:
    """All processes' ``(..., n, K)`` as ``(..., N, K)``, in the order of the batch; the gradient
    flows into one's own."""
    parts = list(accelerator.gather(part.detach()[None].contiguous()))
    parts[accelerator.process_index] = part
    return torch.cat(parts, dim=-2)


def _frozen(teacher: Classifier) -> Classifier:
    """A copy that gives the same answers sooner: weights are rounded once, where autocast rounds
    them anew for every batch."""
    teacher = (
        copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    )
    if zoo.precision() == "bf16":
        for module in teacher.modules():
            if type(module) in (
                nn.Conv2d,
                nn.Linear,
            ):  # a subclass may do more with its weights than multiply
                module.to(torch.bfloat16)
    return teacher


def _ask(teachers: list[Classifier], images: Tensor, accelerator: Accelerator) -> Tensor:
    """The teachers' logits ``(M, N, K)`` for the very views that the student sees; they are in eval
    mode and stay as they are."""
    with torch.inference_mode(), accelerator.autocast():
        answers = torch.stack([teacher(images).float() for teacher in teachers])
    return (
        answers.clone()
    )  # outside inference mode: an inference tensor may not enter the student's graph


def soft_target_table(teachers: list[Classifier], dataset: Dataset, image_size: int) -> Tensor:
    """Logits ``(M, N, K)`` of frozen teachers for every un-augmented image of the dataset, cached
    on disk.

    The file is keyed by the teachers' weights, the data's checksum, the size and the transform: a
    change of any rebuilds it.
    """
    key = {
        "teachers": [zoo.checksum(teacher.network) for teacher in teachers],
        "data": dataset.checksum,
        "image_size": image_size,
        "transform": "none",
        "precision": zoo.precision(),
    }
    path = (
        files.cache_dir() / "soft-targets" / f"{dataset.spec.slug}-{files.digest(key)}.safetensors"
    )
    with _accelerator().main_process_first(), files.lock(path):
        if not path.exists():
            logits = torch.stack(
                [torch.from_numpy(predict(t, dataset.pixels(image_size))) for t in teachers]
            )
            with files.atomic(path) as temporary:
                save_file({"logits": logits}, temporary, {"key": json.dumps(key)})
    return load_file(path)["logits"]


def _validate(model: Classifier, val: Pixels, batch_size: int) -> dict[str, float]:
    labels = val.labels[val.rows]
    logits = predict(model, val, max(64, batch_size))
    return {
        "val_loss": float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), labels)),
        "val_accuracy": float((logits.argmax(1) == labels.numpy()).mean()),
        "val_balanced_accuracy": metrics.balanced_accuracy(labels.numpy(), logits.argmax(1)),
    }
