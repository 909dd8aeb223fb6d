"""One loop for teachers and students: any number of devices, bf16 where it is fast, resumable after
every epoch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kdnb import checks, distillation, files, provenance
from kdnb.data import Dataset
from kdnb.distillation import soft_targets
from kdnb.distillation.base import Batch, Course, Lesson, Method, Mismatch, Seen, see
from kdnb.evaluation import metrics
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import batch_norm, checkpoints, contrast, processes, recipes, schedule, tracking
from kdnb.training import teachers as teaching
from kdnb.training.checkpoints import Run
from kdnb.training.curation import Curation, Curator, SuperBatches
from kdnb.training.recipes import TrainingRecipe
from kdnb.training.schedule import Settings

VERSION = 2  # part of every run's key: raise it when the loop changes what it learns


def train_teachers(
    study: Study, dataset: Dataset, recipe: TrainingRecipe | None = None
) -> list[Run]:
    """Train every teacher of the study on the labels by its recipe, or load it if it was trained
    with the same configuration. With several ``study.shards``, each teacher is trained once on each
    part of the patients. ``recipe`` takes the place of the study's."""
    recipe = recipe or recipes.of_teacher(study.teacher_recipe)
    parts = [dataset.shard(number, study.shards) for number in range(study.shards)]
    return [
        fit(study, part, name, recipe.method(), study.teacher_epochs, recipe=recipe, role="teacher")
        for name in study.teachers
        for part in parts
    ]


def distil(study: Study, dataset: Dataset, teachers: list[Run]) -> Run:
    """Train the study's student with its method and curation, whose reference are the teachers.

    A method of several rounds trains it anew in each, with the student of the round before as the
    teacher. Raises ``ValueError`` where method, curation and images do not fit.
    """
    return distil_rounds(study, dataset, teachers)[-1]


def distil_rounds(
    study: Study, dataset: Dataset, teachers: list[Run], recipe: TrainingRecipe | None = None
) -> list[Run]:
    """The runs of all rounds of :func:`distil`, with ``recipe`` in place of the study's."""
    method, runs = study.make_method(), []
    images, curation = learnt_from(method, dataset), None
    if study.curation is not None:
        if method.unlabelled:
            raise Mismatch(
                f"curation compares losses, and {method.name} has images without a label: choose "
                "one of the two"
            )
        curation = Curation(study.curation, study.curation_temperature, study.curation_scale)
    for _ in range(method.rounds):
        settings = study, images, study.student, method, study.student_epochs, teachers
        runs.append(fit(*settings, recipe=recipe, curation=curation))
        # the student of a round is one teacher, whatever the teachers' weights were
        options = dataclasses.replace(method.options, teacher_weights=None)
        teachers, method = runs[-1:], type(method)(options)
    return runs


def learnt_from(method: Method, dataset: Dataset) -> Dataset:
    """The images that a method learns from: those with a label, and for some methods those whose
    label was left out. Raises ``ValueError`` where such a method finds none."""
    if not method.unlabelled:
        return dataset
    if not dataset.unlabelled:
        raise Mismatch(
            f"{method.name} learns from images without a label, and all training images have one: "
            "-p label_share 0.15 leaves labels out"
        )
    return dataset.with_unlabelled()


def train_baseline(study: Study, dataset: Dataset) -> Run:
    """Train the same student without a teacher: same seed, same budget, same data."""
    labels = distillation.create("hard")
    return fit(study, dataset, study.student, labels, study.student_epochs)


def train_on_shuffled_labels(study: Study, dataset: Dataset) -> Run:
    """Train the student on permuted labels, a third as long, on fixed views: a control of maps
    (Adebayo et al. 2018, section 3.2)."""
    fixed, epochs = dataclasses.replace(study, augment=False), max(1, study.student_epochs // 3)
    return fit(fixed, dataset.shuffled(), study.student, distillation.create("hard"), epochs)


def begin(study: Study, dataset: Dataset, name: str, epochs: int, role: str = "student") -> Run:
    """Network ``name`` after so many epochs of SimCLR on the training images without their labels:
    what a recipe that is ``started`` begins with. Raises ``MissingExtra``."""
    contrast.criterion(1.0)  # before any training
    recipe = TrainingRecipe(patience=0, class_weights=False)
    return fit(study, dataset, name, contrast.SimCLR(), epochs, recipe=recipe, role=role)


def fit(
    study: Study,
    dataset: Dataset,
    name: str,
    method: Method,
    epochs: int,
    teachers: Sequence[Run | teaching.GivenLogits] = (),
    start: nn.Module | None = None,
    recipe: TrainingRecipe | None = None,
    role: str = "student",
    curation: Curation | None = None,
    training: type[Training] | None = None,
) -> Run:
    """Train network ``name``; a finished run with the same key is loaded, an interrupted one goes
    on where it stood.

    The key holds the data's checksum, the sizes, the settings, the method with its options and the
    teachers' weights. ``method`` itself is not changed: each run builds one of its own. ``start``
    is a network of the same shape whose weights the training begins with, at a tenth of the peak
    learning rate. ``recipe`` is that of the study's student by default; one that is ``started``
    begins with :func:`begin`, for as many epochs. ``role`` is ``teacher`` or ``student``:
    ``study.pretrained`` says for each whether it starts from published weights.
    With ``curation`` the teachers are its reference, also for a method that has none.
    ``training`` takes the place of :class:`Training` where the targets are no classes.
    :class:`~kdnb.training.teachers.GivenLogits` in place of a teacher need fixed views and a method
    that learns from logits. Raises ``ValueError`` where method, network and teachers do not fit.
    """
    recipe = recipe or recipes.of_student(study.recipe)
    _check(study, name, method, teachers, recipe)
    reference = list(teachers) if curation and curation.rule != "random" else []
    teachers = list(teachers) if method.needs_teacher else []
    _check_given(method, teachers, study.augment)
    if recipe.started and start is None:
        start = begin(study, dataset, name, epochs, role).model.network
    settings = _settings(study, name, epochs, start, recipe, role)
    key = _key(study, dataset, name, settings, method, teachers)
    key |= {} if start is None else {"start": zoo.checksum(start)}
    key |= recipe.key
    if curation:
        key["curation"] = curation.key | {"reference": [run.checksum for run in reference]}
    runs = files.cache_dir() / "runs" / dataset.spec.slug
    folder = runs / f"{name}-{method.name}-{files.digest(key)}"
    with processes.exclusive(folder):
        if (folder / "run.json").exists():
            found = f"trained before with this configuration, loaded from {files.shown(folder)}"
            print(f"{name} ({method.name}): {found}")
        else:
            lesson = Lesson(_initial(key, settings, start), type(method)(method.options))
            models, known = ([run.model for run in runs] for runs in (teachers, reference))
            curator = (curation, known) if curation else None
            kind = training or Training
            under_way = kind(lesson, dataset, settings, models, folder, recipe, curator)
            with tracking.run(study.track, folder, key) as note:
                under_way.run(key, note)
    return checkpoints.load(folder)


def _key(
    study: Study,
    dataset: Dataset,
    name: str,
    settings: Settings,
    method: Method,
    teachers: Sequence[Run | teaching.GivenLogits],
) -> dict:
    """What names every run; options that are not used leave it as it is."""
    return {
        "version": VERSION,
        "model": name,
        "classes": list(dataset.classes),
        "data": dataset.checksum,
        "image_size": study.image_size,
        "settings": dataclasses.asdict(settings),
        "objective": method.key,
        "teachers": [run.checksum for run in teachers],
    }


def _settings(
    study: Study,
    name: str,
    epochs: int,
    start: nn.Module | None,
    recipe: TrainingRecipe,
    role: str,
) -> Settings:
    # the supernet, and what starts from a part of it, stand for no student by name
    part = start is not None and not recipe.started
    anyone = (name == zoo.SUPERNET or part) and study.pretrained != "none"
    pretrained = anyone or study.starts_pretrained(role)
    peak = (study.lr or recipe.lr if pretrained else None) or study.peak_lr(name, pretrained)
    settings = Settings(
        epochs,
        study.batch_size,
        peak if start is None else peak / 10,  # it knows its task
        study.seed,
        study.augment,
        pretrained,
    )
    return recipe.adapted(settings)


def _check_given(
    method: Method, teachers: Sequence[Run | teaching.GivenLogits], augment: bool
) -> None:
    """Refuse what a teacher cannot answer that knows the images of the table alone."""
    if not any(isinstance(teacher, teaching.GivenLogits) for teacher in teachers):
        return
    if augment or not (method.cacheable and method.reads_logits_only()):
        raise Mismatch(
            f"a pipeline of features answers for the images as they are, and for classes alone: "
            f"{method.name} needs {'random views' if augment else 'more of its teacher'}. "
            "Take fixed views (-p augment False) and a method that reads logits (hybrid, kd_fmv)"
        )


def _check(
    study: Study,
    name: str,
    method: Method,
    teachers: Sequence[Run | teaching.GivenLogits],
    recipe: TrainingRecipe,
) -> None:
    """Refuse at once what could not be trained."""
    if name == zoo.SUPERNET and recipe.started:
        raise Mismatch(
            f"a start without labels is of one network, not of {name}: leave -p recipe out"
        )
    if name == zoo.SUPERNET and study.curation:
        raise Mismatch(
            f"curation {study.curation} follows one student's losses, and {name} trains several "
            "subnets at once: leave -p curation out"
        )
    if method.needs_teacher:
        if not teachers:
            raise Mismatch(f"{method.name} needs a teacher, and {name} was given none")
        method.teacher_weights(teachers)
    if name == zoo.SUPERNET and (method.taps or not method.reads_logits_only()):
        plain = [m for m, known in distillation.METHODS.items() if known.reads_logits_only()]
        raise Mismatch(
            f"{name} trains several subnets at once, and they learn from logits only; "
            f"{method.name} needs more. Choose another method for it: {', '.join(plain)}"
        )


def _initial(key: dict, settings: Settings, start: nn.Module | None) -> Classifier:
    """The network before training: random, pretrained, or with the weights of ``start``."""
    torch.manual_seed(settings.seed)
    pretrained = settings.pretrained and start is None
    model = zoo.create(key["model"], len(key["classes"]), key["image_size"], pretrained)
    if start is not None:
        model.network.load_state_dict(start.state_dict(), strict=True)
    return model


class Training:
    """One run under way: everything that an epoch and a step need."""

    def __init__(
        self,
        lesson: Lesson,
        dataset: Dataset,
        settings: Settings,
        teachers: list[Classifier | teaching.GivenLogits],
        folder: Path,
        recipe: TrainingRecipe,
        curation: tuple[Curation, list[Classifier]] | None = None,
    ):
        self.lesson, self.settings, self.folder, self.recipe = lesson, settings, folder, recipe
        model, method = lesson.student, lesson.method
        self.launch = processes.accelerator(elastic=model.name == zoo.SUPERNET)
        self.device = self.launch.device
        parts = (dataset.pixels(model.image_size, part) for part in ("train", "val"))
        self.train, self.val = (pixels.moved_to(self.device) for pixels in parts)
        place = self.launch.process_index, self.launch.num_processes
        self.curator = self._curator(dataset, *curation) if curation else None
        batches = SuperBatches if self.curator else schedule.Batches
        self.batches = batches(len(self.train), settings, *place)
        self.loader = DataLoader(
            self.train, batch_sampler=self.batches, collate_fn=lambda batch: batch
        )
        self.augment = recipe.views(dataset) if settings.augment else None
        self.calibration = batch_norm.calibration_images(dataset, model.image_size)
        self.teachers = self._teachers(teachers, dataset)
        lesson.to(self.device, memory_format=torch.channels_last)
        if settings.class_weights:
            weights = schedule.class_weights(self.train.labels[self.train.rows], model.num_classes)
            method.class_weights = weights.to(self.device)
        if method.overrides("build"):
            self._build(teachers)
        groups = recipe.groups(lesson, settings)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        # each process normalises its part of a batch by itself; the statistics that stay are
        # recalibrated after every epoch
        self.prepared, self.optimizer = self.launch.prepare(lesson, optimizer)

    def _teachers(
        self, teachers: list[Classifier | teaching.GivenLogits], dataset: Dataset
    ) -> list[teaching.Asked]:
        """Teachers that are asked for each batch, or whose answers are kept on disk."""
        method, size = self.lesson.method, self.lesson.student.image_size
        reads = self.device, method.taps, method.pooled
        # which images a curated step has depends on the student, so its views are never seen again
        if not method.cacheable or (self.curator and (self.augment or method.taps)):
            return [teaching.Asked(each, *reads) for each in teachers]
        if self.augment is None and not method.taps:
            return [teaching.FixedViews(each, self.device, dataset, size) for each in teachers]
        views = {
            "data": dataset.checksum,
            "image_size": size,
            "augment": repr(self.augment),
            "seed": self.settings.seed,
            "batch_size": self.settings.batch_size,
            "process": self.launch.process_index,
            "processes": self.launch.num_processes,
        }
        return [teaching.Kept(each, *reads, views) for each in teachers]

    def _curator(
        self, dataset: Dataset, curation: Curation, references: list[Classifier]
    ) -> Curator:
        """The curation with the losses of its reference, from logits that are kept on disk."""
        size = self.lesson.student.image_size
        known = [teaching.fixed_logits(each, dataset, size) for each in references]
        return Curator(curation, known, self.train.labels)

    def _build(self, teachers: list[Classifier]) -> None:
        """Let the method make its parts, from the answers for two training images."""
        train = self.train
        images = train[[0, len(train) - 1]][0]
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        labels = torch.full_like(train.labels, -1)
        labels[train.rows] = train.labels[train.rows]
        method, model = self.lesson.method, self.lesson.student.eval()
        with torch.no_grad(), self.launch.autocast():
            answer = see(model, images, method.taps, method.pooled)
        course = Course(labels.to(self.device), self.settings.epochs, model, teachers, train.floats)
        method.build(answer, [each.ask(images) for each in self.teachers], course)
        method.to(self.device, memory_format=torch.channels_last)

    def run(self, key: dict, note: Callable[[dict], None]) -> None:
        """Train epoch by epoch, from where an interrupted run stood, and write the finished run;
        ``note`` is given each epoch's row of the history."""
        settings, method = self.settings, self.lesson.method
        state = checkpoints.restore(self.folder, self.lesson, self.optimizer, self.launch.scaler)
        resumed, started = state.epoch or None, time.monotonic()
        with self._bar(state.epoch) as bar:
            while (
                state.epoch < settings.epochs
                and state.epochs_without_improvement < settings.patience
            ):
                epoch = state.epoch
                row = self._epoch(epoch, bar)
                note(row)
                last = epoch + 1 == settings.epochs  # one epoch at least must be kept
                improved = state.add(row, last or method.selectable(epoch))
                if self.launch.is_main_process:
                    kept = self.lesson, self.optimizer, state, improved, self.launch.scaler
                    checkpoints.keep(self.folder, *kept)
        record = {
            "key": key,
            "wall_seconds": round(time.monotonic() - started, 1),
            "resumed_after_epoch": resumed,
            "precision": self.launch.mixed_precision,
            "processes": self.launch.num_processes,
            "provenance": provenance.collect(),
            "budget": self._budget(state.epoch),
        }
        if self.launch.is_main_process:
            checkpoints.finish(self.folder, self.lesson.student, state, record)

    def _budget(self, epochs: int) -> dict[str, int]:
        """Steps, images that the student learnt from, and images that it only scored."""
        images = epochs * self.batches.images
        scored = images * self.curator.rule.scored if self.curator else 0
        return {"steps": epochs * len(self.batches), "images": images, "scored_images": scored}

    def _bar(self, epoch: int) -> tqdm:
        model, method = self.lesson.student, self.lesson.method
        return tqdm(
            total=self.settings.epochs * len(self.loader),
            initial=epoch * len(self.loader),
            desc=f"{model.name} ({method.name})",
            unit="batch",
            leave=False,
            mininterval=0.5,
            disable=not self.launch.is_main_process,
        )

    def _epoch(self, epoch: int, bar: tqdm) -> dict:
        """One pass over the training images and a validation; the row of the history."""
        begun, sums, seen = time.monotonic(), {}, 0
        # each process draws views of its own, and all train the same subnets of a supernet
        torch.manual_seed(schedule.epoch_seed(self.settings, epoch))
        own = schedule.epoch_seed(self.settings, epoch) + 10_007 * self.launch.process_index
        views, self.batches.epoch = torch.Generator().manual_seed(own), epoch
        self.lesson.method.start_epoch(epoch, self.lesson.student)
        self.prepared.train()
        rows = self.train.rows[torch.tensor([*itertools.chain(*self.batches)])]
        self.asked = self.teachers if self.lesson.method.asks_teachers(epoch) else []
        for teacher in self.asked:
            teacher.start_epoch(epoch, rows)
        for step, batch in enumerate(self.loader, epoch * len(self.loader)):
            losses, count = self._step(step, Batch(*batch), views)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * count
            seen += count
            bar.update()
        for teacher in self.asked:
            teacher.end_epoch()
        self.lesson.method.end_epoch(epoch, self.lesson.student)
        scores = self._validate()
        means = {name: float(value) / seen for name, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise checks.Diverged(
                f"{self.lesson.student.name}: the loss is {means['loss']} in epoch {epoch + 1}; "
                "try a lower -p lr"
            )
        score = checkpoints.score_of(scores)
        bar.set_postfix_str(
            f"epoch {epoch + 1}/{self.settings.epochs}, "
            f"val {checkpoints.in_words(score)} {scores[score]:.3f}"
        )
        rate, seconds = self._rate(step), round(time.monotonic() - begun, 2)
        return {"epoch": epoch + 1, "lr": rate, **means, **scores, "seconds": seconds}

    def _rate(self, step: int, share: float = 1.0) -> float:
        steps = self.settings.epochs * len(self.loader)
        return self.recipe.rate(step, steps, self.settings, share)

    def _step(self, step: int, batch: Batch, views: Generator) -> tuple[dict[str, Tensor], int]:
        """One step of the optimiser; named losses and the number of images of all processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step, group.get("rate", 1.0))
        method, student = self.lesson.method, self.lesson.student
        if self.curator:
            batch = Batch(batch.images.to(self.device), batch.labels.to(self.device), batch.rows)
            batch = self.curator.choose(batch, student, views)
        batch = method.change_batch(self.on_device(batch, views), student, views)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with self.launch.autocast():
            seen = [teacher(images, batch.rows) for teacher in self.asked]
            answer, teachers = self.prepared(images, seen)
        losses, count = self._losses(answer, teachers, batch)
        # the gradients of the processes are averaged, not added
        self.launch.backward(losses["loss"] * self.launch.num_processes)
        self.launch.clip_grad_norm_(self.prepared.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        method.after_step(student, step)
        return losses, count

    def on_device(self, batch: Batch, views: Generator) -> Batch:
        """A batch on the device of this process, as a random view if the settings say so."""
        images = batch.images.to(self.device)
        images = self.augment(images, views) if self.augment else images
        return Batch(images, batch.labels.to(self.device), batch.rows.to(self.device))

    def _losses(
        self, answer: Seen, teachers: list[Seen], batch: Batch
    ) -> tuple[dict[str, Tensor], int]:
        """Losses of the whole batch: class weights make its mean another than the parts' means."""
        own, launch, method = len(batch.rows), self.launch, self.lesson.method
        answer = processes.gathered_answer(answer, own, launch)
        teachers = [processes.gathered_answer(each, own, launch) for each in teachers]
        labels, rows = (processes.gathered(each, own, launch) for each in batch[1:])
        supernet = self.lesson.student.name == zoo.SUPERNET
        if supernet:
            losses = soft_targets.sandwich(method, answer, teachers, labels, rows)
        else:
            losses = method.loss(answer, teachers, labels, rows)
        return losses | self.progress(answer.logits, labels), len(labels)

    def progress(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What is logged of a batch beside its losses, from the targets of N images and the logits
        ``(N, …)`` (of a supernet, those of the first subnet come first)."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        known = classes >= 0 if labels.ndim == 1 else labels.sum(1) > 0
        right = (logits[: len(classes)].argmax(1) == classes) & known
        return {"accuracy": right.sum() / known.sum().clamp(min=1)}

    def _validate(self) -> dict[str, float]:
        """Scores on validation images, the same in all processes: they must stop together."""
        batch_norm.recalibrate(self.lesson.student, self.calibration)
        own = self.validation()
        (scores,) = broadcast_object_list([own])
        return scores

    def validation(self) -> dict[str, float]:
        """Scores of the student on validation images: its loss, and one of
        ``checkpoints.SCORES``."""
        return validation_scores(self.lesson.student, self.val, self.settings.batch_size)


def validation_scores(model: Classifier, val: Pixels, batch_size: int) -> dict[str, float]:
    """Loss, accuracy and balanced accuracy on validation images."""
    labels = val.labels[val.rows]
    logits = predict(model, val, max(64, batch_size))
    return {
        "val_loss": float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), labels)),
        "val_accuracy": float((logits.argmax(1) == labels.numpy()).mean()),
        "val_balanced_accuracy": metrics.balanced_accuracy(labels.numpy(), logits.argmax(1)),
    }
