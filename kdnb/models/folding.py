"""A copy of a network for inference alone, in which batch norms are a part of the convolutions
before them.

Ours because ``torch.fx.experimental.optimization.fuse`` follows the code of a network, which for
many of timm's it cannot, and knows no batch norm that holds an activation. The new weights are
those of ``torch.nn.utils.fusion``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

ROUNDING = 1e-3  # relative to the largest logit; another function differs by tenths


def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``network`` that gives the same logits up to rounding, with fewer operations.

    ``images`` ``(N, 3, H, W)``, normalised, are passed through it: a convolution whose output a
    batch norm reads takes the batch norm in. Other weights are shared with ``network``, which is
    left as it was; both are in eval mode. Where nothing can be folded, or the copy gives other
    logits, ``network`` itself is returned.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        pairs = _pairs(network, images)
        if not pairs:
            return network
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        copied = copy.deepcopy(network, shared)
        for convolution, norm in pairs:
            _fold(copied, convolution, norm)
        expected, found = network(images), copied(images)
        same = torch.allclose(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    return copied if same else network


def _pairs(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of each convolution and of the batch norm that reads its output, if both run
    once."""
    calls: list[tuple[str, object, object]] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d)

    def watch(name):
        # all tensors are held, so that none gets the identity of another
        return lambda module, given, output: calls.append((name, given[0], output))

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    named = dict(network.named_modules())
    runs = [name for name, _, _ in calls]
    once = [call for call in calls if runs.count(call[0]) == 1]
    made = {id(output): name for name, _, output in once if isinstance(named[name], nn.Conv2d)}
    return [
        (made[id(given)], name)
        for name, given, _ in once
        if id(given) in made and getattr(named[name], "running_mean", None) is not None
    ]


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    """Put a batch norm into the convolution before it; the activation that timm's batch norms hold
    stays in their place."""
    conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
    statistics = bn.running_mean, bn.running_var, bn.eps
    fused = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, bn.weight, bn.bias)
    conv.weight, conv.bias = (nn.Parameter(one.detach(), requires_grad=False) for one in fused)
    own = (getattr(bn, name, None) for name in ("drop", "act"))
    network.set_submodule(norm, nn.Sequential(*(part for part in own if part is not None)))
