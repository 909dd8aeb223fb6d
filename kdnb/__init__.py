"""kdnb: the thin module behind the notebooks on explainable knowledge distillation.

Rooms, from the ground up (a lower one never imports a higher one):
files, phantoms, catalogue, index, data, pixels, ofa, models, losses, study, training, evaluation, figures, report, run.
"""

__version__ = "0.1.0"
