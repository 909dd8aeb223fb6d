"""What notebook 13 compares: teachers and students on the same test images, paired; and the heat
maps of a classifier, which learnt from labels alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import softmax

from kdnb import distillation
from kdnb.data import Dataset
from kdnb.evaluation import crossed, statistics
from kdnb.explanations import explain
from kdnb.explanations.localisation import localisation
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.segmentation import measures
from kdnb.segmentation.images import MaskedDataset
from kdnb.segmentation.losses import TARGET
from kdnb.segmentation.training import ALONE, ONE, predicted
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run
from kdnb.training.trio import by_name

SIZES = 4  # groups of images by the size of their target


@dataclass(frozen=True)
class Tested:
    """All networks on the test images: ``masks`` by name and ``truth`` ``(N, S, S)``, ``groups``
    ``(N,)`` of images of one patient, ``roles`` by name."""

    masks: Mapping[str, np.ndarray]
    truth: np.ndarray
    groups: np.ndarray
    roles: Mapping[str, str]

    @cached_property
    def images(self) -> dict[str, pd.DataFrame]:
        """The measures of each image, by network."""
        return {name: measures.by_image(each, self.truth) for name, each in self.masks.items()}

    @cached_property
    def scores(self) -> dict[str, dict[str, dict]]:
        """Means with intervals over groups, by network."""
        return {name: statistics.summary(each, self.groups) for name, each in self.images.items()}

    def table(self) -> pd.DataFrame:
        """A row a network: each mean with its interval as text."""
        rows = {
            name: {measure: _shown(score[measure]) for measure in measures.MEASURES}
            for name, score in self.scores.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")

    def differences(self) -> pd.DataFrame:
        """Dice of the student with several teachers minus that of the others, paired by image: the
        columns label, difference, low, high, groups."""
        students = [name for name, role in self.roles.items() if role in ("distilled", "baseline")]
        first = students[-1]
        rows = []
        for other in students[:-1]:
            gap = dice_gaps([self.images[first]["dice"]], [self.images[other]["dice"]])
            found = crossed.difference(gap, self.groups[np.isfinite(self.images[first]["dice"])])
            ends = {"difference": found.value, "low": found.low, "high": found.high}
            rows.append({"label": f"{first} − {other}"} | ends | {"groups": found.groups})
        return pd.DataFrame(rows)

    def by_size(self) -> pd.DataFrame:
        """Mean Dice with its interval for images in four groups of equal number by the size of
        their target: the columns model, role, size (the group's mean share of the image), dice,
        low, high, n."""
        size = self.truth.reshape(len(self.truth), -1).mean(1)
        drawn = np.flatnonzero(size > 0)
        parts = np.array_split(drawn[np.argsort(size[drawn], kind="stable")], SIZES)
        rows = []
        for name, images in self.images.items():
            for part in (part for part in parts if len(part)):
                found = statistics.summary(images.iloc[part], self.groups[part])["dice"]
                ends = {"dice": found["mean"], "low": found["low"], "high": found["high"]}
                about = {"model": name, "role": self.roles[name], "size": size[part].mean()}
                rows.append(about | ends | {"n": found["n"]})
        return pd.DataFrame(rows)

    def shown(self, count: int) -> np.ndarray:
        """About ``count`` images with a target, evenly from the smallest to the largest."""
        size = self.truth.reshape(len(self.truth), -1).sum(1)
        order = np.flatnonzero(size)[np.argsort(size[size > 0], kind="stable")]
        return order[np.unique(np.linspace(0, len(order) - 1, count + 2).round().astype(int)[1:-1])]

    def stored(self) -> dict:
        """What a result file holds: means with intervals, and the Dice of every image that has a
        target, with its group, so that runs can be pooled."""
        dice = {name: images["dice"] for name, images in self.images.items()}
        drawn = np.flatnonzero(np.isfinite(next(iter(dice.values()))))
        return {
            "scores": self.scores,
            "roles": dict(self.roles),
            "test": {
                "groups": np.unique(self.groups[drawn], return_inverse=True)[1].tolist(),
                "dice": {name: np.round(d[drawn], 4).tolist() for name, d in dice.items()},
            },
        }


def _shown(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def dice_gaps(ours: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Paired differences ``(n, S)`` in Dice of the images that have a target, from the values
    ``(N,)`` of S runs each."""
    gaps = np.stack([np.asarray(a) - np.asarray(b) for a, b in zip(ours, others, strict=True)], 1)
    return gaps[np.isfinite(gaps).all(1)]


def test(
    dataset: MaskedDataset, teachers: Mapping[str, Sequence[Run]], students: Mapping[str, Run]
) -> Tested:
    """All teachers and students on the test images; a student is called after its teachers."""
    pixels = dataset.pixels(next(iter(students.values())).model.image_size, "test")
    models, roles = {}, {}
    for group, runs in teachers.items():
        for number, run in enumerate(by_name(runs).values(), 1):
            several = f"teacher {number} of {len(runs)}"
            models["teacher of all patients" if group == ONE else several] = run.model
    roles |= dict.fromkeys(models, "teacher")
    for group, run in students.items():
        models[f"student, {group}"] = run.model
        roles[f"student, {group}"] = "baseline" if group == ALONE else "distilled"
    masks = {name: predicted(model, pixels) for name, model in models.items()}
    truth = pixels.labels[pixels.rows].numpy().astype(bool)
    return Tested(masks, truth, dataset.groups("test"), roles)


def labelled(dataset: MaskedDataset) -> Dataset:
    """The same images and split with the labels of the images as targets."""
    fields = (field.name for field in dataclasses.fields(Dataset))
    return Dataset(**{name: getattr(dataset, name) for name in fields})


def train_classifier(study: Study, dataset: MaskedDataset) -> Run | None:
    """The student's encoder as a classifier that learns the labels of the same images in as many
    epochs; None where all images have one label."""
    whole = labelled(dataset)
    if len(whole.classes) < 2:
        return None
    labels = distillation.create("hard")
    return loop.fit(study, whole, study.small_encoder, labels, study.student_epochs)


def heat_maps(
    classifier: Classifier, segmenter: Classifier, dataset: MaskedDataset, method: str = "grad_cam"
) -> dict[str, np.ndarray]:
    """Two maps ``(n, S, S)`` of each test image with a target: the classifier's for the image's own
    label, and the segmenter's probability of the target."""
    pixels = dataset.pixels(segmenter.image_size, "test")
    drawn = _drawn(dataset, segmenter.image_size)
    labels = labelled(dataset).labels[pixels.rows.numpy()[drawn]]
    images = pixels.floats(pixels.rows.numpy()[drawn])
    maps = explain(classifier, images, method, labels.tolist()).maps
    logits = predict(segmenter, pixels.subset(pixels.rows.numpy()[drawn]))
    return {"classifier": maps, "student": softmax(logits, axis=1)[:, TARGET]}


def _drawn(dataset: MaskedDataset, image_size: int) -> np.ndarray:
    """The places of the test images that have a target."""
    return np.flatnonzero(dataset.truth(image_size).any((1, 2)))


def localised(maps: Mapping[str, np.ndarray], dataset: MaskedDataset) -> dict[str, dict]:
    """How well maps ``(n, S, S)`` of the test images with a target find it: pointing, mass, rank,
    iou and the area that chance reaches (:func:`kdnb.explanations.localisation.localisation`), each
    with its mean and interval over groups."""
    size = next(iter(maps.values())).shape[-1]
    drawn = _drawn(dataset, size)
    truth, groups = dataset.truth(size)[drawn], dataset.groups("test")[drawn]
    tables = {name: pd.DataFrame(localisation(each, truth)) for name, each in maps.items()}
    return {name: statistics.summary(table, groups) for name, table in tables.items()}


def table_of_localisation(found: Mapping[str, dict]) -> pd.DataFrame:
    """:func:`localised` as text, a row each map."""
    return pd.DataFrame(
        {name: {m: _shown(score) for m, score in each.items()} for name, each in found.items()}
    ).T
