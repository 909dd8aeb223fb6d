"""Activations of a network's layers, read without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.models.maps import NoMap
from kdnb.models.zoo import Classifier

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen weights and no in-place activation for the block; afterwards, also
    after an error, mode, hooks and gradients are as before."""
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [module.training for module in modules]
    inplace = [(module, module.inplace) for module in modules if hasattr(module, "inplace")]
    hooks = [[dict(getattr(module, name)) for name in HOOKS] for module in modules]
    grads = [(parameter.grad, parameter.requires_grad) for parameter in parameters]
    try:
        model.eval()
        for module, _ in inplace:
            module.inplace = False  # the next layer must not rewrite a stored activation
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
        for parameter, (grad, required) in zip(parameters, grads, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = grad


def watch(model: Classifier, x: Tensor, layer: str) -> tuple[Tensor, object]:
    """The logits ``(N, K)`` for normalised images ``(N, 3, H, W)``, and what a layer gives on the
    way (None: it takes no part), from one pass without gradients."""
    kept: list[object] = []
    hook = model.network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    try:
        with torch.inference_mode():
            return model.network(x), kept[-1] if kept else None
    finally:
        hook.remove()


def features(model: Classifier, x: Tensor, layer: str | None = None) -> Tensor:
    """Activations ``(N, C, h, w)`` of a layer for normalised images ``(N, 3, H, W)``, without
    gradients. Raises ``ValueError`` for a layer whose output has no height and width."""
    layer = layer or model.cam_layer
    return spatial(model, watch(model, x, layer)[1], layer).clone()


def map_size(model: Classifier) -> tuple[int, int]:
    """Height and width ``(h, w)`` of the model's class activation map before it is enlarged."""
    x = torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)
    with untouched(model):
        return tuple(features(model, x).shape[-2:])


def spatial(model: Classifier, output: Tensor, layer: str) -> Tensor:
    """A layer's output as ``(N, C, h, w)``; tokens are put back into their grid. Raises
    ``ValueError`` for an output that has no grid."""
    found = model.cam_reshape(output, layer) if isinstance(output, Tensor) else None
    if found is None or found.ndim != 4 or found.shape[-1] * found.shape[-2] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NoMap(
            f"layer {layer!r} of {model.name} gives {shape} at {model.image_size} px: no map can "
            f"be drawn from it; take an earlier layer (the zoo's choice: {model.cam_layer!r}) or a "
            "larger image_size"
        )
    return found


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Class activation maps ``(N, h, w)`` enlarged bilinearly to ``size`` ``(N, H, W)``, each
    scaled to [0, 1]; a map of zeros stays zero."""
    large = F.interpolate(maps[:, None].float(), tuple(size), mode="bilinear", align_corners=False)
    large = large[:, 0] - large[:, 0].amin((1, 2), keepdim=True)
    return large / large.amax((1, 2), keepdim=True).clamp(min=1e-30)
