"""The style of all figures: one palette, one colour and dash for each role."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

# Okabe-Ito through seaborn: told apart with any colour vision. One role, one colour, one dash in
# every figure.
PALETTE = sns.color_palette("colorblind")
ROLES = {"teacher": (PALETTE[0], "-"), "distilled": (PALETTE[1], "-"), "alone": (PALETTE[7], "--")}
ORGAN, LESION = PALETTE[9], PALETTE[1]


def start(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.2), **options
) -> tuple[Figure, np.ndarray]:
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        squeeze=False,
        **options,
    )
    return figure, axes


def done(figure: Figure, title: str = "") -> Figure:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    plt.close(figure)  # the notebook shows what a cell returns; an open figure would show twice
    return figure


def role_style(role: str) -> tuple[tuple[float, float, float], str]:
    return next((style for known, style in ROLES.items() if known in role), (PALETTE[2], ":"))
