"""Shortcuts on images with a known shortcut: a bright frame, a blanked organ, sizes by class."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import paint
from PIL import Image

from kdnb import data
from kdnb.evaluation import shortcuts
from kdnb.models import zoo


def test_a_view_keeps_its_part_of_the_image():
    images = torch.randint(0, 256, (2, 1, 50, 50), dtype=torch.uint8)
    organ = torch.zeros(2, 50, 50, dtype=torch.bool)
    organ[:, 20:30, 20:30] = True
    inner = images[:, :, 6:44, 6:44]
    fill = ((images.float().sum((2, 3)) - inner.float().sum((2, 3))) / (50**2 - 38**2)).round()
    border = shortcuts.keep_view("border only", images)
    assert (
        torch.equal(border[:, :, :6], images[:, :, :6])
        and (border[:, :, 6:44, 6:44] == fill[:, :, None, None]).all()
    )
    centre = shortcuts.keep_view("centre only", images)
    fill = inner.float().mean((2, 3)).round()
    assert (
        torch.equal(centre[:, :, 6:44, 6:44], inner)
        and (centre[:, :, :6] == fill[:, :, None, None]).all()
    )
    blanked, only = (
        shortcuts.keep_view(view, images, organ) for view in ("organ blanked", "organ only")
    )
    assert (blanked[:, 0][organ].view(2, -1).float().std(1, correction=0) == 0).all()
    assert torch.equal(only[:, 0][organ], images[:, 0][organ])
    assert torch.equal(shortcuts.keep_view("whole image", images), images)
    assert (
        shortcuts.keep_view("lesion blanked", images, organ) is None
        and shortcuts.keep_view("organ only", images) is None
    )
    with pytest.raises(ValueError, match="unknown view 'border'. Did you mean 'border only'"):
        shortcuts.keep_view("border", images)


@pytest.fixture
def framed(home):
    """Two classes of noise that differ only in the grey of their frame."""
    seed = 0
    for split, count in (("train", 40), ("test", 20)):
        for label, level in (("a", 60), ("b", 190)):
            for _ in range(count):
                seed += 1
                path = paint(home / "data" / "framed" / split / label / f"{seed}.png", seed, 100)
                values = np.asarray(Image.open(path)).copy()
                edge = np.ones_like(values, bool)
                edge[3:-3, 3:-3] = False
                values[edge] = level
                Image.fromarray(values).save(path)
    return data.load("folder", home / "data" / "framed")


def test_a_shortcut_in_the_frame_is_found(framed):
    table = shortcuts.score_forests(framed, trees=40).set_index("view")
    assert table.loc["border only", "balanced_accuracy"] == 1
    assert table.loc["centre only", "balanced_accuracy"] < 0.8
    assert {"whole image", "border only", "centre only", "statistics only"} == set(table.index)
    assert (table["low"] <= table["balanced_accuracy"]).all() and (table["n"] == 40).all()


def test_groups_widen_the_interval(framed):
    test = framed.table["split"] == "test"
    labels = framed.labels[test]
    copies = (
        pd.Series(labels).groupby(labels).cumcount().to_numpy() // 4
    )  # five groups of four with equal predictions
    logits = np.eye(2)[labels ^ (copies % 2)]

    def width(groups):
        numbers = np.full(len(test), 1000)
        numbers[test] = groups
        score = shortcuts.accuracy(
            dataclasses.replace(framed, table=framed.table.assign(group=numbers)),
            "test",
            labels,
            logits,
        )
        return score["high"] - score["low"]

    assert width(labels * 5 + copies) > 1.5 * width(np.arange(len(labels)))


def test_networks_are_scored_on_every_view(framed):
    class Frame(torch.nn.Module):
        """Answers by the grey of one corner."""

        def forward(self, x):
            corner = x[:, :, :3, :3].mean((1, 2, 3))
            return torch.stack([-corner, corner], 1) * 10

    entry = dataclasses.replace(zoo.resolve("kdfmv5"))
    network = zoo.Classifier("corner", Frame(), 2, 64, entry)
    table = shortcuts.score_networks({"teacher corner": network}, framed).set_index("view")
    assert (
        table.loc["whole image", "balanced_accuracy"]
        == table.loc["border only", "balanced_accuracy"]
        == 1
    )
    assert table.loc["centre only", "balanced_accuracy"] < 0.8


def test_image_statistics(framed):
    values = shortcuts.image_statistics(framed)
    assert values.shape == (120, 5 + len(shortcuts.PERCENTILES)) and np.isfinite(values).all()
    assert (values[:, 0] == 40).all() and (values[:, 2] == 1).all()
