"""Evaluation of predictions: metrics with intervals, paired comparisons, calibration, ensembles.

Shortcuts are measured in :mod:`kdnb.evaluation.shortcuts`, which reads datasets and networks.
"""

from kdnb.evaluation import ensembles
from kdnb.evaluation.calibration import TemperatureScaling, calibrate, reliability
from kdnb.evaluation.metrics import balanced_accuracy, compare, evaluate, table, table_of_tests
from kdnb.evaluation.statistics import mean_interval, over_seeds, paired_difference

__all__ = [
    "TemperatureScaling",
    "balanced_accuracy",
    "calibrate",
    "compare",
    "ensembles",
    "evaluate",
    "mean_interval",
    "over_seeds",
    "paired_difference",
    "reliability",
    "table",
    "table_of_tests",
]
