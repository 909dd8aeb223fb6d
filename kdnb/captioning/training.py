"""Training of decoders on text and of captioners on pairs, resumable after every epoch, on one
process."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import checks, device, files, provenance
from kdnb.captioning import networks
from kdnb.captioning.networks import SIZES, Captioner, Writer
from kdnb.captioning.texts import PAD, Reports, Tokens
from kdnb.data import Dataset
from kdnb.distillation import soft_targets
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.zoo import Classifier
from kdnb.parameters import BadParameter
from kdnb.study import Study
from kdnb.training import checkpoints, loop, schedule
from kdnb.training.checkpoints import Run
from kdnb.training.schedule import Settings

VERSION = 1  # part of every run's key: raise it when what is learnt changes
RATE = 2e-3  # peak learning rate of text and bridge; ours
SLOWER = 0.1  # share of it for weights that know their task: the encoder and the decoder
ALPHA, TEMPERATURE = 0.5, 4.0  # for a study whose method has none; those of paper A's
LARGEST = 2**30  # bytes of maps that are kept in memory


class Fitting:
    """One training under way: ``loss`` gives the loss of a batch of rows, ``kept`` are the modules
    in its checkpoints. Weights that know their task learn at a share of the rate."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        kept: nn.Module,
        loss: Callable[[Tensor], Tensor],
        settings: Settings,
        folder: Path,
    ):
        self.name, self.model, self.kept, self.loss = name, model, kept, loss
        self.settings, self.folder = settings, folder
        by_share: dict[float, list] = {1.0: [], SLOWER: []}
        for part, weights in model.named_parameters():
            if weights.requires_grad:
                known = isinstance(model, Captioner) and _learnt_before(part)
                by_share[SLOWER if known else 1.0].append(weights)
        groups = [{"params": own, "share": share} for share, own in by_share.items() if own]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, weight_decay=settings.weight_decay
        )

    def run(
        self, train: Tensor, validate: Callable[[], float], key: dict, more: Mapping[str, float]
    ) -> None:
        """Train on rows ``train`` ``(n,)`` epoch by epoch from where an interrupted run stood, and
        write the finished run; ``more`` is added to its record.

        Raises :class:`~kdnb.checks.Diverged` where the loss is no number.
        """
        settings, parts = self.settings, {"model": self.kept}
        batches = schedule.Batches(len(train), settings)
        state = checkpoints.restore_parts(self.folder, parts, self.optimizer, self.name)
        with tqdm(total=settings.epochs, initial=state.epoch, desc=self.name, leave=False) as bar:
            while (
                state.epoch < settings.epochs
                and state.epochs_without_improvement < settings.patience
            ):
                begun, batches.epoch = time.monotonic(), state.epoch
                # all randomness of an epoch follows from its number, so none has to be stored
                torch.manual_seed(schedule.epoch_seed(settings, state.epoch))
                mean = self._epoch(train, batches)
                self.model.eval()
                row = {"epoch": state.epoch + 1, "loss": mean, "val_loss": validate()}
                row["seconds"] = round(time.monotonic() - begun, 2)
                if not all(map(math.isfinite, row.values())):
                    raise checks.Diverged(
                        f"{self.name}: the loss is {mean} in epoch {row['epoch']}"
                    )
                improved = state.add(row)
                checkpoints.keep_parts(self.folder, parts, self.optimizer, state, improved)
                bar.update()
        self._finish(state, key, more)

    def _epoch(self, train: Tensor, batches: schedule.Batches) -> float:
        steps, total = self.settings.epochs * len(batches), 0.0
        self.model.train()
        for step, batch in enumerate(batches, batches.epoch * len(batches)):
            for group in self.optimizer.param_groups:
                rate = schedule.learning_rate(step, steps, self.settings)
                group["lr"] = group["share"] * rate
            loss = self.loss(train[torch.tensor(batch)])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            total += float(loss.detach()) * len(batch)
        return total / batches.images

    def _finish(self, state: checkpoints.State, key: dict, more: Mapping[str, float]) -> None:
        checkpoints.write_history(self.folder, state.history)
        self.kept.load_state_dict(load_file(self.folder / "best.safetensors"), strict=True)
        best = min(state.history, key=lambda row: row["val_loss"])
        record = {
            "key": key,
            "weights": zoo.checksum(self.kept),
            "epochs_run": state.epoch,
            "best_epoch": best["epoch"],
            "best_val_loss": best["val_loss"],
            "training_seconds": round(sum(row["seconds"] for row in state.history), 1),
            "provenance": provenance.collect(),
        }
        files.write_json(self.folder / "run.json", record | more)
        (self.folder / "last.safetensors").unlink(missing_ok=True)


def _learnt_before(name: str) -> bool:
    """Whether a captioner's parameter was trained before: low-rank updates and the query
    transformer were not."""
    return not name.startswith("bridge.") and "lora_" not in name


def _trained(
    model: Writer | Captioner, kept: nn.Module, folder: Path, work: Callable[[], None]
) -> Run:
    """The run in ``folder``: loaded where it is whole, else trained by ``work``, or gone on
    with."""
    with files.lock(folder):
        if not (folder / "run.json").exists():
            work()
    record = files.read_json(folder / "run.json")
    kept.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    return Run(model.eval(), pd.read_csv(folder / "history.csv"), record, folder)


def _settings(study: Study, epochs: int) -> Settings:
    return Settings(epochs, study.batch_size, RATE, study.seed, augment=False)


def _folder(dataset: Dataset, name: str, key: dict) -> Path:
    return files.cache_dir() / "runs" / dataset.spec.slug / f"{name}-{files.digest(key)}"


def encoder(study: Study, dataset: Dataset) -> Run:
    """The study's teacher, trained on the labels. Raises :class:`~kdnb.parameters.BadParameter` for
    several teachers or parts of the patients: a captioner has one encoder."""
    if len(study.teachers) * study.shards > 1:
        raise BadParameter(
            f"a captioner has one encoder, and the study has {len(study.teachers) * study.shards} "
            "teachers: name one network (-p teacher) without -p teacher_shards"
        )
    return loop.train_teachers(study, dataset)[0]


# --- decoders on text ----------------------------------------------------------------------------


def pretrain(
    study: Study, dataset: Dataset, reports: Reports, tokens: Tokens, size: str = "large"
) -> Run:
    """A decoder of a ``size`` (a key of ``networks.SIZES``) that is trained on the training reports
    and ``reports.other`` alone, without images; a finished run is loaded."""
    files.lookup(size, SIZES, "size")
    texts = reports.of(reports.rows(dataset, "train")) + list(reports.other)
    held_out = reports.of(reports.rows(dataset, "val"))
    settings = _settings(study, study.text_epochs)
    key = {
        "version": VERSION,
        "kind": "writer",
        "size": dataclasses.asdict(SIZES[size]),
        "tokens": tokens.checksum,
        "texts": files.digest([texts, held_out]),
        "settings": dataclasses.asdict(settings),
    }
    torch.manual_seed(study.seed)
    place = device.default()
    writer = Writer(networks.decoder(SIZES[size], tokens.size), SIZES[size]).to(place)
    coded, val = (tokens.encode(each).to(place) for each in (texts, held_out))
    folder = _folder(dataset, f"writer-{size}", key)

    def loss(rows):
        batch = _cut(coded[rows])
        return networks.token_loss(writer(batch), batch)

    def validate():
        parts = [_cut(val[n : n + 64]) for n in range(0, len(val), 64)]
        return _mean((writer(part), part) for part in parts)

    def work():
        fitting = Fitting(f"{size} decoder", writer, writer, loss, settings, folder)
        fitting.run(torch.arange(len(coded)), torch.no_grad()(validate), key, {})

    return _trained(writer, writer, folder, work)


def _cut(tokens: Tensor) -> Tensor:
    """Without the columns ``(N, T)`` that are padding in every row."""
    return tokens[:, : int((tokens != PAD).any(0).sum())]


def _mean(answers) -> float:
    """Mean loss over all tokens of batches of logits and tokens."""
    total, count = 0.0, 0
    for logits, tokens in answers:
        here = int((tokens[:, 1:] != PAD).sum())
        total += float(networks.token_loss(logits, tokens)) * here
        count += here
    return total / count


# --- captioners on pairs -------------------------------------------------------------------------


class Maps:
    """Maps ``(n, C, h, w)`` of an encoder for rows of the table: kept in memory where the encoder
    is frozen and they fit, else computed for each batch."""

    def __init__(self, encoder: Classifier, pixels: Pixels, frozen: bool):
        self.encoder, self.pixels, self.kept = encoder, pixels, None
        begun = time.monotonic()
        with torch.no_grad():
            one = self._computed(torch.tensor([0]))
            if frozen and one.nbytes * len(pixels.images) <= LARGEST:
                rows = torch.arange(len(pixels.images)).split(64)
                self.kept = torch.cat([self._computed(part).cpu() for part in rows])
        self.seconds = round(time.monotonic() - begun, 1)

    def _computed(self, rows: Tensor) -> Tensor:
        images = self.pixels.floats(rows).to(device.of(self.encoder))
        images = images.contiguous(memory_format=torch.channels_last)
        return networks.maps_of(self.encoder, images)

    def __call__(self, rows: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept[rows].to(device.of(self.encoder))
        return self._computed(rows)


def caption(
    study: Study,
    dataset: Dataset,
    reports: Reports,
    tokens: Tokens,
    encoder: Run,
    writer: Run,
    tune: str,
    teacher: Run | None = None,
) -> Run:
    """A captioner of a trained ``encoder`` and a pretrained ``writer``, trained on the training
    pairs on fixed views; a finished run is loaded.

    With a ``teacher``, a captioner with the same tokens, it also learns from the soft targets of
    each token: α · cross-entropy + (1 − α) · T² KL, with α and T of the study's method (Hinton et
    al. 2015, as :func:`kdnb.distillation.soft_targets.soft_loss`).
    """
    settings = _settings(study, study.caption_epochs)
    key = _key(study, dataset, reports, tokens, settings) | {
        "encoder": encoder.checksum,
        "writer": writer.checksum,
        "tune": tune,
        "teacher": [teacher.checksum, study.alpha, study.temperature] if teacher else None,
    }
    torch.manual_seed(study.seed)
    place = device.default()
    model = Captioner(copy.deepcopy(encoder.model), copy.deepcopy(writer.model), tune).to(place)
    name = f"captioner-{encoder.model.name}-{tune}{'-taught' if teacher else ''}"
    folder, kept = _folder(dataset, name, key), model.kept

    def work():
        maps = _maps(model, dataset, frozen=not model.parts.encoder)
        taught = _maps(teacher.model, dataset, frozen=True) if teacher else None
        coded = tokens.encode(reports.texts).to(place)
        rows, val = (torch.from_numpy(reports.rows(dataset, part)) for part in ("train", "val"))

        def loss(some):
            answers = None
            if teacher:
                with torch.no_grad():
                    answers = teacher.model(taught(some), _cut(coded[some]))
            return _pair_loss(
                model(maps(some), _cut(coded[some])), answers, _cut(coded[some]), study
            )

        def validate():
            return _mean(
                (model(maps(part), _cut(coded[part])), _cut(coded[part])) for part in val.split(64)
            )

        more = {"trained_parameters": networks.parameters_of([model], trained=True)}
        seconds = maps.seconds + (taught.seconds if taught else 0)
        more |= {"parameters": networks.parameters_of([model]), "encoding_seconds": seconds}
        fitting = Fitting(model.name, model, kept, loss, settings, folder)
        fitting.run(rows, torch.no_grad()(validate), key, more)

    return _trained(model, kept, folder, work)


def _maps(model: Captioner, dataset: Dataset, frozen: bool) -> Maps:
    return Maps(model.encoder, dataset.pixels(model.encoder.image_size), frozen)


def _key(
    study: Study, dataset: Dataset, reports: Reports, tokens: Tokens, settings: Settings
) -> dict:
    return {
        "version": VERSION,
        "kind": "captioner",
        "data": dataset.checksum,
        "texts": files.digest(reports.texts),
        "tokens": tokens.checksum,
        "settings": dataclasses.asdict(settings),
    }


def _pair_loss(logits: Tensor, answers: Tensor | None, tokens: Tensor, study: Study) -> Tensor:
    """Cross-entropy, joined with a teacher's ``answers`` where there are any."""
    hard = networks.token_loss(logits, tokens)
    if answers is None:
        return hard
    alpha = ALPHA if study.alpha is None else study.alpha
    soft = token_soft_loss(logits, answers, tokens, study.temperature or TEMPERATURE)
    return alpha * hard + (1 - alpha) * soft


def token_soft_loss(
    logits: Tensor, answers: Tensor, tokens: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """T² · KL of a teacher's probabilities of each next token from the student's, mean over tokens.

    ``logits`` and ``answers`` ``(N, T, V)``, ``tokens`` ``(N, T)``; padding does not count.
    """
    known = tokens[:, 1:] != PAD
    targets = soft_targets.soft_targets(answers[:, :-1][known][None], temperature)
    return soft_targets.soft_loss(logits[:, :-1][known], targets, temperature)


@torch.no_grad()
def write(
    trained: Run,
    dataset: Dataset,
    tokens: Tokens,
    rows: Sequence[int],
    batch_size: int = 128,
) -> tuple[list[str], float]:
    """The reports that a captioner writes for rows of the table, and the milliseconds that each
    took, encoder included."""
    model, begun = trained.model.eval(), time.monotonic()
    maps = _maps(model, dataset, frozen=False)
    texts = []
    for part in torch.from_numpy(np.asarray(rows)).split(batch_size):
        seen = model.bridge(maps(part))[0]
        texts += tokens.decode(model.writer.write(len(part), seen))
    return texts, 1000 * (time.monotonic() - begun) / len(rows)


def blind(writer: Run, tokens: Tokens) -> str:
    """The report that a decoder writes without an image."""
    (text,) = tokens.decode(writer.model.eval().write(1))
    return text
