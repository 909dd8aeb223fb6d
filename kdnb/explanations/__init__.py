"""Explanations of a prediction, and measures of how faithful they are.

``explain`` computes the maps of one method of ``METHODS``; ``audit`` explains several networks with
several methods and takes every measure of ``MEASURES``. Layers are compared in
:mod:`kdnb.explanations.layers`.
"""

from kdnb.explanations import cases, layers
from kdnb.explanations.activations import map_size
from kdnb.explanations.agreement import similarity_to_teacher
from kdnb.explanations.auditing import Audit, audit, execution_times
from kdnb.explanations.base import Explanation
from kdnb.explanations.browsing import browse
from kdnb.explanations.inputs import read_image
from kdnb.explanations.maps import rank_correlation
from kdnb.explanations.measures import LOCALISATION, MEASURES
from kdnb.explanations.registry import METHODS, explain
from kdnb.explanations.robustness import randomisation_test, sensitivity
from kdnb.explanations.settings import MapParameters, SampleParameters

__all__ = [
    "Audit",
    "Explanation",
    "LOCALISATION",
    "MEASURES",
    "METHODS",
    "MapParameters",
    "SampleParameters",
    "audit",
    "browse",
    "cases",
    "execution_times",
    "explain",
    "layers",
    "map_size",
    "randomisation_test",
    "rank_correlation",
    "read_image",
    "sensitivity",
    "similarity_to_teacher",
]
