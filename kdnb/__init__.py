"""kdnb: the thin module behind the notebooks on explainable knowledge distillation.

README.md, "Where things are", lists the rooms from the ground up; a lower one never imports a
higher one.
"""

import os
import warnings
from collections.abc import Sequence

# Read when torch is loaded. Its threads wait for one another by spinning; where other work shares
# the cores, the one waited for may have none, and everything goes several times slower. A short
# spin costs a few percent on a machine that does nothing else.
if "OMP_WAIT_POLICY" not in os.environ:  # else somebody has chosen
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import pandas as pd
from beartype import BeartypeConf, BeartypeHintOverrides, BeartypeViolationVerbosity, beartype
from beartype.claw import beartype_this_package
from torch import Tensor

# Annotations are promises: a wrong type is refused at once, in words that name the parameter.
# Numbers of numpy are numbers, and arrays are sequences. Networks are left alone, because compilers
# and exporters read their code: what readers call in their modules is ``typed`` by hand; a study
# checks itself. Functions within functions carry no annotations: they would be wrapped anew at
# every call, and beartype keeps the last thousands of what it wrapped, with all that they hold (a
# search for copies grew by 140 kB a pair).
_PROMISES = BeartypeConf(
    hint_overrides=BeartypeHintOverrides(
        {
            np.ndarray: np.ndarray | pd.Series,
            int: int | np.integer,
            float: float | int | np.floating | np.integer,
            **{
                Sequence[kind]: Sequence[kind] | np.ndarray | pd.Series | pd.Index | Tensor
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
        "kdnb.study",
        "kdnb.images.source",
    ),
)
beartype_this_package(conf=_PROMISES)
typed = beartype(conf=_PROMISES)

# libraries that ask for a widget bar say so in every notebook where ipywidgets is missing; our bars
# are plain text
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
