"""Predictions against labels: metrics with intervals, paired comparisons, calibration, shortcuts."""

from kdnb.evaluation.calibration import reliability
from kdnb.evaluation.metrics import balanced_accuracy, compare, evaluate, table, table_of_tests

__all__ = ["balanced_accuracy", "compare", "evaluate", "reliability", "table", "table_of_tests"]
