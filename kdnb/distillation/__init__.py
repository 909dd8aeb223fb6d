"""The losses a student learns from."""

from kdnb.distillation.soft_targets import METHODS, Objective, average

__all__ = ["METHODS", "Objective", "average"]
