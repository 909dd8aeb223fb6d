"""Rare positives: losses for classes of unequal size, on equal images and epochs (R9,
arXiv:2112.08363)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from kdnb import distillation
from kdnb.data import Dataset
from kdnb.evaluation import roc
from kdnb.models.predict import predict
from kdnb.parameters import BadParameter
from kdnb.study import Study
from kdnb.training import labels, loop
from kdnb.training.recipes import TrainingRecipe

REFERENCE = "weighted cross-entropy"
COLD = "AUC margin"
STARTED = f"{COLD}, started without labels"
FEWEST = {"train": 2, "val": 1}  # images of each kind


@dataclass(frozen=True)
class Loss:
    """A way to learn two classes: a method with its options, whether classes are weighted by their
    rarity, and whether the network starts from contrast without labels."""

    method: str
    options: tuple[tuple[str, float], ...] = ()
    weighted: bool = False
    started: bool = False

    def fit(self, study: Study, dataset: Dataset) -> list[loop.Run]:
        """The study's student, trained this way to the end of its epochs; before it the start
        without labels, where there is one."""
        recipe = TrainingRecipe(patience=0, class_weights=self.weighted, started=self.started)
        method = distillation.create(self.method, **dict(self.options))
        given, epochs = (study, dataset, study.student), study.student_epochs
        begun = [loop.begin(*given, epochs)] if self.started else []
        return [*begun, loop.fit(*given, method, epochs, recipe=recipe)]


PLAIN_IMAGES = (("mixup", 0.0), ("cutmix", 0.0), ("smoothing", 0.0))
LOSSES = {
    "cross-entropy": Loss("hard"),
    REFERENCE: Loss("hard", weighted=True),
    "focal": Loss("focal", PLAIN_IMAGES),
    COLD: Loss("aucm"),
    STARTED: Loss("aucm", started=True),
}


def with_positives(dataset: Dataset, share: float, shares: Sequence[float], seed: int) -> Dataset:
    """Two classes, the dataset's first one against all others, with ``share`` positives among the
    training and validation images.

    As many images of each part as all ``shares`` (above 0 and below 1) allow are drawn by ``seed``;
    the positives of a smaller share are among those of a larger one. Test images are all kept.
    Raises :class:`BadParameter` where a part would have too few images of a kind.
    """
    name = dataset.classes[0]
    positive, rng = dataset.table["label"] == name, np.random.default_rng(seed)
    kept = (dataset.table["split"] == "test").to_numpy(copy=True)
    for part, fewest in FEWEST.items():
        here = (dataset.table["split"] == part).to_numpy()
        found = [rng.permutation(np.flatnonzero(here & kind)) for kind in (positive, ~positive)]
        size = int(min(min(len(found[0]) / s, len(found[1]) / (1 - s)) for s in shares))
        count = round(share * size)
        if min(count, size - count) < fewest:
            raise BadParameter(
                f"positive_shares {share:g}: {count} of {size} images for {part} would be "
                f"{name!r}, and {fewest} of each kind are needed: larger shares, or more images"
            )
        kept[found[0][:count]] = kept[found[1][: size - count]] = True
    classes = (f"not {name}", name)
    renamed = dataset.table["label"].where(positive, classes[0])
    every = dataset.index.table["label"]
    index = dataclasses.replace(
        dataset.index,
        classes=classes,
        table=dataset.index.table.assign(label=every.where(every == name, classes[0])),
    )
    table = dataset.table.assign(label=renamed, split=dataset.table["split"].where(kept, ""))
    used = f"{dataset.split}; {share:.0%} of the training and validation images are {name!r}"
    return dataclasses.replace(dataset, index=index, table=table, split=used)


def train_rare(study: Study, dataset: Dataset) -> Iterator[dict]:
    """Train and test each of :data:`LOSSES` for each of ``study.positive_shares``; yields one row a
    training: measures, areas with intervals, and the paired differences in both areas to
    :data:`REFERENCE` (``against``) and, of a start without labels, to the same loss without one
    (``against_cold``).

    All have the same number of images and epochs; a start without labels has as many epochs again,
    of two views an image, which its budget counts.
    """
    shares = labels.shares(study.positive_shares)
    for share in shares:
        part = with_positives(dataset, share, shares, study.seed)
        small = dataclasses.replace(
            study, batch_size=min(study.batch_size, math.ceil(part.train_size / 4))
        )
        known: dict[str, np.ndarray] = {}
        for name, loss in sorted(LOSSES.items(), key=lambda pair: pair[0] != REFERENCE):
            runs = loss.fit(small, part)
            pixels = part.pixels(study.image_size, "test")
            known[name] = softmax(predict(runs[-1].model, pixels), axis=1)[:, 1]
            yield (
                {"positives": share, "loss": name}
                | labels.tested(runs, part)
                | _areas(part, known, name)
            )


def _areas(part: Dataset, known: dict[str, np.ndarray], name: str) -> dict:
    """Both areas of one loss, with their intervals and differences to the reference."""
    truth = part.labels[part.table["split"] == "test"] == 1
    groups = part.groups("test")
    found = roc.evaluate(truth, known[name], groups)
    limits = {f"{area}_interval": found["intervals"][area] for area in ("auc", "partial_auc")}

    def minus(other):
        return roc.compare(truth, known[name], known[other], groups)

    against = {"against": {} if name == REFERENCE else minus(REFERENCE)}
    if name == STARTED:
        against["against_cold"] = minus(COLD)
    return {"auc": found["auc"], "partial_auc": found["partial_auc"]} | against | limits
