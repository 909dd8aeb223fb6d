"""EFCM: the projector, the distance in closed form, the two stages."""

import shutil

import pytest
import torch
from conftest import study
from safetensors.torch import load_file
from test_training import killed_after

from kdnb.distillation import Course, Seen, create
from kdnb.distillation.efcm import EFCM, Projector, feature_distance
from kdnb.models import zoo
from kdnb.training import loop
from kdnb.training.teachers import Asked

LABELS = torch.tensor([0, 1, 2, 0])
STUDENT = zoo.create("kdfmv5", 3, 32)


def answer(width, side, count=4, classes=3):
    return Seen(torch.randn(count, classes), (torch.randn(count, width, side, side),))


def built(student, *teachers, epochs=4, **options):
    torch.manual_seed(0)
    efcm = create("efcm", **options)
    efcm.build(student, teachers, Course(torch.zeros(9).long(), epochs, STUDENT))
    return efcm


def test_the_distance_by_hand():
    # over two channels any cell with a > b is normalised to (1, −1), with a < b to (−1, 1)
    first = torch.tensor([4.0, 2.0]).view(1, 2, 1, 1)
    assert feature_distance(first, 10 * first + 3).item() == pytest.approx(0, abs=1e-6)
    # both differ by 2: 2 − beta/2 above beta, 2²/(2 beta) below
    other = -first
    assert feature_distance(first, other).item() == pytest.approx(1.5, rel=1e-4)
    assert feature_distance(first, other, beta=4.0).item() == pytest.approx(0.5, rel=1e-4)


def test_the_distance_compares_cells_not_images():
    maps = torch.randn(2, 5, 3, 3)
    assert feature_distance(maps, maps.flip(3)) > 0.1
    scales = torch.rand(2, 1, 3, 3) + 0.5
    assert feature_distance(maps, maps * scales).item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("side", [1, 2, 7])
def test_the_projector_gives_the_teachers_width_on_any_grid(side):
    projector = Projector(6, 20)
    assert projector(torch.randn(1, 6, side, side)).shape == (1, 20, side, side)


def test_the_gate_chooses_among_the_branches():
    """Branches that are multiples of the input, and a gate that is closed for all but one."""
    projector = Projector(3, 3)
    torch.nn.init.dirac_(projector.widen.weight)
    torch.nn.init.zeros_(projector.widen.bias)
    for number, branch in enumerate(projector.branches):
        torch.nn.init.dirac_(branch.weight, groups=3)
        branch.weight.data *= number + 1
        torch.nn.init.zeros_(branch.bias)
    torch.nn.init.zeros_(projector.select.weight)
    projector.block = torch.nn.Identity()
    x = torch.randn(2, 3, 4, 4)
    for chosen in range(3):
        bias = torch.full((3, 3), -100.0)
        bias[chosen] = 100.0
        projector.select.bias.data = bias.flatten()
        assert torch.allclose(projector(x), x + (chosen + 1) * x, atol=1e-5)


def test_the_stages_and_what_learns_in_each():
    student, teachers = answer(6, 4), [answer(10, 2), answer(16, 8), answer(4, 4)]
    student.features[0].requires_grad_()
    student.logits.requires_grad_()
    efcm = built(student, *teachers, teacher_weights=(1.0, 2.0, 1.0))
    for epoch in range(4):
        efcm.zero_grad()
        student.features[0].grad = student.logits.grad = None
        efcm.start_epoch(epoch, STUDENT)
        parts = efcm.loss(*efcm.embed(torch.empty(0), student, teachers), LABELS)
        parts["loss"].backward()
        imitating = epoch < 2
        expected = parts["feature_loss"] if imitating else parts["hard_loss"]
        assert parts["loss"].item() == expected.item() and expected > 0
        assert efcm.selectable(epoch) != imitating
        assert all(weights.grad is not None for weights in efcm.parameters())
        assert any(weights.grad.any() for weights in efcm.parameters()) == imitating
        assert bool(student.logits.grad.any()) != imitating
        assert (student.features[0].grad is not None) == imitating
    other = [Seen(each.logits, each.features) for each in teachers]
    efcm.start_epoch(0, STUDENT)
    maps, targets = efcm.embed(torch.empty(0), student, other)
    pairs = zip(maps.features, targets, strict=True)
    terms = [feature_distance(own, target.features[0]) for own, target in pairs]
    mean = (terms[0] + 2 * terms[1] + terms[2]) / 4
    assert efcm.loss(maps, targets, LABELS)["loss"].item() == pytest.approx(mean.item())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_image_and_two_classes(precision):
    student, teacher = answer(6, 1, 1, 2), answer(8, 1, 1, 2)
    efcm = built(student, teacher)
    efcm.start_epoch(0, STUDENT)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        embedded = efcm.embed(torch.empty(0), student, [teacher])
    loss = efcm.loss(*embedded, torch.tensor([1]))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(weights.grad).all() for weights in efcm.parameters())


def test_stage_2_asks_no_teacher_and_learns_the_same(mine, monkeypatch):  # noqa: F811
    wanted = study(
        method="efcm", teacher="kdfmv5", teacher_epochs=1, student_epochs=2, batch_size=36
    )
    trained, asked = loop.train_teachers(wanted, mine), []
    ask = Asked.__call__
    monkeypatch.setattr(Asked, "__call__", lambda *given: asked.append(1) or ask(*given))
    first = loop.distil(wanted, mine, trained)
    sparing = len(asked)
    shutil.rmtree(first.folder)
    monkeypatch.setattr(EFCM, "asks_teachers", lambda self, epoch: True)
    again = loop.distil(wanted, mine, trained)
    assert again.checksum == first.checksum and len(asked) - sparing == 2 * sparing > 0


def test_no_share_of_stage_1_is_cross_entropy():
    efcm = built(answer(6, 4), answer(10, 2), feature_share=0.0)
    efcm.start_epoch(0, STUDENT)
    assert efcm.selectable(0) and not efcm.imitating


def test_an_interrupted_run_ends_as_an_uninterrupted_one(mine, monkeypatch):
    """Killed in stage 1; the projector is in the checkpoint and not in the network that is kept."""
    wanted = study(
        method="efcm", teacher="kdfmv5", teacher_epochs=1, student_epochs=4, batch_size=36
    )
    trained = loop.train_teachers(wanted, mine)
    whole = loop.distil(wanted, mine, trained)
    names = set(load_file(whole.folder / "best.safetensors"))
    assert names == set(STUDENT.network.state_dict()) and whole.record["best_epoch"] > 2
    assert whole.history["feature_loss"].iloc[1] < whole.history["feature_loss"].iloc[0]
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(1, patch)
        loop.distil(wanted, mine, trained)
    kept = load_file(whole.folder / "last.safetensors")
    assert any(name.startswith("method.projectors.0.branches.2") for name in kept)
    assert loop.distil(wanted, mine, trained).checksum == whole.checksum
