"""Features of all images of a dataset, one block a source, kept on disk.

A file is named by all that its values follow from: weights, images, size, view. One that is
damaged, unfinished or of something else is never read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.functional import rgb_to_grayscale
from tqdm import tqdm

from kdnb import device, files
from kdnb.classical import handcrafted, settings
from kdnb.classical.handcrafted import FAMILIES
from kdnb.data import Dataset
from kdnb.evaluation import shortcuts
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.predict import penultimate
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import answers
from kdnb.training.checkpoints import Run
from kdnb.training.trio import by_name

WHOLE = "whole image"
CHUNK = 500  # images whose handcrafted features are computed at once


class BadFeature(
    files.UserError,
    ValueError,
    code="KD801",
    way_out="train that network again with a lower -p lr, or leave the family of features out of "
    "-p features",
):
    """A feature that is not a number; the message names the image and the feature."""


@dataclass(frozen=True)
class Block:
    """The features of one source for all R images of a table: ``values`` ``(R, F)`` float32.

    ``names`` of the F features; ``learnt`` by a network or handcrafted; ``seconds`` that the R
    images took when they were computed.
    """

    name: str
    values: np.ndarray
    names: tuple[str, ...]
    learnt: bool = False
    seconds: float = 0.0


def load(
    study: Study, dataset: Dataset, teachers: Sequence[Run] = (), view: str = WHOLE
) -> list[Block]:
    """The blocks that ``study.features`` names, in that order; ``teachers`` are the trained ones.

    A network by name has its ImageNet weights and is not trained. ``view`` is one of
    :data:`kdnb.evaluation.shortcuts.VIEWS`. Raises :class:`BadFeature`, ``UnknownName`` for a view,
    and :class:`kdnb.models.weights.PretrainedMissing`.
    """
    pixels = _pixels(dataset, study.image_size, view)
    found = []
    for name in settings.named(study.features):
        if name in FAMILIES:
            found.append(_handcrafted(name, dataset, pixels, view))
        elif name == settings.TEACHER:
            for teacher, run in by_name(teachers).items():
                found.append(_learnt(f"teacher {teacher}", run.model, dataset, pixels, view))
        else:
            found.append(_learnt(name, _published(name, study, dataset), dataset, pixels, view))
    return found


def _pixels(dataset: Dataset, image_size: int, view: str) -> Pixels:
    pixels = dataset.pixels(image_size)
    files.lookup(view, shortcuts.VIEWS, "view")
    if view == WHOLE:
        return pixels
    left = shortcuts.keep_view(view, pixels.images)
    if left is None:
        raise ValueError(f"the view {view!r} needs masks, which features are not computed with")
    return Pixels(left.numpy(), dataset.labels)


def _published(name: str, study: Study, dataset: Dataset) -> Classifier:
    """A network with its ImageNet weights; the new classifier is always the same, because the
    checksum of the weights covers it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.create(name, len(dataset.classes), study.image_size, pretrained=True)
    return model.eval().to(device.default())


def _learnt(name: str, model: Classifier, dataset: Dataset, pixels: Pixels, view: str) -> Block:
    key = {"weights": zoo.checksum(model.network), "precision": device.precision()}
    values, seconds = _kept(
        model.name, key, dataset, pixels, view, lambda: penultimate(model, pixels)
    )
    names = tuple(f"{name} {number}" for number in range(values.shape[1]))
    return _finite(Block(name, values, names, True, seconds), dataset)


def _handcrafted(name: str, dataset: Dataset, pixels: Pixels, view: str) -> Block:
    family, key = FAMILIES[name], {"version": handcrafted.VERSION}
    values, seconds = _kept(
        name, key, dataset, pixels, view, lambda: in_chunks(family.compute, pixels, name)
    )
    return _finite(Block(name, values, family.names, False, seconds), dataset)


def in_chunks(
    compute: Callable[[np.ndarray], np.ndarray], pixels: Pixels, title: str = ""
) -> np.ndarray:
    """Features ``(R, F)`` of all images, which are converted to grey ``(n, S, S)`` uint8."""
    starts = range(0, len(pixels), CHUNK)
    bar = tqdm(starts, desc=title, unit="chunk", leave=False, disable=len(starts) < 2)
    grey = (rgb_to_grayscale(pixels.images[n : n + CHUNK])[:, 0].numpy() for n in bar)
    return np.concatenate([compute(images) for images in grey])


def _kept(
    name: str,
    key: dict,
    dataset: Dataset,
    pixels: Pixels,
    view: str,
    work: Callable[[], np.ndarray],
) -> tuple[np.ndarray, float]:
    """Values ``(R, F)`` and the seconds they took: read where they are kept, else computed."""
    about = key | {
        "name": name,
        "images": dataset.index.checksum,
        "rows": files.digest(dataset.table["path"].tolist()),
        "color": dataset.color,
        "image_size": pixels.images.shape[-1],
        "view": view,
    }
    path = files.cache_dir() / "features" / f"{name}-{files.digest(about)}.safetensors"
    with files.lock(path):
        stored = answers.read(path, about)
        if stored is None or len(stored[0]) != len(dataset.table):
            begun = time.perf_counter()
            values = torch.from_numpy(work().astype(np.float32))
            stored = [values, torch.tensor([time.perf_counter() - begun])]
            answers.write(path, about, stored)
    return stored[0].numpy(), float(stored[1])


def _finite(block: Block, dataset: Dataset) -> Block:
    """The block. Raises :class:`BadFeature` where a value is NaN or infinite."""
    wrong = np.argwhere(~np.isfinite(block.values))
    if len(wrong):
        row, column = wrong[0]
        others = f", and {len(wrong) - 1:,} more values" if len(wrong) > 1 else ""
        raise BadFeature(
            f"{dataset.table['path'].iloc[row]}: the feature {block.names[column]!r} of "
            f"{block.name} is {block.values[row, column]}{others}; leave {block.name} out of "
            "-p features, or look at the image in 01"
        )
    return block


def of_files(dataset: Dataset) -> dict[str, Block]:
    """Blocks that hold no shapes: the statistics of each image's grey values and size
    (:func:`kdnb.evaluation.shortcuts.image_statistics`), and the colour mode of its file."""
    modes = sorted(dataset.table["mode"].unique())
    coded = np.stack([dataset.table["mode"] == mode for mode in modes], axis=1)
    statistics = shortcuts.image_statistics(dataset)
    size = ("width", "height", "aspect ratio", "mean", "standard deviation")
    shares = tuple(f"percentile {share}" for share in shortcuts.PERCENTILES)
    return {
        "statistics only": Block("statistics only", statistics, (*size, *shares)),
        "colour mode only": Block("colour mode only", coded.astype(np.float32), tuple(modes)),
    }


def table(blocks: Sequence[Block]) -> pd.DataFrame:
    """One row a block: the number of features, milliseconds an image, and the number of images
    that were timed."""
    return pd.DataFrame(
        {
            block.name: {
                "features": len(block.names),
                "ms an image": round(1000 * block.seconds / len(block.values), 2),
                "images timed": len(block.values),
            }
            for block in blocks
        }
    ).T.astype({"features": int, "images timed": int})
