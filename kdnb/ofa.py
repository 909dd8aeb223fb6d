"""OFA-595: the subnet of the Once-for-All MobileNetV3 supernet (width 1.2) that is paper A's student.

Cai et al. (2020), Once-for-All: train one network and specialize it for efficient deployment, ICLR, arXiv:1908.09791.
Modules carry the names of the published checkpoints, so that these load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """One inverted-bottleneck block: depthwise kernel and stride, channels in, between and out, SE, activation."""

    kernel: int
    stride: int
    inner: int
    mid: int
    out: int
    se: bool
    act: str


# (stride, out, SE, activation, [(kernel, mid channels), ...]) of each stage; mid is expansion x in, rounded to eights
_STAGES = (
    (2, 32, False, "relu", [(3, 72), (5, 128), (3, 96)]),
    (2, 48, True, "relu", [(5, 128), (5, 192), (3, 288), (5, 144)]),
    (2, 96, False, "h_swish", [(7, 288), (5, 576), (3, 288), (5, 384)]),
    (1, 136, True, "h_swish", [(3, 576), (5, 816), (7, 816), (3, 544)]),
    (2, 192, True, "h_swish", [(3, 816), (3, 1152), (5, 1152), (3, 576)]),
)


def _ofa595_blocks() -> list[Block]:
    blocks, inner = [Block(3, 1, 24, 24, 24, False, "relu")], 24
    for stride, out, se, act, layers in _STAGES:
        for depth, (kernel, mid) in enumerate(layers):
            blocks.append(Block(kernel, stride if depth == 0 else 1, inner, mid, out, se, act))
            inner = out
    return blocks


OFA595_BLOCKS = tuple(_ofa595_blocks())


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor`` without losing more than 10 % (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _activation(name: str, smooth: bool) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    # the ImageNet-21k checkpoint was trained with the smooth functions that h_swish and hard sigmoid approximate
    smooth_ones, hard_ones = {"h_swish": nn.SiLU, "h_sigmoid": nn.Sigmoid}, {"h_swish": nn.Hardswish, "h_sigmoid": nn.Hardsigmoid}
    return (smooth_ones if smooth else hard_ones)[name]()


class ConvLayer(nn.Sequential):
    """Convolution without bias, batch norm, activation, under the names ``conv``, ``bn``, ``act``."""

    def __init__(self, inner: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None,
                 norm: bool = True):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        if norm:
            self.bn = nn.BatchNorm2d(out, eps=1e-5, momentum=0.1)
        if act is not None:
            self.act = act


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean, of width ``make_divisible(channels / 4)``."""

    def __init__(self, channels: int, smooth: bool):
        super().__init__()
        width = make_divisible(channels / 4)
        self.fc = nn.Sequential(OrderedDict(
            reduce=nn.Conv2d(channels, width, 1), relu=nn.ReLU(),
            expand=nn.Conv2d(width, channels, 1), gate=_activation("h_sigmoid", smooth),
        ))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True))


class InvertedBottleneck(nn.Sequential):
    """1×1 expansion (where ``mid`` differs from ``inner``), depthwise convolution with optional SE, linear 1×1 projection."""

    def __init__(self, block: Block, smooth: bool):
        super().__init__()
        if block.mid != block.inner:
            self.inverted_bottleneck = ConvLayer(block.inner, block.mid, act=_activation(block.act, smooth))
        self.depth_conv = ConvLayer(block.mid, block.mid, block.kernel, block.stride, block.mid, _activation(block.act, smooth))
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


class OFA595(nn.Module):
    """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; 7,598,928 + 1537·num_classes parameters.

    ``smooth=True`` takes SiLU and the plain sigmoid, as the ImageNet-21k checkpoint does.
    """

    def __init__(self, num_classes: int = 1000, smooth: bool = False):
        super().__init__()
        self.first_conv = ConvLayer(3, 24, 3, 2, act=_activation("h_swish", smooth))
        self.blocks = nn.Sequential(*(Residual(block, smooth) for block in OFA595_BLOCKS))
        self.final_expand_layer = ConvLayer(192, 1152, act=_activation("h_swish", smooth))
        self.feature_mix_layer = ConvLayer(1152, 1536, act=_activation("h_swish", smooth), norm=False)
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


class CheckpointMismatch(ValueError):
    """A file that does not hold this network; the message lists what differs."""


def from_state_dict(state: dict, num_classes: int | None = None, smooth: bool | None = None) -> OFA595:
    """Build OFA-595 from a published checkpoint's tensors, strictly.

    Accepts tensors at the top or under ``state_dict``, a ``module.`` prefix, both naming schemes
    (``blocks.N.mobile_inverted_conv.*`` and ``blocks.N.conv.*``), and the ImageNet-21k variant, which is told by its 4-D
    classifier and gets its smooth activations (``smooth`` overrides). With another ``num_classes`` the classifier is new.
    Raises :class:`CheckpointMismatch` with the names and shapes that differ.
    """
    state = state.get("state_dict", state)
    named = {_our_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    weight = named.get("classifier.linear.weight")
    published = 1000 if weight is None else len(weight)
    is_21k = weight is not None and weight.ndim == 4
    if is_21k:
        named["classifier.linear.weight"] = weight.flatten(1)
    network = OFA595(published, is_21k if smooth is None else smooth)
    problems = _differences({name: value.shape for name, value in network.state_dict().items()},
                            {name: value.shape for name, value in named.items()})  # fmt: skip
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        listed = "\n  ".join(problems[:12] + more)
        raise CheckpointMismatch(f"not an OFA-595 checkpoint ({len(problems)} differences):\n  {listed}")
    network.load_state_dict(named, strict=True)
    if num_classes not in (None, published):
        network.classifier.linear = nn.Linear(1536, num_classes)
    return network


def _our_name(name: str) -> str:
    name = name.removeprefix("module.")
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 2 and parts[2] == "conv":
        parts[2] = "mobile_inverted_conv"
    return ".".join(parts)


def _differences(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> list[str]:
    missing = [f"missing {name} {tuple(shape)}" for name, shape in expected.items() if name not in found]
    unknown = [f"unknown {name} {tuple(shape)}" for name, shape in found.items() if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items() if name in found and tuple(found[name]) != tuple(shape)
    ]  # fmt: skip
    return missing + unknown + shapes
