"""Losses against closed forms and against known mistakes of public distillation code; the registry
and the hooks of methods."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnb import distillation, files, parameters
from kdnb.distillation import METHODS, Course, Method, Seen, create, register
from kdnb.distillation.base import SHARED, Lesson, see
from kdnb.distillation.soft_targets import (
    average,
    hard_loss,
    released_soft_loss,
    soft_loss,
    soft_targets,
)
from kdnb.models import zoo
from kdnb.parameters import BadParameter, parameter
from kdnb.study import Study

LOGITS = ("hard", "hybrid", "kd_fmv", "kd_fmv_as_released")
TEACHING = LOGITS[1:]


def losses(name, student, labels, *teachers, **options):
    """Named losses of a method for plain logits."""
    return create(name, **options).loss(Seen(student), [Seen(each) for each in teachers], labels)


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
    for name in LOGITS:
        parts = losses(name, student, torch.tensor([2]), teacher[0], temperature=1.0)
        assert all(
            torch.isfinite(value) and value.dtype == torch.float32 for value in parts.values()
        )
        (gradient,) = torch.autograd.grad(parts["loss"], student)
        assert torch.isfinite(gradient).all()


def test_autocast_does_not_lower_the_precision():
    student, teacher = torch.randn(8, 4), torch.randn(1, 8, 4)
    plain = losses("hybrid", student, torch.arange(8) % 4, teacher[0])["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        again = losses("hybrid", student, torch.arange(8) % 4, teacher[0])["loss"]
    assert torch.equal(again, plain)


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
    parts = losses("hybrid", student, labels, teacher[0], alpha=0.3, temperature=2.0)
    assert parts["loss"].item() == pytest.approx(
        0.3 * parts["hard_loss"].item() + 0.7 * parts["soft_loss"].item(), rel=1e-6
    )
    labels_only = losses("hybrid", student, labels, teacher[0], alpha=1.0)["loss"]
    assert labels_only.item() == pytest.approx(parts["hard_loss"].item())


@pytest.mark.parametrize("name", ["hybrid", "kd_fmv"])
def test_the_soft_term_pulls_the_student(name):
    student = torch.randn(4, 3, requires_grad=True)
    parts = losses(name, student, torch.tensor([0, 1, 2, 0]), torch.randn(4, 3))
    parts["soft_loss"].backward()
    assert student.grad.abs().sum() > 0


def test_as_released_the_soft_term_has_no_gradient():
    """Paper B's code: the gradient of the whole is alpha times that of the labels, whatever the
    teacher says."""
    student, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    gradients = []
    for teacher in (torch.randn(1, 4, 3), 9 * torch.randn(1, 4, 3)):
        parts = losses("kd_fmv_as_released", student, labels, teacher[0])
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


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("shape", [(4, 2), (1, 3)])
def test_two_classes_and_a_batch_of_one(name, shape):
    student = torch.randn(*shape, requires_grad=True)
    labels = torch.zeros(shape[0], dtype=torch.long)
    loss = losses(name, student, labels, torch.randn(*shape))["loss"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0 and student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TEACHING)
def test_a_teacher_of_other_classes_or_none_is_refused(name):
    student, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for wrong in ([], [torch.randn(4, 5)], [torch.randn(3, 3)]):
        with pytest.raises(ValueError, match="needs teacher logits"):
            losses(name, student, labels, *wrong)
    with pytest.raises(ValueError, match="2 teacher_weights for 1"):
        losses(name, student, labels, torch.randn(4, 3), teacher_weights=(1.0, 1.0))


def test_labels_may_be_shares_of_classes():
    """As mixup makes them: the loss is linear in the label."""
    logits, mixed = torch.randn(2, 3), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    parts = [hard_loss(logits[:1], torch.tensor([label])) for label in (0, 1)]
    expected = 0.7 * parts[0] + 0.3 * parts[1] + hard_loss(logits[1:], torch.tensor([2]))
    assert hard_loss(logits, mixed).item() == pytest.approx(expected.item() / 2, rel=1e-5)


def test_the_losses_of_teachers_are_averaged_by_their_weights():
    terms = [torch.tensor(1.0), torch.tensor(5.0)]
    assert create("fitnet").averaged(terms) == 3
    assert create("fitnet", teacher_weights=[3, 1]).averaged(terms) == 2


STUDENT = zoo.create("kdfmv5", 3, 32)


def answers(count=4, width=3, side=6, classes=3):
    return Seen(torch.randn(count, classes), (torch.randn(count, width, side, side),) * 2)


def built_fitnet(student, teachers, epochs=4, **options):
    torch.manual_seed(0)
    fitnet = create("fitnet", **options)
    fitnet.build(student, teachers, Course(torch.zeros(9).long(), epochs, STUDENT))
    return fitnet


def test_fitnet_is_its_paper():
    """Equation 3 in stage 1, equation 2 in stage 2, lambda falling linearly from 4 to 1."""
    torch.manual_seed(1)
    student, teacher, labels = answers(), answers(width=5, side=3), torch.tensor([0, 1, 2, 0])
    fitnet = built_fitnet(student, [teacher], epochs=6)
    embedded, hints = fitnet.embed(torch.empty(0), student, [teacher])
    pooled = F.adaptive_avg_pool2d(student.features[1], 3)
    distance = (fitnet.regressors[0](pooled) - teacher.features[1]).square()
    hint = 0.5 * distance.sum() / (4 * 3 * 3)
    targets = F.softmax(teacher.logits / 3, 1)
    entropy = -(targets * targets.log()).sum(1).mean()
    soft = -(targets * F.log_softmax(student.logits / 3, 1)).sum(1).mean() - entropy
    hard = F.cross_entropy(student.logits, labels)
    expected = [hint] * 3 + [hard + weight * soft for weight in (4, 2.5, 1)]
    for epoch, wanted in enumerate(expected):
        fitnet.start_epoch(epoch, STUDENT)
        parts = fitnet.loss(embedded, hints, labels)
        assert parts["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
        assert fitnet.selectable(epoch) == (epoch >= 3)


@pytest.mark.parametrize("epoch", [0, 3])
def test_all_of_fitnet_takes_part_in_every_step(epoch):
    """A parameter without a gradient would stop several processes."""
    student, teachers = answers(), [answers(width=5), answers(width=2, side=12)]
    student.features[1].requires_grad_()
    fitnet = built_fitnet(student, teachers)
    fitnet.start_epoch(epoch, STUDENT)
    embedded, hints = fitnet.embed(torch.empty(0), student, teachers)
    fitnet.loss(embedded, hints, torch.tensor([0, 1, 2, 0]))["loss"].backward()
    for weights in (*fitnet.parameters(), student.features[1]):
        assert weights.grad is not None and bool(weights.grad.any()) == (epoch == 0)


def test_one_epoch_of_fitnet_is_the_second_stage():
    fitnet = built_fitnet(answers(), [answers()], epochs=1)
    fitnet.start_epoch(0, STUDENT)
    assert not fitnet.hinting and fitnet.weight == 4 and fitnet.selectable(0)


@pytest.mark.parametrize(
    "name",
    ["kdfmv5", "ofa595", "densenet121", "autoformerv2_tiny", "resnet10t", "vit_tiny_patch16_224"],
)
def test_maps_of_any_network_are_read_deepest_first(name):
    model, images = zoo.create(name, 3, 64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain, seen = model(images), see(model, images, len(model.cam_layers))
    assert torch.equal(plain, seen.logits)
    sides = [features.shape[-1] for features in seen.features]
    assert all(features.ndim == 4 and len(features) == 2 for features in seen.features)
    assert sides == sorted(sides) and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match=f"{name} has {len(model.cam_layers)} layers"):
        see(model, images, len(model.cam_layers) + 1)


def test_a_map_is_not_what_a_later_layer_writes_over_it():
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)
    )
    model = zoo.Classifier("x", layers, 2, 32, zoo.Entry(lambda k, size: layers, ("0",), ""))
    images = torch.rand(2, 3, 32, 32)
    seen = see(model, images, 1)
    assert torch.equal(seen.features[0], layers[0]((images - model.mean) / model.std))
    assert (seen.features[0] < 0).any()


def test_a_lesson_holds_student_and_method():
    student, teacher = zoo.create("kdfmv5", 3, 32), zoo.create("resnet10t", 3, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        shapes = see(student, images, 2), [see(teacher, images, 2)]
    lesson = Lesson(student, built_fitnet(*shapes))
    own, others = lesson(images, shapes[1])
    assert own.features[0].shape == others[0].features[0].shape
    names = {name.split(".")[0] for name, _ in lesson.named_parameters()}
    assert names == {"student", "method"}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_states_what_tables_and_readers_need(name):
    method = METHODS[name]
    assert method.title and method.paper and method.__doc__ and create(name).name == name
    declared = parameters.declared(method.Options)
    assert declared.keys() == create(name).defaults().keys()
    assert all(field.metadata["help"] for field in declared.values())
    own = declared.keys() - set(SHARED)
    assert not own & parameters.declared(Study).keys(), "an option may not hide a parameter"
    assert set(distillation.table().query("method == @name")["option"]) == set(declared)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("hybird", {}, "unknown method 'hybird'. Did you mean 'hybrid'?"),
        ("hybrid", {"alhpa": 0.3}, "unknown option of hybrid 'alhpa'. Did you mean 'alpha'?"),
        ("fitnet", {"hint_layr": 1}, "Did you mean 'hint_layer'?"),
        ("hybrid", {"alpha": -0.1}, "alpha must lie between 0 and 1"),
        ("hybrid", {"alpha": 1.1}, "alpha must lie between 0 and 1"),
        ("hybrid", {"temperature": 0.0}, "temperature must be above 0"),
        ("hybrid", {"teacher_weights": (-1.0, 2.0)}, "teacher_weights must be at least 0"),
        ("hybrid", {"teacher_weights": [0.0, 0.0]}, "not be all zero"),
        ("fitnet", {"hint_layer": 9}, "hint_layer must lie between 1 and 4"),
        ("fitnet", {"hint_layer": 1.5}, "hint_layer must be int"),
        ("fitnet", {"hint_share": "half"}, "hint_share must be float"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_what_is_allowed(name, options, hint):
    with pytest.raises(ValueError) as caught:
        create(name, **options)
    assert hint in str(caught.value)
    given = options if name in METHODS else {}
    for parameters_cell in ({"method": name, "options": options}, {"method": name, **given}):
        with pytest.raises(ValueError):
            Study.from_parameters(parameters_cell)


def test_options_reach_the_method_by_every_way():
    wanted = {"first_lambda": 2.0, "last_lambda": 1.0, "hint_share": 0.25, "hint_layer": 2}
    for given in (
        {"options": {"first_lambda": 2, "hint_share": 0.25}},
        {"options": '{"first_lambda": 2.0, "hint_share": 0.25}'},
        {"first_lambda": 2.0, "hint_share": 0.25},
        {"first_lambda": 2.0, "options": {"hint_share": 0.25}},
    ):
        study = Study.from_parameters({"method": "fitnet", "temperature": 2} | given)
        assert study.options == wanted and study.config()["options"] == wanted
        assert dataclasses.asdict(study.make_method().options) == wanted | {
            "temperature": 2.0,
            "teacher_weights": None,
        }
    assert dataclasses.replace(study, augment=False).options == wanted
    study = Study.from_parameters({"options": {"alpha": 0.3}})
    assert (study.alpha, study.options) == (0.3, {})


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"hint_layer": 1}, "hint_layer is an option of fitnet, not of hybrid"),
        ({"method": "fitnet", "alpha": 0.3}, "unknown option of fitnet 'alpha'"),
        ({"method": "fitnet", "hint_layr": 1}, "Did you mean 'hint_layer'?"),
        ({"alpha": 0.4, "options": {"alpha": 0.3}}, "alpha is given twice"),
        ({"method": "fitnet", "hint_layer": 1, "options": {"hint_layer": 2}}, "given twice"),
        ({"options": "[1, 2]"}, "options must be dict"),
        ({"options": "beta: 2"}, "options must be dict"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(given, hint):
    with pytest.raises(ValueError) as caught:
        Study.from_parameters(given)
    assert hint in str(caught.value)


@pytest.fixture
def registry(monkeypatch):
    """A registry of the test's own."""
    monkeypatch.setattr(distillation.base, "METHODS", dict(METHODS))
    return distillation.base.METHODS


def test_register_is_the_one_way_in(registry):
    class Plain(Method):
        title, paper = "a", "b"

        @dataclass(frozen=True)
        class Options(Method.Options):
            beta: float = parameter(2.0, "weight", low=0)

    assert register("plain")(Plain) is Plain and registry["plain"] is Plain
    assert create("plain", beta=3).options.beta == 3 and create("plain").key == {
        "method": "plain",
        "teacher_weights": None,
    }
    with pytest.raises(BadParameter, match="beta must be at least 0"):
        create("plain", beta=-1)
    with pytest.raises(NotImplementedError, match="Plain has no loss"):
        create("plain").loss(answers(), [], torch.zeros(4).long())
    register("plain")(Plain)  # a cell that is run again
    with pytest.raises(ValueError, match="'plain' is there already"):
        register("plain")(METHODS["hard"])


def test_a_method_that_leaves_something_out_is_refused(registry):
    with pytest.raises(ValueError, match="must state its title and paper"):
        register("x")(type("X", (Method,), {}))

    class Bare(Method):
        title, paper = "a", "b"

        @dataclass(frozen=True)
        class Options(Method.Options):
            beta: float = 2.0

    with pytest.raises(ValueError, match="declare beta with parameter"):
        register("bare")(Bare)
    assert registry.keys() == METHODS.keys()


def test_a_key_names_what_differs_and_only_that():
    assert create("hybrid").key == {
        "method": "hybrid",
        "alpha": 0.5,
        "temperature": 4.0,
        "teacher_weights": None,
    }
    plain = {"method": "fitnet", "temperature": 3.0, "teacher_weights": None, "method_version": 2}
    assert create("fitnet").key == create("fitnet", hint_layer=2).key == plain
    assert create("fitnet", hint_layer=1).key == plain | {"options": {"hint_layer": 1}}
    raised = create("fitnet")
    raised.version = 3
    assert files.digest(raised.key) != files.digest(plain)
