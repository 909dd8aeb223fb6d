"""Layers, their similarity and linear probes have known values; the audit measures every pair."""

import dataclasses

import numpy as np
import pytest
import torch

from kdnb import data, explanations
from kdnb.explanations import MapParameters, SampleParameters, auditing, layers, registry
from kdnb.models import zoo
from kdnb.study import Study


def test_every_convolution_of_the_papers_student_is_shown():
    assert layers.spatial_layers(zoo.create("kdfmv5", 3, 96)) == [f"acts.{n}" for n in range(5)]
    assert layers.spatial_layers(zoo.create("kdfmv8", 3, 96)) == [f"acts.{n}" for n in range(8)]


@pytest.mark.parametrize(
    "name", ["ofa595", "densenet121", "visformer_small", "autoformerv2_tiny", "resnet10t"]
)
def test_deep_networks_are_shown_block_by_block(name):
    model = zoo.create(name, 3, 96).train()
    shown = layers.spatial_layers(model)
    assert model.training and 4 <= len(shown) <= 40
    few = layers.spatial_layers(model, 5)
    assert len(few) == 5 and few[-1] == shown[-1] and few[0] == shown[0]
    maps = layers.average_maps(model, torch.rand(2, 3, 96, 96), shown)
    sides = [m.shape[1] for m in maps.values()]
    assert all(m.shape[0] == 2 and m.ndim == 3 for m in maps.values())
    assert sides == sorted(sides, reverse=True)


def test_the_average_map_is_the_mean_over_channels():
    model = zoo.create("kdfmv5", 3, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        first = torch.relu(model.network.convs[0]((images - model.mean) / model.std))
    assert np.allclose(
        layers.average_maps(model, images, ["acts.0"])["acts.0"], first.mean(1).numpy(), atol=1e-5
    )


def test_cka_by_construction():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 8))
    turned, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    assert layers.cka(features, 3 * features @ turned + 5) == pytest.approx(1, abs=1e-6)
    other = [layers.cka(features, rng.standard_normal((60, 500))) for _ in range(10)]
    assert abs(np.mean(other)) < 0.1  # many channels and few images must not look similar
    assert np.isnan(layers.cka(features, np.ones((60, 3))))
    with pytest.raises(ValueError, match="4 images"):
        layers.cka(features[:3], features[:3])


def test_the_cka_gain_has_the_sign_and_interval_of_the_difference():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(48), 2)
    teacher, noise = rng.standard_normal((96, 8)), rng.standard_normal((2, 96, 8))
    near, far = teacher + noise[0], noise[1]
    found = layers.cka_gain(teacher, near, far, groups)
    assert found["low"] > 0.1 and found["n"] == 96
    assert found["mean"] == pytest.approx(layers.cka(teacher, near) - layers.cka(teacher, far))
    back = layers.cka_gain(teacher, far, near, groups)
    assert back["high"] < 0 and back["low"] == pytest.approx(-found["high"])
    assert layers.cka_gain(teacher, far, far, groups) == {"mean": 0, "low": 0, "high": 0, "n": 96}
    assert layers.cka_gain(np.ones((96, 8)), near, far, groups)["mean"] is None


def test_probes_tell_layers_that_separate_from_layers_that_do_not():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    features = {
        "noise": rng.standard_normal((120, 5)),
        "classes": np.eye(3)[labels] + 0.1 * rng.standard_normal((120, 3)),
    }
    table = layers.linear_probes(
        features, labels, {k: v[::2] for k, v in features.items()}, labels[::2]
    )
    assert table["layer"].tolist() == ["noise", "classes"] and table["depth"].tolist() == [0, 1]
    assert table["balanced_accuracy"][1] == 1 and table["balanced_accuracy"][0] < 0.8


@pytest.fixture
def audited():
    torch.manual_seed(0)
    networks = {
        "teacher resnet10t": zoo.create("resnet10t", 3, 64),
        "distilled kdfmv5": zoo.create("kdfmv5", 3, 64),
    }
    images = torch.rand(6, 3, 64, 64)
    lesion = np.zeros((6, 64, 64), bool)
    lesion[:4, 20:30, 20:30] = True
    methods = {"grad_cam": {}, "saliency": {}, "centre": {}}
    return explanations.audit(
        networks, images, np.zeros(6, int), methods, lesion, np.ones_like(lesion), steps=4
    )


def test_the_audit_measures_every_pair(audited):
    summary = audited.summary()
    assert set(summary["model"]) == {"teacher resnet10t", "distilled kdfmv5"}
    assert set(summary["method"]) == {"grad_cam", "saliency", "centre"}
    assert set(explanations.MEASURES) | {"area", "empty"} == set(summary["measure"])
    assert len(audited.values) == 2 * 3 * 6 * summary["measure"].nunique()
    lesions = summary[summary["measure"] == "pointing"]
    assert (lesions["n"] <= 4).all()  # images without a lesion have nothing to point at
    assert np.allclose(audited.of("teacher resnet10t", "centre", "outside"), 0, atol=1e-6)


def test_explanations_are_timed_by_turns(monkeypatch):
    timed, networks = (
        [],
        {"teacher x": zoo.create("kdfmv5", 2, 32), "distilled y": zoo.create("kdfmv8", 2, 32)},
    )
    monkeypatch.setattr(
        auditing,
        "explain",
        lambda model, images, method, *_, **__: timed.append((method, model.name, len(images))),
    )
    found = explanations.execution_times(
        networks,
        torch.zeros(4, 3, 32, 32),
        np.zeros(4, int),
        {"grad_cam": {}, "centre": {}, "shap": {}},
    )
    turns = [
        (method, network.name, count)
        for method in ("grad_cam", "shap")
        for count in (1, *[4] * auditing.ROUNDS)
        for network in networks.values()
    ]
    assert timed == turns  # controls are not timed
    assert (
        found["method"].tolist() == ["grad_cam"] * 2 + ["shap"] * 2 and (found["seconds"] > 0).all()
    )


def test_an_empty_map_is_counted_and_left_out_of_the_means(monkeypatch):
    known = registry.METHODS["centre"]
    blank = dataclasses.replace(known, run=lambda job: torch.zeros(len(job.x), 64, 64))
    monkeypatch.setitem(registry.METHODS, "centre", blank)
    network, images = {"teacher x": zoo.create("kdfmv5", 2, 64)}, torch.rand(3, 3, 64, 64)
    found = explanations.audit(network, images, np.zeros(3, int), {"centre": {}}, steps=2)
    summary = found.summary().set_index("measure")
    assert summary.loc["empty", "mean"] == 1 and summary.loc["deletion", "n"] == 0


def test_panels_hold_the_maps_of_chosen_images_with_their_class(audited):
    probabilities = {name: np.full((6, 3), 1 / 3) for name in audited.explanations}
    names, rows = {"grad_cam": "Grad-CAM", "saliency": "Saliency"}, np.array([0, 2])
    roles = {"teacher resnet10t": "teacher", "distilled kdfmv5": "distilled"}
    columns, titles, signed = audited.panels(names, rows, ("a", "b", "c"), probabilities, roles)
    assert len(columns) == 4 and signed == []
    assert titles["teacher\nGrad-CAM"] == ["a 0.33", "a 0.33"]


def test_samples_are_balanced_and_the_same_each_time(folder):
    mine = data.load("folder", folder)
    rows = mine.sample("test", 12)
    assert (rows == mine.sample("test", 12)).all() and (
        mine.table["split"].iloc[rows] == "test"
    ).all()
    assert np.bincount(mine.labels[rows]).tolist() == [4, 4, 4]
    assert len(mine.sample("test", 1000)) == 27
    assert mine.masks(32, "mask", rows) is None


def test_shuffled_labels_keep_images_splits_and_counts(folder):
    mine = data.load("folder", folder)
    other = mine.shuffled()
    assert other.checksum != mine.checksum and (other.table["path"] == mine.table["path"]).all()
    assert (other.table["label"] != mine.table["label"]).mean() > 0.4
    assert other.counts().equals(mine.counts())


def test_the_profile_sets_how_many_images_and_masks_are_explained(home):
    study = Study.of(SampleParameters, MapParameters)
    assert study(profile="smoke").explained == 6 and study(profile="paper").channels == 0
    with pytest.raises(ValueError, match="explained must lie between 4"):
        study(explained=2)
