"""Explanations of a prediction, and measures of whether they are faithful."""

from kdnb.explanations.audit import MEASURES
from kdnb.explanations.registry import METHODS, Explanation, explain, read_image

__all__ = ["Explanation", "MEASURES", "METHODS", "explain", "read_image"]
