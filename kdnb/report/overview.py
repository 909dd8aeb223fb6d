"""What there is to choose from: the tables and the gallery of notebook 00."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from kdnb import plots
from kdnb.images import phantoms
from kdnb.images.catalogue import DATASETS
from kdnb.models import zoo


def datasets() -> pd.DataFrame:
    """Every dataset of the catalogue: one row each."""
    return pd.DataFrame(
        [
            {
                "dataset": name,
                "what": spec.modality,
                "classes": ", ".join(spec.classes) or "your folders",
                "images": f"{spec.total:,}" if spec.total else "",
                "official split": spec.official_split or "none",
                "patients known by": spec.group_key,
            }
            for name, spec in DATASETS.items()
        ]
    )


def networks() -> pd.DataFrame:
    """Every network of the zoo: layers, parameters (1000 classes), MACs of one 224 px image."""
    rows = []
    for name, entry in zoo.ZOO.items():
        with torch.device("meta"):  # no weights are drawn: a VGG19 has 140 million
            network = zoo.create(name, 1000, 224)
        rows.append(
            {
                "model": name,
                "layers": zoo.count_layers(network),
                "parameters": zoo.count_parameters(network),
                "macs": zoo.count_macs(name),
                "source": entry.source,
            }
        )
    return pd.DataFrame(rows)


def gallery(name: str, each: int = 6) -> Figure:
    """Synthetic images of a dataset, one row a class, with the outlines of lesion and organ."""
    labels = [label for label in DATASETS[name].classes for _ in range(each)]
    drawn = [phantoms.draw(name, label, number) for number, label in enumerate(labels)]
    masks = {
        "organ": np.stack([one.organ for one in drawn]),
        "lesion": np.stack([one.lesion for one in drawn]),
    }
    images = np.stack([one.image * 255 for one in drawn]).astype("uint8")
    return plots.samples(images, labels, masks, DATASETS[name].title)
