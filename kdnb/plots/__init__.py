"""Figures, one function each. They read tables and arrays, never models, and return a closed
matplotlib figure, which a notebook shows once as the value of a cell.

Networks are coloured by their role (``teacher``, ``distilled``, ``baseline``): a column ``role`` in
a table, or ``roles`` (label → role) beside a mapping by label.
"""

from kdnb.plots.data import class_balance, image_pairs, problems, samples
from kdnb.plots.explanations import feature_maps, maps_over_images, shap_values
from kdnb.plots.measures import (
    execution_times,
    layer_similarity,
    map_similarity,
    measures,
    probes,
    randomisation,
    removal_curves,
)
from kdnb.plots.methods import critical_difference, softened_targets, transfers
from kdnb.plots.results import (
    accuracy_by_share,
    accuracy_by_split,
    accuracy_by_view,
    accuracy_grid,
    agreement,
    confusion,
    forest,
    label_shares,
    learning_curves,
    reliability,
)
from kdnb.plots.segmentation import dice_by_size, dice_curves, masks_over_images
from kdnb.plots.tradeoffs import accuracy_against_cost, pareto_front, predicted_latency, runtimes

__all__ = [
    "accuracy_against_cost",
    "accuracy_by_share",
    "accuracy_by_split",
    "accuracy_by_view",
    "accuracy_grid",
    "agreement",
    "class_balance",
    "confusion",
    "critical_difference",
    "dice_by_size",
    "dice_curves",
    "execution_times",
    "feature_maps",
    "forest",
    "image_pairs",
    "label_shares",
    "layer_similarity",
    "learning_curves",
    "map_similarity",
    "maps_over_images",
    "masks_over_images",
    "measures",
    "pareto_front",
    "predicted_latency",
    "probes",
    "problems",
    "randomisation",
    "reliability",
    "removal_curves",
    "runtimes",
    "samples",
    "shap_values",
    "softened_targets",
    "transfers",
]
