"""What an explanation is, and what a method of explanation declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from kdnb.models.zoo import Classifier


@dataclass(frozen=True)
class Explanation:
    """Maps of one method for N images.

    ``maps`` are ``(N, H, W)`` float32 and finite; those of CAMs lie in [0, 1], those of signed
    methods may be negative. ``targets`` ``(N,)`` are the explained classes. ``definition`` states
    what was computed. ``effective_channels`` ``(N,)``, Score-CAM only, is the number of channels
    that a map mixes, between 1 and C.
    """

    method: str
    maps: np.ndarray
    targets: np.ndarray
    definition: str
    effective_channels: np.ndarray | None = None

    @property
    def evidence(self) -> np.ndarray:
        """The maps ``(N, H, W)`` with negative values set to 0: evidence for the class, which all
        measures use."""
        return self.maps.clip(min=0)


@dataclass(frozen=True)
class Job:
    """One batch to explain: normalised images ``x`` ``(N, 3, H, W)``, classes ``targets`` ``(N,)``,
    the ``layer`` to read, its ``output`` for these images and the method's options."""

    model: Classifier
    x: Tensor
    targets: Tensor
    layer: str
    output: object
    options: dict

    @property
    def network(self) -> nn.Module:
        """The network without its normalisation: it takes ``x``."""
        return self.model.network


@dataclass(frozen=True)
class Method:
    """A method of explanation.

    ``run`` takes a :class:`Job` and returns maps ``(N, H, W)``, or maps and the effective channels
    ``(N,)``. ``definition`` may name options in braces, or is a function of the options and the
    image size that returns it. ``options`` maps each option to its default. ``signed`` methods give
    negative values too; ``reads_layer`` methods read the activations of one layer; a ``control``
    ignores the network and shows what a map scores by chance.
    """

    title: str
    source: str
    definition: str | Callable[[Mapping[str, object], int], str]
    run: Callable[[Job], object]
    options: dict = field(default_factory=dict)
    signed: bool = False
    reads_layer: bool = False
    control: bool = False
