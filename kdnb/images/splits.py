"""Training, validation and test images: the official split, by image, or by group.

A split is the same for every network and seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from kdnb import files
from kdnb.images.catalogue import PARTS, DatasetSpec
from kdnb.images.index import Index

SEED = 0  # one split for all runs: a seed changes the training, never the test images
SHARE = 0.15  # of validation, and of test
MODES = ("auto", "official", "random", "group")
RELATED = 0.01  # of the test images of one's own official split may have a relative in training


class SplitError(
    files.UserError,
    ValueError,
    code="KD102",
    way_out="choose another -p split, or give each class more patients or images; 01_data_prep "
    "shows how they are grouped",
):
    """The images cannot be split as requested; the message names the class and the way out."""


def resolve(
    spec: DatasetSpec, table: pd.DataFrame, mode: str = "auto", group: np.ndarray | None = None
) -> tuple[str, str]:
    """The split that a mode stands for, and the reason where ``auto`` leaves an official split, or
    what is known against any split of the dataset.

    ``auto`` is the official split of an index table where there is one, else ``group``. An official
    split is left where the catalogue distrusts it, or, with the numbers ``group`` ``(N,)`` of
    relatives given, where more than 1 % of its test images have a relative in training or
    validation. Raises :class:`SplitError` where an official split is asked for and there is none.
    """
    files.lookup(mode, MODES, "split")
    official = {"train", "test"} <= set(table["split"])
    if mode == "official" and not official:
        raise SplitError(
            f"{spec.name} has no official train and test images here; use -p split group "
            "(or random)"
        )
    if mode != "auto":
        return mode, ""
    if not official and spec.distrust and not spec.official_split:
        return "group", f"which does not remedy this: {spec.distrust}"
    if not official or spec.distrust:
        return "group", ""
    if group is not None:
        test, related = (table["split"] == "test").sum(), len(leaking(table, group))
        if related > RELATED * test:
            return "group", (
                f"because {related:,} of {test:,} test images ({related / test:.1%}) of the "
                f"official split have a relative in training or validation (limit {RELATED:.0%})"
            )
    return "official", ""


def published(spec: DatasetSpec, found: Index) -> str:
    """The split behind published numbers: official where there is one and papers kept to it, else
    random."""
    official = {"train", "test"} <= set(found.table["split"])
    return "official" if official and not (spec.pooled or spec.synthetic) else "random"


def needs_groups(table: pd.DataFrame, mode: str) -> bool:
    """Whether a split is drawn by group somewhere, so that copies must be searched for first."""
    return mode == "group" or (mode == "official" and "val" not in set(table["split"]))


def assign(
    spec: DatasetSpec,
    table: pd.DataFrame,
    mode: str,
    group: np.ndarray,
    kept: str = "groups of images",
    reason: str = "",
) -> tuple[pd.DataFrame, str]:
    """Put every row of an index table into train, val or test; returns it with a sentence on how.

    ``mode`` and ``reason`` as :func:`resolve` returns them, ``group`` ``(N,)`` the number of each
    row's group, which becomes a column, ``kept`` what these groups are, in words. ``random`` is
    stratified 70/15/15 by image and divides groups, as the papers did; ``group`` never divides one,
    and leaves a class of two groups without validation images. A missing validation set is cut from
    train, never from test. Raises :class:`SplitError` when a class has too few images or groups.
    """
    table, unvalidated = table.assign(group=group), []
    redrawn = f"{mode}: all images re-split 70/15/15 by class"
    if mode == "official":
        used = f"official ({spec.official_split})"
        table.loc[table["split"] == "", "split"] = "train"
        if "val" not in set(table["split"]):
            used += f", validation cut from train, kept together: {kept}"
            table = _carve(table, "train", "val", SHARE)
    elif mode == "random":
        used = f"{redrawn}, copies and patients not kept together"
        table = _by_image(spec, table)
    else:
        used = f"{redrawn}{reason and ', '}{reason}; kept together: {kept}"
        unvalidated = _enough_groups(spec, table, kept)
        used += "".join(
            f"; {label!r} has 2 groups, so no validation image" for label in unvalidated
        )
        table = _carve(table.assign(split="train"), "train", "test", SHARE)
        table = _carve(table, "train", "val", SHARE / (1 - SHARE))
    _no_empty_part(spec, table, mode, used, unvalidated)
    return table, used


def _no_empty_part(
    spec: DatasetSpec, table: pd.DataFrame, mode: str, used: str, unvalidated: Sequence[str] = ()
) -> None:
    """Raise :class:`SplitError` where a class has no image in a part that needs one; classes
    ``unvalidated`` need no validation images."""
    needed = ("train", "test") if mode == "official" else PARTS
    counts = pd.crosstab(table["label"], table["split"]).reindex(columns=list(PARTS), fill_value=0)
    empty = [
        f"{label!r} has no {part} image"
        for part in needed
        for label in counts.index[counts[part] == 0]
        if part != "val" or label not in unvalidated
    ]
    if empty:
        way_out = (
            "re-split all images together: -p split group"
            if mode == "official"
            else "add images of that class"
        )
        raise SplitError(
            f"{spec.name}: class {'; class '.join(empty)} (split {used}). The way out: {way_out}."
        )


def publish(table: pd.DataFrame, path: Path) -> Path:
    """Write a split as a sorted CSV with the columns path (relative to the dataset's root), label,
    group, part."""
    rows = (
        table[["path", "label", "group", "split"]]
        .rename(columns={"split": "part"})
        .sort_values("path")
    )
    # numbers by first appearance: the file does not change with the order in which groups were
    # found
    with files.atomic(path) as temporary:
        rows.assign(group=pd.factorize(rows["group"])[0]).to_csv(temporary, index=False)
    return Path(path)


def leaking(table: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    """Test rows of a table (column split) of whose group, ``(N,)``, another row is no test row."""
    group = pd.Series(group, index=table.index)
    return table[(table["split"] == "test") & group.isin(group[table["split"] != "test"])]


def shard(table: pd.DataFrame, number: int, count: int) -> pd.DataFrame:
    """A table (columns label, group, split) whose training rows outside part ``number`` of
    ``count`` belong to no split (``""``).

    Parts are disjoint, hold whole groups, and have about the same share of every class. Raises
    :class:`SplitError` where a part would lack a class.
    """
    if count == 1:
        return table
    train = table[table["split"] == "train"]
    groups = train.groupby("label")["group"].nunique()
    way_out = "Use fewer -p teacher_shards, or add images of other patients."
    if groups.min() < count:
        raise SplitError(
            f"{count} parts of the training images, each with other patients, cannot all have "
            f"class {groups.idxmin()!r}, which has {groups.min()} groups of related images there. "
            f"{way_out}"
        )
    folds = _parts(train, count)
    for part, own in enumerate(folds):
        if missing := set(train["label"]) - set(train["label"].iloc[own]):
            raise SplitError(
                f"part {part + 1} of {count} of the training images, each with other patients, "
                f"has no image of class {', '.join(map(repr, sorted(missing)))}. {way_out}"
            )
    others = train.index.difference(train.index[folds[number]])
    return table.assign(split=table["split"].where(~table.index.isin(others), ""))


def labelled(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A table (columns label, group, split) of whose training and validation rows about ``share``
    (0 to 1) of every class stay, in whole groups drawn by ``seed``; the others belong to no split
    (``""``).

    Groups are taken in one order of the seed while a class of theirs lacks images, so a larger
    share holds a smaller one. Raises :class:`SplitError` where a class would have no image in one
    of the two parts.
    """
    table, left_out = table.reset_index(drop=True), []
    for part in ("train", "val"):
        rows = table[table["split"] == part]
        counts = pd.crosstab(rows["group"], rows["label"])
        order = np.random.default_rng(seed).permutation(len(counts))
        wanted = (share * counts.sum()).round().to_numpy()
        if not wanted.all():
            raise SplitError(
                f"label_share {share:g}: class {counts.columns[wanted == 0][0]!r} has "
                f"{counts.sum()[wanted == 0].iloc[0]} images for {part}, and none would stay; "
                f"the smallest share here is {_smallest_share(table):.3f}"
            )
        held, kept = np.zeros_like(wanted), []
        for group, own in zip(counts.index[order], counts.to_numpy()[order], strict=True):
            if (own[held < wanted] > 0).any():
                held, kept = held + own, [*kept, group]
        left_out += [*rows.index[~rows["group"].isin(kept)]]
    return table.assign(split=table["split"].where(~table.index.isin(left_out), ""))


def _smallest_share(table: pd.DataFrame) -> float:
    """The share with which every class keeps an image for training and one for validation."""
    counts = pd.crosstab(table["label"], table["split"])[["train", "val"]]
    return float(np.ceil(501 / counts.min().min()) / 1000)


def fold(
    spec: DatasetSpec,
    table: pd.DataFrame,
    number: int,
    count: int,
    group: np.ndarray,
    kept: str = "groups of images",
) -> tuple[pd.DataFrame, str]:
    """Put part ``number`` of ``count`` of the groups of an index table into test, the others into
    train and val; returns it as :func:`assign` does.

    Over all numbers each row is in test once. Groups stay whole, and classes have about the same
    share of each part. Raises ``ValueError`` for a number that is no part, :class:`SplitError`
    where a part would lack a class.
    """
    if not 0 <= number < count:
        raise ValueError(f"fold must lie between 0 and {count - 1}, got {number}")
    table = table.assign(group=group, split="train")
    groups = table.groupby("label")["group"].nunique()
    if groups.min() < count:
        raise SplitError(
            f"{spec.name}: class {groups.idxmin()!r} has {groups.min()} groups of related images "
            f"(kept together: {kept}), too few for {count} folds: use fewer, -p folds, or none"
        )
    parts = _parts(table, count)
    for part in parts:
        if missing := set(table["label"]) - set(table["label"].iloc[part]):
            raise SplitError(
                f"{spec.name}: a fold of {count} has no image of {', '.join(sorted(missing))}: "
                "use fewer, -p folds, or none"
            )
    table.loc[table.index[parts[number]], "split"] = "test"
    table = _carve(table, "train", "val", SHARE / (1 - 1 / count))
    used = f"group: part {number + 1} of {count} tested, validation cut from the others"
    _no_empty_part(spec, table, "group", used)
    return table, f"{used}; kept together: {kept}"


def _parts(table: pd.DataFrame, count: int) -> list[np.ndarray]:
    """Row numbers of ``count`` parts of a table, of whole groups and stratified by class."""
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=SEED)
    return [own for _, own in splitter.split(table, table["label"], table["group"])]


def _by_image(spec: DatasetSpec, table: pd.DataFrame) -> pd.DataFrame:
    counts = table["label"].value_counts()
    if counts.min() < 3:
        raise SplitError(
            f"{spec.name}: class {counts.idxmin()!r} has {counts.min()} images, a split needs at "
            "least 3"
        )
    parts, rng = pd.Series("train", index=table.index), np.random.default_rng(SEED)
    for _, rows in table.groupby("label", sort=True).groups.items():
        # by class and never none: stratified splitting of a library may leave a small class out of
        # a part
        order, size = rng.permutation(rows), max(1, round(SHARE * len(rows)))
        parts[order[:size]], parts[order[size : 2 * size]] = "test", "val"
    return table.assign(split=parts)


def _enough_groups(spec: DatasetSpec, table: pd.DataFrame, kept: str) -> list[str]:
    """The classes that have two groups: enough for training and test, not for validation."""
    groups = table.groupby("label")["group"].nunique()
    few = [f"{label!r} has {count}" for label, count in groups.items() if count < 2]
    if few:
        raise SplitError(
            f"{spec.name}: every class needs 2 groups of related images, one each for train and "
            f"test, and a third for val; {', '.join(few)} (kept together: {kept}). Add images of "
            "other patients, or use -p split random, which puts relatives in both training and "
            "test."
        )
    return list(groups.index[groups == 2])


def _carve(table: pd.DataFrame, source: str, part: str, share: float) -> pd.DataFrame:
    """Move about ``share`` of the rows of ``source`` to ``part``: the same share of every class,
    whole groups only."""
    rest = table[table["split"] == source]
    folds = min(max(2, round(1 / share)), rest["group"].nunique(), max(2, len(rest)))
    if folds < 2:
        return table
    codes = pd.factorize(rest["label"])[0]
    images, groups = (rest.groupby("label")["group"].agg(of) for of in ("size", "nunique"))
    folds = max(2, min([folds, *images[groups > 1]]))  # a class of one group stays whole
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        moved = set(rest["group"].iloc[next(splitter.split(codes, codes, rest["group"]))[1]])
    moved = _with_every_class(rest, moved)
    return table.assign(
        split=table["split"].where(~((table["split"] == source) & table["group"].isin(moved)), part)
    )


def _with_every_class(rest: pd.DataFrame, moved: set) -> set:
    """Exchange groups until every class stands on both sides; on the source's side with two
    groups, where it has three.

    The fold of a class with few groups may hold none of them, or too many.
    """
    sizes = rest["group"].value_counts()
    for label, here in rest.groupby("label")["group"].unique().items():
        small_first = sorted(here, key=lambda group: (sizes[group], group))
        keep = 2 if len(here) > 2 else 1
        inside = [group for group in small_first if group in moved]
        if not inside and len(here) > 1:
            moved = moved | {
                next((f for f in small_first if _spares(rest, moved | {f}, label)), small_first[0])
            }
        # a class of one group keeps it on the source's side
        while len(here) - len(inside) < keep and len(inside) > (len(here) > 1):
            moved = moved - {inside.pop(0)}
    return moved


def _spares(rest: pd.DataFrame, moved: set, label: str) -> bool:
    """Whether every other class would keep a group on the source's side."""
    left = rest[~rest["group"].isin(moved)]
    return set(left["label"]) >= set(rest["label"]) - {label}
