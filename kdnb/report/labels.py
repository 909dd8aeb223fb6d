"""What to learn from: the result file of notebook 11, its tables and its differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdnb import files
from kdnb.data import Dataset
from kdnb.evaluation import crossed, predictions
from kdnb.report import names, pages
from kdnb.study import Study
from kdnb.training import methods
from kdnb.training.labels import EQUAL_COST, EQUAL_IMAGES, PLAIN, SELF

KIND, COMPARISONS = "labels", {"shares", "curated", "positives"}
AREAS = {"auc": "AUC", "partial_auc": "partial AUC"}
BUDGET = ("steps", "images", "scored_images", "forward_passes")


def keep(study: Study, dataset: Dataset, results: dict[str, list[dict]]) -> Path:
    """Write the rows of each comparison, with the truth about the test images, beside the
    comparisons that a file of the same settings and images holds already. Returns the path."""
    name = names.comparison(study, KIND)
    path, known = study.outputs() / f"{name}.json", {}
    if path.exists():
        before = files.read_json(path)
        same_data = before["data"]["checksum"] == dataset.checksum
        if same_data and files.digest(before["config"]) == files.digest(study.config()):
            known = {
                each: before["results"][each] for each in COMPARISONS & before["results"].keys()
            }
    return pages.save(study, dataset, name, methods.truth(dataset) | known | results)


def table(rows: Sequence[dict]) -> pd.DataFrame:
    """One row a training: what it is, balanced accuracy with its 95 % interval over the test images
    (``low``, ``high``), other measures, and its budget."""
    known = [name for name in ("share", "labelled", "name", "method") if name in rows[0]]
    table = pd.DataFrame(rows)
    bounds = [row["intervals"]["balanced_accuracy"] for row in rows]
    table["low"], table["high"] = zip(*bounds, strict=True)
    measures = ["balanced_accuracy", "low", "high", "accuracy", "macro_auc", "ece"]
    return table[[*known, *measures, *BUDGET]]


def gains_by_share(study: Study, dataset: Dataset, rows: Sequence[dict]) -> pd.DataFrame:
    """Balanced accuracy of each method minus that of the labels alone on the same share, and of
    self-training minus the labels alone on all of them; see :func:`differences`."""
    found = {(row["share"], row["method"]): row for row in rows if "teacher" not in row["method"]}
    pairs = {}
    for (share, method), row in found.items():
        if method != PLAIN:
            pairs[f"{share:.0%} of the labels", f"{method} − {PLAIN}"] = row, found[share, PLAIN]
    for (share, method), row in found.items():
        if method == SELF:
            group, label = f"{PLAIN} with all labels", f"{method} with {share:.0%}"
            pairs[f"minus {group}", label] = row, found[1.0, PLAIN]
    return differences(study, dataset, pairs)


def gains_of_curation(study: Study, dataset: Dataset, rows: Sequence[dict]) -> pd.DataFrame:
    """Balanced accuracy of each rule minus ``random`` with as many images that are learnt from, and
    of each rule for which the student scores images minus ``random`` of equal cost; see
    :func:`differences`."""
    found, pairs = {row["name"]: row for row in rows}, {}
    for control, suffix in ((EQUAL_IMAGES, ""), (EQUAL_COST, f", {EQUAL_COST}")):
        for row in rows:
            equal = control == EQUAL_IMAGES or row["scored_images"]  # others cost what random does
            if row["curation"] != "random" and equal:
                other = found[f"{row['method']}, random{suffix}"]
                pairs[f"minus random, {control}", row["name"]] = row, other
    return differences(study, dataset, pairs)


def areas(rows: Sequence[dict]) -> pd.DataFrame:
    """One row a loss and share of positives: both areas under the ROC curve with 95 % intervals
    over the test images, calibration, and the budget."""
    table = pd.DataFrame(rows)
    for area in AREAS:
        table[f"{area}_low"], table[f"{area}_high"] = zip(
            *(row[f"{area}_interval"] for row in rows), strict=True
        )
    bounds = [column for area in AREAS for column in (area, f"{area}_low", f"{area}_high")]
    return table[
        ["positives", "loss", *bounds, "balanced_accuracy", "ece", "cross_entropy", *BUDGET]
    ]


def gains_in_areas(rows: Sequence[dict]) -> pd.DataFrame:
    """Paired differences in both areas to the reference loss, and of a start without labels to
    none, one row a loss, share and area: group, label, difference, low, high and n."""
    labels = {"against": "{loss}", "against_cold": "{loss}, minus without this start"}
    return pd.DataFrame(
        [
            {"group": f"{row['positives']:.0%} positives, {words}", "label": label.format(**row)}
            | row[against][area]
            for area, words in AREAS.items()
            for row in rows
            for against, label in labels.items()
            if row.get(against)
        ]
    )


def differences(
    study: Study, dataset: Dataset, pairs: dict[tuple[str, str], tuple[dict, dict]]
) -> pd.DataFrame:
    """Paired differences in balanced accuracy, one row a pair of trainings by (group, label):
    group, label, difference, low, high (shares of 1), p and n.

    Intervals are over the test images, in their groups (:mod:`kdnb.evaluation.crossed`).
    """
    held, rows = methods.truth(dataset), []
    labels, groups = predictions.labels_and_groups(held)
    weights = crossed.balanced(labels)
    for (group, label), pair in pairs.items():
        one, other = (predictions.from_text(row["predicted"]) == labels for row in pair)
        gap = crossed.difference(((one * weights) - (other * weights))[:, None], groups)
        row = {"group": group, "label": label, "difference": gap.value}
        rows.append(row | {"low": gap.low, "high": gap.high, "p": gap.p_value, "n": len(labels)})
    return pd.DataFrame(rows)
