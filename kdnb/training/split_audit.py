"""One network trained under several splits: how much of its score is owed to copies across the
split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from kdnb import data, distillation
from kdnb.data import Dataset
from kdnb.evaluation import metrics, statistics
from kdnb.images import splits
from kdnb.leakage import detector, synthetic_duplicates
from kdnb.models.predict import predict
from kdnb.parameters import Parameters, parameter
from kdnb.study import Study
from kdnb.training import loop


@dataclass(frozen=True)
class SplitAuditParameters(Parameters):
    """Settings of notebook 08."""

    extras: ClassVar[tuple[str, ...]] = ("detector",)

    seeds: int | None = parameter(
        None,
        "trainings under each split, counted up from seed",
        low=1,
        high=1000,
        profiles={"smoke": 2, "quick": 3, "paper": 3},
    )
    audit_epochs: int | None = parameter(
        None,
        "epochs of each training under another split",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 3, "paper": 50},
    )


def under_both_splits(
    study: Study, dataset: Dataset
) -> tuple[Study, dict[str, Dataset], detector.Leakage]:
    """The dataset under the papers' split and under ``group``, and the copies among its images.

    A synthetic dataset has no copies: copies are made of some of its images, so that there is
    something to find, and the study that is returned reads that folder.
    """
    where, name = study, study.dataset
    if dataset.spec.synthetic:
        each = 8 if study.profile == "smoke" else 50
        root = synthetic_duplicates.plant(study.dataset, dataset.classes, each=each)
        where = dataclasses.replace(study, dataset="folder", data_root=str(root))
        name = f"planted-{study.dataset}"
    modes = [splits.published(dataset.spec, dataset.index), "group"]
    under = {
        mode: data.load(where.dataset, where.data_root, mode, source=where.source) for mode in modes
    }
    return where, under, detector.find(under["group"].index, name)


def origins(study: Study, dataset: Dataset, table: pd.DataFrame) -> np.ndarray | None:
    """The true group of each row of an index table ``(N,)``: known of synthetic duplicates, and
    where others published them beside the images; else None."""
    if dataset.spec.synthetic:
        return synthetic_duplicates.origins(table)
    return synthetic_duplicates.published(dataset.index.root, table)


def leaks(
    datasets: Mapping[str, Dataset],
    groups: Callable[[pd.DataFrame], np.ndarray],
    origins: Callable[[pd.DataFrame], np.ndarray | None],
) -> pd.DataFrame:
    """Test images with a relative in training or validation under each split: one row a split.

    ``groups`` gives the group number of each row of an index table, ``origins`` the true one where
    it is known.
    """
    rows = []
    for split, dataset in datasets.items():
        table = dataset.table
        found, true = groups(table), origins(table)
        count, related = int((table["split"] == "test").sum()), len(splits.leaking(table, found))
        row = {
            "split": split,
            "test images": count,
            "with a relative in training": related,
            "share": related / max(1, count),
            "groups": len(np.unique(found)),
        }
        if true is not None:
            row["with a true copy in training"] = len(splits.leaking(table, true))
        rows.append(row)
    return pd.DataFrame(rows)


def train_under(
    study: Study,
    datasets: Mapping[str, Dataset],
    groups: Callable[[pd.DataFrame], np.ndarray],
) -> pd.DataFrame:
    """The study's student without a teacher, trained under each split with each seed.

    ``study`` has :class:`SplitAuditParameters`. One row a training: balanced accuracy on that
    split's test images with its 95 % interval, in which the images of a group are drawn together.
    """
    rows = []
    for split, dataset in datasets.items():
        test = dataset.pixels(study.image_size, "test")
        labels = test.labels[test.rows].numpy()
        own = groups(dataset.table)[test.rows.numpy()]
        for seed in range(study.seed, study.seed + study.seeds):
            here = dataclasses.replace(study, split=split, seed=seed)
            run = loop.fit(
                here, dataset, study.student, distillation.create("hard"), study.audit_epochs
            )
            score = metrics.evaluate(labels, predict(run.model, test), dataset.classes, split, own)
            low, high = score["intervals"]["balanced_accuracy"]
            rows.append(
                {
                    "split": split,
                    "seed": seed,
                    "balanced_accuracy": score["balanced_accuracy"],
                    "low": low,
                    "high": high,
                    "n": score["n"],
                }
            )
    return pd.DataFrame(rows)


def over_seeds(trainings: pd.DataFrame) -> dict[str, dict]:
    """Mean, spread and number of seeds of the balanced accuracy under each split."""
    return {
        split: statistics.over_seeds(part["balanced_accuracy"])
        for split, part in trainings.groupby("split", sort=False)
    }
