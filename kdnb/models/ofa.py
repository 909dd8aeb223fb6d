"""OFA-595, paper A's student, and every other subnet of the Once-for-All MobileNetV3 supernet
(width 1.2).

Cai et al. (2020), Once-for-All: train one network and specialize it for efficient deployment, ICLR,
arXiv:1908.09791. Modules carry the names of the published checkpoints, so that these load strictly.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kdnb import typed
from kdnb.models.depthwise import DepthwiseConv2d


@typed
@dataclass(frozen=True)
class Block:
    """One inverted-bottleneck block: depthwise kernel and stride, channels in, between and out, SE,
    activation."""

    kernel: int
    stride: int
    inner: int
    mid: int
    out: int
    se: bool
    act: str


# fixed in each of the five elastic stages: stride of the first block, channels out, SE, activation
_STAGES = (
    (2, 32, False, "relu"),
    (2, 48, True, "relu"),
    (2, 96, False, "h_swish"),
    (1, 136, True, "h_swish"),
    (2, 192, True, "h_swish"),
)
DEPTHS, KERNELS, EXPANSIONS = (2, 3, 4), (3, 5, 7), (3, 4, 6)


@typed
def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor``, losing 10 % at most (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@typed
@dataclass(frozen=True)
class Choice:
    """One subnet of the supernet: two to four blocks (kernel, expansion) in each of five stages.

    ``name`` is ``ofa-335433-...`` with two digits a block and a dash between stages; wherever a
    student is named, such a name is understood.
    """

    stages: tuple[tuple[tuple[int, int], ...], ...]

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages, 1):
            if len(stage) not in DEPTHS or any(
                k not in KERNELS or e not in EXPANSIONS for k, e in stage
            ):
                raise ValueError(
                    f"stage {number} of a subnet has {DEPTHS} blocks of kernel {KERNELS} and "
                    f"expansion {EXPANSIONS}, got {stage}"
                )
        if len(self.stages) != len(_STAGES):
            raise ValueError(f"a subnet has {len(_STAGES)} stages, got {len(self.stages)}")

    @classmethod
    def parse(cls, name: str) -> Choice:
        """The choice of a :attr:`name`; raises ``ValueError`` with an example for another text."""
        stages = name.removeprefix("ofa-").split("-")
        if not all(stage.isdigit() and len(stage) % 2 == 0 for stage in stages):
            raise ValueError(
                f"{name!r} is no subnet: five stages with two digits a block (kernel, expansion), "
                f"like {OFA595_CHOICE.name}"
            )
        return cls(
            tuple(
                tuple((int(k), int(e)) for k, e in zip(stage[::2], stage[1::2], strict=True))
                for stage in stages
            )
        )

    @classmethod
    def uniform(cls, depth: int, kernel: int, expansion: int) -> Choice:
        """The same depth, kernel and expansion everywhere."""
        return cls((((kernel, expansion),) * depth,) * len(_STAGES))

    @property
    def name(self) -> str:
        """The name of this subnet, ``ofa-`` and two digits a block."""
        return "ofa-" + "-".join("".join(f"{k}{e}" for k, e in stage) for stage in self.stages)

    def blocks(self) -> list[Block]:
        """Its blocks with their channels, the fixed first one included."""
        blocks, inner = [Block(3, 1, 24, 24, 24, False, "relu")], 24
        for (stride, out, se, act), stage in zip(_STAGES, self.stages, strict=True):
            for depth, (kernel, expansion) in enumerate(stage):
                blocks.append(
                    Block(
                        kernel,
                        1 if depth else stride,
                        inner,
                        make_divisible(inner * expansion),
                        out,
                        se,
                        act,
                    )
                )
                inner = out
        return blocks

    def places(self) -> list[int]:
        """Index of each block in the supernet, where every stage has four blocks."""
        return [0] + [
            1 + 4 * number + depth
            for number, stage in enumerate(self.stages)
            for depth in range(len(stage))
        ]


SMALLEST, LARGEST = Choice.uniform(2, 3, 3), Choice.uniform(4, 7, 6)
OFA595_CHOICE = Choice.parse("ofa-335433-54543653-76563354-36567634-36365633")
OFA595_BLOCKS = tuple(OFA595_CHOICE.blocks())


def _activation(name: str, smooth: bool) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    # the ImageNet-21k checkpoint was trained with the smooth functions that h_swish and hard
    # sigmoid approximate
    smooth_ones, hard_ones = (
        {"h_swish": nn.SiLU, "h_sigmoid": nn.Sigmoid},
        {"h_swish": nn.Hardswish, "h_sigmoid": nn.Hardsigmoid},
    )
    return (smooth_ones if smooth else hard_ones)[name]()


class ConvLayer(nn.Sequential):
    """Convolution without bias, batch norm and activation, named ``conv``, ``bn``, ``act``."""

    def __init__(
        self,
        inner: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: nn.Module | None = None,
        norm: bool = True,
    ):
        super().__init__()
        self.conv = (
            DepthwiseConv2d(out, kernel, stride)
            if groups > 1
            else nn.Conv2d(inner, out, kernel, stride, kernel // 2, bias=False)
        )
        if norm:
            self.bn = nn.BatchNorm2d(out, eps=1e-5, momentum=0.1)
        if act is not None:
            self.act = act


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean, of width ``make_divisible(channels / 4)``."""

    def __init__(self, channels: int, smooth: bool):
        super().__init__()
        width = make_divisible(channels / 4)
        self.fc = nn.Sequential(
            OrderedDict(
                reduce=nn.Conv2d(channels, width, 1),
                relu=nn.ReLU(),
                expand=nn.Conv2d(width, channels, 1),
                gate=_activation("h_sigmoid", smooth),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True))


class InvertedBottleneck(nn.Sequential):
    """1×1 expansion (where ``mid`` differs from ``inner``), depthwise convolution with optional SE,
    linear 1×1 projection."""

    def __init__(self, block: Block, smooth: bool):
        super().__init__()
        if block.mid != block.inner:
            self.inverted_bottleneck = ConvLayer(
                block.inner, block.mid, act=_activation(block.act, smooth)
            )
        self.depth_conv = ConvLayer(
            block.mid,
            block.mid,
            block.kernel,
            block.stride,
            block.mid,
            _activation(block.act, smooth),
        )
        if block.se:
            self.depth_conv.se = SqueezeExcite(block.mid, smooth)
        self.point_linear = ConvLayer(block.mid, block.out)


class Residual(nn.Module):
    """A block with an identity shortcut where the shapes allow it."""

    def __init__(self, block: Block, smooth: bool):
        super().__init__()
        self.mobile_inverted_conv = InvertedBottleneck(block, smooth)
        self.shortcut = block.stride == 1 and block.inner == block.out

    def forward(self, x: Tensor) -> Tensor:
        y = self.mobile_inverted_conv(x)
        return x + y if self.shortcut else y


class OFA(nn.Module):
    """A subnet of its own: images ``(N, 3, H, W)`` to logits ``(N, num_classes)``.

    OFA-595 unless other ``blocks`` are given: 7,598,928 + 1537·num_classes parameters.
    ``smooth=True`` takes SiLU and the plain sigmoid, as the ImageNet-21k checkpoint does.
    """

    def __init__(
        self, num_classes: int = 1000, smooth: bool = False, blocks: Sequence[Block] = OFA595_BLOCKS
    ):
        super().__init__()
        self.first_conv = ConvLayer(3, 24, 3, 2, act=_activation("h_swish", smooth))
        self.blocks = nn.Sequential(*(Residual(block, smooth) for block in blocks))
        self.final_expand_layer = ConvLayer(192, 1152, act=_activation("h_swish", smooth))
        self.feature_mix_layer = ConvLayer(
            1152, 1536, act=_activation("h_swish", smooth), norm=False
        )
        self.classifier = nn.Sequential(OrderedDict(linear=nn.Linear(1536, num_classes)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, ``(N, 1152, H/32, W/32)``."""
        return self.final_expand_layer(self.blocks(self.first_conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x).mean((2, 3), keepdim=True)
        return self.classifier(self.feature_mix_layer(x).flatten(1))


class Supernet(nn.Module):
    """The elastic supernet: every subnet lives in the weights of the largest (10,715,752 parameters
    for 1000 classes).

    A subnet takes the first blocks of a stage and the first channels of a layer; a small kernel is
    the centre of the larger one multiplied by a learned matrix (7 to 5: 25×25, 5 to 3: 9×9; Cai et
    al. 2020, section 3.3). In eval mode it gives the logits of its largest subnet. In training mode
    it gives ``(4N, num_classes)``, the logits of the largest, the smallest and two random subnets
    (the sandwich rule of Yu & Huang 2019, arXiv:1903.05134, section 3.2).
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.whole = OFA(num_classes, blocks=LARGEST.blocks())
        self.matrices = nn.ParameterDict(
            {
                f"{place}_{side}to{side - 2}": nn.Parameter(torch.eye((side - 2) ** 2))
                for place in range(1, len(self.whole.blocks))
                for side in (7, 5)
            }
        )

    def weights(self, choice: Choice) -> dict[str, Tensor]:
        """Weights and buffers of a subnet under the names of :class:`OFA`, as views that share
        memory and gradients."""
        own, places, found = self.whole.state_dict(keep_vars=True), choice.places(), {}
        for name, like in (
            skeleton(choice, self.whole.classifier.linear.out_features).state_dict().items()
        ):
            place = None
            if name.startswith("blocks."):
                _, number, rest = name.split(".", 2)
                place = places[int(number)]
                value = own[f"blocks.{place}.{rest}"]
            else:
                value = own[name]
            if place and name.endswith("depth_conv.conv.weight"):
                found[name] = self._kernel(value[: len(like)], like.shape[-1], place)
            else:
                found[name] = (
                    value[tuple(slice(size) for size in like.shape)] if value.ndim else value
                )
        return found

    def _kernel(self, weight: Tensor, side: int, place: int) -> Tensor:
        while (now := weight.shape[-1]) > side:
            centre = weight[..., 1:-1, 1:-1]
            weight = F.linear(centre.flatten(1), self.matrices[f"{place}_{now}to{now - 2}"]).view(
                centre.shape
            )
        return weight

    def run(self, choice: Choice, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of one subnet, in place; only the largest leaves its batch
        statistics in training mode."""
        shape = skeleton(choice, self.whole.classifier.linear.out_features).train(self.training)
        weights = self.weights(choice)
        if self.training and choice != LARGEST:
            # statistics of narrower subnets are others: mixed in, they would spoil the largest's
            # and serve none
            weights |= {name: weights[name].clone() for name, _ in shape.named_buffers()}
        return functional_call(shape, weights, (x,), strict=True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.whole(x)
        return torch.cat(
            [
                self.run(choice, x)
                for choice in (LARGEST, SMALLEST, random_choice(), random_choice())
            ]
        )

    def extract(self, choice: Choice) -> OFA:
        """A copy of a subnet with the same outputs. Its batch statistics are the supernet's:
        recalibrate them."""
        network = OFA(self.whole.classifier.linear.out_features, blocks=choice.blocks())
        network.load_state_dict(
            {name: value.detach().clone() for name, value in self.weights(choice).items()},
            strict=True,
        )
        return network.train(self.training)


@functools.lru_cache(maxsize=512)
def skeleton(choice: Choice, num_classes: int) -> OFA:
    """The shape of a subnet, without memory."""
    with torch.device("meta"):
        return OFA(num_classes, blocks=choice.blocks())


def random_choice() -> Choice:
    """A subnet drawn with torch's global generator, uniform in depth, kernel and expansion."""

    def pick(values: tuple[int, ...]) -> int:
        return values[int(torch.randint(len(values), ()))]

    return Choice(
        tuple(
            tuple((pick(KERNELS), pick(EXPANSIONS)) for _ in range(pick(DEPTHS))) for _ in _STAGES
        )
    )


@typed
def random_choices(count: int, seed: int = 0) -> list[Choice]:
    """``count`` different subnets, the same for a ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: dict[Choice, None] = {}
        while len(found) < count:
            found[random_choice()] = None
    return list(found)
