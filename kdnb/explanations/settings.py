"""Parameters of explanations: how many images, how many masks, an image of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kdnb.images import read
from kdnb.parameters import BadParameter, Parameters, parameter


def readable(path: str) -> None:
    """Raise :class:`BadParameter` unless ``path`` is an image file that can be read whole."""
    if not Path(path).is_file():
        raise BadParameter(
            f"image: there is no file {Path(path).absolute()}; give the path of an "
            "image, relative to the notebook's folder or from the root on"
        )
    fact = read.inspect(Path(path))
    if isinstance(fact, tuple):
        raise BadParameter(f"image {path} cannot be read: {', '.join(fact)}")


@dataclass(frozen=True)
class SampleParameters(Parameters):
    """How many test images an explanation is computed for."""

    explained: int | None = parameter(
        None,
        "test images that are explained and measured",
        low=4,
        high=100_000,
        profiles={"smoke": 6, "quick": 18, "paper": 60},
    )


@dataclass(frozen=True)
class MapParameters(Parameters):
    """How maps are computed, and for which image beside the test images."""

    needs: ClassVar[tuple[str, ...]] = ("explain",)

    tolerance: float | None = parameter(
        None,
        "rank correlation with the exact Score-CAM",
        low=0.5,
        high=1.0,
        profiles={"smoke": 0.9, "quick": 0.99, "paper": 1.0},
    )
    channels: int | None = parameter(
        None,
        "at most so many masks of a Score-CAM, 0 for one a channel",
        low=0,
        high=100_000,
        profiles={"smoke": 8, "quick": 0, "paper": 0},
    )
    compared: int | None = parameter(
        None,
        "test images on which maps of teacher and student are compared; None: those explained",
        low=4,
        high=100_000,
    )
    image: str | None = parameter(
        None, "an image file of your own, explained beside the test images", valid=readable
    )
