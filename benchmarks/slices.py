"""Slices of one scan, found without the patients' names and scored by them: ``make bench``.

The sets whose images all name their patient are searched as if they did not. LGG MRI is the hard
case: its label says whether a slice shows the tumour, so that one patient has both labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb import data, files, provenance
from kdnb.data import Dataset
from kdnb.images import splits, tables
from kdnb.images.downloads import DatasetMissing
from kdnb.leakage import fingerprints, slices, synthetic_duplicates

SETS = ("alzheimer", "covid_ct", "lgg_mri")


def searched(dataset: Dataset) -> dict:
    """Recall and precision of the groups found, over pairs of images, and how many test images of
    a split by these groups would have a slice of their patient on the other side."""
    table = dataset.index.table
    thumbs = fingerprints.compute(dataset.index.root, table, dataset.spec.name).thumbs
    labels, alone = table["label"].to_numpy(), np.arange(len(table))
    patient = pd.factorize(table["patient"])[0]
    links = slices.find(thumbs, table, alone, dataset.spec.name)
    group = tables.join(links[["first", "second"]].to_numpy(), len(table))
    split = splits.assign(dataset.spec, table.assign(split=""), "group", group)[0]
    score = synthetic_duplicates.score(patient, group, labels)
    return {
        "images": len(table),
        "patients": len(np.unique(patient)),
        "links": len(links),
        "limit": float(links["correlation"].min()) if len(links) else None,
        "groups": len(np.unique(group)),
        "test_images": int((split["split"] == "test").sum()),
        "test_images_with_their_patient_in_training": len(splits.leaking(split, patient)),
        **{name: score[name] for name in ("recall", "precision", "adjusted_rand")},
    }


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Search and write ``outputs/benchmarks/slices.json``; None where a set is not here."""
    parser = argparse.ArgumentParser(prog="benchmarks.slices", description=__doc__.split("\n")[0])
    parser.parse_args(arguments)
    try:
        rows = [{"dataset": name, **searched(data.load(name))} for name in SETS]
    except DatasetMissing as missing:
        print(f"not measured: {missing}")
        return None
    print(pd.DataFrame(rows).to_string())
    facts = {"commit": provenance.collect()["commit"], "results": rows}
    path = files.write_json(files.outputs_dir() / "benchmarks/slices.json", facts)
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
