"""Training on a share of the labels: which images stay, and how such runs are told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import lend

from kdnb import data
from kdnb.images import splits
from kdnb.report import results
from kdnb.study import BadParameter, Study


@pytest.fixture(scope="module")
def dataset(shared_phantoms, tmp_path_factory) -> data.Dataset:
    cache = tmp_path_factory.mktemp("cache")
    lend(shared_phantoms, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(cache))
        yield data.load("phantom_cxr", per_class=40)


def _table(groups: int = 60, size: int = 3) -> pd.DataFrame:
    """Groups of three images of one class, in train, val and test."""
    number = np.arange(groups * size)
    group = number // size
    return pd.DataFrame(
        {
            "label": np.array(["a", "b", "c"])[group % 3],
            "group": group,
            "split": np.array(["train", "train", "val", "test"])[(group // 3) % 4],
        }
    )


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_holds_whole_groups_of_every_class(share):
    whole, part = (table for table in (_table(), splits.labelled(_table(), share, seed=0)))
    for split in ("train", "val"):
        before, after = whole[whole["split"] == split], part[part["split"] == split]
        kept = after.groupby("group").size()
        assert (kept == 3).all(), "a group was divided"
        counts = after["label"].value_counts() / before["label"].value_counts()
        assert ((counts >= share) & (counts < share + 0.2)).all()
    assert (part[whole["split"] == "test"]["split"] == "test").all()
    assert set(part["split"]) == {"train", "val", "test", ""}


def test_a_larger_share_holds_a_smaller_one_and_seeds_differ():
    rows = {
        (share, seed): set(np.flatnonzero(splits.labelled(_table(), share, seed)["split"] != ""))
        for share in (0.2, 0.5)
        for seed in (0, 1)
    }
    assert rows[0.2, 0] < rows[0.5, 0]
    assert rows[0.2, 0] != rows[0.2, 1]
    assert rows[0.2, 0] == set(np.flatnonzero(splits.labelled(_table(), 0.2, 0)["split"] != ""))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_nested_where_groups_hold_several_classes_too(seed):
    table, rng = _table(groups=240), np.random.default_rng(seed)
    table["label"] = rng.choice(["a", "b", "c"], len(table), p=[0.6, 0.3, 0.1])
    shares = (0.2, 0.3, 0.5, 0.8)
    kept = [set(np.flatnonzero(splits.labelled(table, s, seed)["split"] != "")) for s in shares]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))


def test_a_share_without_a_class_is_refused_with_one_that_works():
    sentence = "class 'a' has 30 images for train.*share"
    with pytest.raises(splits.SplitError, match=sentence) as caught:
        splits.labelled(_table(), 0.01, seed=0)
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    assert {"train", "val"} <= set(splits.labelled(_table(), smallest, seed=0)["split"])


def test_the_share_is_part_of_the_data(dataset):
    half = dataset.labelled(0.5)
    assert half.counts()["test"].equals(dataset.counts()["test"])
    assert (half.counts()["train"] * 2 == dataset.counts()["train"]).all()
    assert len(half.pixels(32, "train")) == len(dataset.pixels(32, "train")) / 2
    assert half.checksum != dataset.checksum and half.labelled_from == dataset.checksum
    assert half.split.endswith("labels of 50% of the training and validation groups")
    assert dataset.labelled(1) is dataset


def test_a_study_draws_its_share_by_its_seed():
    first, second = (
        Study(profile="smoke", label_share=0.5, seed=seed).load_data() for seed in (0, 1)
    )
    assert first.labelled_from == second.labelled_from
    assert first.checksum != second.checksum
    with pytest.raises(BadParameter, match="label_share"):
        Study(label_share=1.5)


def _result(seed: int, share: float, checksum: str, whole: str = "whole") -> results.Result:
    config = {"dataset": "brain_tumor", "seed": seed, "pretrained": "none", "label_share": share}
    checksums = {"checksum": checksum} | ({"labelled_from": whole} if share < 1 else {})
    stored = {"data": {"caveat": "", "split": "group: all", **checksums}, "results": {}}
    return results.Result("distill", f"{seed}-{share}.json", stored | {"config": config})


def test_seeds_of_a_share_are_one_pool_and_no_evidence_about_a_claim():
    found = [_result(0, 0.1, "x"), _result(1, 0.1, "y"), _result(0, 1.0, "whole")]
    assert [pool.seeds for pool in results.pools(found)] == [(0,)]
    pools = results.pools(found, every_share=True)
    assert sorted(pool.seeds for pool in pools) == [(0,), (0, 1)]
