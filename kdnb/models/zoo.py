"""The zoo: any teacher or student by name, with what training, explanations and export need to know
of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdnb import files, typed
from kdnb.models import dual_stream, maps, ofa, ofa_checkpoints, unet, vgg_grown, weights
from kdnb.models.kdfmv import KDFMV

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class BadSize(
    files.UserError,
    ValueError,
    code="KD301",
    way_out="set -p image_size to a size that the message names, or choose another network",
):
    """An image size that a network cannot take; the message names the nearest sizes it can."""


@typed
@dataclass(frozen=True)
class Entry:
    """One network of the zoo: how to build it, where its class activation maps are read, and where
    it comes from.

    ``cam_layers`` are module paths, the last map first, each with twice the resolution of the one
    before; the first shrinks the image ``cam_stride`` times. ``cam_layout`` is the layout of their
    output, ``NCHW`` or ``NHWC``, or ``measured``: then ``cam_layers`` are a proposal, and
    :mod:`kdnb.models.maps` decides. ``lr`` is a peak learning rate of AdamW that works from
    random weights; networks without batch norm, or with attention, need a smaller one. ``load``
    builds the network from the tensors at ``weights_url``; ``parts`` are the modules of a network
    that start from published weights, with timm's name of each. ``encoder`` is timm's name of a
    U-Net's encoder. ``only_pretrained`` marks a network that is named after the weights that it
    starts from.
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
    parts: tuple[tuple[str, str], ...] = ()
    encoder: str | None = None
    only_pretrained: bool = False

    def cam_layer(self, image_size: int) -> str:
        """The last layer whose map of an image has ``maps.FEWEST_CELLS`` a side or more, else the
        finest of those that are known."""
        fine = (
            layer
            for step, layer in enumerate(self.cam_layers)
            if image_size * 2**step >= maps.FEWEST_CELLS * self.cam_stride
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


def _dual_stream(graph: bool = True, attention: bool = True) -> Entry:
    return Entry(
        lambda classes, size: dual_stream.DualStream(classes, size, graph, attention),
        ("regions", "swin.layers.1"),
        "arXiv:2512.21372; sizes and wiring ours",
        cam_layout="NHWC",
        lr=3e-4,
        cam_stride=16,
        parts=(("swin", dual_stream.SWIN), ("vit", dual_stream.VIT)),
    )


SUPERNET = "ofa-supernet"
SUPERNET_URL = "https://hanlab.mit.edu/files/OnceForAll/ofa_nets/ofa_mbv3_d234_e346_k357_w1.2"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
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
    "dual_stream": _dual_stream(),
}
# networks of the zoo without one of their parts, or with other weights to start from
VARIANTS: dict[str, Entry] = {
    "dual_stream_no_graph": _dual_stream(graph=False),
    "dual_stream_no_attention": _dual_stream(attention=False),
    # for machines with VGG16's weights at hand but not VGG19's
    "vgg19_from_vgg16": Entry(
        lambda classes, size: vgg_grown.build(classes),
        ("features.35", "features.26"),
        "Simonyan & Zisserman 2015, arXiv:1409.1556; VGG16's ImageNet weights, grown",
        weights_url=VGG16_URL,
        load=vgg_grown.from_vgg16,
        lr=1e-4,
        cam_stride=16,
        only_pretrained=True,
    ),
}


class Classifier(nn.Module):
    """A network with its input normalisation inside: images in [0, 1] ``(N, 3, H, W)`` to logits
    ``(N, num_classes)``.

    Teacher and student may be normalised differently and still see the same batch. ``network`` is
    the bare network; ``mean`` and ``std`` are per channel; ``cam_layer`` is the path of the module
    where class activation maps are read, and ``cam_layers`` are those of several layers with a map,
    the deepest first, for methods that learn from features.
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
        self.entry = entry
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    @functools.cached_property
    def cam_layer(self) -> str:
        """Path of the module where maps are read. Raises :class:`kdnb.models.maps.NoMap`."""
        preferred = self.entry.cam_layer(self.image_size)
        if self.entry.cam_layout != "measured":
            return preferred
        try:
            layers = measured(self.name, self.image_size)
            return maps.choose(layers, (preferred, *self.entry.cam_layers))
        except maps.NoMap as error:
            raise maps.NoMap(f"{self.name} at {self.image_size} px: {error}") from None

    @functools.cached_property
    def cam_layers(self) -> tuple[str, ...]:
        """Paths of all modules with maps to learn from, the deepest first; one at least."""
        if self.entry.cam_layout != "measured":
            return self.entry.cam_layers
        layers = measured(self.name, self.image_size)
        deep = [name for name in self.entry.cam_layers if name in layers and layers[name].teaches]
        return tuple(deep) or (self.cam_layer,)

    def cam_module(self) -> nn.Module:
        """The module at ``cam_layer``."""
        return self.network.get_submodule(self.cam_layer)

    def cam_reshape(self, features: Tensor, layer: str | None = None) -> Tensor:
        """The output of ``layer`` (``cam_layer`` by default) as ``(N, C, h, w)``: channels-last
        stages turned, tokens ``(N, T, C)`` put back into their grid.

        Returned as it is where it has no grid.
        """
        if self.entry.cam_layout == "measured":
            found = measured(self.name, self.image_size).get(layer or self.cam_layer)
            if found is not None and (found.placed or features.ndim == 4):
                return found.reading(features, self.network)
            return features
        turned = self.entry.cam_layout == "NHWC" and features.ndim == 4
        return features.permute(0, 3, 1, 2) if turned else features


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

    ``pretrained`` takes ImageNet weights from ``weights/`` or the web, with a new classifier, and
    never falls back to random ones; ``sha256`` checks the file. Raises ``UnknownName``,
    :class:`BadSize`, ``ValueError`` for fewer than two classes or 32 pixels, and
    :class:`kdnb.models.weights.PretrainedMissing`.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 px, got {image_size}")
    entry = resolve(name)
    if entry.timm_name or entry.parts or entry.encoder:
        check_size(name, image_size)
    if pretrained and not has_weights(name):
        raise weights.PretrainedMissing(
            f"{name} has no published weights: train it (pretrained=False)"
        )
    network = (
        _pretrained(name, entry, num_classes, image_size, sha256)
        if pretrained
        else entry.build(num_classes, image_size)
    )
    timm_name = entry.timm_name or entry.encoder
    config = timm.get_pretrained_cfg(timm_name) if timm_name else None
    mean, std = (config.mean, config.std) if config else IMAGENET
    return Classifier(name, network, num_classes, image_size, entry, mean, std)


@typed
def resolve(name: str) -> Entry:
    """The zoo's entry of a name; for other timm networks the ends of the feature stages serve as
    CAM layers. Raises ``UnknownName`` for a name that neither the zoo nor timm has."""
    if name in ZOO or name in VARIANTS:
        return ZOO.get(name) or VARIANTS[name]
    if name.startswith("ofa-"):
        return _ofa(name)
    if found := unet.parts(name):
        return _unet(*found)
    if not timm.is_model(name):
        known = [*ZOO, *VARIANTS, *timm.list_models()]
        try:
            files.lookup(name, known, "model")
        except files.UnknownName as error:
            nearest = str(error).split(" Allowed:")[0]
            raise files.UnknownName(
                f"{nearest} Allowed: {', '.join(ZOO)}, a subnet as notebook 07 names it "
                "(ofa-335433-...), and every name of timm.list_models()."
            ) from None
    return _proposal(name)


@typed
def has_weights(name: str) -> bool:
    """Whether weights of a network are published, or lie in the folder of weights. Raises
    ``UnknownName``."""
    entry = resolve(name)
    if weights.local(name):
        return True
    if timm_name := entry.timm_name or entry.encoder:
        config = timm.get_pretrained_cfg(timm_name)
        return bool(config and config.has_weights)
    return bool(entry.load or entry.parts)


@functools.lru_cache(maxsize=256)
def _proposal(name: str) -> Entry:
    """An entry of a timm network outside the zoo: the ends of its feature stages, if it lists any,
    are the proposal for where maps are read."""
    config = timm.get_pretrained_cfg(name)
    sized = bool(config and config.fixed_input_size)
    with torch.device("meta"):
        try:
            network = _timm(name, sized)(2, (config and config.input_size or (3, 224))[-1])
        except TypeError:  # takes no img_size
            sized, network = False, _timm(name)(2, 224)
    stages = list(getattr(network, "feature_info", None) or ()) or [{"module": "", "reduction": 32}]
    # where a class token answers, the last block's patches do not reach the logits
    if getattr(network, "num_prefix_tokens", 0):
        stages = [stages[-1] | {"module": f"{stages[-1]['module']}.norm1"}]
    kept = [stages.pop()]
    while stages and 2 * stages[-1]["reduction"] == kept[-1]["reduction"] > 8:
        kept.append(stages.pop())
    layers = tuple(stage["module"] for stage in kept)
    return _zoo_timm(name, layers, "timm", "measured", sized, cam_stride=kept[0]["reduction"])


@functools.lru_cache(maxsize=64)
def measured(name: str, image_size: int) -> dict[str, maps.Layer]:
    """All layers of a network that can be read as maps, from fresh weights that are the same each
    time. Costs a few passes of one image; remembered."""
    # callers may be in inference mode, without gradients or under autocast
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        entry = resolve(name)
        return maps.measure(entry.build(2, image_size), image_size, entry.cam_layers)


@typed
def check_size(name: str, image_size: int) -> None:
    """Raise :class:`BadSize` if a network cannot take images of this size; nothing is computed."""
    if (reason := _size_problem(name, image_size)) is None:
        return
    steps = (2, 4, 8, 16, 24, 32, 48, 56, 60, 64, 128)
    near = {around for step in steps for around in _multiples(image_size, step)}
    smaller, larger = (
        next((size for size in sizes if _size_problem(name, size) is None), None)
        for sizes in (
            sorted((size for size in near if 32 <= size < image_size), reverse=True),
            sorted(size for size in near if image_size < size <= 1024),
        )
    )
    found = " or ".join(f"{size} px" for size in (smaller, larger) if size)
    hint = f"the nearest sizes it takes: {found}" if found else "no size near it works either"
    raise BadSize(f"{name} cannot take images of {image_size} px; {hint} ({reason})")


def _multiples(size: int, step: int) -> list[int]:
    return [(size // step + n) * step for n in (-1, 0, 1, 2)]


@functools.lru_cache(maxsize=1024)
def _size_problem(name: str, image_size: int) -> str | None:
    """The error of a forward pass on meta tensors, or None."""
    try:
        with torch.device("meta"), torch.no_grad():
            network = resolve(name).build(2, image_size).eval()
            network(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # each network has its own way to fail
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None


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


def _unet(encoder: str, channels: tuple[int, ...]) -> Entry:
    """A U-Net on an encoder of timm. Raises ``UnknownName`` where timm has none of this name."""
    if not timm.is_model(encoder):
        files.lookup(encoder, timm.list_models(), "encoder")
    return Entry(
        lambda classes, size: unet.build(encoder, channels, classes),
        unet.LAYERS,
        "Ronneberger et al. 2015, arXiv:1505.04597; the encoder from timm",
        cam_stride=1,
        encoder=encoder,
    )


def _pretrained(
    name: str, entry: Entry, num_classes: int, image_size: int, sha256: str | None
) -> nn.Module:
    if entry.parts:
        network = entry.build(num_classes, image_size)
        for part, timm_name in entry.parts:
            own = network.get_submodule(part)
            # weights are fitted to the stream as it stands in the network, with its windows
            build = functools.partial(lambda stream, *_: stream, own)
            found = weights.timm_network(timm_name, timm_name, 0, image_size, build)
            own.load_state_dict(found.state_dict(), strict=True)
        return network
    if entry.encoder:
        whole = timm.get_pretrained_cfg(entry.encoder).input_size[-1]
        found = weights.timm_network(entry.encoder, entry.encoder, 0, whole, entry.build, sha256)
        return unet.start_from(entry.build(num_classes, image_size), found.state_dict())
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


@typed
def checksum(network: nn.Module) -> str:
    """Names a network's weights and buffers (12 hexadecimal digits)."""
    return tensors_checksum(network.state_dict())


@typed
def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Names tensors by their names and values (12 hexadecimal digits)."""
    hasher = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        hasher.update(
            key.encode()
            + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return hasher.hexdigest()[:12]
