"""Splits: what holds for every table that hypothesis can think of, and how a failure reads."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnb.images import index, splits
from kdnb.images.catalogue import DATASETS
from kdnb.study import Study

FOLDER = DATASETS["folder"]


def table_of(sizes: dict[str, list[int]]) -> tuple[pd.DataFrame, np.ndarray]:
    """One class a key, one group an entry, as many images as it says."""
    rows = [
        (label, number)
        for label, groups in sizes.items()
        for number, size in enumerate(groups)
        for _ in range(size)
    ]
    table = pd.DataFrame(rows, columns=["label", "number"]).assign(split="")
    table["path"] = [f"{label}/{row}.png" for row, label in enumerate(table["label"])]
    return table, pd.factorize(table["label"] + table["number"].astype(str))[0]


@pytest.mark.parametrize("count", [3, 5])
def test_folds_test_every_image_once_and_part_no_group(count):
    table, group = table_of({"a": [3, 1, 2] * 6, "b": [4] * 8, "c": [1] * 9})
    parts = [splits.fold(FOLDER, table, number, count, group)[0] for number in range(count)]
    tested = [set(part.index[part["split"] == "test"]) for part in parts]
    assert sum(map(len, tested)) == len(set.union(*tested)) == len(table)
    for part in parts:
        assert part.groupby("group")["split"].nunique().max() == 1
        counts = pd.crosstab(part["label"], part["split"])
        assert set(counts.columns) == {"train", "val", "test"} and (counts > 0).all(axis=None)
    again, used = splits.fold(FOLDER, table, 1, count, group, "copies")
    assert again.equals(parts[1]) and used.startswith(f"group: part 2 of {count} tested")
    assert used.endswith("kept together: copies")


def test_too_few_groups_for_the_folds_are_refused():
    table, group = table_of({"a": [2] * 9, "b": [5] * 4})
    with pytest.raises(splits.SplitError, match="class 'b' has 4 groups.*-p folds"):
        splits.fold(FOLDER, table, 0, 5, group)
    with pytest.raises(ValueError, match="between 0 and 2"):
        splits.fold(FOLDER, table, 3, 3, group)


groups_of_classes = st.dictionaries(
    st.sampled_from("abcde"),
    st.lists(st.integers(1, 12), min_size=3, max_size=25),
    min_size=2,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(groups_of_classes)
def test_a_group_split_parts_no_group_and_leaves_no_part_empty(sizes):
    table, group = table_of(sizes)
    split, used = splits.assign(FOLDER, table, "group", group)
    assert split.groupby("group")["split"].nunique().max() == 1
    assert (pd.crosstab(split["label"], split["split"])[list(splits.PARTS)] > 0).all(axis=None)
    assert used.startswith("group") and splits.leaking(split, group).empty
    assert (
        split["split"].tolist() == splits.assign(FOLDER, table, "group", group)[0]["split"].tolist()
    )


@settings(max_examples=30, deadline=None)
@given(groups_of_classes)
def test_a_random_split_has_every_class_in_every_part(sizes):
    table, group = table_of(sizes)
    split, _ = splits.assign(FOLDER, table, "random", group)
    counts = pd.crosstab(split["label"], split["split"])
    assert (counts["train"] > 0).all() and sorted(split["split"].unique()) == sorted(splits.PARTS)


def test_shares_are_what_they_should_be():
    table, group = table_of({"a": [5] * 100, "b": [1] * 300})
    counts = pd.crosstab(
        *splits.assign(FOLDER, table, "group", group)[0][["label", "split"]].T.to_numpy(),
        normalize="index",
    )
    assert np.allclose(counts[list(splits.PARTS)], [0.7, 0.15, 0.15], atol=0.03)


def test_a_class_with_too_few_groups_is_named():
    table, group = table_of({"rare": [9], "common": [1] * 30})
    with pytest.raises(splits.SplitError, match="'rare' has 1 .*-p split random"):
        splits.assign(FOLDER, table, "group", group)


@settings(max_examples=30, deadline=None)
@given(groups_of_classes, st.lists(st.integers(1, 40), min_size=2, max_size=2))
def test_a_class_of_two_groups_is_trained_and_tested_without_validation(sizes, two):
    table, group = table_of(sizes | {"rare": two})
    split, used = splits.assign(FOLDER, table, "group", group)
    counts = pd.crosstab(split["label"], split["split"])[list(splits.PARTS)]
    assert counts.loc["rare"].gt(0).tolist() == [True, False, True]
    assert (counts.drop(index="rare") > 0).all(axis=None) and splits.leaking(split, group).empty
    assert "'rare' has 2 groups, so no validation image" in used


def test_copies_leak_under_a_random_split_and_not_by_group():
    table, group = table_of({"a": [20] * 10, "b": [20] * 10})
    by_image, _ = splits.assign(FOLDER, table, "random", group)
    by_group, _ = splits.assign(FOLDER, table, "group", group)
    assert (
        len(splits.leaking(by_image, group)) == (by_image["split"] == "test").sum()
        and splits.leaking(by_group, group).empty
    )


def test_the_published_table_is_sorted_and_does_not_hang_on_numbering(tmp_path):
    table, group = table_of({"a": [3] * 5, "b": [2] * 5})
    split, _ = splits.assign(FOLDER, table, "group", group)
    first = splits.publish(split, tmp_path / "splits" / "group.csv")
    again = splits.publish(
        split.assign(group=100 - split["group"]).sample(frac=1, random_state=0),
        tmp_path / "again.csv",
    )
    assert first.read_bytes() == again.read_bytes()
    output = pd.read_csv(first)
    assert (
        list(output) == ["path", "label", "group", "part"]
        and output["path"].is_monotonic_increasing
    )
    assert set(output["part"]) == set(splits.PARTS)


@pytest.mark.parametrize(
    ("name", "parts", "mode"),
    [
        ("brain_tumor", ["train", "test"], "official"),
        ("alzheimer", ["train", "test"], "random"),  # paper B pooled it
        ("eye_disease", ["", ""], "random"),
        (
            "phantom_cxr",
            ["train", "test"],
            "random",
        ),  # what is planted there is planted across its parts
    ],
)
def test_the_split_behind_published_numbers(name, parts, mode):
    found = index.Index(Path(name), (), pd.DataFrame({"split": parts}), pd.DataFrame())
    assert splits.published(DATASETS[name], found) == mode


def test_runs_under_another_split_have_their_own_folder(home):
    default, other = Study().outputs(), Study(split="random").outputs()
    assert default.name == "phantom_cxr" and other == default / "random"
