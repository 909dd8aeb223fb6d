"""Published Once-for-All checkpoints, read strictly: OFA-595 in all its spellings, and the
supernet."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from kdnb import files
from kdnb.models import ofa


class CheckpointMismatch(
    files.UserError,
    ValueError,
    code="KD304",
    way_out="take a checkpoint of the network that the message names, whole and as published",
):
    """A file that does not hold this network; the message lists what differs."""


def from_state_dict(
    state: dict, num_classes: int | None = None, smooth: bool | None = None
) -> ofa.OFA:
    """Build OFA-595 from a published checkpoint's tensors, strictly.

    Accepts tensors at the top or under ``state_dict``, a ``module.`` prefix, both naming schemes
    (``blocks.N.mobile_inverted_conv.*`` and ``blocks.N.conv.*``), and the ImageNet-21k variant,
    which is recognised by its 4-D classifier and gets its smooth activations (``smooth``
    overrides). With another ``num_classes`` the classifier is new. Raises
    :class:`CheckpointMismatch` with the names and shapes that differ.
    """
    named, published, is_21k = _published(state)
    network = ofa.OFA(published, is_21k if smooth is None else smooth)
    _load_strictly(network, named, "OFA-595")
    if num_classes not in (None, published):
        network.classifier.linear = nn.Linear(1536, num_classes)
    return network


def supernet_from_state_dict(state: dict, num_classes: int | None = None) -> ofa.Supernet:
    """Build the supernet from a published checkpoint's tensors, strictly; with another
    ``num_classes`` the classifier is new.

    Its names differ from ours where elastic layers wrap plain ones (``conv.conv``, ``bn.bn``) and
    hold their kernel matrices (``blocks.N...depth_conv.conv.7to5_matrix``). Raises
    :class:`CheckpointMismatch`.
    """
    named, published, _ = _published(state)
    network = ofa.Supernet(published)
    _load_strictly(
        network, {_supernet_name(name): value for name, value in named.items()}, "supernet"
    )
    if num_classes not in (None, published):
        network.whole.classifier.linear = nn.Linear(1536, num_classes)
    return network


def _supernet_name(name: str) -> str:
    if matrix := re.fullmatch(r"blocks\.(\d+)\..*\.(\dto\d)_matrix", name):
        return f"matrices.{matrix[1]}_{matrix[2]}"
    return "whole." + re.sub(r"\b(conv|bn)\.\1\.", r"\1.", name)


def _published(state: dict) -> tuple[dict[str, Tensor], int, bool]:
    """Tensors under our names, the number of classes, and whether the file is the ImageNet-21k
    variant."""
    state = state.get("state_dict", state)
    named = {_our_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    weight = named.get("classifier.linear.weight")
    is_21k = weight is not None and weight.ndim == 4
    if is_21k:
        named["classifier.linear.weight"] = weight.flatten(1)
    return named, 1000 if weight is None else len(weight), is_21k


def _load_strictly(network: nn.Module, named: dict[str, Tensor], what: str) -> None:
    problems = _differences(
        {name: value.shape for name, value in network.state_dict().items()},
        {name: value.shape for name, value in named.items()},
    )
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        listed = "\n  ".join(problems[:12] + more)
        raise CheckpointMismatch(
            f"not an {what} checkpoint ({len(problems)} differences):\n  {listed}"
        )
    network.load_state_dict(named, strict=True)


def _our_name(name: str) -> str:
    name = name.removeprefix("module.")
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 2 and parts[2] == "conv":
        parts[2] = "mobile_inverted_conv"
    return ".".join(parts)


def _differences(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> list[str]:
    missing = [
        f"missing {name} {tuple(shape)}" for name, shape in expected.items() if name not in found
    ]
    unknown = [
        f"unknown {name} {tuple(shape)}" for name, shape in found.items() if name not in expected
    ]
    shapes = [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    return missing + unknown + shapes
