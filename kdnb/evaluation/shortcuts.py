"""How far one gets without looking at the disease: the frame, the centre, what is left when the
organ is blanked, mere statistics.

Images of different classes that come from different sources differ in borders, sizes and
brightness. Maguolo & Nanni (2021, arXiv:2004.12823) told COVID from other radiographs with the
lungs blacked out; this is their question for any dataset here.
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

FRAME = 0.12  # of the side: how wide the outer frame is
SIDE = 32  # pixels a side for the forest
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def _frame(images: Tensor, organ: Tensor | None, lesion: Tensor | None) -> Tensor:
    """True inside the outer frame, ``(N, S, S)``."""
    side = images.shape[-1]
    edge = max(1, round(FRAME * side))
    kept = torch.ones(len(images), side, side, dtype=torch.bool)
    kept[:, edge:-edge, edge:-edge] = False
    return kept


# what is left of an image: True where pixels stay; None where the dataset has no such mask
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


def shown(
    view: str, images: Tensor, organ: Tensor | None = None, lesion: Tensor | None = None
) -> Tensor | None:
    """Images ``(N, C, S, S)`` uint8 of which only a view is left, the rest filled with the mean
    colour of what is left.

    ``organ`` and ``lesion`` are boolean ``(N, S, S)``; None is returned where the view needs a mask
    that is not there. The fill tells nothing of what it covers (the mean of the whole image would),
    but its shape is still seen: a blanked lung still has a lung's outline.
    """
    kept = VIEWS[files.lookup(view, VIEWS, "view")](images, organ, lesion)
    if kept is None:
        return None
    left = kept[:, None]
    mean = (images * left).sum((2, 3), keepdim=True) / left.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(left, images, mean.round().to(images.dtype))


def _masks(dataset: Dataset, image_size: int, rows: np.ndarray) -> dict[str, Tensor | None]:
    found = {
        name: dataset.masks(image_size, column, rows)
        for name, column in (("organ", "organ_mask"), ("lesion", "mask"))
    }
    return {name: None if mask is None else torch.from_numpy(mask) for name, mask in found.items()}


def networks(
    models: Mapping[str, Classifier], dataset: Dataset, split: str = "test"
) -> pd.DataFrame:
    """Balanced accuracy of trained networks when only a view of each image is left, one row a
    network and view.

    Columns model, view, balanced_accuracy, low, high, n. What stays far above chance is read from
    that view.
    """
    rows = []
    for title, model in tqdm(models.items(), desc="views", unit="network", leave=False):
        pixels = dataset.pixels(model.image_size, split)
        images, labels = pixels.images[pixels.rows], pixels.labels[pixels.rows].numpy()
        masks = _masks(dataset, model.image_size, pixels.rows.numpy())
        for view in VIEWS:
            left = shown(view, images, **masks)
            if left is not None:
                logits = predict(model, Pixels(left.numpy(), labels))
                rows.append(
                    {"model": title, "view": view, **_score(dataset, split, labels, logits)}
                )
    return pd.DataFrame(rows)


def forests(dataset: Dataset, trees: int = 300) -> pd.DataFrame:
    """Balanced accuracy on test of random forests that learn from one view of small images, or from
    statistics alone.

    Columns as :func:`networks`, ``model`` is ``random forest``. Statistics are width, height,
    aspect, and percentiles, mean and deviation of the grey values: no shape at all.
    """
    pixels, labels = dataset.pixels(SIDE), dataset.labels
    parts = {
        part: np.flatnonzero(dataset.table["split"].isin(names))
        for part, names in (("learn", ("train", "val")), ("test", ("test",)))
    }
    every = np.arange(len(labels))
    masks, images = _masks(dataset, SIDE, every), pixels.images[torch.from_numpy(every)]
    features = {}
    for view in VIEWS:
        left = shown(view, images, **masks)
        if left is not None:
            features[view] = left.flatten(1).numpy()
    features["statistics only"] = statistics(dataset)
    rows = []
    for view, values in tqdm(features.items(), desc="forests", unit="view", leave=False):
        forest = RandomForestClassifier(trees, n_jobs=-1, random_state=0, class_weight="balanced")
        forest.fit(values[parts["learn"]], labels[parts["learn"]])
        probabilities = np.zeros((len(parts["test"]), len(dataset.classes)))
        probabilities[:, forest.classes_] = forest.predict_proba(values[parts["test"]])
        truth = labels[parts["test"]]
        score = _score(dataset, "test", truth, np.log(np.maximum(probabilities, 1e-6)))
        rows.append({"model": "random forest", "view": view, **score})
    return pd.DataFrame(rows)


def statistics(dataset: Dataset) -> np.ndarray:
    """Width, height, aspect, mean, deviation and percentiles of the grey values of every image,
    ``(N, 12)``."""
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


def _score(
    dataset: Dataset, split: str, labels: np.ndarray, logits: np.ndarray
) -> dict[str, float]:
    score = metrics.evaluate(
        labels, logits, dataset.classes, dataset.split_name, dataset.groups(split)
    )
    low, high = score["intervals"]["balanced_accuracy"]
    return {
        "balanced_accuracy": score["balanced_accuracy"],
        "low": low,
        "high": high,
        "n": score["n"],
    }
