"""Neighbouring slices of one scan: found where labels or numbers tell chance, else nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from kdnb.images import tables
from kdnb.leakage import slices

SIDE = 96
PATIENTS, EACH = 60, 6


def scans(own=1.0, classes=2):
    """Thumbnails of slices, their patients and labels. Patients share the head's shape; ``own`` is
    the part of the fine detail that is a patient's own, and it changes from slice to slice."""
    rng = np.random.default_rng(0)
    head = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 8) * 300

    def texture():
        return gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1) * 60

    common, images = texture(), []
    for _ in range(PATIENTS):
        first, last = texture(), texture()
        for turn in np.linspace(0, np.pi / 2, EACH):
            detail = first * np.cos(turn) + last * np.sin(turn)
            images.append(128 + head + own * detail + (1 - own) * common)
    patient = np.repeat(np.arange(PATIENTS), EACH)
    return np.clip(images, 0, 255).astype(np.uint8), patient, patient % classes


def found(thumbs, labels, group, order=None):
    """The links; ``order`` numbers the names, else names have no numbers."""
    names = order if order is not None else [chr(200 + row) for row in range(len(thumbs))]
    table = pd.DataFrame({"path": [f"a/{name}.png" for name in names], "label": labels})
    return slices.find(thumbs, table, group)


def alone(count):
    return np.arange(count)


def test_slices_of_one_scan_are_joined_and_scans_are_not():
    thumbs, patient, label = scans()
    links = found(thumbs, label, alone(len(thumbs)))
    ends = links[["first", "second"]].to_numpy()
    assert (patient[ends[:, 0]] == patient[ends[:, 1]]).all()
    assert (tables.join(ends, len(thumbs)) == patient).all()
    assert (
        links["correlation"].is_monotonic_decreasing and links["correlation"].min() >= slices.LOWEST
    )


def test_what_is_in_one_group_already_is_no_new_link():
    thumbs, patient, label = scans()
    assert found(thumbs, label, patient).empty


@pytest.mark.parametrize("labels", ["one class", "drawn by chance"])
def test_labels_that_cannot_tell_chance_find_nothing(labels):
    thumbs, _, label = scans()
    label = label * 0 if labels == "one class" else np.random.default_rng(1).permutation(label)
    assert found(thumbs, label, alone(len(thumbs))).empty


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_numbers_tell_where_labels_cannot(order):
    thumbs, patient, label = scans()
    numbers = alone(len(thumbs))
    if order == "shuffled":
        numbers = np.random.default_rng(1).permutation(numbers)
    ends = found(thumbs, label * 0, alone(len(thumbs)), numbers)[["first", "second"]].to_numpy()
    if order == "shuffled":
        assert not len(ends)
    else:
        assert (patient[ends[:, 0]] == patient[ends[:, 1]]).all()
        assert (tables.join(ends, len(thumbs)) == patient).all()


def test_patients_who_look_alike_are_not_joined():
    thumbs, patient, label = scans(
        own=0.3
    )  # five sixths of the detail's variance are all patients'
    ends = found(thumbs, label, alone(len(thumbs)))[["first", "second"]].to_numpy()
    assert len(ends) and (patient[ends[:, 0]] == patient[ends[:, 1]]).mean() > 0.98


def test_a_class_in_its_own_frame_does_not_become_one_group():
    thumbs, patient, label = scans()
    thumbs = np.where((label == 0)[:, None, None], thumbs // 4 + thumbs[0] * 3 // 4, thumbs)
    ends = found(thumbs.astype(np.uint8), label, alone(len(thumbs)))
    group = tables.join(ends[["first", "second"]].to_numpy(), len(thumbs))
    assert np.bincount(group).max() <= slices.LARGEST * len(thumbs)


def test_blank_and_few_images_are_no_trouble():
    for count in (1, 2, 30):
        blank = np.zeros((count, SIDE, SIDE), np.uint8)
        assert found(blank, alone(count) % 2, alone(count)).empty


def test_detail_is_of_mean_zero_and_length_one():
    detail = slices.describe(scans()[0][:5]).astype(np.float32)
    assert np.allclose(detail.mean(axis=1), 0, atol=1e-4)
    assert np.allclose((detail**2).sum(axis=1), 1, atol=5e-3)
