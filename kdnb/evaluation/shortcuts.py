"""Shortcuts: how accurately can the class be predicted from parts of an image that do not show the
disease?

Images of different classes often come from different sources and differ in borders, size and
brightness. Maguolo & Nanni 2021, arXiv:2004.12823, classified COVID-19 radiographs with the lungs
blacked out; the same is measured here for any dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor
from tqdm import tqdm

from kdnb import files
from kdnb.data import Dataset
from kdnb.evaluation import metrics
from kdnb.images.pixels import Pixels
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier

FRAME = 0.12  # width of the outer frame, as a share of the side
SIDE = 32  # pixels per side for the random forests
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def _frame(images: Tensor, organ: Tensor | None, lesion: Tensor | None) -> Tensor:
    """True inside the outer frame, ``(N, S, S)``."""
    side = images.shape[-1]
    edge = max(1, round(FRAME * side))
    kept = torch.ones(len(images), side, side, dtype=torch.bool)
    kept[:, edge:-edge, edge:-edge] = False
    return kept


# view → pixels that are kept, boolean (N, S, S); None where the dataset has no such mask
VIEWS: dict[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor | None]] = {
    "whole image": lambda images, organ, lesion: torch.ones(
        len(images), *images.shape[-2:], dtype=torch.bool
    ),
    "border only": _frame,
    "centre only": lambda images, organ, lesion: ~_frame(images, organ, lesion),
    "organ blanked": lambda images, organ, lesion: None if organ is None else ~organ,
    "organ only": lambda images, organ, lesion: organ,
    "lesion blanked": lambda images, organ, lesion: None if lesion is None else ~lesion,
}


def keep_view(
    view: str, images: Tensor, organ: Tensor | None = None, lesion: Tensor | None = None
) -> Tensor | None:
    """Images ``(N, C, S, S)`` uint8 of which only a view is kept; the other pixels get the mean
    colour of those that are kept.

    ``organ`` and ``lesion`` are boolean ``(N, S, S)``; the result is None where the view needs a
    mask that is missing. The colour carries no information about the pixels it covers (the mean of
    the whole image would), but their shape remains visible: a blanked lung keeps its outline.
    Raises ``UnknownName`` for a view that is not in ``VIEWS``.
    """
    kept = VIEWS[files.lookup(view, VIEWS, "view")](images, organ, lesion)
    if kept is None:
        return None
    kept = kept[:, None]
    mean = (images * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(kept, images, mean.round().to(images.dtype))


def _masks(dataset: Dataset, image_size: int, rows: np.ndarray) -> dict[str, Tensor | None]:
    found = {
        name: dataset.masks(image_size, column, rows)
        for name, column in (("organ", "organ_mask"), ("lesion", "mask"))
    }
    return {name: None if mask is None else torch.from_numpy(mask) for name, mask in found.items()}


def score_networks(
    models: Mapping[str, Classifier], dataset: Dataset, split: str = "test"
) -> pd.DataFrame:
    """Balanced accuracy of trained networks on partial views of the images: columns model, view,
    balanced_accuracy, low, high (95 % interval; in [0, 1]) and n. A network that stays far above
    chance uses what the view shows.

    ``models`` label → network; ``split`` of the dataset. Views whose mask the dataset lacks are
    left out.
    """
    rows = []
    for label, model in tqdm(models.items(), desc="views", unit="network", leave=False):
        pixels = dataset.pixels(model.image_size, split)
        images, labels = pixels.images[pixels.rows], pixels.labels[pixels.rows].numpy()
        masks = _masks(dataset, model.image_size, pixels.rows.numpy())
        for view in VIEWS:
            left = keep_view(view, images, **masks)
            if left is not None:
                logits = predict(model, Pixels(left.numpy(), labels))
                score = accuracy(dataset, split, labels, logits)
                rows.append({"model": label, "view": view, **score})
    return pd.DataFrame(rows)


def score_forests(dataset: Dataset, trees: int = 300) -> pd.DataFrame:
    """Balanced test accuracy of random forests of ``trees`` trees that are trained on one view of
    small images, or on image statistics only: columns as :func:`score_networks`, ``model`` is
    ``random forest``.

    Statistics are width, height, aspect ratio and the distribution of grey values: no shapes.
    """
    labels = dataset.labels
    train = np.flatnonzero(dataset.table["split"].isin(("train", "val")))
    test = np.flatnonzero(dataset.table["split"] == "test")
    rows = []
    features = _forest_features(dataset)
    for view, values in tqdm(features.items(), desc="forests", unit="view", leave=False):
        forest = RandomForestClassifier(trees, n_jobs=-1, random_state=0, class_weight="balanced")
        forest.fit(values[train], labels[train])
        probabilities = np.zeros((len(test), len(dataset.classes)))
        probabilities[:, forest.classes_] = forest.predict_proba(values[test])
        logits = np.log(np.maximum(probabilities, 1e-6))
        score = accuracy(dataset, "test", labels[test], logits)
        rows.append({"model": "random forest", "view": view, **score})
    return pd.DataFrame(rows)


def _forest_features(dataset: Dataset) -> dict[str, np.ndarray]:
    """Features ``(N, F)`` of every image: the pixels of each view, and the statistics."""
    every = np.arange(len(dataset.labels))
    images = dataset.pixels(SIDE).images[torch.from_numpy(every)]
    masks = _masks(dataset, SIDE, every)
    kept = {view: keep_view(view, images, **masks) for view in VIEWS}
    found = {view: left.flatten(1).numpy() for view, left in kept.items() if left is not None}
    return found | {"statistics only": image_statistics(dataset)}


def image_statistics(dataset: Dataset) -> np.ndarray:
    """Width, height, aspect ratio, and mean, standard deviation and percentiles of the grey values
    of every image, ``(N, 12)``."""
    pixels = dataset.pixels(SIDE)
    grey = pixels.images[torch.arange(len(dataset.table))].float().mean(1).flatten(1).numpy()
    size = dataset.table[["width", "height"]].to_numpy(float)
    return np.column_stack(
        [
            size,
            size[:, 0] / size[:, 1],
            grey.mean(1),
            grey.std(1),
            np.percentile(grey, PERCENTILES, axis=1).T,
        ]
    )


def accuracy(
    dataset: Dataset, split: str, labels: np.ndarray, logits: np.ndarray
) -> dict[str, float]:
    """Balanced accuracy of logits ``(N, K)`` for the images of a split with ``labels`` ``(N,)``:
    balanced_accuracy, low, high (95 % interval over groups; in [0, 1]) and n."""
    groups = dataset.groups(split)
    score = metrics.evaluate(labels, logits, dataset.classes, dataset.split_name, groups)
    low, high = score["intervals"]["balanced_accuracy"]
    value = score["balanced_accuracy"]
    return {"balanced_accuracy": value, "low": low, "high": high, "n": score["n"]}
