"""One function a figure; each returns a closed matplotlib figure that a notebook shows once."""

from kdnb.plots.data import (
    accuracies,
    cells,
    class_balance,
    confusion,
    forest,
    gains,
    gallery,
    learning_curves,
    problems,
    reliability,
    samples,
    views,
)
from kdnb.plots.explanations import (
    feature_maps,
    likeness,
    maps_over_images,
    measures,
    probes,
    removal,
    sanity,
    shap_values,
    similarity,
    times,
)
from kdnb.plots.tradeoffs import bubbles, front, predictor, runtimes

__all__ = ["accuracies", "bubbles", "cells", "class_balance", "confusion", "feature_maps", "forest", "front", "gains", "gallery", "learning_curves", "likeness", "maps_over_images", "measures", "predictor", "probes", "problems", "reliability", "removal", "runtimes", "samples", "sanity", "shap_values", "similarity", "times", "views"]
