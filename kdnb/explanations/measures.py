"""The measures of an explanation map, with their direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kdnb.explanations import faithfulness, localisation
from kdnb.models.zoo import Classifier


@dataclass(frozen=True)
class Measure:
    """A measure of maps: its title, and whether a higher value is better (None: neither)."""

    title: str
    higher_is_better: bool | None = None

    @property
    def label(self) -> str:
        """The title with the direction, for the axis of a figure."""
        directions = {True: " (higher is better)", False: " (lower is better)", None: ""}
        return self.title + directions[self.higher_is_better]


MEASURES: dict[str, Measure] = {
    "deletion": Measure("deletion, blur", higher_is_better=False),
    "insertion": Measure("insertion, blur", higher_is_better=True),
    "deletion_mean": Measure("deletion, mean colour", higher_is_better=False),
    "insertion_mean": Measure("insertion, mean colour", higher_is_better=True),
    "average_drop": Measure("average drop", higher_is_better=False),
    "increase": Measure("increase in confidence", higher_is_better=True),
    "road": Measure("ROAD", higher_is_better=True),
    "pointing": Measure("pointing game", higher_is_better=True),
    "mass": Measure("mass in the lesion", higher_is_better=True),
    "rank": Measure("rank accuracy", higher_is_better=True),
    "iou": Measure("best IoU with the lesion", higher_is_better=True),
    "outside": Measure("mass outside the organ", higher_is_better=False),
    "sparseness": Measure("sparseness (Gini index)"),
}
LOCALISATION = ("pointing", "mass", "rank", "iou", "outside")  # need masks


def measure(
    model: Classifier,
    images: Tensor,
    maps: np.ndarray,
    targets: np.ndarray,
    curves: dict[str, np.ndarray],
    lesion: np.ndarray | None = None,
    organ: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """All measures of maps ``(N, S, S)`` ≥ 0 that explain ``targets`` ``(N,)`` for images
    ``(N, 3, S, S)`` in [0, 1], each ``(N,)``.

    ``curves`` are those of :func:`faithfulness.curves` with blur. ``lesion`` and ``organ`` are
    boolean masks ``(N, S, S)``. ``area`` is the lesion's share of the image; ``empty`` is 1 for a
    map of zeros, whose other measures are NaN. Raises ``ValueError`` for shapes that do not fit.
    """
    steps = next(iter(curves.values())).shape[1] - 1
    mean = faithfulness.curves(model, images, maps, targets, steps, "mean")
    values = {
        **{kind: faithfulness.area(curve) for kind, curve in curves.items()},
        **{f"{kind}_mean": faithfulness.area(curve) for kind, curve in mean.items()},
        **faithfulness.confidence_change(model, images, maps, targets),
        "road": faithfulness.road(model, images, maps, targets),
        "sparseness": localisation.sparseness(maps),
    }
    empty = ~maps.any((1, 2))
    values["empty"] = empty.astype(float)
    if lesion is not None:
        values |= localisation.localisation(maps, lesion)
    if organ is not None:
        values["outside"] = localisation.outside(maps, organ)
    return {
        name: value if name == "empty" else np.where(empty, np.nan, value)
        for name, value in values.items()
    }
