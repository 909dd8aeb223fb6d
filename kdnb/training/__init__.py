"""Training: one loop for teachers and students, resumable after every epoch."""

from kdnb.training.loop import (
    VERSION,
    distil,
    fit,
    train_baseline,
    train_on_shuffled_labels,
    train_teachers,
)
from kdnb.training.split_audit import SplitAuditParameters

__all__ = [
    "SplitAuditParameters",
    "VERSION",
    "distil",
    "fit",
    "train_baseline",
    "train_on_shuffled_labels",
    "train_teachers",
]
