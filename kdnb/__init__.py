"""Notebook companion to two papers on explainable knowledge distillation for medical images.

README.md, "Where things are", lists the wings of the package from the ground up; a wing imports
only from those above it in that table.
"""

import os
import warnings
from collections.abc import Sequence
from typing import ForwardRef

# OpenMP reads this when torch is imported. Its threads wait for each other in a busy loop; where
# other processes share the cores, that loop takes time from the thread it waits for, and training
# becomes several times slower. A short loop costs a few percent on an idle machine.
if "OMP_WAIT_POLICY" not in os.environ:  # otherwise the user has chosen a policy
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import pandas as pd
from beartype import BeartypeConf, BeartypeHintOverrides, BeartypeViolationVerbosity, beartype
from beartype.claw import beartype_this_package

# By name, because torch takes seconds to import and not all that imports kdnb needs it.
TENSOR = ForwardRef("torch.Tensor")

# Type hints are checked at every call, and an error names the parameter. NumPy numbers count as
# numbers, arrays as sequences. Modules that define networks are skipped, because compilers and
# exporters read their source; their public functions are decorated with ``typed`` by hand.
# Declared parameters (study, images.source) check themselves. Nested functions carry no hints:
# beartype would wrap them at every call and keep the last few thousand wrappers with all they refer
# to (140 kB a pair of images in the search for duplicates).
TYPE_CHECKS = BeartypeConf(
    hint_overrides=BeartypeHintOverrides(
        {
            np.ndarray: np.ndarray | pd.Series,
            int: int | np.integer,
            float: float | int | np.floating | np.integer,
            **{
                Sequence[kind]: Sequence[kind] | np.ndarray | pd.Series | pd.Index | TENSOR
                for kind in (int, float, str)
            },
        }
    ),
    violation_param_type=TypeError,
    violation_verbosity=BeartypeViolationVerbosity.MINIMAL,
    claw_is_pep526=False,
    claw_skip_package_names=(
        "kdnb.models.zoo",
        "kdnb.models.kdfmv",
        "kdnb.models.ofa",
        "kdnb.models.depthwise",
        "kdnb.models.dual_stream",
        "kdnb.study",
        "kdnb.images.source",
    ),
)
beartype_this_package(conf=TYPE_CHECKS)
typed = beartype(conf=TYPE_CHECKS)

# Progress bars here are plain text; without ipywidgets some libraries would warn in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
