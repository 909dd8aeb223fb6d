"""Losses against numbers worked out by hand, and against the mistakes that public distillation code
is known for."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdnb.distillation.soft_targets import (
    METHODS,
    Objective,
    average,
    hard_loss,
    released_soft_loss,
    soft_loss,
    soft_targets,
)

TEACHING = [name for name, method in METHODS.items() if method.soft]


def logits(*rows, grad=False):
    return torch.tensor(rows, requires_grad=grad)


def test_hard_loss_by_hand():
    # softmax(ln 3, 0) = (3/4, 1/4)
    assert hard_loss(logits([math.log(3), 0.0]), torch.tensor([0])).item() == pytest.approx(
        math.log(4 / 3)
    )
    weighted = hard_loss(
        logits([math.log(3), 0.0], [math.log(3), 0.0]),
        torch.tensor([0, 1]),
        torch.tensor([1.0, 3.0]),
    )
    assert weighted.item() == pytest.approx((math.log(4 / 3) + 3 * math.log(4)) / 4)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_soft_loss_by_hand(temperature):
    # at temperature T the teacher says (3/4, 1/4) and the student (1/2, 1/2)
    teacher, student = logits([temperature * math.log(3), 0.0]), logits([0.0, 0.0])
    expected = temperature**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = soft_loss(student, soft_targets(teacher[None], temperature), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_soft_loss_is_a_mean_over_images_not_over_classes():
    """KL with reduction="mean" would divide by the classes too."""
    teacher, student = torch.randn(1, 4, 3), torch.randn(4, 3)
    once = soft_loss(student, soft_targets(teacher, 2.0), 2.0)
    by_image = [
        soft_loss(student[i : i + 1], soft_targets(teacher[:, i : i + 1], 2.0), 2.0)
        for i in range(4)
    ]
    assert once.item() == pytest.approx(torch.stack(by_image).mean().item(), rel=1e-5)
    again = soft_loss(student.repeat(3, 1), soft_targets(teacher.repeat(1, 3, 1), 2.0), 2.0)
    assert again.item() == pytest.approx(once.item(), rel=1e-5)


def test_the_gradient_is_that_of_the_paper():
    """d/ds T²·KL = T·(p_student − p_teacher) / N, Hinton et al. 2015, equation 2."""
    student, teacher, temperature = torch.randn(5, 4, requires_grad=True), torch.randn(1, 5, 4), 3.0
    soft_loss(student, soft_targets(teacher, temperature), temperature).backward()
    expected = (
        temperature
        * (F.softmax(student / temperature, 1) - F.softmax(teacher[0] / temperature, 1))
        / 5
    )
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)


def test_t_squared_keeps_the_pull_at_high_temperature():
    """Equation 4 of Hinton et al.: for large T the gradient tends to (s − t) / (K·N) of centred
    logits, whatever T is."""
    teacher = torch.tensor([[[1.0, -1.0, 0.0]]])
    for temperature in (50.0, 500.0):
        student = torch.zeros(1, 3, requires_grad=True)
        soft_loss(student, soft_targets(teacher, temperature), temperature).backward()
        assert torch.allclose(student.grad, (student - teacher[0]).detach() / 3, atol=0.01)


def test_a_student_equal_to_its_teacher_loses_nothing():
    z = torch.randn(6, 5)
    assert soft_loss(z, soft_targets(z[None], 4.0), 4.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gaps_of_500_stay_finite(dtype):
    student = torch.tensor([[500.0, 0.0, -500.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[[-500.0, 0.0, 500.0]]], dtype=dtype)
    for name in METHODS:
        parts = Objective(name, temperature=1.0)(student, torch.tensor([2]), teacher)
        assert all(
            torch.isfinite(value) and value.dtype == torch.float32 for value in parts.values()
        )
        (gradient,) = torch.autograd.grad(parts["loss"], student)
        assert torch.isfinite(gradient).all()


def test_autocast_does_not_lower_the_precision():
    student, teacher = torch.randn(8, 4), torch.randn(1, 8, 4)
    plain = Objective("hybrid")(student, torch.arange(8) % 4, teacher)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            Objective("hybrid")(student, torch.arange(8) % 4, teacher)["loss"], plain
        )


def test_several_teachers_are_averaged_as_probabilities():
    one, two = logits([math.log(3), 0.0]), logits([0.0, 0.0])  # (3/4, 1/4) and (1/2, 1/2)
    stacked = torch.stack([one, two])
    assert torch.allclose(soft_targets(stacked, 1.0).exp(), torch.tensor([[0.625, 0.375]]))
    assert torch.allclose(
        soft_targets(stacked, 1.0, torch.tensor([3.0, 1.0])).exp(), torch.tensor([[0.6875, 0.3125]])
    )
    assert torch.allclose(
        soft_targets(stacked, 1.0, torch.tensor([1.0, 0.0])).exp(), torch.tensor([[0.75, 0.25]])
    )
    together = average([one.numpy(), two.numpy()], (3.0, 1.0))
    assert np.allclose(np.exp(together), [[0.6875, 0.3125]]) and np.allclose(
        np.exp(average([one.numpy()])), [[0.75, 0.25]]
    )


def test_alpha_mixes_labels_and_teacher():
    student, labels, teacher = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(1, 4, 3)
    parts = Objective("hybrid", alpha=0.3, temperature=2.0)(student, labels, teacher)
    assert parts["loss"].item() == pytest.approx(
        0.3 * parts["hard_loss"].item() + 0.7 * parts["soft_loss"].item(), rel=1e-6
    )
    assert Objective("hybrid", alpha=1.0)(student, labels, teacher)["loss"].item() == pytest.approx(
        parts["hard_loss"].item()
    )


@pytest.mark.parametrize("name", ["hybrid", "kd_fmv"])
def test_the_soft_term_pulls_the_student(name):
    student = torch.randn(4, 3, requires_grad=True)
    Objective(name)(student, torch.tensor([0, 1, 2, 0]), torch.randn(1, 4, 3))[
        "soft_loss"
    ].backward()
    assert student.grad.abs().sum() > 0


def test_as_released_the_soft_term_has_no_gradient():
    """Paper B's code: the gradient of the whole is alpha times that of the labels, whatever the
    teacher says."""
    student, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    gradients = []
    for teacher in (torch.randn(1, 4, 3), 9 * torch.randn(1, 4, 3)):
        parts = Objective("kd_fmv_as_released")(student, labels, teacher)
        assert not parts["soft_loss"].requires_grad
        gradients += torch.autograd.grad(parts["loss"], student)
    (plain,) = torch.autograd.grad(hard_loss(student, labels), student)
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], 0.7 * plain)


def test_the_released_soft_term_by_hand():
    # teacher (3/4, 1/4), label 0, T = 1: softmax(1, 0) against softmax(0.75, 0.25)
    p, q = math.e / (math.e + 1), math.exp(0.75) / (math.exp(0.75) + math.exp(0.25))
    expected = -(p * math.log(q) + (1 - p) * math.log(1 - q))
    found = released_soft_loss(torch.tensor([0]), logits([[math.log(3), 0.0]]), 1.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("shape", [(4, 2), (1, 3)])
def test_two_classes_and_a_batch_of_one(name, shape):
    student = torch.randn(*shape, requires_grad=True)
    loss = Objective(name)(
        student, torch.zeros(shape[0], dtype=torch.long), torch.randn(1, *shape)
    )["loss"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0 and student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TEACHING)
def test_a_teacher_of_other_classes_or_none_is_refused(name):
    student, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for wrong in (None, torch.randn(1, 4, 5), torch.randn(1, 3, 3)):
        with pytest.raises(ValueError, match="needs teacher logits"):
            Objective(name)(student, labels, wrong)
    with pytest.raises(ValueError, match="2 teacher_weights for 1"):
        Objective(name, teacher_weights=(1.0, 1.0))(student, labels, torch.randn(1, 4, 3))


def test_constants_outside_their_range_are_refused():
    for wrong in (
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"temperature": 0.0},
        {"teacher_weights": (-1.0, 2.0)},
    ):
        with pytest.raises(ValueError):
            Objective("hybrid", **wrong)
