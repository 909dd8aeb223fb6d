"""Images and classes to explain: read, checked, and put on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdnb import checks, errors
from kdnb.images import pixels, read
from kdnb.images.read import PER_IMAGE, Rule
from kdnb.models.zoo import Classifier


class BadImage(
    errors.UserError,
    ValueError,
    code="KD502",
    way_out="give one whole image of a format that notebook 01 reads, at most 80 million pixels",
):
    """The image given with -p image cannot be explained; the message says why."""


def read_image(
    path: str | Path, model: Classifier, color: str = "RGB", rule: Rule = PER_IMAGE
) -> Tensor:
    """An image file as the model sees it: ``(1, 3, S, S)`` in [0, 1], resized to the model.

    ``color`` (``L`` or ``RGB``) and the ``rule`` for 16-bit and float images are those of the
    dataset that the model was trained on. Raises ``ValueError`` for a file that is no whole image
    of a supported format.
    """
    fact = read.inspect(Path(path))
    if isinstance(fact, tuple):  # a file that no dataset would use is not explained either
        raise BadImage(
            f"{Path(path).absolute()} cannot be explained: {', '.join(fact)}. Give a whole image "
            f"of a format that 01_data_prep reads (PNG, JPEG, TIFF, DICOM, …), with at most "
            f"{read.LARGEST:,} pixels"
        )
    array = pixels.read_image(Path(path), model.image_size, color, rule=rule)
    return (torch.from_numpy(array.copy())[None].float() / 255).expand(-1, 3, -1, -1).contiguous()


def check_images(images: Tensor, model: Classifier) -> Tensor:
    """Images as float ``(N, 3, S, S)`` in [0, 1] on the model's device, channels last in memory,
    which convolutions read faster; grey ones get three channels. Raises ``ValueError`` for another
    shape, size or range."""
    size = model.image_size
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images must be (N, 3, {size}, {size}) with N at least 1, got {tuple(images.shape)}"
        )
    if tuple(images.shape[-2:]) != (size, size):
        raise ValueError(
            f"{model.name} was built for {size} px, the images are {tuple(images.shape[-2:])}: "
            "resize them, or read them with kdnb.explanations.read_image"
        )
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError(
            "images must hold finite values in [0, 1] (or uint8); do not normalise them, the model "
            "does"
        )
    colours = images.expand(-1, 3, -1, -1)
    return colours.to(model.mean.device, memory_format=torch.channels_last)


def check_targets(
    model: Classifier, images: int, targets: int | Sequence[int] | None
) -> Tensor | None:
    """Class indices ``(N,)`` for so many ``images``, from one for all or one per image; None stays
    None. Raises ``ValueError`` for an index out of range or another number of targets."""
    if targets is None:
        return None
    chosen = torch.as_tensor(targets, device=model.mean.device).long().reshape(-1)
    chosen = chosen.expand(images) if len(chosen) == 1 else chosen
    if len(chosen) != images:
        raise ValueError(f"{len(chosen)} targets for {images} images")
    if chosen.min() < 0 or chosen.max() >= model.num_classes:
        raise ValueError(
            f"targets must lie between 0 and {model.num_classes - 1}, "
            f"got {sorted(set(chosen.tolist()))}"
        )
    return chosen.clone()


def check_logits(model: Classifier, logits: Tensor) -> Tensor:
    """The ``logits`` ``(N, K)`` of a model. Raises ``Diverged`` unless they are finite: a map of
    others would be an empty one."""
    if torch.isfinite(logits).all():
        return logits
    raise checks.Diverged(
        f"the logits of {model.name} are NaN or infinite: its weights are broken; train it "
        "again with a lower -p lr"
    )
