"""Recalibrated batch-norm statistics: correct, repeatable, and part of every training."""

import copy

import pytest
import torch
from torch import nn

from kdnb import data
from kdnb.distillation import create
from kdnb.models import ofa, zoo
from kdnb.study import Study
from kdnb.training import batch_norm, loop


def statistics(model):
    return {
        name: value
        for name, value in model.named_buffers()
        if name.rsplit(".", 1)[-1].startswith("running")
    }


def test_statistics_are_those_of_the_images_and_weights_stay():
    torch.manual_seed(0)
    student = zoo.create("ofa595", 3, 32)
    weights = {name: value.clone() for name, value in student.named_parameters()}
    images = 0.2 * torch.rand(128, 3, 32, 32) + 0.4
    found = batch_norm.recalibrate(student, images)
    assert found is student and not any(module.training for module in student.modules())
    assert all(torch.equal(value, weights[name]) for name, value in student.named_parameters())
    stem = student.network.first_conv
    with torch.no_grad():
        seen = stem.conv((images - student.mean) / student.std)
    torch.testing.assert_close(stem.bn.running_mean, seen.mean((0, 2, 3)), rtol=0.05, atol=0.02)
    assert stem.bn.momentum == 0.1
    once = copy.deepcopy(statistics(student))
    assert all(
        torch.equal(value, once[name])
        for name, value in statistics(batch_norm.recalibrate(student, images)).items()
    )


def test_one_image_more_than_a_batch_counts_as_one_image():
    torch.manual_seed(0)
    student = zoo.create("ofa595", 3, 32)  # its last map is 1 x 1
    images = torch.cat([0.1 * torch.rand(64, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    stem = batch_norm.recalibrate(student, images).network.first_conv
    with torch.no_grad():
        seen = stem.conv((images - student.mean) / student.std)
    torch.testing.assert_close(stem.bn.running_mean, seen.mean((0, 2, 3)), rtol=0.02, atol=0.01)


def test_dropout_is_inactive():
    torch.manual_seed(0)
    images, plain = torch.rand(64, 3, 32, 32), zoo.create("resnet10t", 3, 32)
    dropping = copy.deepcopy(plain)
    dropping.network.maxpool = nn.Sequential(nn.Dropout(0.9), dropping.network.maxpool)
    found = list(statistics(batch_norm.recalibrate(dropping, images)).values())
    assert all(map(torch.equal, found, statistics(batch_norm.recalibrate(plain, images)).values()))


def test_a_supernet_is_recalibrated_for_its_largest_subnet():
    torch.manual_seed(0)
    images, supernet = torch.rand(64, 3, 32, 32), zoo.create("ofa-supernet", 3, 32)
    largest = zoo.create(ofa.LARGEST.name, 3, 32)
    largest.network.load_state_dict(supernet.network.whole.state_dict())
    found = list(statistics(batch_norm.recalibrate(supernet, images)).values())
    assert all(
        map(torch.equal, found, statistics(batch_norm.recalibrate(largest, images)).values())
    )


def test_images_are_training_images_unaugmented_and_shuffled(folder):
    mine = data.load("folder", folder)
    images = batch_norm.calibration_images(mine, 32)
    assert (
        torch.equal(images, batch_norm.calibration_images(mine, 32)) and len(images) == 72
    )  # all there are
    train = mine.pixels(32, "train").batches(72)
    (all_, _, _), *_ = train
    assert torch.equal(images.flatten(1).sum(1).sort().values, all_.flatten(1).sum(1).sort().values)
    # grey level tells the classes apart: in the order of labels the first batch of 24 would be all
    # dark
    assert images[:24].mean((1, 2, 3)).std() > 0.1


def test_training_ends_with_statistics_of_clean_images(folder):
    mine = data.load("folder", folder)
    study = Study(dataset="folder", data_root="mine", image_size=32, batch_size=16)
    run = loop.fit(study, mine, "resnet10t", create("hard"), 2)
    kept = copy.deepcopy(statistics(run.model))
    again = statistics(batch_norm.recalibrate(run.model, batch_norm.calibration_images(mine, 32)))
    assert kept and all(torch.equal(value, again[name]) for name, value in kept.items())


def test_a_network_without_batch_norm_is_not_run(monkeypatch):
    student = zoo.create("kdfmv5", 3, 32)
    monkeypatch.setattr(student.network, "forward", lambda *_: pytest.fail("run"))
    batch_norm.recalibrate(student, torch.rand(4, 3, 32, 32))
