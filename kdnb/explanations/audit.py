"""Every explanation of every network on the same images, and every measure of each: the tables of
notebook 04."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.explanations import faithfulness
from kdnb.explanations.registry import METHODS, Explanation, explain
from kdnb.models.zoo import Classifier, checksum

VERSION = 3  # of kept maps: raise it when a method computes something else
BATCH = 16
ROUNDS = 3  # of timing, each after a call that prepares the kernels

# what a figure calls each measure, and whether high is good
MEASURES = {
    "deletion": "deletion, blur (low is good)",
    "insertion": "insertion, blur (high is good)",
    "deletion_mean": "deletion, mean (low is good)",
    "insertion_mean": "insertion, mean (high is good)",
    "average_drop": "average drop (low is good)",
    "increase": "increase (high is good)",
    "road": "ROAD (high is good)",
    "pointing": "pointing game (high is good)",
    "mass": "energy in the lesion (high is good)",
    "rank": "rank accuracy (high is good)",
    "iou": "best IoU with the lesion (high is good)",
    "outside": "energy outside the organ (low is good)",
    "sparseness": "Gini index",
}


@dataclass(frozen=True)
class Audit:
    """``explanations[model][method]``, the removal ``curves[model][method]``, and ``values``: one
    row an image, model, method and measure (columns model, method, measure, image, value)."""

    explanations: dict[str, dict[str, Explanation]]
    curves: dict[str, dict[str, dict[str, np.ndarray]]]
    values: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Mean, 95 % interval and number of images of every measure (columns model, method,
        measure, mean, low, high, n)."""
        groups = self.values.groupby(["model", "method", "measure"], sort=False)["value"]
        rows = [
            dict(zip(("model", "method", "measure"), key, strict=True))
            | faithfulness.interval(part.to_numpy())
            for key, part in groups
        ]
        return pd.DataFrame(rows)

    def of(self, model: str, method: str, measure: str) -> np.ndarray:
        """The values of one measure, image by image."""
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
        """For a figure: column title → maps of chosen images, → the class asked for with its
        probability, and signed columns.

        ``methods`` name → title shown, ``roles`` model → role.
        """
        columns, titles, signed = {}, {}, []
        for method, shown in methods.items():
            for model, parts in self.explanations.items():
                key, found = f"{roles[model]}\n{shown}", parts[method]
                columns[key] = found.maps[rows]
                titles[key] = [
                    f"{classes[found.targets[n]]} {probabilities[model][n, found.targets[n]]:.2f}"
                    for n in rows
                ]
                signed += [key] if METHODS[method].signed else []
        return columns, titles, signed


def remembered(
    model: Classifier, images: Tensor, method: str, targets: np.ndarray, **options: object
) -> Explanation:
    """As :func:`explain`, every batch kept on disk: a sweep that was killed goes on with the batch
    at which it stood.

    The key holds weights, layer, images, classes and options, and the machine, whose arithmetic the
    last digits are.
    """
    named = {
        key: _checksum(value) if isinstance(value, Tensor) else value
        for key, value in options.items()
    }
    base = [
        VERSION,
        checksum(model.network),
        model.image_size,
        model.cam_layer,
        method,
        named,
        provenance.hardware(),
    ]
    parts = []
    for start in range(0, len(images), BATCH):
        some, asked = images[start : start + BATCH], np.asarray(targets)[start : start + BATCH]

        def work(some=some, asked=asked):
            found = explain(model, some, method, asked.tolist(), batch_size=BATCH, **options)
            effective = (
                {}
                if found.effective_channels is None
                else {"effective_channels": found.effective_channels}
            )
            return {
                "maps": found.maps,
                "targets": found.targets,
                "definition": np.array(found.definition),
                **effective,
            }

        name = files.digest([*base, _checksum(some), asked.tolist()])
        parts.append(
            files.remembered(files.cache_dir() / "maps" / f"{model.name}-{method}-{name}.npz", work)
        )
    whole = {
        key: np.concatenate([part[key] for part in parts])
        for key in parts[0]
        if key != "definition"
    }
    return Explanation(method=method, definition=str(parts[0]["definition"]), **whole)


def _checksum(images: Tensor) -> str:
    return hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def times(
    models: Mapping[str, Classifier],
    images: Tensor,
    targets: np.ndarray,
    methods: Mapping[str, dict],
) -> pd.DataFrame:
    """Mean execution time of each explanation (paper B's MET): columns method, model, seconds an
    image; floors left out.

    All ``images`` are one batch. A method is tried once on each network, then timed by turns, so
    that a machine that slows down slows both; the median of the rounds.
    """
    told, bar = (
        [],
        tqdm(
            [method for method in methods if not METHODS[method].floor], unit="method", leave=False
        ),
    )
    for method in bar:
        bar.set_description(f"timing {method}")
        took: dict[str, list[float]] = {title: [] for title in models}
        for _ in range(1 + ROUNDS):
            for title, model in models.items():
                begun = time.perf_counter()
                explain(
                    model,
                    images,
                    method,
                    np.asarray(targets).tolist(),
                    batch_size=len(images),
                    **methods[method],
                )
                took[title].append((time.perf_counter() - begun) / len(images))
        told += [
            {"method": method, "model": title, "seconds": float(np.median(each[1:]))}
            for title, each in took.items()
        ]
    return pd.DataFrame(told)


def audit(
    models: Mapping[str, Classifier],
    images: Tensor,
    targets: np.ndarray,
    methods: Mapping[str, dict],
    lesion: np.ndarray | None = None,
    organ: np.ndarray | None = None,
    steps: int = 16,
) -> Audit:
    """Explain and measure: ``models`` title → network, ``methods`` name → options, the same
    ``targets`` ``(N,)`` for all.

    ``images`` ``(N, 3, S, S)`` in [0, 1]; ``lesion`` and ``organ`` boolean ``(N, S, S)`` where
    there are masks. Measures of images without a lesion are NaN. One progress bar over all pairs.
    """
    explanations: dict = {title: {} for title in models}
    curves: dict = {title: {} for title in models}
    rows = []
    pairs = [(title, method) for title in models for method in methods]
    bar = tqdm(pairs, unit="method", leave=False)
    for title, method in bar:
        bar.set_description(f"{title}: {method}")
        found = remembered(models[title], images, method, targets, **methods[method])
        explanations[title][method] = found
        maps, blank = found.evidence, ~found.evidence.any((1, 2))
        curves[title][method] = faithfulness.curves(models[title], images, maps, targets, steps)
        mean = faithfulness.curves(models[title], images, maps, targets, steps, "mean")
        values = {
            "deletion": faithfulness.area(curves[title][method]["deletion"]),
            "insertion": faithfulness.area(curves[title][method]["insertion"]),
            "deletion_mean": faithfulness.area(mean["deletion"]),
            "insertion_mean": faithfulness.area(mean["insertion"]),
            **faithfulness.confidence_change(models[title], images, maps, targets),
            "road": faithfulness.road(models[title], images, maps, targets),
            "sparseness": faithfulness.sparseness(maps),
            "empty": blank.astype(float),
        }
        if lesion is not None:
            found = faithfulness.localisation(maps, lesion)
            values |= {name: found[name] for name in ("pointing", "mass", "rank", "iou", "area")}
        if organ is not None:
            values["outside"] = faithfulness.outside(maps, organ)
        for measure, column in values.items():
            # an empty map tells nothing: it is counted as empty and takes no part in the other
            # means
            kept = column if measure == "empty" else np.where(blank, np.nan, column)
            rows += [
                {"model": title, "method": method, "measure": measure, "image": n, "value": v}
                for n, v in enumerate(kept)
            ]
    return Audit(explanations, curves, pd.DataFrame(rows))
