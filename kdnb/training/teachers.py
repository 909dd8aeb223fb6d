"""The teachers' answers: asked for each batch, and kept on disk for the next run with these views.

All randomness of an epoch follows from (seed, epoch), so runs that share seed, data and batch size
show the same views in the same order, whatever their method, student, alpha or temperature: a
teacher answers each view once.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import device, files
from kdnb.data import Dataset
from kdnb.distillation.base import Seen, see
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.training import answers, processes


def frozen(teacher: Classifier) -> Classifier:
    """A copy that gives the same answers sooner.

    Its weights are rounded to half precision once, where autocast would do so for every batch.
    """
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
    teacher.requires_grad_(False)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision())
    if half is not None:
        for module in teacher.modules():
            # a subclass may do more with its weights than multiply
            if type(module) in (nn.Conv2d, nn.Linear):
                module.to(half)
    return teacher


def answer(teacher: Classifier, images: Tensor, taps: int = 0, pooled: bool = False) -> Seen:
    """Logits and ``taps`` maps of a teacher for images ``(N, 3, S, S)`` in [0, 1], in float32.

    ``pooled`` averages each map over its cells, to ``(N, C, 1, 1)``. The teacher must be in eval
    mode; it stays as it is.
    """
    with torch.inference_mode(), device.autocast(images.device):
        found = see(teacher, images, taps, pooled)
    # copied outside, once: a tensor of the inference mode may not enter the student's graph
    logits, *features = (each.to(torch.float32, copy=True) for each in (found[0], *found[1]))
    return Seen(logits, tuple(features))


@dataclass(frozen=True)
class GivenLogits:
    """A teacher that is no network: its ``logits`` ``(R, K)`` for all rows of the table, as the
    images are. It stands where the run of a teacher does, and teaches on fixed views alone."""

    name: str
    logits: Tensor

    @property
    def model(self) -> GivenLogits:
        """Itself: what answers."""
        return self

    @property
    def checksum(self) -> str:
        """Names the answers."""
        return zoo.tensors_checksum({"logits": self.logits})


class Asked:
    """A teacher that is asked for every batch.

    ``start_epoch``, then one call a batch in the order of ``rows``, then ``end_epoch``.
    """

    def __init__(
        self,
        teacher: Classifier | GivenLogits,
        where: torch.device,
        taps: int = 0,
        pooled: bool = False,
    ):
        self.teacher, self.where, self.taps, self.pooled = teacher, where, taps, pooled

    @functools.cached_property
    def network(self) -> Classifier:
        """The teacher as it answers; made when it is asked for the first time."""
        return frozen(self.teacher).to(self.where)

    def ask(self, images: Tensor) -> Seen:
        """The answer for ``(N, 3, S, S)`` images, computed now."""
        return answer(self.network, images, self.taps, self.pooled)

    def start_epoch(self, epoch: int, rows: Tensor) -> None:
        """Prepare for an epoch whose batches hold these rows ``(R,)`` of the table, in order."""

    def __call__(self, images: Tensor, rows: Tensor) -> Seen:
        """The answer for the next batch."""
        return self.ask(images)

    def end_epoch(self) -> None:
        """Keep what is worth keeping."""


class FixedViews(Asked):
    """A teacher whose logits for all images, not augmented, are computed once and kept on disk, or
    are all that there is of it."""

    def __init__(
        self,
        teacher: Classifier | GivenLogits,
        where: torch.device,
        dataset: Dataset,
        image_size: int,
    ):
        super().__init__(teacher, where)
        given = isinstance(teacher, GivenLogits)
        self.logits = teacher.logits if given else fixed_logits(teacher, dataset, image_size)

    def __call__(self, images: Tensor, rows: Tensor) -> Seen:
        """The logits of these rows."""
        return Seen(self.logits[rows.cpu()].to(self.where))


class Kept(Asked):
    """A teacher whose answers for an epoch's views are read where a run kept them, else asked for
    and kept.

    ``views`` names all that the views follow from, but the epoch and the rows.
    """

    def __init__(
        self, teacher: Classifier, where: torch.device, taps: int, pooled: bool, views: dict
    ):
        super().__init__(teacher, where, taps, pooled)
        self.key = views | {
            "teacher": zoo.checksum(teacher.network),
            "taps": taps,
            "precision": device.precision(),
            "device": where.type,
        }
        self.folder = answers.folder() / f"{teacher.name}-{files.digest(self.key)}"
        self.reported = False

    def start_epoch(self, epoch: int, rows: Tensor) -> None:
        """Read the epoch's answers where they are whole, else begin to keep them."""
        named = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        self.about = {"key": self.key, "epoch": epoch, "rows": named}
        self.path = self.folder / f"epoch-{epoch:04}-{named[:12]}.safetensors"
        self.place, self.new = 0, []
        self.stored = answers.read(self.path, self.about)
        if self.stored is not None:
            os.utime(self.path)  # the oldest are removed first
            self._report("read from")

    def __call__(self, images: Tensor, rows: Tensor) -> Seen:
        """The stored answer of the next batch, or the teacher's, which is remembered."""
        begin, self.place = self.place, self.place + len(rows)
        if self.stored is not None:
            logits, *features = (each[begin : self.place].to(self.where) for each in self.stored)
            return Seen(logits, tuple(features))
        found = self.ask(images)
        # a GPU need not wait for the copy of what is small; an epoch's maps would fill its memory
        small = self.pooled or not self.taps
        self.new.append([e if small else e.cpu() for e in (found.logits, *found.features)])
        return found

    def end_epoch(self) -> None:
        """Write the epoch's answers, if they were new and there is room for them."""
        if self.stored is None and self.new:
            whole = [torch.cat(parts).cpu() for parts in zip(*self.new, strict=True)]
            if answers.make_room(sum(each.nbytes for each in whole), self.folder):
                answers.write(self.path, self.about, whole)
                self._report("kept in")
        self.new, self.stored = [], None

    def _report(self, done: str) -> None:
        if not self.reported and self.key["process"] == 0:
            used = sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) / 1e6
            tqdm.write(
                f"answers of {self.teacher.name}: {done} {files.shown(self.folder)} "
                f"({used:.3g} MB so far; {answers.LIMIT} bounds all answers, now to "
                f"{answers.limit() / 1e9:g} GB)"
            )
        self.reported = True


def fixed_logits(teacher: Classifier, dataset: Dataset, image_size: int) -> Tensor:
    """Logits ``(R, K)`` of a teacher for all images of the table, not augmented, kept on disk."""
    key = {
        "teacher": zoo.checksum(teacher.network),
        "data": dataset.checksum,
        "image_size": image_size,
        "precision": device.precision(),
    }
    path = answers.folder() / f"{teacher.name}-{files.digest(key)}" / "fixed.safetensors"
    with processes.accelerator().main_process_first(), files.lock(path):
        stored = answers.read(path, key)
        if stored is None:
            pixels = dataset.pixels(image_size)
            stored = [torch.from_numpy(predict(teacher, pixels))]
            answers.make_room(stored[0].nbytes, path.parent)
            answers.write(path, key, stored)
    return stored[0]
