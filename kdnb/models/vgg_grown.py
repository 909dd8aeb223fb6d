"""VGG19 grown from VGG16: the same function at first, with the three further layers of VGG19.

For machines that have VGG16's published weights but not VGG19's. Simonyan & Zisserman 2015,
arXiv:1409.1556, table 1, columns D and E; layers that begin as the identity: Chen et al. 2016,
Net2Net, arXiv:1511.05641, section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

# torchvision's numbers of the convolutions. The fourth of blocks 3, 4 and 5 is VGG19's own.
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG19 = (0, 2, 5, 7, 10, 12, 14, 19, 21, 23, 28, 30, 32)
NEW = (16, 25, 34)


def build(num_classes: int) -> nn.Module:
    """VGG19's convolutions, then an average over the last map and one linear layer, as transfer to
    small sets is done: the published fully connected layers have 120 of its 140 million weights."""
    network = timm.create_model("vgg19", num_classes=num_classes)
    network.pre_logits = nn.Identity()
    network.head.fc = nn.Linear(512, num_classes)
    return network


def from_vgg16(state: Mapping[str, Tensor], num_classes: int) -> nn.Module:
    """The network of :func:`build` with VGG16's convolutions and new layers that pass on what they
    get: an identity kernel, no bias, after a ReLU.

    ``state`` has torchvision's names, ``features.0.weight`` and so on; its fully connected layers
    are left out. Raises ``ValueError`` where a convolution is missing or of another shape.
    """
    network = build(num_classes)
    layers = dict(zip(VGG19, VGG16, strict=True))
    with torch.no_grad():
        for number, layer in network.features.named_children():
            if not isinstance(layer, nn.Conv2d):
                continue
            if int(number) in NEW:
                nn.init.dirac_(layer.weight)
                nn.init.zeros_(layer.bias)
                continue
            for name, own in layer.named_parameters():
                own.copy_(_tensor(state, f"features.{layers[int(number)]}.{name}", own))
    return network


def _tensor(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    found = state.get(name)
    if found is None or found.shape != like.shape:
        shape = "is missing" if found is None else f"is {tuple(found.shape)}"
        raise ValueError(
            f"these are not VGG16's convolutions: {name} {shape}, expected {tuple(like.shape)}"
        )
    return found
