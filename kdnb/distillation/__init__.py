"""What a student learns from: one file a method, all of them by name in ``METHODS``."""

import importlib
import pkgutil

from kdnb.distillation.base import (
    METHODS,
    TRANSFERS,
    Batch,
    Course,
    Method,
    Seen,
    create,
    register,
    table,
)
from kdnb.distillation.soft_targets import average, hard_loss, soft_loss

# a file in this folder is all that a new method needs
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "TRANSFERS",
    "Batch",
    "Course",
    "Method",
    "Seen",
    "average",
    "create",
    "hard_loss",
    "register",
    "soft_loss",
    "table",
]
