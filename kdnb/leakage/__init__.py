"""Duplicates and near-duplicates: which images show the same thing, and which splits that leaks
through."""

from kdnb.leakage.detector import find
from kdnb.leakage.synthetic_duplicates import plant, score

__all__ = ["find", "plant", "score"]
