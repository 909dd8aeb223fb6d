"""The parameters of notebook 13, and the study of U-Nets that they describe."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import ClassVar

import timm

from kdnb import files, parameters
from kdnb.parameters import Parameters, parameter
from kdnb.study import Study

TARGETS = {"lesion": "mask", "organ": "organ_mask"}  # and the column of the index
# parameters of a study that say nothing here, and what does
INSTEAD = {
    "teacher": ": -p encoder names the encoder of the teachers",
    "student": ": -p small_encoder names the encoder of the student",
    **dict.fromkeys(("method", "teacher_recipe", "recipe", "curation", "label_share"), ""),
    **dict.fromkeys(("teacher_weights", "teacher_flips"), ""),
}
SHARDS = 3  # teachers, where -p teacher_shards states no number


def encoder_name(name: str) -> str:
    """The name of a timm network that can be an encoder. Raises ``UnknownName``."""
    return name if timm.is_model(name) else files.lookup(name, timm.list_models(), "encoder")


@dataclass(frozen=True)
class SegmentationParameters(Parameters):
    """Settings of notebook 13."""

    extras: ClassVar[tuple[str, ...]] = ("segmentation",)

    target: str = parameter("lesion", "which masks are learnt: lesion or organ", choices=TARGETS)
    encoder: str = parameter(
        "tf_efficientnet_lite0", "encoder of the teachers' U-Net, any timm name", valid=encoder_name
    )
    small_encoder: str = parameter(
        "mobilenetv3_small_050", "encoder of the student's U-Net", valid=encoder_name
    )
    weighting: str = parameter(
        "loss",
        "weights of the teachers: equal, or by their loss on each image",
        choices=("loss", "equal"),
    )
    kl_weight: float = parameter(1.0, "weight of the KL of features", low=0)
    per_group: int | None = parameter(
        None,
        "at most so many training and validation images of a patient; None: all",
        low=1,
    )
    per_class: int | None = parameter(
        None,
        "at most so many training and validation images of a class; None: all",
        low=1,
    )


def networks(study: Study) -> Study:
    """The study whose teacher and student are U-Nets on its two encoders, and whose teachers learn
    from three parts of the patients unless it states another number.

    Choices that only classifiers have are named, as without effect.
    """
    known = parameters.declared(Study)
    for name, way in INSTEAD.items():
        if getattr(study, name) != parameters.default(known[name]):
            print(f"{name} has no effect on segmentation{way}", file=sys.stderr)
    return dataclasses.replace(
        study,
        teacher=f"unet_{study.encoder}",
        student=f"unet_small_{study.small_encoder}",
        teacher_shards=study.teacher_shards or SHARDS,
    )
