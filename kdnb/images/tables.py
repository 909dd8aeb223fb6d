"""The table of images: its columns, copies and relatives among its rows, and facts that give the
class away."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kdnb import files
from kdnb.images import read
from kdnb.images.catalogue import PARTS
from kdnb.images.scan import Problem

COLUMNS = [
    "path",
    "label",
    "split",
    "patient",
    "mask",
    "organ_mask",
    "report",
    "width",
    "height",
    "mode",
    "sha256",
    "mask_sha256",
    "organ_mask_sha256",
]


def groups(table: pd.DataFrame) -> np.ndarray:
    """Number the rows so that one patient, or one set of byte-identical files, has one number
    (shape ``(N,)``)."""
    rows = np.arange(len(table))
    same_bytes = ("sha " + table["sha256"].astype(str)).to_numpy()
    patient = "patient " + table["patient"].astype(str)
    keys = np.concatenate([np.where(table["patient"] != "", patient, same_bytes), same_bytes])
    codes = pd.factorize(keys)[0] + len(rows)  # of patients and files, after the rows
    pairs = np.stack([np.concatenate([rows, rows]), codes], 1)
    return join(pairs, len(rows) + codes.max(initial=0) + 1)[: len(rows)]


def join(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number ``count`` rows so that the two of each pair ``(M, 2)``, and those joined by way of
    others, have one number (connected components), ``(count,)``."""
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(edges, directed=False)[1]


def merge(group: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Group numbers ``(N,)`` after the groups of each pair's rows ``(M, 2)`` are joined."""
    return join(group[pairs], int(group.max(initial=-1)) + 1)[group]


def join_trees(table: pd.DataFrame, trees: tuple[str, ...]) -> tuple[pd.DataFrame, list[Problem]]:
    """One row for an image that lies in two trees (COVID-QU-Ex), with the masks of both, and
    problems. The split of the first tree stands."""
    order = {files.simplify(tree): number for number, tree in enumerate(trees)}

    def rank(path):
        parts = map(files.simplify, PurePosixPath(path).parts)
        return next((order[part] for part in parts if part in order), len(order))

    table = table.assign(
        rank=table["path"].map(rank),
        stem=table["path"].map(lambda path: PurePosixPath(path).stem.lower()),
    ).sort_values(["rank", "path"])
    same = table.groupby(["label", "stem", "sha256"], sort=False)
    joined = same.first().assign(mask=same["mask"].max(), organ_mask=same["organ_mask"].max())
    joined = joined.reset_index()
    moved = table.loc[(same["split"].transform("nunique") > 1) & (table["rank"] > 0), "path"]
    problems = [
        (path, "split differs between trees", f"the split of {trees[0]} stands") for path in moved
    ]
    named = {"", *moved, *joined["path"], *joined["mask"], *joined["organ_mask"]}
    problems += [
        (path, "copy in another tree", "the same image, or its mask, is read from the first tree")
        for kind in ("path", "mask", "organ_mask")
        for path in dict.fromkeys(table[kind])
        if path not in named
    ]
    return joined.sort_values("path")[COLUMNS].reset_index(drop=True), problems


def settle_copies(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The table without byte-identical files that have two labels, and problems: those files, and
    copies on both sides of the official split."""
    problems = []
    labels = table.groupby("sha256")["label"].transform("nunique")
    for _, same in table[labels > 1].groupby("sha256"):
        others = " = ".join(f"{row.path} ({row.label})" for row in same.itertuples())
        detail = f"byte-identical: {others}; all left out"
        problems += [(path, "label conflict", detail) for path in same["path"]]
    table = table[labels == 1].reset_index(drop=True)
    across = table.groupby("sha256")["split"].transform("nunique") > 1
    for _, same in table[across].groupby("sha256"):
        detail = "byte-identical: " + " = ".join(same["path"])
        problems.append((same["path"].iloc[0], "copy across splits", detail))
    return table, problems


def official_split(table: pd.DataFrame) -> str:
    """The official split in words: its sizes, and the parts that are missing."""
    counts = table["split"].value_counts()
    if not (table["split"] != "").any():
        return "none given: all images are split anew"
    text = ", ".join(f"{part} {counts[part]:,}" for part in PARTS if part in counts)
    if "" in counts:
        text += f"; {counts['']:,} images in none, which count as training images"
    if missing := [part for part in ("train", "test") if part not in counts]:
        text += f"; no {' and no '.join(missing)}: no official split, all images are split anew"
    elif "val" not in counts:
        text += "; validation is cut from train"
    return text


def giveaways(table: pd.DataFrame) -> list[str]:
    """Sentences on facts that tell the class without a look at the image: mode, size or suffix.

    The class is guessed as that of most other images with the same mode (size, suffix). Guesses are
    reported where their balanced accuracy is a quarter of the way from chance to 1 or above, and
    four standard deviations above chance.
    """
    chance, sentences = 1 / table["label"].nunique(), []
    facts = {
        "colour mode": table["mode"],
        "size": table["width"].astype(str) + "×" + table["height"].astype(str),
        "file type": table["path"].map(lambda path: read.suffix(read.frame_of(path)[0])),
    }
    spread = (chance * (1 - chance) / max(1, len(table))) ** 0.5
    for name, values in facts.items():
        counts = pd.crosstab(values, table["label"])
        accuracy = _accuracy_of_guesses(counts, values, table["label"])
        if accuracy - chance >= max((1 - chance) / 4, 4 * spread):
            most = counts.loc[counts.sum(axis=1).nlargest(3).index]
            shown = "; ".join(
                f"{value}: {', '.join(f'{label} {n:,}' for label, n in row.items() if n)}"
                for value, row in most.iterrows()
            )
            sentences.append(
                f"the {name} alone tells the class in {accuracy:.0%} of the cases (chance "
                f"{chance:.0%}): {shown}"
            )
    return sentences


def _accuracy_of_guesses(counts: pd.DataFrame, values: pd.Series, labels: pd.Series) -> float:
    """Balanced accuracy of the class that most other images with the same value have."""
    votes = counts.loc[values].to_numpy(dtype=float).copy()
    own = counts.columns.get_indexer(labels)
    votes[np.arange(len(votes)), own] -= 1  # an image does not vote for itself
    shares = votes / counts.sum().to_numpy()
    right = (shares.argmax(1) == own) & (votes.sum(1) > 0)
    weight = 1 / labels.map(labels.value_counts())
    return float((right * weight).sum() * (1 / labels.nunique()))
