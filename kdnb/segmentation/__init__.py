"""Segmentation: U-Nets that learn masks, from the masks alone or from limit-trained teachers.

``networks`` gives a study its U-Nets, ``load`` a dataset its masks, ``train_teachers`` and
``train_students`` train them, ``test`` compares them on the same images.
"""

from kdnb.segmentation.comparison import (
    Tested,
    dice_gaps,
    heat_maps,
    localised,
    table_of_localisation,
    test,
    train_classifier,
)
from kdnb.segmentation.images import MaskedDataset, load, masked
from kdnb.segmentation.losses import LimitTrainedMasks, Masks, image_weights, overlap_loss
from kdnb.segmentation.measures import MEASURES, boundary_distance, by_image, overlap
from kdnb.segmentation.settings import SegmentationParameters, networks
from kdnb.segmentation.training import predicted, train_students, train_teachers

__all__ = [
    "LimitTrainedMasks",
    "MEASURES",
    "MaskedDataset",
    "Masks",
    "SegmentationParameters",
    "Tested",
    "boundary_distance",
    "by_image",
    "dice_gaps",
    "heat_maps",
    "image_weights",
    "load",
    "localised",
    "masked",
    "networks",
    "overlap",
    "overlap_loss",
    "predicted",
    "table_of_localisation",
    "test",
    "train_classifier",
    "train_students",
    "train_teachers",
]
