"""The audit: several methods explain several networks on the same images, and every measure is
taken of every map."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from kdnb.evaluation.statistics import mean_interval
from kdnb.explanations import faithfulness
from kdnb.explanations.base import Explanation
from kdnb.explanations.cache import explain_cached
from kdnb.explanations.measures import measure
from kdnb.explanations.registry import METHODS, explain
from kdnb.models.zoo import Classifier

ROUNDS = 3  # of timing, each network in turn, after an untimed call on one image


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    ``explanations[model][method]`` holds the maps, ``curves[model][method]`` the deletion and
    insertion curves, and ``values`` one row per model, method, measure and image (columns model,
    method, measure, image, value).
    """

    explanations: dict[str, dict[str, Explanation]]
    curves: dict[str, dict[str, dict[str, np.ndarray]]]
    values: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Mean over images of every measure with its 95 % interval: columns model, method, measure,
        mean, low, high, n."""
        names = ["model", "method", "measure"]
        rows = [
            dict(zip(names, key, strict=True)) | mean_interval(part.to_numpy())
            for key, part in self.values.groupby(names, sort=False)["value"]
        ]
        return pd.DataFrame(rows)

    def of(self, model: str, method: str, measure: str) -> np.ndarray:
        """The values ``(N,)`` of one measure in the order of the images."""
        rows = self.values.query("model == @model and method == @method and measure == @measure")
        return rows.sort_values("image")["value"].to_numpy()

    def panels(
        self,
        methods: Mapping[str, str],
        rows: np.ndarray,
        classes: Sequence[str],
        probabilities: Mapping[str, np.ndarray],
        roles: Mapping[str, str],
    ) -> tuple[dict, dict, list[str]]:
        """The maps of chosen images for ``plots.maps_over_images``: column → maps ``(R, S, S)``,
        column → class and probability of each image, and the columns of signed maps.

        ``methods`` method → title; ``rows`` ``(R,)`` the chosen images; ``probabilities`` model →
        ``(N, K)``; ``roles`` model → role.
        """
        columns, titles, signed = {}, {}, []
        for method, title in methods.items():
            for model, found in self.explanations.items():
                column, targets = f"{roles[model]}\n{title}", found[method].targets
                columns[column] = found[method].maps[rows]
                titles[column] = [
                    f"{classes[targets[n]]} {probabilities[model][n, targets[n]]:.2f}" for n in rows
                ]
                signed += [column] if METHODS[method].signed else []
        return columns, titles, signed


def audit(
    models: Mapping[str, Classifier],
    images: Tensor,
    targets: np.ndarray,
    methods: Mapping[str, dict],
    lesion: np.ndarray | None = None,
    organ: np.ndarray | None = None,
    steps: int = 16,
) -> Audit:
    """Explain ``targets`` ``(N,)`` of images ``(N, 3, S, S)`` in [0, 1] with every method and
    model, and measure every map.

    ``models`` label → network; ``methods`` name → options, see ``METHODS``; ``lesion`` and
    ``organ`` are boolean masks ``(N, S, S)``, where there are any; ``steps`` of the deletion and
    insertion curves. Measures of images without a lesion, and of empty maps, are NaN. Maps are
    cached. Raises ``UnknownName`` for a method or option that does not exist, ``ValueError`` for
    shapes that do not fit.
    """
    explanations: dict = {model: {} for model in models}
    curves: dict = {model: {} for model in models}
    rows = []
    bar = tqdm([(model, m) for model in models for m in methods], unit="method", leave=False)
    for label, method in bar:
        bar.set_description(f"{label}: {method}")
        model = models[label]
        found = explain_cached(model, images, method, targets, **methods[method])
        removed = faithfulness.curves(model, images, found.evidence, targets, steps)
        values = measure(model, images, found.evidence, targets, removed, lesion, organ)
        explanations[label][method], curves[label][method] = found, removed
        rows += [
            {"model": label, "method": method, "measure": name, "image": n, "value": value}
            for name, column in values.items()
            for n, value in enumerate(column)
        ]
    return Audit(explanations, curves, pd.DataFrame(rows))


def execution_times(
    models: Mapping[str, Classifier],
    images: Tensor,
    targets: np.ndarray,
    methods: Mapping[str, dict],
) -> pd.DataFrame:
    """Mean execution time of each method (MET of KD-FMV, arXiv:2502.15959): columns method, model,
    seconds (per image); controls are left out.

    ``images`` ``(N, 3, S, S)`` in [0, 1] with ``targets`` ``(N,)`` are one batch. After an untimed
    call on one image the networks are timed in turn, so that a change of the machine's speed
    affects all; the median of the rounds is given. Raises what :func:`explain` raises.
    """
    rows, classes = [], np.asarray(targets).tolist()
    timed = [method for method in methods if not METHODS[method].control]
    bar = tqdm(timed, unit="method", leave=False)
    for method in bar:
        bar.set_description(f"timing {method}")
        seconds: dict[str, list[float]] = {label: [] for label in models}
        for count in (1, *[len(images)] * ROUNDS):
            given = images[:count], method, classes[:count]
            for label, model in models.items():
                begun = time.perf_counter()
                explain(model, *given, batch_size=count, **methods[method])
                seconds[label].append((time.perf_counter() - begun) / count)
        rows += [
            {"method": method, "model": label, "seconds": float(np.median(each[1:]))}
            for label, each in seconds.items()
        ]
    return pd.DataFrame(rows)
