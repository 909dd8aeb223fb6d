"""Explanations of a prediction, and measures of whether they are faithful."""

from kdnb.explanations.audit import MEASURES
from kdnb.explanations.registry import METHODS, Explanation, explain, read_image
from kdnb.explanations.settings import MapParameters, SampleParameters

__all__ = [
    "Explanation",
    "MEASURES",
    "METHODS",
    "MapParameters",
    "SampleParameters",
    "explain",
    "read_image",
]
