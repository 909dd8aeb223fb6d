"""Curation: which images of a larger batch a student learns from, by what a reference knows.

ACID (arXiv:2411.18674) draws the images of a step from a super-batch; together with distillation
from the same batch it is the paper's ACED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdnb import checks, device, files
from kdnb.distillation.base import Batch, Mismatch
from kdnb.distillation.soft_targets import soft_targets
from kdnb.models.zoo import Classifier
from kdnb.parameters import BadParameter
from kdnb.training import schedule
from kdnb.training.schedule import Batches, Settings

RULES = ("acid", "easy_reference", "random")
SUPER = 5  # batches in a super-batch: the paper's filter ratio 0.8
FORWARD = 1, 3  # the cost of scoring and of learning from an image, in forward passes


def passes(learnt: float, scored: float, scale: float = 1.0) -> float:
    """The cost of learning from images and of scoring others, their sides reduced to the share
    ``scale``, in forward passes of whole images; a backward pass is worth two."""
    score, learn = FORWARD
    return learn * learnt + score * scale**2 * scored


@dataclass(frozen=True)
class Curation:
    """``acid``: p ∝ exp((student's − reference's loss) / temperature); ``easy_reference``:
    p ∝ exp(−reference's loss / temperature); ``random``: all alike, the control.

    The paper trains contrastively and draws jointly by a loss of pairs. Ours, for classes: the
    cross-entropy of each image, not weighted by class, of the plain image without augmentation for
    student and reference; single draws without replacement; several references answer with their
    averaged probabilities. The student scores in evaluation mode, images reduced to the share
    ``scale`` in (0, 1] of their sides: scoring is then cheaper by ``scale``², as with the coarse
    views of Flexi-JEST (arXiv:2406.17711), but a student sees larger images when it learns.
    """

    rule: str
    temperature: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        files.lookup(self.rule, RULES, "curation")
        checks.positive(temperature=self.temperature)
        checks.within(0.1, 1.0, scale=self.scale)

    @property
    def key(self) -> dict:
        """Its part of a run's key. A scale counts only where it is used, so that runs from before
        it are found again."""
        key = {"rule": self.rule, "temperature": self.temperature, "super": SUPER}
        return key | {"scale": self.scale} if self.scored and self.scale != 1 else key

    @property
    def scored(self) -> int:
        """Images that the student scores for each image that it learns from."""
        return SUPER if self.rule == "acid" else 0


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``(N,)`` of each image, in nats, from ``logits`` ``(N, K)`` or the averaged
    probabilities of M references ``(M, N, K)``, and ``labels`` ``(N,)``."""
    whole = soft_targets(logits, 1.0) if logits.ndim == 3 else logits
    return F.cross_entropy(whole.float(), labels, reduction="none")


def drawn(scores: Tensor, count: int, temperature: float, generator: Generator) -> Tensor:
    """Places ``(count,)`` of images drawn without replacement, one after the other, each with
    p ∝ exp(score / temperature) among those that are left.

    ``scores`` ``(N,)`` are finite. The ``count`` largest of scores to which Gumbel noise was added
    are such a draw (Kool et al. 2019, arXiv:1903.06059, section 2.3). ``generator`` is a CPU
    generator, so that every device draws the same. Raises ``ValueError`` for more than N.
    """
    checks.within(1, len(scores), count=count)
    checks.positive(temperature=temperature)
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    return (scores.cpu().double() / temperature + gumbel).topk(count).indices


class SuperBatches(Batches):
    """As many steps as :class:`Batches` has in an epoch, each with one process's part of a
    super-batch, drawn without replacement from all training images anew for every step.

    Raises :class:`~kdnb.parameters.BadParameter` where a super-batch is larger than the set.
    """

    def __init__(self, size: int, settings: Settings, part: int = 0, parts: int = 1):
        if SUPER * settings.batch_size > size:
            raise BadParameter(
                f"a super-batch of {SUPER} · {settings.batch_size} images is larger than the "
                f"{size} training images: -p batch_size {max(2, size // SUPER)} or less, or no "
                "-p curation"
            )
        super().__init__(size, settings, part, parts)

    def __iter__(self) -> Iterator[list[int]]:
        seed = schedule.epoch_seed(self.settings, self.epoch)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(len(self)):
            order = torch.randperm(self.rows, generator=generator)
            images = order[: SUPER * self.settings.batch_size]
            yield images.chunk(self.parts)[self.part].tolist()

    @property
    def images(self) -> int:
        """Images that are learnt from in an epoch."""
        return len(self) * self.settings.batch_size


class Curator:
    """A rule with the losses of its reference: chooses the batch of each step.

    ``references`` are logits ``(R, K)`` for all rows of the table, one a reference network; none
    are needed for ``random``. ``labels`` ``(R,)``. Raises ``ValueError`` where a rule lacks them.
    """

    def __init__(self, rule: Curation, references: Sequence[Tensor], labels: Tensor):
        if rule.rule != "random" and not references:
            raise Mismatch(
                f"curation {rule.rule} compares with a reference, and there is no teacher to be "
                "one; -p curation random needs none"
            )
        self.rule = rule
        known = labels.clamp(min=0)  # rows without a label are no training images
        self.losses = losses(torch.stack([*references]), known) if references else labels * 0.0

    def choose(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """A fifth of a super-batch of plain images; the student stays in its mode."""
        scores = -self.losses[batch.rows.cpu()]
        if self.rule.rule == "acid":
            scores = scores + self._student(batch, student).cpu()
        elif self.rule.rule == "random":
            scores = torch.zeros(len(batch.rows))
        count = len(batch.rows) // SUPER
        chosen = drawn(scores, count, self.rule.temperature, generator)
        return Batch(*(each[chosen.to(each.device)] for each in batch))

    def _student(self, batch: Batch, student: Classifier) -> Tensor:
        was, images = student.training, self._reduced(batch.images)
        student.eval()
        with torch.no_grad(), device.autocast(images.device):
            try:
                logits = student(images.contiguous(memory_format=torch.channels_last))
            except (RuntimeError, AssertionError, ValueError) as error:
                if self.rule.scale == 1 or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise Mismatch(
                    f"{student.name} cannot score images of {images.shape[-1]} px, as it is built "
                    f"for {batch.images.shape[-1]} px: leave out -p curation_scale, or choose a "
                    "student that takes images of any size, such as ofa595"
                ) from error
        student.train(was)
        return losses(logits, batch.labels)

    def _reduced(self, images: Tensor) -> Tensor:
        if self.rule.scale == 1:
            return images
        side = max(1, round(self.rule.scale * images.shape[-1]))
        return F.interpolate(images, size=(side, side), mode="area")
