"""Features of images and classical learners on them: features of networks, handcrafted features,
and support vector machines on both.

``load`` computes blocks of features, ``fit_parts`` fits a pipeline on all of them and on parts.
"""

from kdnb.classical.blocks import BadFeature, Block, load, table
from kdnb.classical.comparison import (
    against,
    by_networks,
    by_view,
    fit,
    fit_parts,
    fit_shortcuts,
    importance,
    members,
    on_test,
    scores,
    search,
    stored,
    teach,
)
from kdnb.classical.handcrafted import FAMILIES, fft, glcm, lbp, wavelets
from kdnb.classical.pipelines import Fitted, TooFewGroups
from kdnb.classical.settings import ATTRIBUTIONS, FeatureParameters

__all__ = [
    "ATTRIBUTIONS",
    "BadFeature",
    "Block",
    "FAMILIES",
    "FeatureParameters",
    "Fitted",
    "TooFewGroups",
    "against",
    "by_networks",
    "by_view",
    "fft",
    "fit",
    "fit_parts",
    "fit_shortcuts",
    "glcm",
    "importance",
    "lbp",
    "load",
    "members",
    "on_test",
    "scores",
    "search",
    "stored",
    "table",
    "teach",
    "wavelets",
]
