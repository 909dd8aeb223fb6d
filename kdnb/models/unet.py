"""U-Nets on any encoder of timm (Ronneberger et al. 2015, arXiv:1505.04597), built by
segmentation-models-pytorch.

``unet_<encoder>`` has a decoder of 128 to 16 channels, ``unet_small_<encoder>`` one of 32 to 8.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdnb import extras

smp = extras.late("segmentation_models_pytorch")

# channels of the decoder's five blocks, the deepest first; the longer prefix is tried first
DECODERS = {"unet_small_": (32, 24, 16, 12, 8), "unet_": (128, 64, 32, 24, 16)}
# what the last blocks answer, the one before the classifier first
LAYERS = tuple(f"decoder.blocks.{number}" for number in (4, 3, 2))
ENCODER = "encoder.model"  # where the network of timm lies


def parts(name: str) -> tuple[str, tuple[int, ...]] | None:
    """The encoder and the decoder's channels that the name of a U-Net spells; None for any other
    name."""
    for prefix, channels in DECODERS.items():
        if name.startswith(prefix):
            return name.removeprefix(prefix), channels
    return None


def build(encoder: str, channels: tuple[int, ...], num_classes: int) -> nn.Module:
    """A U-Net with random weights: images ``(N, 3, S, S)`` to logits ``(N, num_classes, S, S)``.
    Raises ``MissingExtra``."""
    return smp.Unet(
        f"tu-{encoder}", encoder_weights=None, classes=num_classes, decoder_channels=channels
    )


def start_from(network: nn.Module, published: dict[str, Tensor]) -> nn.Module:
    """The U-Net with the tensors of a whole timm network in its encoder; raises ``KeyError`` where
    one of the encoder is missing."""
    encoder = network.get_submodule(ENCODER)
    own = {name: published[name] for name in encoder.state_dict()}
    encoder.load_state_dict(own, strict=True)
    return network
