"""KD-OCT: soft targets with a large weight beside the labels."""

from __future__ import annotations

from dataclasses import dataclass

from kdnb.distillation.base import register
from kdnb.distillation.soft_targets import ALPHA, TEMPERATURE, Hybrid
from kdnb.parameters import parameter


@register("kd_oct")
class KDOCT(Hybrid):
    """``0.3 · cross-entropy + 0.7 · T² · KL(teachers ‖ student)``, T = 4: the loss of KD-OCT's
    student, arXiv:2512.09069.

    It is :class:`Hybrid` with the paper's constants. How the paper trains teacher and student are
    the recipes ``kd_oct``, see :mod:`kdnb.training.recipes`.
    """

    title, paper = "KD-OCT", "arXiv:2512.09069"

    @dataclass(frozen=True)
    class Options(Hybrid.Options):
        """The paper's values."""

        alpha: float = parameter(0.3, ALPHA, low=0, high=1)
        temperature: float = parameter(4.0, TEMPERATURE)
