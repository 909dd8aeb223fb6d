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
    idea = (
        "Soft targets with a large weight. Teacher and student have recipes of their own: "
        "-p teacher_recipe kd_oct -p recipe kd_oct."
    )
    equation = (
        r"\mathcal{L} = 0.3\, \mathrm{CE}(y, p_s)"
        r" + 0.7\, T^2\, \mathrm{KL}(p_t^{(T)} \,\|\, p_s^{(T)}), \quad T = 4"
    )
    reported = (
        "EfficientNet-B2 (7.7 M parameters) keeps the accuracy of ConvNeXtV2-L (196.4 M): NEH "
        "92.6 ± 2.3 → 92.5 ± 1.4 %, UCSD 98.4 → 98.4 %; no comparison with plain soft targets is "
        "known here"
    )
    reported_on = "retinal OCT (NEH, UCSD)"

    @dataclass(frozen=True)
    class Options(Hybrid.Options):
        """The paper's values."""

        alpha: float = parameter(0.3, ALPHA, low=0, high=1)
        temperature: float = parameter(4.0, TEMPERATURE)
