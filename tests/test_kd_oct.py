"""KD-OCT: its losses in closed form, timm's augmentations under a generator, and the recipes."""

import dataclasses
import math
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import study
from safetensors.torch import load_file
from test_training import killed_after

from kdnb import device
from kdnb.distillation import Batch, Course, Seen, create, hard_loss
from kdnb.distillation.base import Lesson
from kdnb.distillation.focal import focal_loss
from kdnb.images.augmentation import RandAugment, drawn_from, mixed
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.parameters import BadParameter
from kdnb.training import loop, recipes
from kdnb.training.schedule import Settings, learning_rate
from kdnb.training.trio import trio

LABELS = torch.tensor([0, 1, 2, 0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_students_loss_is_the_papers():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    found = create("kd_oct").loss(Seen(student), [Seen(teacher)], LABELS)["loss"]
    targets = F.softmax(teacher / 4, 1)
    divergence = (targets * (targets.log() - F.log_softmax(student / 4, 1))).sum(1).mean()
    expected = 0.7 * 16 * divergence + 0.3 * F.cross_entropy(student, LABELS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, student)
    one_hot = F.one_hot(LABELS, 3)
    closed = 0.7 * 4 * (F.softmax(student / 4, 1) - targets) / 4
    closed = closed + 0.3 * (F.softmax(student, 1) - one_hot) / 4
    assert torch.allclose(gradient, closed, atol=1e-6)


@pytest.mark.parametrize("flips", ["", "h", "v", "hv"])
def test_the_answer_for_mirror_images_is_their_mean(mine, flips):  # noqa: F811
    pixels = mine.pixels(32, "test")
    model = zoo.create("resnet10t", 3, 32).eval()
    axes = {"": [()], "h": [(), (3,)], "v": [(), (2,)], "hv": [(), (3,), (2,), (3, 2)]}[flips]
    with torch.inference_mode():
        images = pixels.floats(pixels.rows)
        expected = torch.stack([model(images.flip(each)) for each in axes]).mean(0).numpy()
    found = predict(model, pixels, 7, flips=flips)
    tolerance = 1e-4 if device.precision() == "no" else 5e-2
    assert np.allclose(found, expected, atol=tolerance * np.abs(expected).max())
    plain = predict(model, pixels, 7)
    assert np.array_equal(found, plain) == (flips == "")
    with pytest.raises(ValueError, match="made of h and v"):
        predict(model, pixels, flips="d")


def test_only_teachers_are_tested_on_mirror_images(mine):  # noqa: F811
    spec = dataclasses.replace(mine.spec, flips="h")
    mirrored = dataclasses.replace(mine, spec=spec)
    plain = study(teacher="kdfmv5", teacher_epochs=1, student_epochs=1)
    wanted = dataclasses.replace(plain, teacher_flips=True)
    first, second = (trio(each, mirrored).test(mirrored).logits for each in (plain, wanted))
    pixels = mirrored.pixels(plain.image_size, "test")
    teacher = trio(wanted, mirrored).teachers[0]
    expected = predict(teacher.model, pixels, flips="h")
    assert np.array_equal(second["teacher kdfmv5"], expected)
    assert not np.array_equal(first["teacher kdfmv5"], expected)
    for name in ("distilled kdfmv5", "baseline kdfmv5"):
        assert np.array_equal(first[name], second[name])
    with pytest.raises(BadParameter, match="no mirror image"):
        wanted.mirrored(dataclasses.replace(mine, spec=dataclasses.replace(spec, flips="")))


def test_focal_loss_by_hand():
    # p = (3/4, 1/4): −log(3/4) · (1/4)² for the first class, −log(1/4) · (3/4)² for the second
    logits = torch.tensor([[math.log(3), 0.0]]).expand(2, 2)
    labels = torch.tensor([0, 1])
    first, second = -math.log(0.75) / 16, -math.log(0.25) * 9 / 16
    assert focal_loss(logits, labels, 2.0).item() == pytest.approx((first + second) / 2)
    weighted = focal_loss(logits, labels, 2.0, torch.tensor([0.5, 1.5]))
    assert weighted.item() == pytest.approx((0.5 * first + 1.5 * second) / 2)
    shares = torch.tensor([[0.9, 0.1]])
    mixture = focal_loss(logits[:1], shares, 2.0).item()
    assert mixture == pytest.approx(0.9 * first + 0.1 * second)


def test_focal_loss_without_focus_is_cross_entropy():
    torch.manual_seed(0)
    logits, shares = torch.randn(4, 3), torch.rand(4, 3)
    for labels in (LABELS, shares / shares.sum(1, keepdim=True)):
        assert torch.allclose(focal_loss(logits, labels, 0.0), hard_loss(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal_loss_stays_finite_at_certain_answers(gamma, dtype):
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], dtype=dtype, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert loss.item() == pytest.approx(500, rel=1e-3)


def test_mixed_labels_are_the_shares_of_the_images():
    """Images of a constant level mix to the level that the labels' shares state."""
    levels = torch.tensor([0.0, 0.3, 0.6, 0.9])
    images = levels.view(4, 1, 1, 1).expand(-1, 3, 8, 8)
    kept = images.clone()
    for seed, (mixup, cutmix) in enumerate([(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)] * 3):
        found, shares = mixed(images, torch.arange(4), 4, mixup, cutmix, 0.0, generator(seed))
        assert torch.allclose(found.mean((1, 2, 3)), shares @ levels, atol=1e-5)
        assert torch.equal(images, kept), "the batch itself was changed"


def test_an_odd_batch_is_mixed_and_smoothed():
    for count in (1, 5):
        images = torch.rand(count, 3, 8, 8)
        labels = torch.arange(count) % 2
        found, shares = mixed(images, labels, 2, 0.4, 1.0, 0.1, generator())
        assert found.shape == images.shape and torch.allclose(shares.sum(1), torch.ones(count))
    found, shares = mixed(images, labels, 2, 0.0, 0.0, 0.1, generator())
    assert torch.equal(found, images)
    assert torch.allclose(shares, 0.9 * F.one_hot(labels, 2) + 0.05, atol=1e-6)


@pytest.mark.parametrize("grey", [True, False])
def test_rand_augment_follows_from_its_generator(grey):
    images = torch.rand(6, 1 if grey else 3, 32, 32).expand(-1, 3, -1, -1)
    views = RandAugment(2, 9)
    first, again, other = (views(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
    assert not grey or torch.equal(first[:, 0], first[:, 2])


def test_global_random_numbers_go_on_as_before():
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with drawn_from(generator()):
        drawn = random.random(), np.random.rand()  # noqa: NPY002
    with drawn_from(generator()):
        assert drawn == (random.random(), np.random.rand())  # noqa: NPY002
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def built(epochs=4, **options):
    network = zoo.create("kdfmv5", 2, 32)
    focal = create("focal", **options)
    focal.build(Seen(torch.zeros(2, 2)), [], Course(torch.zeros(4).long(), epochs, network))
    return focal, network


def test_the_average_of_the_last_epochs_is_what_is_kept():
    focal, network = built(epochs=4, averaged_from=0.5)
    weights = next(network.network.parameters())
    with torch.no_grad():
        for epoch in range(4):
            weights.fill_(epoch)
            focal.end_epoch(epoch, network)
    assert torch.all(weights == 2.5)  # of epochs 2 and 3
    assert [focal.selectable(epoch) for epoch in range(4)] == [False] * 3 + [True]
    plain, _ = built(epochs=4)
    assert not list(plain.parameters()) and plain.selectable(0)


def test_focal_changes_a_batch_of_two_classes():
    focal, network = built()
    batch = Batch(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 1]), torch.arange(3))
    found = focal.change_batch(batch, network, generator())
    assert found.labels.shape == (3, 2) and torch.equal(found.rows, batch.rows)
    assert torch.isfinite(focal.loss(Seen(torch.randn(3, 2)), [], found.labels)["loss"])


SETTINGS = Settings(epochs=30, batch_size=8, lr=1e-4, seed=0, pretrained=True)


def test_the_teachers_rates_are_the_papers():
    recipe, lesson = (
        recipes.TEACHERS["kd_oct"],
        Lesson(zoo.create("resnet10t", 3, 32), create("hard")),
    )
    groups = recipe.groups(lesson, SETTINGS)
    every = {id(weights) for weights in lesson.parameters()}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(every)
    fast = {id(p) for group in groups if group["rate"] == 1 for p in group["params"]}
    assert fast == {id(p) for p in lesson.student.network.fc.parameters()}
    steps, peak = 300, 30  # warm-up is a tenth
    for share, expected in ((1.0, 1e-4), (0.2, 2e-5)):
        assert recipe.rate(peak, steps, SETTINGS, share) == pytest.approx(expected)
        late = [recipe.rate(step, steps, SETTINGS, share) for step in (200, 299)]
        assert late == pytest.approx([1e-5, 1e-5])
    assert recipe.rate(199, steps, SETTINGS) == learning_rate(199, steps, SETTINGS)


def test_random_weights_have_one_rate():
    settings = dataclasses.replace(SETTINGS, pretrained=False)
    lesson = Lesson(zoo.create("kdfmv5", 3, 32), create("hard"))
    groups = recipes.TEACHERS["kd_oct"].groups(lesson, settings)
    assert not any("rate" in group for group in groups)
    assert recipes.classifier(lesson.student).out_features == 3


def test_recipes_state_the_papers_settings():
    student = recipes.STUDENTS["kd_oct"].adapted(dataclasses.replace(SETTINGS, epochs=100))
    assert (student.weight_decay, student.patience, student.warmup) == (0.01, 20, 0.05)
    short = recipes.STUDENTS["kd_oct"].adapted(dataclasses.replace(SETTINGS, epochs=2))
    assert short.warmup == 0.5
    teacher = recipes.TEACHERS["kd_oct"].adapted(SETTINGS)
    assert (teacher.weight_decay, teacher.patience) == (0.05, 30)
    assert recipes.PLAIN.adapted(SETTINGS) == SETTINGS and recipes.PLAIN.key == {}


def test_an_unknown_recipe_is_refused_with_the_nearest():
    for name in ("recipe", "teacher_recipe"):
        with pytest.raises(ValueError, match="Did you mean 'kd_oct'"):
            study(**{name: "kd_octt"})


def test_a_recipe_is_part_of_the_key(mine, home, monkeypatch):
    folders = []

    def note(folder):
        folders.append(folder.name)
        raise InterruptedError

    monkeypatch.setattr(loop.processes, "exclusive", note)
    trained = loop.Run(zoo.create("resnet10t", 3, 32), pd.DataFrame(), {"weights": "a"}, home)
    for changes in ({}, {"recipe": "kd_oct"}, {"teacher_recipe": "kd_oct"}):
        for work in (loop.train_teachers, lambda s, d: loop.distil(s, d, [trained])):
            with pytest.raises(InterruptedError):
                work(study(**changes), mine)
    teachers, students = folders[::2], folders[1::2]
    assert teachers[0] == teachers[1] != teachers[2] and teachers[2].startswith("resnet10t-focal")
    assert students[0] == students[2] != students[1]


def test_an_interrupted_teacher_of_the_recipe_ends_as_an_uninterrupted_one(
    mine,
    monkeypatch,
):
    """Killed while weights are averaged; with odd batches, mixing and RandAugment."""
    wanted = study(teacher="kdfmv5", teacher_recipe="kd_oct", teacher_epochs=4, batch_size=25)
    (whole,) = loop.train_teachers(wanted, mine)
    assert whole.record["best_epoch"] == 4
    assert (whole.history["loss"] < whole.history["hard_loss"]).all()
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(3, patch)
        loop.train_teachers(wanted, mine)
    kept = load_file(whole.folder / "last.safetensors")
    assert kept["method.average.n_averaged"] == 1
    (resumed,) = loop.train_teachers(wanted, mine)
    assert resumed.checksum == whole.checksum
    student = loop.distil(
        dataclasses.replace(wanted, recipe="kd_oct", method="kd_oct", alpha=None, temperature=None),
        mine,
        [resumed],
    )
    assert student.record["key"]["settings"]["weight_decay"] == 0.01
