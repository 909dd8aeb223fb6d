"""The zoo: any teacher or student by name, with what training, explanations and export need to know
of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdnb import files, typed
from kdnb.models import ofa, ofa_checkpoints, weights
from kdnb.models.kdfmv import KDFMV

# The last layer of most networks shrinks the image 32 times: below 192 px fewer than 6 x 6 cells
# are left, and 3 x 3 point at nothing. On the chest phantom at 96 px DenseNet121's Score-CAM does
# not beat a centre prior there; one stage earlier it does.
FEWEST_CELLS = 6
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@typed
@dataclass(frozen=True)
class Entry:
    """One network of the zoo: how to build it, where its class activation maps are read, and where
    it comes from.

    ``cam_layers`` are module paths, the last map first, each with twice the resolution of the one
    before; the first shrinks the image ``cam_stride`` times. ``cam_layout`` is the layout of their
    output, ``NCHW``, ``NHWC`` or ``auto``. ``lr`` is a peak learning rate of AdamW that works from
    random weights; networks without batch norm, or with attention, need a smaller one. ``load``
    builds the network from the tensors at ``weights_url``.
    """

    build: Callable[[int, int], nn.Module]
    cam_layers: tuple[str, ...]
    source: str
    timm_name: str | None = None
    cam_layout: str = "NCHW"
    weights_url: str | None = None
    load: Callable[[dict, int], nn.Module] | None = None
    lr: float = 1e-3
    cam_stride: int = 32

    def cam_layer(self, image_size: int) -> str:
        """The last layer whose map of an image has ``FEWEST_CELLS`` a side or more, else the finest
        of those that are known."""
        fine = (
            layer
            for step, layer in enumerate(self.cam_layers)
            if image_size * 2**step >= FEWEST_CELLS * self.cam_stride
        )
        return next(fine, self.cam_layers[-1])


def _timm(name: str, sized: bool = False) -> Callable[[int, int], nn.Module]:
    """A builder of a timm network; ``sized`` ones are built for one image size."""

    def build(num_classes: int, image_size: int) -> nn.Module:
        return timm.create_model(
            name, num_classes=num_classes, **({"img_size": image_size} if sized else {})
        )

    return build


def _zoo_timm(
    name: str,
    cam_layers: tuple[str, ...],
    source: str,
    cam_layout: str = "NCHW",
    sized: bool = False,
    lr: float = 1e-3,
    cam_stride: int = 32,
) -> Entry:
    return Entry(
        _timm(name, sized), cam_layers, source, name, cam_layout, lr=lr, cam_stride=cam_stride
    )


SUPERNET = "ofa-supernet"
SUPERNET_URL = "https://hanlab.mit.edu/files/OnceForAll/ofa_nets/ofa_mbv3_d234_e346_k357_w1.2"
OFA_URL = "https://github.com/jitdee-ai/darmo/releases/download/0.0.1/ofa595_1k_b1a18d5.pt"

ZOO: dict[str, Entry] = {
    "vgg19": _zoo_timm(
        "vgg19",
        ("features.35", "features.26"),
        "Simonyan & Zisserman 2015, arXiv:1409.1556",
        lr=1e-4,
        cam_stride=16,
    ),
    "vgg19_bn": _zoo_timm(
        "vgg19_bn",
        ("features.51", "features.38"),
        "Simonyan & Zisserman 2015, arXiv:1409.1556",
        cam_stride=16,
    ),
    "visformer_small": _zoo_timm(
        "visformer_small",
        ("stage3.3", "stage2.3", "stage1.6"),
        "Chen et al. 2021, arXiv:2104.12533",
        sized=True,
        lr=3e-4,
    ),
    # S3 (AutoFormerV2) tiny: timm's port gives the authors' logits to the last bit
    "autoformerv2_tiny": _zoo_timm(
        "swin_s3_tiny_224",
        ("norm", "layers.2", "layers.1"),
        "Chen et al. 2021, arXiv:2111.14725",
        "NHWC",
        sized=True,
        lr=3e-4,
    ),
    "densenet121": _zoo_timm(
        "densenet121",
        ("features.norm5", "features.transition3.norm", "features.transition2.norm"),
        "Huang et al. 2017, arXiv:1608.06993",
    ),
    "ofa595": Entry(
        lambda classes, size: ofa.OFA(classes),
        (
            "final_expand_layer",
            *(f"blocks.{n}.mobile_inverted_conv.inverted_bottleneck.act" for n in (16, 8)),
        ),
        "Cai et al. 2020, arXiv:1908.09791",
        weights_url=OFA_URL,
        load=ofa_checkpoints.from_state_dict,
    ),
    "kdfmv5": Entry(
        lambda classes, size: KDFMV(classes, size, 5),
        ("acts.4", "acts.3"),
        "Jiang et al. 2025, arXiv:2502.15959 (text)",
        lr=3e-4,
        cam_stride=16,
    ),
    "kdfmv8": Entry(
        lambda classes, size: KDFMV(classes, size, 8),
        ("acts.5", "acts.4", "acts.3"),
        "Jiang et al. 2025, arXiv:2502.15959 (code)",
        lr=3e-4,
    ),
}


class Classifier(nn.Module):
    """A network with its input normalisation inside: images in [0, 1] ``(N, 3, H, W)`` to logits
    ``(N, num_classes)``.

    Teacher and student may be normalised differently and still see the same batch. ``network`` is
    the bare network; ``mean`` and ``std`` are per channel; ``cam_layer`` and ``cam_layout`` say
    where class activation maps are read. ``cam_layers`` are all layers with a map, the deepest
    first, for methods that learn from features.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_classes: int,
        image_size: int,
        entry: Entry,
        mean: tuple[float, ...] = IMAGENET[0],
        std: tuple[float, ...] = IMAGENET[1],
    ):
        super().__init__()
        self.name, self.num_classes, self.image_size, self.source = (
            name,
            num_classes,
            image_size,
            entry.source,
        )
        self.cam_layer, self.cam_layout = entry.cam_layer(image_size), entry.cam_layout
        self.cam_layers = entry.cam_layers
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    def cam_module(self) -> nn.Module:
        """The module at ``cam_layer``."""
        return self.network.get_submodule(self.cam_layer)

    def cam_reshape(self, features: Tensor) -> Tensor:
        """A layer's features as ``(N, C, h, w)``: channels-last stages turned, tokens ``(N, T, C)``
        put back into their grid.

        Returned as they are where they have no grid.
        """
        if features.ndim == 3:
            tokens = features.shape[1] - getattr(self.network, "num_prefix_tokens", 0)
            side = math.isqrt(max(tokens, 0))
            return (
                features[:, -tokens:].transpose(1, 2).unflatten(2, (side, side))
                if side**2 == tokens > 0
                else features
            )
        # images are square, so the axis that differs from its neighbours is the channels'
        last = features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]
        turned = self.cam_layout == "NHWC" or (self.cam_layout == "auto" and last)
        return features.permute(0, 3, 1, 2) if turned and features.ndim == 4 else features


@typed
def create(
    name: str,
    num_classes: int,
    image_size: int = 224,
    pretrained: bool = False,
    sha256: str | None = None,
) -> Classifier:
    """Build a network of the zoo, or any other that timm knows, for ``num_classes`` classes at
    ``image_size`` pixels.

    ``pretrained`` takes ImageNet weights from ``weights/`` or the network, with a new classifier,
    and never falls back to random ones; ``sha256`` checks the file. Raises ``UnknownName``,
    ``ValueError`` for a size or class count that cannot be, and
    :class:`kdnb.models.weights.PretrainedMissing`.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 px, got {image_size}")
    entry = resolve(name)
    if pretrained and entry.timm_name is None and entry.load is None:
        raise weights.PretrainedMissing(
            f"{name} has no published weights: train it (pretrained=False)"
        )
    network = (
        _pretrained(name, entry, num_classes, image_size, sha256)
        if pretrained
        else entry.build(num_classes, image_size)
    )
    config = timm.get_pretrained_cfg(entry.timm_name) if entry.timm_name else None
    mean, std = (config.mean, config.std) if config else IMAGENET
    return Classifier(name, network, num_classes, image_size, entry, mean, std)


@typed
def resolve(name: str) -> Entry:
    """The zoo's entry of a name; for other timm networks the ends of the feature stages serve as
    CAM layers."""
    if name in ZOO:
        return ZOO[name]
    if name.startswith("ofa-"):
        return _ofa(name)
    if not timm.is_model(name):
        known = [*ZOO, *timm.list_models()]
        try:
            files.lookup(name, known, "model")
        except files.UnknownName as error:
            nearest = str(error).split(" Allowed:")[0]
            raise files.UnknownName(
                f"{nearest} Allowed: {', '.join(ZOO)}, a subnet as notebook 07 names it (ofa-335433-...), and "
                "every name of timm.list_models()."
            ) from None
    config = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=2)
    stages = list(getattr(network, "feature_info", None) or ()) or [{"module": "", "reduction": 32}]
    if getattr(
        network, "num_prefix_tokens", 0
    ):  # where a class token answers, the last block's patches do not reach the logits
        stages = [stages[-1] | {"module": f"{stages[-1]['module']}.norm1"}]
    kept = [stages.pop()]
    while stages and 2 * stages[-1]["reduction"] == kept[-1]["reduction"] > 8:
        kept.append(stages.pop())
    return _zoo_timm(
        name,
        tuple(stage["module"] for stage in kept),
        "timm",
        "auto",
        sized=bool(config and config.fixed_input_size),
        cam_stride=kept[0]["reduction"],
    )


def _ofa(name: str) -> Entry:
    """The supernet, or the subnet that a name spells (see ``ofa.Choice``); read at the same layers
    as OFA-595."""
    if name == SUPERNET:
        return Entry(
            lambda classes, size: ofa.Supernet(classes),
            ("whole.final_expand_layer",),
            "Cai et al. 2020, arXiv:1908.09791",
            weights_url=SUPERNET_URL,
            load=ofa_checkpoints.supernet_from_state_dict,
        )
    choice = ofa.Choice.parse(name)
    shrinking = (1 + sum(len(stage) for stage in choice.stages[:before]) for before in (4, 2))
    return Entry(
        lambda classes, size: ofa.OFA(classes, blocks=choice.blocks()),
        (
            "final_expand_layer",
            *(f"blocks.{n}.mobile_inverted_conv.inverted_bottleneck.act" for n in shrinking),
        ),
        "a subnet of Cai et al. 2020, arXiv:1908.09791",
    )


def _pretrained(
    name: str, entry: Entry, num_classes: int, image_size: int, sha256: str | None
) -> nn.Module:
    if entry.timm_name is None:
        return entry.load(weights.read(name, entry.weights_url, sha256), num_classes)
    return weights.timm_network(name, entry.timm_name, num_classes, image_size, entry.build, sha256)


@typed
def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@typed
def count_layers(network: nn.Module) -> int:
    """Number of layers with weights of their own: convolutions and linear layers."""
    return sum(
        isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) for layer in network.modules()
    )


@typed
def count_macs(name: str, num_classes: int = 1000, image_size: int = 224) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, without biases and
    norms, as published tables count.

    Runs on meta tensors: nothing is computed. Attention products are left out.
    """
    with torch.device("meta"):
        network = resolve(name).build(num_classes, image_size).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, image_size, image_size))
    linear = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm}
    return (
        sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if op in linear) // 2
    )


def precision() -> str:
    """``bf16`` where the hardware computes with it, else ``no``; emulated bf16 is slower than
    float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "no"
    )


@typed
def checksum(network: nn.Module) -> str:
    """Names a network's weights and buffers (12 hexadecimal digits)."""
    hasher = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        hasher.update(
            key.encode()
            + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return hasher.hexdigest()[:12]
