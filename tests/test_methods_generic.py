"""Generic methods (DKD, attention transfer, similarity-preserving, RKD, CRD, DIST): closed forms,
numbers of the authors' public code worked out on small tensors, and the cases that break such
code."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnb.distillation import Course, Seen, create
from kdnb.distillation.attention_transfer import attention, attention_loss
from kdnb.distillation.base import see
from kdnb.distillation.dist import dissimilarity
from kdnb.distillation.dkd import decoupled
from kdnb.distillation.memory import noise_contrast
from kdnb.distillation.relations import angles, distances
from kdnb.distillation.similarity_preserving import similarities
from kdnb.distillation.soft_targets import hard_loss, soft_loss, soft_targets
from kdnb.models import zoo
from kdnb.study import Study

LOGITS = ("dkd", "dist")
FEATURES = ("attention_transfer", "similarity_preserving", "rkd", "crd")
GENERIC = LOGITS + FEATURES
STUDENT = zoo.create("kdfmv5", 3, 32)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def waves(*shape, step):
    """Numbers that anyone can make again: sin(step · n) for n = 1, 2, ..."""
    count = math.prod(shape)
    return torch.sin(step * torch.arange(1, count + 1, dtype=torch.float64)).view(shape).float()


def close(value, expected):
    return value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def starts(loss, tensor, *expected):
    """Whether the gradient begins with these numbers."""
    (gradient,) = torch.autograd.grad(loss, tensor)
    return gradient.flatten()[: len(expected)].tolist() == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )


def answers(count=4, width=3, side=6, classes=3, layers=2):
    """An answer with random maps, the deepest layer first."""
    maps = [torch.randn(count, width, side * 2**n, side * 2**n) for n in range(layers)]
    return Seen(torch.randn(count, classes), tuple(maps))


def seen(method, student, teachers):
    """Answers as the loop passes them on: with the layers that a method reads."""
    own, *others = (Seen(x.logits, x.features[: method.taps]) for x in (student, *teachers))
    return own, others


def embedded(method, student, teachers):
    return method.embed(torch.empty(0), *seen(method, student, teachers))


def built(name, student, teachers, rows=9, classes=3, epochs=4, **options):
    torch.manual_seed(0)
    method = create(name, **options)
    course = Course(torch.arange(rows) % classes, epochs, STUDENT)
    method.build(*seen(method, student, teachers), course)
    method.start_epoch(0, STUDENT)
    return method


def losses(method, student, teachers, labels, rows=None):
    rows = torch.arange(len(student.logits)) if rows is None else rows
    return method.loss(*embedded(method, student, teachers), labels, rows)


# decoupled knowledge distillation


def test_dkd_gives_the_numbers_of_the_public_code():
    student, labels = (3 * waves(5, 4, step=1.0)).requires_grad_(), torch.tensor([0, 1, 2, 3, 1])
    targets = soft_targets(3 * waves(1, 5, 4, step=0.7), 4.0)
    target, other = decoupled(student, targets, labels, 4.0)
    assert close(target, 0.4397946) and close(other, 2.02633595)
    assert starts(target + 8 * other, student, 0.0839771, 0.8831728, -0.3910874)


def test_dkd_by_hand():
    """The teacher says (1/2, 3/8, 1/8), the student (1/3, 1/3, 1/3)."""
    teacher = torch.tensor([[[4.0, 3.0, 1.0]]]).log()
    student = torch.zeros(1, 3, requires_grad=True)
    target, other = decoupled(student, soft_targets(teacher, 1.0), torch.tensor([0]), 1.0)
    assert close(target, 0.5 * math.log(1.5) + 0.5 * math.log(0.75))
    assert close(other, 0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    # the gradients are student minus teacher, of the two shares and of the shares among the others
    assert starts(target, student, 1 / 3 - 1 / 2, 1 / 12, 1 / 12)
    target, other = decoupled(student, soft_targets(teacher, 1.0), torch.tensor([0]), 1.0)
    assert starts(other, student, 0.0, 1 / 2 - 3 / 4, 1 / 2 - 1 / 4)


def test_dkd_takes_plain_soft_targets_apart():
    """Equation 6: KL = TCKD + (1 − the teacher's share of the target) · NCKD, image by image."""
    student, teacher = torch.randn(1, 5), torch.randn(1, 1, 5)
    targets, label = soft_targets(teacher, 2.0), torch.tensor([3])
    target, other = decoupled(student, targets, label, 2.0)
    whole = target + (1 - targets[0, 3].exp()) * other
    assert whole.item() == pytest.approx(soft_loss(student, targets, 2.0).item(), rel=1e-5)


def test_dkd_with_two_classes_is_plain_soft_targets(capsys):
    student, teacher = torch.randn(6, 2, requires_grad=True), torch.randn(1, 6, 2)
    labels, targets = torch.tensor([0, 1, 0, 0, 1, 1]), soft_targets(teacher, 4.0)
    target, other = decoupled(student, targets, labels, 4.0)
    (pull,) = torch.autograd.grad(other, student, retain_graph=True)
    assert other == 0 and not pull.any()
    assert target.item() == pytest.approx(soft_loss(student, targets, 4.0).item(), rel=1e-5)
    built("dkd", answers(classes=2), [answers(classes=2)])
    assert "with two classes the term of the other classes is zero" in capsys.readouterr().out


def test_dkd_of_a_certain_teacher_is_finite():
    """float32 rounds the target's probability to 1: log(1 − p) would be −∞."""
    student = torch.tensor([[200.0, -100.0, 0.0], [-300.0, 0.0, 100.0]], requires_grad=True)
    targets = soft_targets(torch.tensor([[[500.0, -500.0, 0.0], [500.0, -500.0, 0.0]]]), 1.0)
    target, other = decoupled(student, targets, torch.tensor([0, 0]), 1.0)
    (pull,) = torch.autograd.grad(target + other, student)
    assert target.isfinite() and other.isfinite() and pull.isfinite().all()


def test_the_weight_of_dkd_rises_in_the_papers_share_of_the_epochs():
    method = built("dkd", answers(), [answers()], epochs=240)
    ramps = []
    for epoch in (0, 9, 19, 239):
        method.start_epoch(epoch, STUDENT)
        ramps.append(method.ramp)
    assert ramps == [1 / 20, 0.5, 1.0, 1.0]
    short = built("dkd", answers(), [answers()], epochs=5)
    assert short.ramp == 1
    student, teacher, labels = answers(), answers(), torch.tensor([0, 1, 2, 0])
    method.start_epoch(9, STUDENT)
    parts = losses(method, student, [teacher], labels)
    soft = parts["target_loss"] + 8 * parts["other_loss"]
    assert parts["loss"].item() == pytest.approx((parts["hard_loss"] + soft / 2).item(), rel=1e-6)


def test_dkd_refuses_mixed_labels():
    with pytest.raises(ValueError, match="dkd needs one class an image.*hybrid"):
        losses(create("dkd"), answers(), [answers()], torch.full((4, 3), 1 / 3))


# DIST


@pytest.mark.parametrize(
    ("temperature", "inter", "intra", "of_inter", "of_intra"),
    [
        (1.0, 0.951757789, 1.04269648, 0.09431241, 0.06455829),
        (4.0, 14.7261372, 12.8801651, 0.6002967, 0.1232459),
    ],
)
def test_dist_gives_the_numbers_of_the_public_code(temperature, inter, intra, of_inter, of_intra):
    student, teacher = (3 * waves(5, 4, step=1.0)).requires_grad_(), 3 * waves(5, 4, step=0.7)
    method = create("dist", temperature=temperature)
    labels = torch.tensor([0, 1, 2, 3, 1])
    for name, value, first in (("inter_loss", inter, of_inter), ("intra_loss", intra, of_intra)):
        found = method.loss(Seen(student), [Seen(teacher)], labels)[name]
        assert close(found, value) and starts(found, student, first)


def test_dist_by_hand():
    """(1, 2, 3) correlates by 1 with (2, 4, 6), by −1 with (3, 2, 1) and by √¾ with (1, 1, 2)."""
    row = torch.tensor([[1.0, 2.0, 3.0]])
    assert close(dissimilarity(row, 2 * row), 0) and close(dissimilarity(row, row.flip(1)), 2)
    assert close(dissimilarity(row, torch.tensor([[1.0, 1.0, 2.0]])), 1 - math.sqrt(0.75))


def test_two_classes_leave_dist_the_correlation_over_images():
    student, labels = torch.randn(6, 2, requires_grad=True), torch.tensor([0, 1, 0, 0, 1, 1])
    parts = create("dist").loss(Seen(student), [Seen(torch.randn(6, 2))], labels)
    pulls = [
        torch.autograd.grad(parts[f"{name}_loss"], student, retain_graph=True)[0]
        for name in ("inter", "intra")
    ]
    assert torch.allclose(pulls[0], torch.zeros(6, 2), atol=1e-6) and pulls[1].any()


def test_dist_of_a_student_that_knows_nothing_is_finite():
    student = torch.zeros(4, 3, requires_grad=True)
    parts = create("dist").loss(
        Seen(student), [Seen(torch.randn(4, 3))], torch.tensor([0, 1, 2, 0])
    )
    (pull,) = torch.autograd.grad(parts["loss"], student)
    assert close(parts["inter_loss"], 1) and close(parts["intra_loss"], 1) and pull.isfinite().all()


# attention transfer


def test_attention_gives_the_numbers_of_the_public_code():
    student = waves(4, 3, 5, 5, step=1.0).requires_grad_()
    found = attention_loss(attention(student), attention(waves(4, 6, 5, 5, step=0.7)))
    assert close(found, 0.0146665415)
    assert starts(found, student, -8.521516e-05, 8.679604e-05, -1.251425e-04)


def test_attention_by_hand():
    """Maps (1, 1) and (1, 0) of two cells: half the squared distance is 1 − cosine."""
    student = torch.tensor([[[[1.0, 1.0]]]], requires_grad=True)
    found = attention_loss(attention(student), attention(torch.tensor([[[[1.0, 0.0]]]])))
    assert close(found, 1 - math.sqrt(0.5))
    assert starts(found, student, -math.sqrt(0.5), math.sqrt(0.5))


def test_attention_ignores_scale_channels_and_the_finer_grid():
    coarse = torch.rand(3, 2, 4, 4)
    fine = 7 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 5, 1, 1)
    maps = attention(coarse), attention(fine)
    assert close(attention_loss(*maps), 0) and close(attention_loss(*maps[::-1]), 0)


def test_attention_of_a_dead_map_has_a_finite_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    found = attention_loss(attention(student), attention(torch.rand(2, 3, 4, 4)))
    (pull,) = torch.autograd.grad(found, student)
    assert found.isfinite() and pull.isfinite().all()


# similarity-preserving distillation


def test_similarities_give_the_numbers_of_the_public_code():
    student = waves(4, 3, 5, 5, step=1.0).requires_grad_()
    found = F.mse_loss(similarities(student), similarities(waves(4, 6, 5, 5, step=0.7)))
    assert close(found, 0.464584231)
    assert starts(found, student, -6.239301e-04, -9.799835e-05, 5.180325e-04)


def test_similarities_by_hand():
    """Two images at right angles: the identity; two images that are equal: all entries √½."""
    apart, equal = torch.eye(2).view(2, 2, 1, 1), torch.ones(2, 3, 2, 2)
    assert torch.equal(similarities(apart), torch.eye(2))
    assert torch.allclose(similarities(equal), torch.full((2, 2), math.sqrt(0.5)))
    method = create("similarity_preserving", similarity_weight=2.0)
    student = Seen(torch.zeros(2, 3), (apart,))
    parts = method.loss(student, [Seen(torch.zeros(2, 3), (equal,))], torch.tensor([0, 1]))
    assert close(parts["similarity_loss"], 1 - math.sqrt(0.5))
    assert close(parts["loss"], math.log(3) + 2 * (1 - math.sqrt(0.5)))


# relational knowledge distillation


def test_relations_give_the_numbers_of_the_public_code():
    student = waves(5, 6, step=1.0).requires_grad_()
    teacher = waves(5, 8, step=0.7)
    distance, angle = (
        F.smooth_l1_loss(relate(student), relate(teacher)) for relate in (distances, angles)
    )
    assert close(distance, 0.0032537973) and close(angle, 0.0141223948)
    assert starts(distance, student, 0.007050003, 0.002479407, -0.004370745)
    assert starts(angle, student, 0.01505814, 0.01986077, 0.006403499)


def test_relations_by_hand():
    """A triangle with sides 3, 4, 5 beside an equilateral one: cosines 0, 4/5, 3/5 beside ½."""
    student = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)]])
    method = create("rkd", distance_weight=2.0, angle_weight=3.0)
    given = (Seen(torch.zeros(3, 3), (points,)) for points in (student, teacher))
    parts = method.loss(next(given), list(given), torch.tensor([0, 1, 2]))
    assert close(parts["distance_loss"], 4 * 0.25**2 / 2 / 9)
    assert close(parts["angle_loss"], 2 * (0.5**2 + 0.3**2 + 0.1**2) / 2 / 27)
    expected = math.log(3) + 2 * parts["distance_loss"] + 3 * parts["angle_loss"]
    assert close(parts["loss"], expected.item())


@pytest.mark.parametrize("count", [1, 2])
def test_a_short_last_batch_has_no_relations(count):
    student, labels = answers(count), torch.arange(count)
    parts = losses(create("rkd"), student, [answers(count)], labels)
    assert parts["loss"] == hard_loss(student.logits, labels)
    assert parts["distance_loss"] == parts["angle_loss"] == 0


def test_equal_embeddings_have_finite_relations():
    points = torch.cat([torch.ones(3, 4), torch.randn(2, 4)]).requires_grad_()
    for given in (points, torch.ones(3, 4, requires_grad=True)):
        found = distances(given), angles(given)
        pull = torch.autograd.grad(sum(each.square().sum() for each in found), given)[0]
        assert pull.isfinite().all() and not any(each.isnan().any() for each in found)


# contrastive representation distillation

CLASSES = torch.tensor([0, 0, 0, 1, 1, 1])


def small_crd(labels=CLASSES, **options):
    shapes = Seen(torch.zeros(2, 2), (torch.zeros(2, 5, 2, 2),))
    method = create("crd", **({"embedding_size": 4} | options))
    method.build(shapes, [shapes], Course(labels, 3, STUDENT))
    return method


def test_crd_gives_the_numbers_of_the_public_code():
    """Two steps: loss, gradient and memories; images 4 and 0 with three images of the other class
    as negatives."""
    method, rows = small_crd(), torch.tensor([4, 0])
    method.student_memories[0].bank.copy_(0.8 * waves(6, 4, step=1.0))
    method.teacher_memories[0].bank.copy_(0.8 * waves(6, 4, step=0.7))
    student, teacher = waves(2, 4, step=1.3).requires_grad_(), waves(2, 4, step=0.4)
    expected = [(18.730751, -0.4985216, -1.603192, -0.4883032)]
    expected += [(19.1555557, 2.450369, 4.618159, 1.713892)]
    for value, *gradient in expected:
        own, other = (Seen(torch.zeros(2, 2), (F.normalize(x, dim=1),)) for x in (student, teacher))
        contrast = method.loss(own, [other], CLASSES[rows], rows)["contrast_loss"]
        assert close(contrast, value) and starts(contrast, student, *gradient)
        student = (0.2 - 0.5 * student.detach()).requires_grad_()
    found = torch.stack([method.student_memories[0].bank[4], method.teacher_memories[0].bank[0]])
    assert torch.allclose(
        found,
        torch.tensor(
            [
                [-0.456395954, -0.453495264, -0.042602796, 0.764349282],
                [0.694829881, 0.612840295, 0.375365496, 0.027182894],
            ]
        ),
        atol=1e-6,
    )
    untouched = [1, 2, 3, 5]
    assert torch.equal(
        method.student_memories[0].bank[untouched], 0.8 * waves(6, 4, step=1.0)[untouched]
    )


def test_noise_contrast_by_hand():
    """h = e^s / (e^s + K·c) with K = 2 and c = 1/2: 3/4 for s = ln 3, 1/2 for 0, 1/4 for −ln 3."""
    positive = torch.tensor([math.log(3)], requires_grad=True)
    negative = torch.tensor([[0.0, -math.log(3)]], requires_grad=True)
    found = noise_contrast(positive[:, None], negative, torch.tensor(math.log(0.5)))[0]
    assert close(found, -math.log(3 / 4) - math.log(1 / 2) - math.log(3 / 4))
    pulls = torch.autograd.grad(found, (positive, negative))
    assert torch.allclose(
        torch.cat([pull.flatten() for pull in pulls]), torch.tensor([-0.25, 0.5, 0.25])
    )


def test_a_memory_is_indexed_by_row_whatever_the_place_in_a_batch():
    student, teacher = answers(3, side=2, layers=1), answers(3, width=4, side=2, layers=1)
    rows, labels, banks = torch.tensor([7, 2, 5]), torch.tensor([1, 2, 2]), []
    order = torch.tensor([2, 0, 1])
    for place in (torch.arange(3), order):
        method = built("crd", student, [teacher])
        shuffled = [Seen(x.logits[place], (x.features[0][place],)) for x in (student, teacher)]
        memory = method.student_memories[0].bank
        before = memory.clone()
        losses(method, shuffled[0], shuffled[1:], labels[place], rows[place])
        changed = (memory != before).any(-1)
        assert changed.nonzero().flatten().tolist() == [2, 5, 7]
        assert torch.allclose(memory[rows].norm(dim=1), torch.ones(3))
        banks.append(memory)
    assert torch.allclose(*banks, atol=1e-6)


def test_negatives_are_training_images_of_other_classes_without_repetition():
    labels = torch.tensor([0, 1, 2, -1, 0, 1, -1, 2, 2])
    for most in (100, 3):
        method = small_crd(labels, negatives=most)
        for places, rows in method._negatives(torch.tensor([0, 1, 4])):
            (own,) = labels[torch.tensor([0, 1, 4])[places]].unique()
            assert (
                len(rows.unique())
                == len(rows)
                == min(most, int((labels >= 0).sum() - (labels == own).sum()))
            )
            assert (labels[rows] >= 0).all() and (labels[rows] != own).all()


def test_negatives_follow_from_the_seed_of_the_epoch():
    def drawn(seed):
        method = small_crd(torch.arange(200) % 2, negatives=5)
        torch.manual_seed(seed)
        method.start_epoch(3, STUDENT)
        torch.rand(9)  # whatever else is drawn, for instance by dropout of a part of the batch
        return torch.cat([rows for _ in range(2) for _, rows in method._negatives(torch.arange(4))])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(*drawn(1).chunk(2))


def test_crd_refuses_what_it_cannot_contrast():
    with pytest.raises(ValueError, match="all 3 training images are of one class: train on more"):
        small_crd(torch.tensor([0, 0, -1, 0]))
    method, seen = (
        small_crd(torch.tensor([0, 1, -1])),
        Seen(torch.zeros(2, 2), (torch.zeros(2, 4),)),
    )
    with pytest.raises(ValueError, match="crd has a memory by row.*give the rows"):
        method.loss(seen, [seen], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="row 2 is no training image"):
        method.loss(seen, [seen], torch.tensor([0, 1]), torch.tensor([0, 2]))


# all of them


@pytest.mark.parametrize("name", GENERIC)
def test_all_parts_learn_in_every_step(name):
    """A parameter without a gradient would stop several processes."""
    student, teachers = answers(), [answers(width=5), answers(width=2, side=12)]
    read = [student.logits.requires_grad_(), *(maps.requires_grad_() for maps in student.features)]
    method = built(name, student, teachers)
    losses(method, student, teachers, torch.tensor([0, 1, 2, 0]))["loss"].backward()
    assert all(weights.grad is not None and weights.grad.any() for weights in method.parameters())
    assert bool(list(method.parameters())) == (name == "crd")
    assert all(given.grad is not None and given.grad.any() for given in read[: 1 + method.taps])


@pytest.mark.parametrize("name", GENERIC)
def test_a_class_weight_reaches_the_labels_loss_only(name):
    student, teachers, labels = answers(), [answers()], torch.tensor([0, 1, 2, 0])
    method = built(name, student, teachers)
    plain = losses(copy.deepcopy(method), student, teachers, labels)
    method.class_weights = torch.tensor([1.0, 3.0, 5.0])
    weighted = losses(method, student, teachers, labels)
    assert torch.equal(
        weighted["hard_loss"], hard_loss(student.logits, labels, method.class_weights)
    )
    difference = (weighted["hard_loss"] - plain["hard_loss"]).item()
    assert (weighted["loss"] - plain["loss"]).item() == pytest.approx(difference, abs=1e-3)


@pytest.mark.parametrize("name", [*FEATURES, "dist"])
def test_labels_that_mix_classes_are_taken(name):
    student, teachers, labels = answers(), [answers()], torch.tensor([0, 1, 2, 0])
    method = built(name, student, teachers)
    plain = losses(copy.deepcopy(method), student, teachers, labels)["loss"]
    mixed = losses(method, student, teachers, F.one_hot(labels, 3).float())["loss"]
    assert mixed.item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("name", GENERIC)
@pytest.mark.parametrize(("count", "classes"), [(4, 2), (1, 3), (1, 2), (4, 5)])
def test_few_classes_few_images_and_absent_classes(name, count, classes):
    """All labels are 0: the other classes are absent from the batch."""
    student, teachers = answers(count, classes=classes), [answers(count, classes=classes)]
    student.logits.requires_grad_()
    method = built(name, student, teachers, classes=classes)
    rows = torch.arange(count) * classes % 9
    parts = losses(method, student, teachers, torch.zeros(count).long(), rows)
    (pull,) = torch.autograd.grad(parts["loss"], student.logits)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in parts.values())
    assert pull.isfinite().all() and pull.any()


@pytest.mark.parametrize("name", ["attention_transfer", "similarity_preserving", "rkd"])
def test_the_terms_of_teachers_are_averaged_by_their_weights(name):
    labels, student = torch.tensor([0, 1, 2, 0]), answers()
    teachers = [answers(width=5), answers(side=3), answers(width=2, side=7)]
    alone = [losses(create(name), student, [each], labels)["loss"] for each in teachers]
    weighted = losses(create(name, teacher_weights=[3, 0, 1]), student, teachers, labels)["loss"]
    assert weighted.item() == pytest.approx(((3 * alone[0] + alone[2]) / 4).item(), rel=1e-5)
    with pytest.raises(ValueError, match="2 teacher_weights for 3"):
        losses(create(name, teacher_weights=[1, 2]), student, teachers, labels)


def test_a_teacher_of_weight_zero_has_no_say():
    labels, student = torch.tensor([0, 1, 2, 0]), answers()
    teachers = [answers(width=5), answers(side=3), answers(width=2, side=7)]
    for name in ("dkd", "dist", "crd"):
        method = built(name, student, teachers, teacher_weights=[1, 0, 0])
        alone = built(name, student, teachers[:1])
        if name == "crd":
            alone.load_state_dict({key: method.state_dict()[key] for key in alone.state_dict()})
        found = losses(method, student, teachers, labels)["loss"]
        assert found.item() == pytest.approx(
            losses(alone, student, teachers[:1], labels)["loss"].item(), rel=1e-5
        )


@pytest.mark.parametrize("name", GENERIC)
def test_half_precision_stays_finite(name):
    """Maps of size 1000, whose squares and products leave half precision."""
    labels = torch.tensor([0, 1, 2, 0])
    student = Seen(1000 * torch.randn(4, 3), tuple(1000 * maps for maps in answers().features))
    teachers = [Seen(student.logits.flip(0), tuple(m.flip(0) for m in student.features))]
    method, found = built(name, student, teachers), []
    for dtype in (torch.float32, torch.bfloat16):
        given = [m.to(dtype).requires_grad_() for m in student.features]
        own = Seen(student.logits.to(dtype).requires_grad_(), tuple(given))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            parts = losses(copy.deepcopy(method), own, teachers, labels)
        pulls = torch.autograd.grad(parts["loss"], [own.logits, *given[: method.taps]])
        assert all(v.isfinite() and v.dtype == torch.float32 for v in parts.values())
        assert all(pull.isfinite().all() for pull in pulls)
        found.append(parts["loss"].item())
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("name", GENERIC)
def test_autocast_around_a_loss_does_not_lower_its_precision(name):
    student, teachers, labels = answers(), [answers()], torch.tensor([0, 1, 2, 0])
    method, rows = built(name, student, teachers), torch.arange(4)
    own, others = embedded(method, student, teachers)
    plain = copy.deepcopy(method).loss(own, others, labels, rows)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        again = method.loss(own, others, labels, rows)["loss"]
    assert torch.equal(plain, again)


@pytest.mark.parametrize("name", GENERIC)
def test_two_processes_compute_the_loss_and_the_gradient_of_one(name):
    """Each joins the answers of both halves and keeps the gradient of its own, as
    ``processes.gathered`` does; their gradients add up to that of a single process."""
    student, teachers, labels = answers(), [answers(width=5)], torch.tensor([2, 1, 2, 0])
    options = {"negatives": 4} if name == "crd" else {}
    method, rows = built(name, student, teachers, rows=40, **options), torch.tensor([8, 1, 5, 3])
    own, others = embedded(method, student, teachers)
    leaves = [x.detach().requires_grad_() for x in (own.logits, *own.features)]

    def run(joined):
        twin = copy.deepcopy(method)
        loss = twin.loss(Seen(joined[0], tuple(joined[1:])), others, labels, rows)["loss"]
        return loss, torch.autograd.grad(loss, leaves, allow_unused=True), twin.state_dict()

    torch.manual_seed(0)
    whole, expected, state = run(leaves)
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for halves in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))):
        joined = [leaf.detach().clone() for leaf in leaves]
        for tensor, leaf in zip(joined, leaves, strict=True):
            tensor[halves[0]] = leaf[halves[0]]
        loss, pulls, banks = run(joined)
        assert torch.equal(loss, whole)
        assert all(torch.equal(banks[key].nan_to_num(), state[key].nan_to_num()) for key in state)
        total = [a + b for a, b in zip(total, pulls, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(total, expected, strict=True))


@pytest.mark.parametrize("name", GENERIC)
def test_kept_answers_serve_methods_that_read_logits_or_pooled_features(name):
    assert create(name).cacheable == (name in (*LOGITS, "rkd", "crd"))


PAIRS = [("densenet121", "kdfmv5"), ("autoformerv2_tiny", "ofa595"), ("visformer_small", "kdfmv8")]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_maps_of_any_pair_of_the_zoo_at_64_px(teacher, student):
    images, labels = torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 2])
    networks = [zoo.create(name, 3, 64).eval() for name in (student, teacher)]
    for name in FEATURES:
        taps = create(name).taps
        with torch.no_grad():
            own, other = (see(network, images, taps) for network in networks)
            parts = losses(built(name, own, [other]), own, [other], labels)
        assert all(value.isfinite() for value in parts.values())


def test_a_network_with_fewer_layers_or_no_grid_is_refused_with_a_way_out():
    vit, images = zoo.create("vit_tiny_patch16_224", 3, 64), torch.rand(2, 3, 64, 64)
    with pytest.raises(
        ValueError, match="1 layers.*and 2 are asked for: lower the method's number"
    ):
        see(vit, images, create("attention_transfer").taps)
    assert (
        len(see(vit, images, create("attention_transfer", attention_layers=1).taps).features) == 1
    )
    layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 2))
    flat = zoo.Classifier("flat", layers, 2, 32, zoo.Entry(lambda k, size: layers, ("1",), ""))
    for name in ("rkd", "crd", "similarity_preserving"):
        with pytest.raises(ValueError, match="1 of flat gives .* logits only"):
            see(flat, images, create(name).taps)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"method": "rkd", "other_weight": 1.0}, "other_weight is an option of dkd, not of rkd"),
        ({"method": "crd", "angle_weight": 1.0}, "is an option of rkd, ssd_kd, not of crd"),
        ({"method": "dkd", "alpha": 0.5}, "unknown option of dkd 'alpha'"),
        ({"method": "dkd", "temperature": 0.0}, "temperature must be at least 0.01"),
        ({"method": "crd", "negatives": 0}, "negatives must be at least 1"),
        ({"method": "crd", "contrast_temperature": 0.0}, "contrast_temperature must be at least"),
        ({"method": "attention_transfer", "attention_layers": 0}, "must be at least 1"),
    ],
)
def test_wrong_options_are_refused(given, hint):
    with pytest.raises(ValueError) as caught:
        Study.from_parameters(given)
    assert hint in str(caught.value)
