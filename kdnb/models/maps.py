"""Where class activation maps can be read in any timm network: measured, not inferred from names.

A layer serves when three things hold for it. Its output is a grid of cells, as a map or as tokens.
The class logits depend on most of those cells: after a class token's last block no patch reaches
them. Each cell answers for its own place in the image: some networks keep their tokens in another
order than the rows of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdnb import files

# The last layer of most networks shrinks the image 32 times: below 192 px fewer than 6 x 6 cells
# are left, and 3 x 3 point at nothing. On the chest phantom at 96 px DenseNet121's Score-CAM does
# not beat a centre prior there; one stage earlier it does.
FEWEST_CELLS = 6
LEAST_REACHED, LEAST_CONTRAST = 0.5, 1.1
# parts of a block, not the signal that runs through the network
_PARTS = (
    nn.Linear,
    nn.Conv1d,
    nn.Dropout,
    nn.Identity,
    nn.Softmax,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
)


class NoMap(
    files.UserError,
    ValueError,
    code="KD501",
    way_out="take an earlier layer or a larger image, or another explanation",
):
    """A network without a layer that can be shown as a class activation map."""


@dataclass(frozen=True)
class Reading:
    """How a layer's output becomes a map ``(N, C, h, w)``.

    ``layout`` is ``NCHW``, ``NHWC`` or ``NTC`` (tokens); ``prefix`` counts the tokens before the
    first cell (class token, registers). ``block`` is the number of a block of Hiera, whose tokens
    are sorted by mask unit and have to be put back into rows.
    """

    layout: str
    prefix: int = 0
    block: int | None = None

    def __call__(self, features: Tensor, network: nn.Module) -> Tensor:
        """The output of a layer of ``network`` as ``(N, C, h, w)``."""
        if self.block is not None:
            return network.reroll(features, self.block).permute(0, 3, 1, 2)
        if self.layout == "NTC":
            cells = features[:, self.prefix :]
            side = math.isqrt(cells.shape[1])
            return cells.transpose(1, 2).unflatten(2, (side, side))
        return features.permute(0, 3, 1, 2) if self.layout == "NHWC" else features


@dataclass(frozen=True)
class Layer:
    """A layer that can be read as a map with ``cells`` a side.

    ``reached`` is the share of cells that the logits depend on. ``contrast`` compares changes of
    the map after a change in one quarter of the image: the change in the same quarter divided by
    the largest in another, for the worst of the four quarters.
    """

    reading: Reading
    cells: int
    reached: float
    contrast: float

    @property
    def placed(self) -> bool:
        """Whether cells stand for their own place in the image."""
        return self.contrast >= LEAST_CONTRAST

    @property
    def serves(self) -> bool:
        """Whether the layer can be explained: placed, and most cells reach the logits."""
        return self.placed and self.reached >= LEAST_REACHED

    @property
    def teaches(self) -> bool:
        """Whether a student may learn from the layer: as :attr:`serves`, or a convolution's map.

        Its cells lie in the order of the image, however much of it each of them sees; in a small
        image the deepest one sees nearly all.
        """
        return self.reached >= LEAST_REACHED and (self.placed or self.reading.layout == "NCHW")


def readings(network: nn.Module, name: str, shape: Sequence[int]) -> list[Reading]:
    """Every way to read an output of this shape as a grid; images are square, so grids are."""
    if len(shape) == 4:
        found = [Reading("NCHW")] * (shape[2] == shape[3] > 1)
        return found + [Reading("NHWC")] * (shape[1] == shape[2] > 1)
    if len(shape) != 3:
        return []
    stage, _, block = name.partition(".")
    if hasattr(network, "reroll") and stage == "blocks" and block.isdigit():
        return [Reading("NTC", block=int(block))]
    known = getattr(network, "num_prefix_tokens", 0)
    cells = {prefix: shape[1] - prefix for prefix in (known, 0, 1, 2)}
    return [Reading("NTC", p) for p, n in cells.items() if n > 1 and math.isqrt(n) ** 2 == n]


def measure(network: nn.Module, image_size: int, preferred: Sequence[str] = ()) -> dict[str, Layer]:
    """All layers of a bare network that can be read as maps, in order of computation.

    Activations and the like, which are parts of a block, are left out unless they are
    ``preferred``. Two forward passes and one backward pass on noise. The network should have fresh
    weights: they are changed where they start at zero, since a zero lets nothing through.
    """
    for parameter in network.eval().requires_grad_(False).parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    images = _probes(image_size)
    with torch.no_grad():
        outputs, _ = _outputs(network, images, preferred)
    first, logits = _outputs(network, images[:1].clone().requires_grad_(), preferred)
    names = [name for name in outputs if name in first and first[name].requires_grad]
    score = (logits * torch.linspace(1, -0.7, logits.shape[1])).sum()
    gradients = torch.autograd.grad(score, [first[n] for n in names], allow_unused=True)
    found = {
        name: _best(network, name, outputs[name], gradient)
        for name, gradient in zip(names, gradients, strict=True)
    }
    return {name: layer for name, layer in found.items() if layer is not None}


def choose(layers: dict[str, Layer], preferred: Sequence[str] = ()) -> str:
    """The layer to explain.

    Of the ``preferred`` layers that serve, the first with ``FEWEST_CELLS`` a side, else the one
    with the finest grid. Where none serves, the last layer of all that does, by the same rule among
    those beyond the first third of the network. Raises :class:`NoMap`.
    """
    late = list(layers)[len(layers) // 3 :][::-1]
    for names in (preferred, late, list(layers)[::-1]):
        good = [name for name in names if name in layers and layers[name].serves]
        fine = [name for name in good if layers[name].cells >= FEWEST_CELLS]
        if good:
            return fine[0] if fine else max(good, key=lambda name: layers[name].cells)
    raise NoMap(
        "no layer gives a map whose cells lie where the image's parts do and reach the logits"
    )


def _best(network: nn.Module, name: str, output: Tensor, gradient: Tensor | None) -> Layer | None:
    """The reading with the strongest contrast, or nothing where there is none."""
    found = []
    for reading in readings(network, name, output.shape):
        maps = reading(output, network)
        reached = 0.0 if gradient is None else _reached(reading(gradient, network))
        found.append(Layer(reading, maps.shape[-1], reached, _contrast(maps)))
    return max(found, key=lambda layer: layer.contrast, default=None)


def _quarters(side: int) -> list[tuple[slice, slice]]:
    low, high = slice(0, side // 2), slice(side - side // 2, side)
    return [(low, low), (low, high), (high, low), (high, high)]


def _probes(image_size: int) -> Tensor:
    """A noise image, and four copies with another quarter replaced in each: ``(5, 3, S, S)``."""
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 3, image_size, image_size, generator=generator)
    images = image.repeat(5, 1, 1, 1)
    for number, (rows, columns) in enumerate(_quarters(image_size), 1):
        images[number, :, rows, columns] = other[:, rows, columns]
    return images


def _outputs(
    network: nn.Module, images: Tensor, preferred: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the layers that may be maps, in order of computation, and the logits."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():

        def keep(module, inputs, output, name=name):
            if isinstance(output, Tensor) and len(output) == len(images):
                kept.pop(name, None)  # of a module that is called twice, the last call counts
                kept[name] = output

        if name and (name in preferred or not isinstance(module, _PARTS)):
            hooks.append(module.register_forward_hook(keep))
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return kept, logits


def _reached(gradient: Tensor) -> float:
    """Share of cells whose gradient ``(1, C, h, w)`` is not negligible."""
    size = gradient.abs().sum(1)
    return float((size > 1e-4 * size.max()).float().mean())


def _contrast(maps: Tensor) -> float:
    """See :class:`Layer`; ``maps`` ``(5, C, h, w)`` belong to :func:`_probes`."""
    change = (maps[1:] - maps[:1]).double().square().sum(1)
    quarters = _quarters(maps.shape[-1])
    energy = torch.stack([change[:, rows, columns].sum((1, 2)) for rows, columns in quarters], 1)
    others = energy.masked_fill(torch.eye(4, dtype=torch.bool), 0).amax(1)
    return float((energy.diagonal() / others.clamp(min=1e-300)).nan_to_num(0.0).min())
