"""kdnb: the thin module behind the notebooks on explainable knowledge distillation.

Rooms, from the ground up (a lower one never imports a higher one):
files, phantoms, catalogue, index, pixels, data, ofa, models, losses, study, provenance, evaluation, training, scorecam,
shapley, explain, faithfulness, agreement, audit, layers, figures, pictures, report, run.
"""

import warnings

# libraries that ask for a widget bar say so in every notebook where ipywidgets is missing; our bars are plain text
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
