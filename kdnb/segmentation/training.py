"""U-Nets in the training loop of all networks: batches, scores and views of images with masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from kdnb.distillation.base import Batch, Method, Seen
from kdnb.images.pixels import Pixels
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.segmentation.images import MaskedDataset, refuse_empty
from kdnb.segmentation.losses import TARGET, LimitTrainedMasks, Masks
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run
from kdnb.training.recipes import TrainingRecipe

# the decoder starts from random weights, also where the encoder does not
RECIPE = TrainingRecipe("segmentation", lr=1e-3, class_weights=False)
ONE, ALONE = "one teacher", "no teacher"


class MaskTraining(loop.Training):
    """A training whose targets are masks: they move with their images, and the epoch with the
    largest Dice of all validation pixels together is kept."""

    def on_device(self, batch: Batch, views: Generator) -> Batch:
        """A batch on the device, image and mask as the same random view."""
        images, masks = batch.images.to(self.device), batch.labels.to(self.device)
        if self.augment:
            images, masks = self.augment.with_masks(images, masks, views)
        return Batch(images, masks, batch.rows.to(self.device))

    def progress(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Dice of a batch's pixels together, from logits ``(N, 2, H, W)`` and masks
        ``(N, H, W)``."""
        return {"dice": pooled_dice(logits.argmax(1) == TARGET, labels == TARGET)}

    def validation(self) -> dict[str, float]:
        """Loss, a mean over batches, and Dice of all pixels of the validation images together."""
        masks, size = self.val.labels[self.val.rows], self.settings.batch_size
        logits = torch.from_numpy(predict(self.lesson.student, self.val, size))
        parts = zip(logits.split(size), masks.split(size), strict=True)
        losses = [float(Masks().loss(Seen(each), [], truth)["loss"]) for each, truth in parts]
        dice = pooled_dice(logits.argmax(1) == TARGET, masks == TARGET)
        return {"val_loss": float(np.mean(losses)), "val_dice": float(dice)}


def pooled_dice(masks: Tensor, truth: Tensor) -> Tensor:
    """Dice of all pixels of boolean ``masks`` and ``truth`` ``(N, H, W)`` together; 1 where neither
    marks any."""
    both, sizes = (masks & truth).sum(), masks.sum() + truth.sum()
    return (2 * both + (sizes == 0)) / sizes.clamp(min=1)


def predicted(model: Classifier, pixels: Pixels) -> np.ndarray:
    """Boolean masks ``(n, S, S)`` of a U-Net for un-augmented images."""
    return predict(model, pixels).argmax(1) == TARGET


def several(study: Study) -> str:
    """The name of the limit-trained teachers."""
    return f"{study.shards} limit-trained teachers"


def train_teachers(study: Study, dataset: MaskedDataset) -> dict[str, list[Run]]:
    """One teacher of all training patients, and teachers of disjoint parts of them, by what a
    student of theirs is called.

    Each sees as many images as the one, in more epochs of its fewer images: limited are its
    patients, not its training. Raises :class:`~kdnb.parameters.BadParameter` where a part has no
    image with a target, and :class:`~kdnb.images.splits.SplitError` where it lacks a label.
    """
    parts = [dataset.shard(number, study.shards) for number in range(study.shards)]
    for part in parts:
        refuse_empty(part, ["train"])

    def taught(images):
        epochs = round(study.teacher_epochs * dataset.train_size / images.train_size)
        return _fit(study, images, study.teachers[0], Masks(), epochs, role="teacher")

    return {ONE: [taught(dataset)], several(study): [taught(part) for part in parts]}


def train_students(
    study: Study, dataset: MaskedDataset, teachers: dict[str, list[Run]]
) -> dict[str, Run]:
    """The same student without a teacher and of each group of ``teachers``: same seed, images,
    epochs and views."""
    options = LimitTrainedMasks.Options(weighting=study.weighting, feature_weight=study.kl_weight)
    name, epochs = study.student, study.student_epochs
    found = {ALONE: _fit(study, dataset, name, Masks(), epochs)}
    for group, runs in teachers.items():
        found[group] = _fit(study, dataset, name, LimitTrainedMasks(options), epochs, runs)
    return found


def _fit(
    study: Study,
    dataset: MaskedDataset,
    name: str,
    method: Method,
    epochs: int,
    teachers: list[Run] | None = None,
    role: str = "student",
) -> Run:
    given = {"recipe": RECIPE, "role": role, "training": MaskTraining}
    return loop.fit(study, dataset, name, method, epochs, teachers or [], **given)
