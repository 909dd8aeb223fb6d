"""The test images that are explained, the same ones and the same classes for every network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from kdnb import device
from kdnb.data import Dataset
from kdnb.evaluation.statistics import mean_interval, paired_difference
from kdnb.explanations import agreement, auditing, registry, robustness
from kdnb.explanations.activations import map_size
from kdnb.explanations.auditing import Audit
from kdnb.explanations.base import Explanation
from kdnb.explanations.cache import explain_cached
from kdnb.explanations.inputs import read_image
from kdnb.explanations.localisation import localisation
from kdnb.explanations.maps import rank_correlation
from kdnb.explanations.measures import LOCALISATION, MEASURES
from kdnb.explanations.registry import METHODS
from kdnb.explanations.settings import MapParameters
from kdnb.images.pixels import Pixels
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training.trio import Trio

UNMOVED = 0.5  # rank correlation with the map of random weights above which weights are ignored
COMPARED = ("score_cam", "grad_cam")  # the papers' methods


@dataclass(frozen=True)
class Cases:
    """Images ``(N, 3, S, S)`` in [0, 1] with their labels ``truth`` ``(N,)``, the class that is
    explained for each, ``targets`` ``(N,)``, the numbers ``groups`` ``(N,)`` of their patients, and
    the options of every method.

    ``probabilities`` ``(N, K)`` are by network; ``lesion`` and ``organ`` are boolean ``(N, S, S)``
    or None.
    """

    trio: Trio
    pixels: Pixels
    rows: np.ndarray
    images: Tensor
    truth: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    methods: Mapping[str, dict]
    lesion: np.ndarray | None = None
    organ: np.ndarray | None = None

    @property
    def correct(self) -> pd.DataFrame:
        """Whether each network (columns) classifies each image (rows) correctly."""
        return pd.DataFrame(
            {name: p.argmax(1) == self.truth for name, p in self.probabilities.items()}
        )

    @property
    def informed(self) -> list[str]:
        """The methods that read the network, which random maps and centre priors do not."""
        return [method for method in self.methods if not METHODS[method].control]

    def few(self) -> Cases:
        """The first third of the images, four at least: for what is too slow for all."""
        count = max(4, len(self.rows) // 3)
        part = {
            name: getattr(self, name)[:count]
            for name in ("rows", "images", "truth", "targets", "groups")
        }
        masks = {
            name: None if (mask := getattr(self, name)) is None else mask[:count]
            for name in ("lesion", "organ")
        }
        probabilities = {name: p[:count] for name, p in self.probabilities.items()}
        return dataclasses.replace(self, **part, **masks, probabilities=probabilities)

    def pictures(self, positions: Sequence[int]) -> np.ndarray:
        """Images at chosen positions as matplotlib draws them."""
        return self.pixels.pictures(self.rows[positions])

    def explain(self, model: Classifier, method: str) -> Explanation:
        """One method's maps of one network, for the images and classes of all."""
        options = self.methods[method]
        return registry.explain(model, self.images, method, self.targets, **options)

    def of_every_class(self, model: Classifier, positions: Sequence[int]) -> list[np.ndarray]:
        """SHAP maps ``(n, S, S)`` of chosen images, one array for each class."""
        images, options = self.images[positions], self.methods["shap"]
        classes = range(model.num_classes)
        return [registry.explain(model, images, "shap", k, **options).maps for k in classes]

    def own_image(
        self, path: str, dataset: Dataset
    ) -> tuple[np.ndarray, dict[tuple[str, str], Explanation]]:
        """A file of the reader's own, read as the images of ``dataset`` are, as a picture
        ``(1, S, S, 3)``, and its maps by method and network, for the class that the network
        predicts."""
        model, rule = self.trio.distilled.model, dataset.index.rule
        own = read_image(path, model, dataset.color, rule)
        maps = {
            (method, name): registry.explain(model, own, method, **self.methods[method])
            for method in COMPARED
            for name, model in self.trio.pair.items()
        }
        return (own.permute(0, 2, 3, 1).numpy() * 255).astype("uint8"), maps

    def audit(self) -> Audit:
        """Every method on teacher and distilled student, with every measure."""
        networks = self.trio.pair
        masks = self.lesion, self.organ
        return auditing.audit(networks, self.images, self.targets, self.methods, *masks)

    def randomisation(self, stages: int = 4) -> dict[str, pd.DataFrame]:
        """Each method's maps of the distilled student against those of random weights, drawn anew
        from the head down (Adebayo et al. 2018, section 3.1)."""
        student = self.trio.distilled.model
        return {
            method: robustness.randomisation_test(
                student, lambda model, method=method: self.explain(model, method), stages=stages
            )
            for method in self.informed
        }

    def against(self, model: Classifier, other: Classifier) -> pd.DataFrame:
        """Rank correlation of the maps of two networks: one row a method, with its interval."""
        rows = {
            method: mean_interval(
                rank_correlation(
                    self.explain(model, method).evidence, self.explain(other, method).evidence
                )
            )
            for method in self.informed
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def sensitivity(self, method: str = "grad_cam") -> pd.DataFrame:
        """How far a map changes when the image changes by 2 % noise: one row a network."""
        rows = {}
        for name, model in self.trio.models.items():

            def maps(images, model=model):
                return registry.explain(model, images, method, self.targets)

            rows[name] = mean_interval(robustness.sensitivity(maps, self.images))
        return pd.DataFrame.from_dict(rows, orient="index")

    def examples(self) -> np.ndarray:
        """Positions of images for a figure: one of each class that teacher and student classify
        correctly, and up to two that one of them does not."""
        both = self.correct[list(self.trio.pair)].all(axis=1).to_numpy()
        shown = [np.flatnonzero((self.truth == k) & both)[:1] for k in np.unique(self.truth)]
        return np.unique(np.concatenate([*shown, np.flatnonzero(~both)[:2]])).astype(int)

    def similarity_to_teacher(self) -> dict[str, tuple[pd.DataFrame, dict]]:
        """For each compared method, the similarity of the student's maps to the teacher's, with
        controls (:func:`kdnb.explanations.agreement.similarity_to_teacher`)."""
        teacher, distilled = self.trio.pair
        predicted = [self.probabilities[name].argmax(1) for name in (teacher, distilled)]
        similarities = {}
        for method in COMPARED:
            maps = self.maps_by_role(method).values()
            similarities[method] = agreement.similarity_to_teacher(
                *maps, self.grid, predicted[0] == predicted[1], self.groups
            )
        return similarities

    def maps_by_role(self, method: str) -> dict[str, np.ndarray]:
        """One method's maps ``(N, S, S)`` of ``teacher``, ``distilled`` student, and student
        ``alone``, computed once and cached."""
        given, options = (self.images, method, self.targets), self.methods[method]
        models = dict(zip(("teacher", "distilled"), self.trio.pair.values(), strict=True))
        models["alone"] = self.trio.baseline.model
        bar = tqdm(models.items(), desc=f"{METHODS[method].title} of teacher and student")
        return {role: explain_cached(own, *given, **options).evidence for role, own in bar}

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width ``(h, w)`` of the coarser of the two networks' maps."""
        return min(map_size(model) for model in self.trio.pair.values())

    def execution_times(self, batch: int = 8) -> pd.DataFrame:
        """Mean execution time of each method on teacher and student (paper B's MET), with roles."""
        images, targets = self.images[:batch], self.targets[:batch]
        table = auditing.execution_times(self.trio.pair, images, targets, self.methods)
        return self.trio.with_role(table)


def choose(study: Study, dataset: Dataset, trio: Trio, count: int | None = None) -> Cases:
    """As many test images of each class, ``count`` in all (``study.explained`` by default); the
    class explained is the one that the *teacher* predicts.

    ``study`` has :class:`SampleParameters` and :class:`MapParameters`, ``trio`` one teacher.
    """
    rows = dataset.sample("test", count or study.explained)
    pixels = dataset.pixels(study.image_size)
    probabilities = {
        name: torch.from_numpy(predict(model, pixels.subset(rows))).softmax(1).numpy()
        for name, model in trio.models.items()
    }
    return Cases(
        trio,
        pixels,
        rows,
        pixels.floats(rows),
        dataset.labels[rows],
        probabilities[trio.teacher_name].argmax(1),
        dataset.table["group"].to_numpy()[rows],
        probabilities,
        options(study, pixels.floats(dataset.sample("train", 12))),
        dataset.masks(study.image_size, "mask", rows),
        dataset.masks(study.image_size, "organ_mask", rows),
    )


def options(settings: MapParameters, background: Tensor) -> dict[str, dict]:
    """The options of every method; ``background`` ``(B, 3, S, S)`` are the images that SHAP starts
    from."""
    methods: dict[str, dict] = {name: {} for name in METHODS}
    fast = device.precision() == "bf16"
    tolerance = settings.tolerance if settings.tolerance < 1 else None
    methods["score_cam"] = {
        "channels": settings.channels or None,
        "tolerance": tolerance,
        "fast": fast,
    }
    methods["shap"] = {"background": background, "samples": 16}
    return methods


def unmoved(checks: Mapping[str, pd.DataFrame]) -> list[str]:
    """Methods whose maps remain similar when all weights are random: they explain the image, not
    the network, and must not be trusted."""
    return [m for m, table in checks.items() if table["spearman"].iloc[-1] > UNMOVED]


def labels_of(summary: pd.DataFrame) -> tuple[dict[str, str], dict[str, str]]:
    """Labels of the measures that have values: of faithfulness, and of localisation, which needs
    masks."""
    known = summary.dropna(subset="mean")["measure"].unique()
    present = {name: found.label for name, found in MEASURES.items() if name in known}
    return (
        {name: label for name, label in present.items() if name not in LOCALISATION},
        {name: label for name, label in present.items() if name in LOCALISATION},
    )


def differences(similarities: Mapping[str, tuple[pd.DataFrame, dict]]) -> pd.DataFrame:
    """What :meth:`Cases.similarity_to_teacher` found, as a table: the distilled student's
    similarity to its teacher minus that of each control, by method, control and measure."""
    rows = {
        (method, control.replace("_", " "), measure): gap
        for method, (_, controls) in similarities.items()
        for control, each in controls.items()
        for measure, gap in each.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["method", "distilled student minus", "measure"])


def teaching_of(study: Study) -> str:
    """Whose maps the student's are compared with, in one sentence: the teacher's, or those of a
    network that took no part in its training where the method uses no given teacher."""
    method = study.make_method()
    if method.needs_teacher:
        return f"{study.teacher} taught the student by {method.name}"
    return (
        f"{method.name} ({method.title}) used nothing of {study.teacher}, which was trained on the "
        "labels for comparison: likeness to its maps is no effect of distillation"
    )


def looked_at(chosen: Cases) -> dict[str, dict[str, dict[str, dict]]]:
    """The share of each network's map that lies in the lesion and in the organ, where the images
    have such masks: method → place → network by role → mean over images with its interval.

    ``chance`` is the share of the image that the place covers, which a flat map reaches. The
    ``distilled_minus_`` entries are paired differences, that to ``alone`` with the student that had
    no teacher. Images without a lesion, and empty maps, are left out. Empty without masks.
    """
    places = {"lesion": chosen.lesion, "organ": chosen.organ}
    there = {place: mask for place, mask in places.items() if mask is not None}
    maps = {method: chosen.maps_by_role(method) for method in COMPARED if there}
    return {
        method: {place: _inside(by_role, mask, chosen.groups) for place, mask in there.items()}
        for method, by_role in maps.items()
    }


def _inside(
    maps: Mapping[str, np.ndarray], mask: np.ndarray, groups: np.ndarray
) -> dict[str, dict]:
    """Entries of :func:`looked_at` for one place, from maps ``(N, S, S)`` by role."""
    measured = {role: localisation(each, mask) for role, each in maps.items()}
    shares = {role: each["mass"] for role, each in measured.items()}
    shares["chance"] = measured["distilled"]["area"]
    gaps = {
        f"distilled_minus_{other}": paired_difference(shares["distilled"], against, groups)
        for other, against in shares.items()
        if other != "distilled"
    }
    means = {role: mean_interval(share, groups=groups) for role, share in shares.items()}
    return means | gaps


def places_table(found: Mapping[str, dict]) -> pd.DataFrame:
    """What :func:`looked_at` found, as ``plots.measures`` draws it: one row a method, network and
    place, with the titles of the methods."""
    names = {"alone": "baseline", "chance": "share of the image"}
    rows = [
        {
            "method": METHODS[method].title,
            "model": names.get(role, role),
            "role": "" if role == "chance" else names.get(role, role),
            "measure": place,
            **entry,
        }
        for method, places in found.items()
        for place, entries in places.items()
        for role, entry in entries.items()
        if not role.startswith("distilled_minus_")
    ]
    return pd.DataFrame(rows)


def above_centre(found: Audit, name: str) -> dict[str, dict]:
    """How much better the Score-CAM of a network points at the lesion than a centre prior."""
    return {
        measure: paired_difference(
            found.of(name, "score_cam", measure), found.of(name, "centre", measure)
        )
        for measure in ("pointing", "mass")
    }


def stored(
    chosen: Cases,
    found: Audit,
    many: Cases,
    similarities: Mapping[str, tuple[pd.DataFrame, dict]],
) -> dict:
    """The results as a result file holds them: of the audit of the ``chosen`` images, and of the
    comparison of ``many``."""
    maps = found.explanations
    return {
        "images": len(chosen.rows),
        "compared": len(many.rows),
        "right": chosen.correct.mean().to_dict(),
        "definitions": {m: e.definition for m, e in maps[chosen.trio.teacher_name].items()},
        "effective_channels": {
            name: float(np.mean(by_method["score_cam"].effective_channels))
            for name, by_method in maps.items()
        },
        "map_cells": chosen.grid,
        "cam_layers": {name: model.cam_layer for name, model in chosen.trio.pair.items()},
        **{
            f"likeness_distilled_minus_{key}": {
                method: gaps[control] for method, (_, gaps) in similarities.items()
            }
            for key, control in (("alone", "baseline"), ("other_image", "other_image"))
        },
    }
