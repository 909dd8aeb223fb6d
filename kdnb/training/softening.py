"""What the teachers' answers become when the share of the labels and the temperature change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from kdnb import plots, widgets
from kdnb.data import Dataset
from kdnb.distillation.base import Method
from kdnb.distillation.soft_targets import soft_targets
from kdnb.images.pixels import Pixels
from kdnb.models.predict import predict
from kdnb.training.trio import Trio


@dataclass(frozen=True)
class Softening:
    """Training images ``rows`` ``(N,)`` and the teachers' logits for them ``(M, N, K)``, with the
    ``weights`` ``(M,)`` of the teachers (None: equal)."""

    dataset: Dataset
    pixels: Pixels
    rows: np.ndarray
    logits: np.ndarray
    weights: tuple[float, ...] | None
    title: str

    def probabilities(self, image: int, temperature: float) -> np.ndarray:
        """The teachers' averaged probabilities ``(K,)`` of one image at a temperature."""
        logits = torch.from_numpy(self.logits[:, image : image + 1])
        shares = torch.tensor(self.weights) if self.weights else None
        return soft_targets(logits, temperature, shares)[0].exp().numpy()

    def least_certain(self) -> dict[str, int]:
        """Of each class the image to whose label the teachers give the lowest probability: class →
        position."""
        labels = self.dataset.labels[self.rows]
        own = np.array([self.probabilities(n, 1.0)[label] for n, label in enumerate(labels)])
        return {
            self.dataset.classes[k]: int(np.flatnonzero(labels == k)[own[labels == k].argmin()])
            for k in np.unique(labels)
        }

    def controls(self, alpha: float, temperature: float) -> dict[str, widgets.Control]:
        """What a reader chooses, the arguments of :meth:`draw`."""
        return {
            "image": widgets.Choice("image of class", self.least_certain()),
            "alpha": widgets.Slider("α, share of the label", 0, 1, 0.05, alpha),
            "temperature": widgets.Slider("T", 0.5, 20, 0.5, temperature),
        }

    def draw(self, image: int, alpha: float, temperature: float) -> Figure:
        """One image with its label, the teachers' probabilities, the same at the temperature, and
        the mixture of label and softened probabilities by ``alpha``."""
        label = int(self.dataset.labels[self.rows[image]])
        return plots.softened_targets(
            self.pixels.pictures(self.rows[[image]])[0],
            label,
            self.probabilities(image, 1.0),
            self.probabilities(image, temperature),
            self.dataset.classes,
            (alpha, temperature),
            self.title,
        )


def softening(trio: Trio, dataset: Dataset, images: int = 60) -> Softening:
    """What :func:`explore_targets` shows, of about ``images`` training images."""
    rows = dataset.sample("train", images)
    pixels = dataset.pixels(trio.distilled.model.image_size)
    logits = [predict(run.model, pixels.subset(rows)) for run in trio.teachers]
    weights = tuple(trio.teacher_weights) if trio.teacher_weights else None
    title = f"{trio.teacher_name}: targets of one training image"
    return Softening(dataset, pixels, rows, np.stack(logits), weights, title)


def explore_targets(trio: Trio, dataset: Dataset, method: Method) -> object:
    """Sliders over α and T above the targets of one training image, at first those of ``method``.

    Images are offered by class, each the one of whose label the teachers are least certain among
    some sixty. Without a live front end this is the figure of the first.
    """
    shown, options = softening(trio, dataset), method.options
    alpha = getattr(options, "alpha", 0.5)
    temperature = getattr(options, "temperature", 4.0)
    return widgets.explore(shown.draw, shown.controls(alpha, temperature))
