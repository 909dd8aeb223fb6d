"""The parameter of notebook 12: which features are joined."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar

from kdnb import files
from kdnb.classical.handcrafted import FAMILIES
from kdnb.models import zoo
from kdnb.parameters import BadParameter, Parameters, parameter

TEACHER = "teacher"  # the study's trained teachers
HANDCRAFTED = "handcrafted"  # all families of handcrafted features
# the six attributions of R12 (arXiv:2006.02570) and their options; the others have the registry's
ATTRIBUTIONS: dict[str, dict] = {
    "occlusion": {"window": 15, "stride": 8},
    "integrated_gradients": {"steps": 50},
    "saliency": {},
    "input_x_gradient": {},
    "guided_backprop": {},
    "deep_lift": {},
}
WORDS = (TEACHER, HANDCRAFTED, *FAMILIES)


def named(features: str) -> tuple[str, ...]:
    """The parts that ``a+b`` joins: ``teacher``, families of handcrafted features, and networks.

    ``handcrafted`` stands for each family. Raises ``UnknownName``, and :class:`BadParameter` for
    a network without published weights.
    """
    names = [name.strip() for name in features.split("+") if name.strip()]
    for name in names:
        _check(name)
    if not names:
        raise BadParameter(f"features must name one part or more: {', '.join(WORDS)} or a network")
    parts = [FAMILIES if name == HANDCRAFTED else (name,) for name in names]
    return tuple(dict.fromkeys(name for part in parts for name in part))


def _check(name: str) -> None:
    if name in WORDS:
        return
    if difflib.get_close_matches(name.lower(), WORDS, 1, 0.6):
        files.lookup(name, WORDS, "feature")  # raises, with the nearest match
    if not zoo.has_weights(name):
        raise BadParameter(
            f"features: no weights are published of {name}; to read it after training, "
            f"-p teacher {name} -p features {TEACHER}"
        )


@dataclass(frozen=True)
class FeatureParameters(Parameters):
    """Settings of notebook 12."""

    extras: ClassVar[tuple[str, ...]] = ("features",)

    features: str = parameter(
        "teacher+handcrafted",
        "a+b of teacher, networks (ImageNet), handcrafted, glcm, lbp …",
        valid=named,
    )
