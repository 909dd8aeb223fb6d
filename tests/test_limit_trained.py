"""Teachers of disjoint patients: shards, weights of teachers by image, several runs of one name."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import study

from kdnb.distillation import Course, Seen, create
from kdnb.distillation.limit_trained import feature_divergence, right_shares
from kdnb.images.splits import SplitError
from kdnb.models import zoo
from kdnb.training import loop
from kdnb.training.trio import Trio


def test_the_weights_are_the_teachers_chances_of_the_right_class():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    found = right_shares(logits, labels)
    right = F.softmax(logits, -1)[:, torch.arange(5), labels]
    assert torch.allclose(found, right / right.sum(0), atol=1e-6)
    assert torch.allclose(found, right_shares(logits, F.one_hot(labels, 4).float()), atol=1e-6)


@pytest.mark.parametrize("weighting", ["loss", "equal"])
def test_the_loss_in_closed_form(weighting):
    torch.manual_seed(0)
    student = torch.randn(5, 4, requires_grad=True)
    teachers, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 0, 0])  # class 3 is absent
    method = create("limit_trained", weighting=weighting, teacher_weights=(1.0, 2.0, 1.0))
    found = method.loss(Seen(student), [Seen(each) for each in teachers], labels)
    weights = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.ones(3, 5)
    if weighting == "loss":
        weights = weights * F.softmax(teachers, -1)[:, torch.arange(5), labels]
    weights = weights / weights.sum(0)
    targets = (weights[..., None] * F.softmax(teachers / 4, -1)).sum(0)
    divergence = (targets * (targets.log() - F.log_softmax(student / 4, 1))).sum(1).mean()
    assert found["soft_loss"].item() == pytest.approx(16 * divergence.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(found["soft_loss"], student)
    assert torch.allclose(gradient, 4 * (F.softmax(student / 4, 1) - targets) / 5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["loss", "equal"])
def test_the_divergence_of_maps_in_closed_form(weighting):
    """On the coarser grid of 2×2, with the weights of the soft targets."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    maps = torch.randn(4, 6, 4, 4, requires_grad=True)
    student = Seen(torch.randn(4, 3), (maps,))
    teachers = [Seen(torch.randn(4, 3), (torch.randn(4, c, 2, 2),)) for c in (5, 8)]
    method = create("limit_trained", weighting=weighting, feature_weight=0.7)
    course = Course(labels, 1, zoo.create("kdfmv5", 3, 32))
    method.build(student, teachers, course)
    assert method.taps == 1 and len(method.regressors) == 2
    found = method.loss(*method.embed(torch.empty(0), student, teachers), labels)
    shares = torch.ones(2, 4)
    if weighting == "loss":
        shares = torch.stack([F.softmax(t.logits, 1)[torch.arange(4), labels] for t in teachers])
    terms = []
    for regressor, teacher in zip(method.regressors, teachers, strict=True):
        q = F.softmax(regressor(F.avg_pool2d(maps, 2)), 1)
        p = F.softmax(teacher.features[0], 1)
        terms.append((p * (p / q).log()).sum(1).mean((1, 2)))
    expected = (shares / shares.sum(0) * torch.stack(terms)).sum(0).mean()
    assert found["feature_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    plain = create("limit_trained", weighting=weighting)
    plain.build(student, teachers, course)
    without = plain.loss(*plain.embed(torch.empty(0), student, teachers), labels)
    assert without.keys() == {"loss", "hard_loss", "soft_loss"} and plain.taps == 0
    assert found["loss"].item() == pytest.approx(without["loss"].item() + 0.7 * expected.item())
    found["loss"].backward()
    assert maps.grad.any()
    assert all(weights.grad.any() for weights in method.regressors[0].parameters())


def test_the_divergence_of_equal_maps_is_zero_and_of_large_ones_finite():
    maps = torch.randn(1, 4, 3, 3)
    assert torch.allclose(feature_divergence(maps, maps), torch.zeros(1), atol=1e-6)
    large = (1e4 * maps).bfloat16().requires_grad_()
    loss = feature_divergence(large, -large.detach()).sum()
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert torch.isfinite(large.grad).all()


def test_the_option_leaves_the_key_of_earlier_runs():
    assert create("limit_trained").key == {
        "method": "limit_trained",
        "alpha": 0.5,
        "temperature": 4.0,
        "teacher_weights": None,
    }
    assert create("limit_trained").reads_logits_only() and create("limit_trained").cacheable
    assert not create("limit_trained", feature_weight=1.0).cacheable


def test_one_teacher_makes_it_plain_soft_targets():
    student, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    plain, ours = (
        create(name).loss(Seen(student), [Seen(teacher)], labels)["loss"]
        for name in ("hybrid", "limit_trained")
    )
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_and_certain_teachers_leave_it_finite(dtype):
    """Two classes, one image; all teachers are wrong, and one is more so."""
    student = torch.tensor([[500.0, -500.0]], dtype=dtype, requires_grad=True)
    teachers = [Seen(torch.tensor([[-size, size]], dtype=dtype)) for size in (300.0, 400.0, 500.0)]
    loss = create("limit_trained").loss(Seen(student), teachers, torch.tensor([0]))["loss"]
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def grouped(dataset, sizes):
    """The dataset with training groups of these sizes, class by class."""
    table, group = dataset.table.copy(), 10_000
    for label in dataset.classes:
        rows = table.index[(table["split"] == "train") & (table["label"] == label)]
        for part in np.split(rows, np.cumsum(sizes)[:-1]):
            table.loc[part, "group"] = group
            group += 1
    return dataclasses.replace(dataset, table=table)


def test_shards_are_disjoint_whole_and_complete(mine):
    dataset = grouped(mine, [4] * 6)
    parts = [dataset.shard(number, 3) for number in range(3)]
    groups = [set(part.groups("train")) for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 18
    assert set.union(*groups) == set(dataset.groups("train"))
    for part in parts:
        assert set(part.table.loc[part.table["split"] == "train", "label"]) == set(mine.classes)
        for split in ("val", "test"):
            assert (part.groups(split) == dataset.groups(split)).all()
        sizes = part.table.loc[part.table["split"] == "train", "group"].value_counts()
        assert set(sizes) == {4}, "a group was divided"
    assert len({part.checksum for part in (*parts, dataset)}) == 4
    assert dataset.shard(0, 1) is dataset
    assert (parts[0].table["split"] == dataset.shard(0, 3).table["split"]).all()


def test_a_class_that_a_shard_would_lack_is_named_with_the_way_out(mine):
    with pytest.raises(SplitError, match="class 'dark', which has 2 groups.*-p teacher_shards"):
        grouped(mine, [12, 12]).shard(0, 3)


def test_student_of_three_teachers_of_one_name(mine):
    wanted = study(method="limit_trained", teacher="kdfmv5", student_epochs=1, teacher_epochs=1)
    assert wanted.shards == 3 and dataclasses.replace(wanted, teacher_shards=1).shards == 1
    dataset = grouped(mine, [4] * 6)
    teachers = loop.train_teachers(wanted, dataset)
    assert len({run.checksum for run in teachers}) == len({run.folder for run in teachers}) == 3
    student = loop.distil(wanted, dataset, teachers)
    assert student.record["key"]["teachers"] == [run.checksum for run in teachers]
    assert np.isfinite(student.history["soft_loss"]).all()
    trio = Trio(tuple(teachers), student, loop.train_baseline(wanted, dataset))
    assert trio.teacher_names == tuple(f"teacher kdfmv5 {number}" for number in (1, 2, 3))
    assert len(trio.runs) == 5
    stored = trio.test(dataset).stored()["training"]
    assert [*stored][-2:] == ["distilled kdfmv5", "alone kdfmv5"] and len(stored) == 5


def test_weights_are_one_a_teacher_and_shard():
    study(teacher="resnet10t", teacher_shards=2, teacher_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 teacher_weights for 3 teachers.*3 parts"):
        study(method="limit_trained", teacher_weights=(1.0, 2.0))
