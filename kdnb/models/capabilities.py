"""What a network can do at an image size, tried before anything is trained.

Each wing adds the capability that it needs: ``train`` and ``pretrained`` stand here, ``explain`` is
registered by :mod:`kdnb.explanations`, ``export`` by :mod:`kdnb.deployment.onnx_export`,
``segment`` by :mod:`kdnb.segmentation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import timm
import torch
from torch import nn

from kdnb import extras, files
from kdnb.models import weights, zoo
from kdnb.models.zoo import Classifier

_WINGS = {
    "explain": "kdnb.explanations",
    "export": "kdnb.deployment.onnx_export",
    "segment": "kdnb.segmentation",
}
_PACKAGES = ("kdnb", "torch", "timm", "onnx", "onnxruntime", "grad-cam")


class Unsuitable(
    files.UserError,
    ValueError,
    code="KD305",
    way_out="choose another network or another -p image_size",
):
    """A network that cannot do what is asked of it; the message says what fails and what works."""


@dataclass(frozen=True)
class Capability:
    """``attempt`` does it with a fresh network and raises where that fails; ``done`` is the past
    participle for messages."""

    attempt: Callable[[Classifier], None]
    done: str


CAPABILITIES: dict[str, Capability] = {}


def register(name: str, done: str) -> Callable:
    """A decorator that adds a capability: ``@register("explain", "explained")``."""

    def add(attempt):
        CAPABILITIES[name] = Capability(attempt, done)
        return attempt

    return add


def check(name: str, num_classes: int, image_size: int, needs: Sequence[str] = ("train",)) -> None:
    """Try, in seconds, what a study will need of a network.

    ``train``, ``pretrained`` (published weights fit this size), ``explain`` and ``export``.

    One training step, one map, one export of fresh weights; the answer is kept in the cache folder.
    Raises ``UnknownName``, :class:`kdnb.models.zoo.BadSize` and :class:`Unsuitable`.
    """
    for need in needs:
        if need in _WINGS and need not in CAPABILITIES:
            raise files.UnknownName(f"{need!r} can be checked once {_WINGS[need]} is imported")
        files.lookup(need, CAPABILITIES, "need")
    problems = {need: _problem(name, num_classes, image_size, need) for need in needs}
    if not any(problems.values()):
        return
    others = [need for need in CAPABILITIES if need not in problems]
    problems |= {need: _problem(name, num_classes, image_size, need) for need in others}
    failed = [f"cannot be {CAPABILITIES[n].done} ({why})" for n, why in problems.items() if why]
    works = [CAPABILITIES[n].done for n, why in problems.items() if not why]
    rest = f"It can be {', '.join(works)}. " if works else ""
    raise Unsuitable(
        f"{name} at {image_size} px {' and '.join(failed)}. {rest}"
        "Choose another network or another -p image_size"
    )


def _problem(name: str, num_classes: int, image_size: int, need: str) -> str:
    """Why a network cannot do what is needed, empty where it can; remembered."""
    key = [name, num_classes, image_size, need, *map(extras.version, _PACKAGES)]
    path = files.cache_dir() / "networks" / f"{name}-{image_size}-{need}-{files.digest(key)}.json"
    if path.exists():
        return files.read_json(path)["problem"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.create(name, num_classes, image_size)
        try:
            CAPABILITIES[need].attempt(model)
            problem = ""
        except Exception as error:  # libraries raise errors of their own kinds
            problem = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    files.write_json(path, {"problem": problem})
    return problem


@register("train", "trained")
def _train(model: Classifier) -> None:
    """One step's gradients for two images; raises ``ValueError`` if the answer is no logits."""
    logits = model.train()(torch.rand(2, 3, model.image_size, model.image_size))
    # a supernet answers for several subnets one after the other
    subnets = len(logits) // 2 if isinstance(logits, torch.Tensor) else 0
    if not subnets or logits.shape != (2 * subnets, model.num_classes):
        raise ValueError(f"in training it does not answer with logits (2, {model.num_classes})")
    labels = torch.tensor([0, 1]).repeat(subnets)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(torch.isfinite(gradient).all() for gradient in gradients):
        raise ValueError("the gradients of one training step are missing or not finite")


@register("segment", "trained to segment")
def _segment(model: Classifier) -> None:
    """One step's gradients for two images; raises ``ValueError`` if the answer is no map of
    logits."""
    side = model.image_size
    logits = model.train()(torch.rand(2, 3, side, side))
    if logits.shape != (2, model.num_classes, side, side):
        raise ValueError(f"its answer for 2 images is {tuple(logits.shape)}")
    logits.float().logsumexp(1).mean().backward()


@register("pretrained", "started from published weights")
def _start_from_published(model: Classifier) -> None:
    """Compare shapes, without weights; raises :class:`kdnb.models.weights.FixedSize`."""
    entry = model.entry
    if not zoo.has_weights(model.name):
        raise ValueError("no weights are published")
    for part, name in entry.parts or (("", entry.timm_name),) * bool(entry.timm_name):
        network = model.network.get_submodule(part)
        _fits_published(name, network, 0 if part else model.num_classes, model.image_size)


def _fits_published(name: str, network: nn.Module, num_classes: int, image_size: int) -> None:
    with torch.device("meta"):
        native = timm.create_model(name, num_classes=num_classes)
    if hasattr(native, "set_input_size"):
        return
    target = network.state_dict()
    resized = weights.resize_positions(native.state_dict(), target)
    weights.fits(name, resized, target, image_size)
