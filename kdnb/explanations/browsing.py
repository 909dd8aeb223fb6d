"""Test images one by one, the mistakes first, explained for teacher, student and baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from kdnb import device, plots, widgets
from kdnb.data import Dataset
from kdnb.explanations import registry
from kdnb.explanations.registry import METHODS
from kdnb.images.pixels import Pixels
from kdnb.training.trio import Trio

ANY = "all, mistakes first"
RIGHT = "right by all"
LAYERS = ("last", "second last", "third last", "fourth last")


@dataclass(frozen=True)
class Browser:
    """Test images ``rows`` ``(N,)`` of a dataset with their labels ``truth`` ``(N,)`` and each
    network's ``probabilities`` ``(N, K)`` by name; ``channels`` that a Score-CAM scores, 0 for all.

    Maps are kept as long as this object, so that an image that was seen comes back at once.
    """

    trio: Trio
    dataset: Dataset
    pixels: Pixels
    rows: np.ndarray
    truth: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    channels: int
    seen: dict = field(default_factory=dict)

    @cached_property
    def wrong(self) -> dict[str, np.ndarray]:
        """Whether each network, by role, misclassifies each image ``(N,)``."""
        roles = self.trio.roles
        return {roles[n]: p.argmax(1) != self.truth for n, p in self.probabilities.items()}

    @cached_property
    def mistakes_first(self) -> np.ndarray:
        """Positions ``(N,)``: images that most networks misclassify first, and among equals those
        to whose class the networks give the lowest probability."""
        own = [p[np.arange(len(p)), self.truth] for p in self.probabilities.values()]
        return np.lexsort((np.mean(own, axis=0), -np.sum([*self.wrong.values()], axis=0)))

    @property
    def outcomes(self) -> dict[str, np.ndarray]:
        """Label → which images ``(N,)`` it is about."""
        any_wrong = np.any([*self.wrong.values()], axis=0)
        own = {f"{role} wrong": wrong for role, wrong in self.wrong.items()}
        return {ANY: np.full(len(self.rows), True), **own, RIGHT: ~any_wrong}

    def found(self, label: int | None, outcome: str) -> dict[str, int]:
        """The images of a class (None: of all) and outcome in order, words → position."""
        chosen = self.outcomes[outcome] & ((self.truth == label) | (label is None))
        order = [int(place) for place in self.mistakes_first if chosen[place]]
        return {
            f"{number} of {len(order)}: {self.words(place)}": place
            for number, place in enumerate(order, 1)
        }

    def words(self, image: int) -> str:
        """The class of the image at a position, and which networks misclassify it."""
        errs = [f"{role} wrong" for role, wrong in self.wrong.items() if wrong[image]]
        return ", ".join([self.dataset.classes[self.truth[image]], *errs])

    def controls(self) -> dict[str, widgets.Control]:
        """What a reader chooses, the arguments of :meth:`draw`."""
        classes = {"all": None} | {name: k for k, name in enumerate(self.dataset.classes)}
        depth = min(len(model.cam_layers) for model in self.trio.models.values())
        layers = {"fine enough": None} | {LAYERS[k]: k for k in range(min(depth, len(LAYERS)))}
        methods = {entry.title: name for name, entry in METHODS.items()}
        return {
            "label": widgets.Choice("class", classes),
            "outcome": widgets.Choice("outcome", {name: name for name in self.outcomes}),
            "image": widgets.Choice("image", lambda s: self.found(s["label"], s["outcome"])),
            "method": widgets.Choice("method", methods, "score_cam"),
            "layer": widgets.Choice("layer", layers),
        }

    def draw(
        self, label: int | None, outcome: str, image: int | None, method: str, layer: int | None
    ) -> Figure:
        """One image and the maps of all networks for the class that the teacher predicts.

        ``image`` is a position, ``layer`` counts from the last (None: the last with six cells a
        side or more, the choice of all other figures). Raises ``ValueError`` where no image fits,
        or where a layer has no map.
        """
        if image is None:
            raise ValueError(f"no image of this class has the outcome {outcome!r}: choose another")
        target = int(self.probabilities[self.trio.teacher_name][image].argmax())
        columns, titles, classes = {}, {}, self.dataset.classes
        for name, model in self.trio.models.items():
            where = model.cam_layer if layer is None else model.cam_layers[layer]
            read = f"; layer {where}" if METHODS[method].reads_layer else ""
            role, p = self.trio.roles[name], self.probabilities[name][image]
            columns[role] = self.maps(name, image, method, where, target)
            titles[role] = [f"predicts {classes[p.argmax()]} {p.max():.2f}{read}"]
        return plots.maps_over_images(
            self.pixels.pictures(self.rows[[image]]),
            columns,
            [classes[self.truth[image]]],
            titles,
            self.dataset.masks(self.pixels.images.shape[-1], "mask", self.rows[[image]]),
            list(columns) if METHODS[method].signed else (),
            f"{self.title(method)} for {classes[target]}, which the teacher predicts",
            size=(2.3, 2.6),
        )

    def title(self, method: str) -> str:
        """A method's title, with the number of channels that a Score-CAM scores."""
        few = (
            f" ({self.channels} channels scored)" if method == "score_cam" and self.channels else ""
        )
        return METHODS[method].title + few

    def maps(self, name: str, image: int, method: str, layer: str, target: int) -> np.ndarray:
        """One network's map ``(1, S, S)`` of the image at a position, computed once."""
        key = name, image, method, layer if METHODS[method].reads_layer else ""
        if key not in self.seen:
            found = registry.explain(
                self.trio.models[name],
                self.pixels.floats(self.rows[[image]]),
                method,
                target,
                layer,
                **self.options(method),
            )
            self.seen[key] = found.maps
        return self.seen[key]

    def options(self, method: str) -> dict:
        """The options of a method that answers while a reader waits."""
        quick = {
            "score_cam": {
                "channels": self.channels or None,
                "tolerance": 0.9 if self.channels else None,
                "fast": device.precision() == "bf16",
            },
            "shap": {"background": self.background, "samples": 16},
        }
        return quick.get(method, {})

    @cached_property
    def background(self) -> Tensor:
        """Training images ``(B, 3, S, S)`` that SHAP starts from."""
        return self.pixels.floats(self.dataset.sample("train", 12))


def browser(trio: Trio, dataset: Dataset, images: int = 300, channels: int = 8) -> Browser:
    """What :func:`browse` shows, from about ``images`` test images, as many of each class."""
    trio = trio.with_first_teacher()
    rows = dataset.sample("test", images)
    pixels = dataset.pixels(trio.distilled.model.image_size)
    probabilities = {
        name: torch.from_numpy(logits).softmax(1).numpy()
        for name, logits in trio.predict(pixels.subset(rows)).items()
    }
    return Browser(trio, dataset, pixels, rows, dataset.labels[rows], probabilities, channels)


def browse(trio: Trio, dataset: Dataset, images: int = 300, channels: int = 8) -> object:
    """Look around by hand: choose class, right or wrong, image, method and layer, and see teacher,
    distilled student and baseline side by side, the mistakes first.

    About ``images`` test images are offered, as many of each class; a Score-CAM scores ``channels``
    channels (0: all), few enough to answer at once. Without a live front end this is the figure of
    the first mistake.
    """
    shown = browser(trio, dataset, images, channels)
    return widgets.explore(shown.draw, shown.controls())
