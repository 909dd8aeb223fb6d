"""Training: one loop for teachers and students, resumable after every epoch."""

from kdnb.training.labels import LabelParameters, train_curated, train_on_shares
from kdnb.training.loop import (
    VERSION,
    distil,
    fit,
    train_baseline,
    train_on_shuffled_labels,
    train_teachers,
)
from kdnb.training.methods import MethodParameters, measured_teachers, train_methods, truth
from kdnb.training.rare import train_rare
from kdnb.training.softening import explore_targets
from kdnb.training.split_audit import SplitAuditParameters
from kdnb.training.trio import Comparison, Trio, by_name, trio

__all__ = [
    "Comparison",
    "LabelParameters",
    "MethodParameters",
    "SplitAuditParameters",
    "Trio",
    "VERSION",
    "by_name",
    "distil",
    "explore_targets",
    "fit",
    "measured_teachers",
    "train_baseline",
    "train_curated",
    "train_methods",
    "train_on_shares",
    "train_on_shuffled_labels",
    "train_rare",
    "train_teachers",
    "trio",
    "truth",
]
