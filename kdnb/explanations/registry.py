"""Where a network looks: one call for every method, any model of the zoo, batches of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import captum.attr as captum
import numpy as np
import pytorch_grad_cam as cam_library
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from kdnb import files
from kdnb.explanations import scorecam, shapley
from kdnb.images import index, pixels
from kdnb.models import capabilities
from kdnb.models.zoo import Classifier

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Explanation:
    """Maps of one method: ``maps`` ``(N, H, W)`` float32, finite; CAMs lie in [0, 1], signed ones
    may be negative.

    ``targets`` ``(N,)`` are the explained classes, ``definition`` says what exactly was computed,
    ``effective_channels`` ``(N,)`` how many channels a Score-CAM really mixes.
    """

    method: str
    maps: np.ndarray
    targets: np.ndarray
    definition: str
    effective_channels: np.ndarray | None = None

    @property
    def evidence(self) -> np.ndarray:
        """The maps with negative values cut off: what speaks for the class; what all measurements
        use."""
        return self.maps.clip(min=0)


@dataclass(frozen=True)
class Job:
    """One batch to be explained: normalised images ``x`` ``(N, 3, H, W)``, ``targets`` ``(N,)``,
    and where to look."""

    model: Classifier
    x: Tensor
    targets: Tensor
    layer: str
    options: dict

    @property
    def network(self) -> nn.Module:
        """The bare network; its input is normalised."""
        return self.model.network


@dataclass(frozen=True)
class Method:
    """A way to explain: ``run`` takes a :class:`Job` and returns maps ``(n, H, W)``, or maps and
    effective channels.

    ``options`` are its settings with their defaults; ``signed`` maps have negative values;
    ``layered`` ones read one layer.
    """

    title: str
    source: str
    definition: str
    run: Callable[[Job], object]
    options: dict
    signed: bool = False
    layered: bool = False
    floor: bool = False


def explain(
    model: Classifier,
    images: Tensor,
    method: str = "score_cam",
    targets: int | Sequence[int] | None = None,
    layer: str | None = None,
    batch_size: int = 16,
    **options: object,
) -> Explanation:
    """Explain the answers of ``model`` for images ``(N, 3, H, W)`` in [0, 1] (or uint8).

    ``targets`` are class indices, one for all or one an image; the predicted classes by default.
    ``layer`` is a module path for methods that read a layer (the zoo's choice by default). The
    model is left as it was: mode, buffers, gradients, hooks. Raises ``UnknownName`` for a method,
    option or layer that is not there, ``ValueError`` for images or classes that cannot be.
    """
    known = METHODS[files.lookup(method, METHODS, "method")]
    for name in options:
        files.lookup(name, known.options, f"option of {method}")
    settings = known.options | options
    layer = files.lookup(layer or model.cam_layer, dict(model.network.named_modules()), "layer")
    images = check_images(images, model)
    parts, effective = [], []
    with untouched(model):
        wanted = _check_targets(model, images, targets)
        for start in range(0, len(images), batch_size):
            chosen = images[start : start + batch_size]
            job = Job(
                model,
                (chosen - model.mean) / model.std,
                wanted[start : start + batch_size],
                layer,
                settings,
            )
            found = known.run(job)
            maps, channels = found if isinstance(found, tuple) else (found, None)
            parts.append(np.asarray(torch.as_tensor(maps).detach().float().cpu()))
            effective += [] if channels is None else channels.tolist()
    # a constant activation has no shape: its map is defined as zero
    maps = np.nan_to_num(np.concatenate(parts).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    definition = known.definition.format(
        **{name: len(v) if isinstance(v, Tensor) else v for name, v in settings.items()}
    )
    where = f"; layer {layer}" if known.layered else ""
    return Explanation(
        method,
        maps,
        wanted.cpu().numpy(),
        definition + where,
        np.array(effective) if effective else None,
    )


def read_image(path: str | Path, model: Classifier) -> Tensor:
    """Any image file as the model sees it: ``(1, 3, S, S)`` in [0, 1], stretched to the model's
    size. Raises ``ValueError``."""
    fact = index.inspect(Path(path))
    if isinstance(fact, tuple):  # what no index would use is not explained either
        raise ValueError(
            f"{Path(path).absolute()} cannot be explained: {': '.join(fact)}. Give a whole PNG, JPEG, TIFF, BMP, GIF, "
            f"PGM or WebP of at most {index.LARGEST:,} pixels; save others, DICOM say, as PNG first"
        )
    array = pixels.read_image(Path(path), model.image_size, "RGB")
    return torch.from_numpy(array.copy())[None].float() / 255


def check_images(images: Tensor, model: Classifier) -> Tensor:
    """Images as float ``(N, 3, S, S)`` in [0, 1] on the model's device; grey ones get three
    channels. Raises ``ValueError``."""
    size = model.image_size
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images must be (N, 3, {size}, {size}) with N at least 1, got {tuple(images.shape)}"
        )
    if tuple(images.shape[-2:]) != (size, size):
        raise ValueError(
            f"{model.name} was built for {size} px, the images are {tuple(images.shape[-2:])}: resize them, or read "
            "them with kdnb.explanations.registry.read_image"
        )
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError(
            "images must hold finite values in [0, 1] (or uint8); do not normalise them, the model does"
        )
    return images.expand(-1, 3, -1, -1).to(model.mean.device)


def _check_targets(
    model: Classifier, images: Tensor, targets: int | Sequence[int] | None
) -> Tensor:
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.split(64)])
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"{model.name} answers NaN or infinity: its weights are broken, train it again with a lower -p lr"
        )
    if targets is None:
        return logits.argmax(1).clone()
    wanted = torch.as_tensor(targets, device=images.device).long().reshape(-1)
    wanted = wanted.expand(len(images)) if len(wanted) == 1 else wanted
    if len(wanted) != len(images):
        raise ValueError(f"{len(wanted)} targets for {len(images)} images")
    if wanted.min() < 0 or wanted.max() >= model.num_classes:
        raise ValueError(
            f"targets must lie between 0 and {model.num_classes - 1}, got {sorted(set(wanted.tolist()))}"
        )
    return wanted.clone()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode, frozen weights and no in-place activation for the block; then everything as
    before, also after an error."""
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [module.training for module in modules]
    inplace = [(module, module.inplace) for module in modules if hasattr(module, "inplace")]
    hooks = [[dict(getattr(module, name)) for name in HOOKS] for module in modules]
    grads = [(parameter.grad, parameter.requires_grad) for parameter in parameters]
    try:
        model.eval()
        for module, _ in inplace:
            module.inplace = False  # a stored activation must not be rewritten by what follows it
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode, saved in zip(modules, modes, hooks, strict=True):
            module.training = mode
            for name, kept in zip(HOOKS, saved, strict=True):
                getattr(module, name).clear()
                getattr(module, name).update(kept)
        for module, flag in inplace:
            module.inplace = flag
        for parameter, (grad, wanted) in zip(parameters, grads, strict=True):
            parameter.requires_grad_(wanted)
            parameter.grad = grad


def features(model: Classifier, x: Tensor, layer: str | None = None) -> Tensor:
    """Output of a layer for normalised images, as ``(N, C, h, w)`` without gradients. Raises
    ``ValueError`` without h and w."""
    layer = layer or model.cam_layer
    kept: list[Tensor] = []
    hook = model.network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    try:
        with torch.inference_mode():
            model.network(x)
    finally:
        hook.remove()
    return spatial(model, kept[-1], layer).clone()


def spatial(model: Classifier, output: Tensor, layer: str) -> Tensor:
    """A layer's output as ``(N, C, h, w)``; tokens are put back into their grid. Raises
    ``ValueError`` where there is none."""
    found = model.cam_reshape(output, layer) if isinstance(output, Tensor) else None
    if found is None or found.ndim != 4 or found.shape[-1] * found.shape[-2] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer {layer!r} of {model.name} gives {shape} at {model.image_size} px: no map can be drawn from it; "
            f"take an earlier layer (the zoo's choice: {model.cam_layer!r}) or a larger image_size"
        )
    return found


def enlarge(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """CAMs ``(N, h, w)`` enlarged bilinearly to ``(N, H, W)`` and scaled to [0, 1] each; a map of
    zeros stays one."""
    large = F.interpolate(
        maps[:, None].float(), tuple(sides), mode="bilinear", align_corners=False
    )[:, 0]
    large = large - large.amin((1, 2), keepdim=True)
    return large / large.amax((1, 2), keepdim=True).clamp(min=1e-30)


def _score_cam(job: Job) -> tuple[Tensor, Tensor]:
    files.lookup(job.options["score"], scorecam.SCORES, "score")
    network = job.network
    activations = features(job.model, job.x, job.layer).float()
    fast, channels = job.options["fast"], job.options["channels"]
    channels = channels or (max(1, activations.shape[1] // 2) if fast else None)
    found = scorecam.sweep(
        network, job.x, activations, channels, job.targets, fast, job.options["batch"]
    )
    weights = found.weights(job.targets, job.options["score"], job.options["channel_softmax"])
    return enlarge(found.maps(weights), job.x.shape[-2:]), scorecam.effective_channels(weights)


def _library_cam(name: str) -> Callable[[Job], np.ndarray]:
    def run(job):
        def reshape(output):
            return spatial(job.model, output, job.layer)

        cam = getattr(cam_library, name)(
            job.network, [job.network.get_submodule(job.layer)], reshape
        )
        return cam(
            job.x.clone().requires_grad_(),
            [ClassifierOutputTarget(int(target)) for target in job.targets],
        )

    return run


def _captum(
    build: Callable[[nn.Module], object], reduce: str = "sum", **arguments: object
) -> Callable[[Job], Tensor]:
    """A captum attribution; colour channels are summed, or their largest magnitude taken (saliency,
    Simonyan et al. 2014)."""

    def run(job):
        given = {
            name: value(job) if callable(value) else value for name, value in arguments.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Setting"
            )  # of hooks, which untouched() takes away again
            values = (
                build(job.network)
                .attribute(job.x.clone().requires_grad_(), target=job.targets, **given)
                .detach()
            )
        return values.sum(1) if reduce == "sum" else values.abs().amax(1)

    return run


def _window(job: Job) -> tuple[int, int, int]:
    return (
        3,
        max(2, job.x.shape[-1] // job.options["cells"]),
        max(2, job.x.shape[-1] // job.options["cells"]),
    )


def _stride(job: Job) -> tuple[int, int, int]:
    return (3, *(max(1, side // 2) for side in _window(job)[1:]))


def _shap(job: Job) -> Tensor:
    background = job.options["background"]
    if not isinstance(background, Tensor):
        raise ValueError(
            "shap needs background=images (B, 3, S, S): some training images, for example 20"
        )
    background = (check_images(background, job.model) - job.model.mean) / job.model.std
    return shapley.gradient_shap(
        job.network, job.x, job.targets, background, job.options["samples"], job.options["seed"]
    ).sum(1)


def _random(job: Job) -> Tensor:
    generator = torch.Generator().manual_seed(job.options["seed"])
    noise = torch.rand(len(job.x), 7, 7, generator=generator)
    return enlarge(noise, job.x.shape[-2:])


def _centre(job: Job) -> Tensor:
    axis = torch.linspace(-1, 1, job.x.shape[-1])
    bump = torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * job.options["width"] ** 2))
    return bump.expand(len(job.x), -1, -1)


METHODS: dict[str, Method] = {
    "score_cam": Method(
        "Score-CAM",
        "Wang et al. 2020, arXiv:1910.01279",
        "class {score} of the masked image as score, softmax over channels {channel_softmax}; channels asked: {channels} "
        "(None: all, or half of them in fast mode; likely heavy ones first, the others are predicted), bf16 {fast}",
        _score_cam,
        {"score": "logit", "channel_softmax": True, "channels": None, "fast": False, "batch": 64},
        layered=True,
    ),
    "grad_cam": Method(
        "Grad-CAM",
        "Selvaraju et al. 2017, arXiv:1610.02391",
        "of the class logit",
        _library_cam("GradCAM"),
        {},
        layered=True,
    ),
    "grad_cam_pp": Method(
        "Grad-CAM++",
        "Chattopadhay et al. 2018, arXiv:1710.11063",
        "of the class logit",
        _library_cam("GradCAMPlusPlus"),
        {},
        layered=True,
    ),
    "eigen_cam": Method(
        "Eigen-CAM",
        "Muhammad & Yeasin 2020, arXiv:2008.00299",
        "first principal component; knows no class",
        _library_cam("EigenCAM"),
        {},
        layered=True,
    ),
    "layer_cam": Method(
        "Layer-CAM",
        "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943",
        "of the class logit",
        _library_cam("LayerCAM"),
        {},
        layered=True,
    ),
    "shap": Method(
        "SHAP",
        "Lundberg & Lee 2017, arXiv:1705.07874",
        "expected gradients of the class logit, {samples} samples, {background} background images, seed {seed}",
        _shap,
        {"background": None, "samples": 64, "seed": 0},
        signed=True,
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "Sundararajan et al. 2017, arXiv:1703.01365",
        "from the mean colour, {steps} steps",
        _captum(
            captum.IntegratedGradients,
            n_steps=lambda job: job.options["steps"],
            internal_batch_size=64,
        ),
        {"steps": 32},
        signed=True,
    ),
    "occlusion": Method(
        "Occlusion",
        "Zeiler & Fergus 2014, arXiv:1311.2901",
        "mean-colour squares of a {cells}th of the side, half overlapping",
        _captum(
            captum.Occlusion,
            sliding_window_shapes=_window,
            strides=_stride,
            perturbations_per_eval=8,
        ),
        {"cells": 8},
        signed=True,
    ),
    "saliency": Method(
        "Saliency",
        "Simonyan et al. 2014, arXiv:1312.6034",
        "largest magnitude over colours",
        _captum(captum.Saliency, reduce="max"),
        {},
    ),
    "input_x_gradient": Method(
        "Input × gradient",
        "Shrikumar et al. 2017, arXiv:1605.01713",
        "of the class logit",
        _captum(captum.InputXGradient),
        {},
        signed=True,
    ),
    "guided_backprop": Method(
        "Guided backpropagation",
        "Springenberg et al. 2015, arXiv:1412.6806",
        "rectified at ReLUs only: elsewhere it is the plain gradient",
        _captum(captum.GuidedBackprop),
        {},
        signed=True,
    ),
    "deep_lift": Method(
        "DeepLIFT",
        "Shrikumar et al. 2017, arXiv:1704.02685",
        "rescale rule, from the mean colour",
        _captum(captum.DeepLift),
        {},
        signed=True,
    ),
    "random": Method(
        "random map", "floor", "smoothed noise, seed {seed}", _random, {"seed": 0}, floor=True
    ),
    "centre": Method(
        "centre prior",
        "floor",
        "a Gaussian in the middle, deviation {width} of half the side",
        _centre,
        {"width": 0.5},
        floor=True,
    ),
}


@capabilities.register("explain", "explained")
def _can_be_explained(model: Classifier) -> None:
    """A Grad-CAM and some channels of a Score-CAM of one image; raises where there is no map."""
    images = torch.rand(1, 3, model.image_size, model.image_size)
    explain(model, images, "grad_cam")
    explain(model, images, "score_cam", channels=2)
