"""Phantoms: reproducible, with exact masks, and too hard for a linear model on pixels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kdnb.images import phantoms
from kdnb.images.catalogue import DATASETS

NAMES = sorted(phantoms.DRAWINGS)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_number_gives_the_same_image(name):
    for label in DATASETS[name].classes:
        first, second, other = (phantoms.draw(name, label, number) for number in (3, 3, 4))
        assert (first.image == second.image).all() and (first.lesion == second.lesion).all()
        assert np.abs(first.image - other.image).mean() > 0.01
        assert first.image.min() >= 0 and first.image.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_masks_mark_the_lesion_within_the_organ(name):
    healthy = {"Normal-like", "no lesion", "plain", "benign"}
    for label in DATASETS[name].classes:
        drawn = [phantoms.draw(name, label, number) for number in range(10)]
        assert all(p.organ.mean() > 0.1 for p in drawn)
        areas = [p.lesion.mean() for p in drawn]
        if label in healthy:
            assert max(areas) == 0
        else:
            assert min(areas) > 0.002
            if name != "phantom_histology":  # there the mask covers whole glands with their lumen
                assert all((p.lesion & ~p.organ).mean() < 0.01 for p in drawn)


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_model_on_pixels_stays_below_75_percent(name):
    """At 32 px, for the relevant strengths of regularisation."""
    labels = list(DATASETS[name].classes)

    def pictures(count, start):
        images = [
            phantoms.draw(name, label, start + n, size=64).image
            for label in labels
            for n in range(count)
        ]
        small = [np.asarray(i).reshape(32, 2, 32, 2, -1).mean((1, 3)).ravel() for i in images]
        return np.array(small), np.repeat(labels, count)

    train, train_labels = pictures(200, 0)
    test, test_labels = pictures(80, 5000)
    for strength in (1e-3, 1e-2):
        model = LogisticRegression(C=strength, max_iter=300).fit(
            train - train.mean(0), train_labels
        )
        assert model.score(test - train.mean(0), test_labels) < 0.75


def test_a_phantom_dataset_is_drawn_once_in_the_layout_of_the_real_one(few_phantoms, monkeypatch):
    from kdnb import data

    dataset = data.load("phantom_cxr")
    assert dataset.counts().to_numpy().tolist() == [[*few_phantoms.values()]] * 3
    assert dataset.table["mask"].ne("").all() and dataset.table["organ_mask"].ne("").all()
    assert dataset.caveat == "synthetic"
    reports = dataset.table.set_index("path")["report"]
    case = "phantom_cxr", "COVID-like", 1
    drawn = phantoms.describe(phantoms.draw(*case), *case)
    assert reports["Train/COVID-like/images/train_0001.png"] == drawn and reports.ne("").all()
    assert not dataset.index.problem_counts()["files"].sum(), "the table of reports is known"
    monkeypatch.setattr(phantoms, "draw", lambda *_: pytest.fail("drew an existing dataset again"))
    assert data.load("phantom_cxr").checksum == dataset.checksum
