"""SSD-KD and CRCKD: terms against numbers worked out by hand or by plain loops, and against the
known mistakes of public code."""

import math
import shutil

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kdnb import data
from kdnb.distillation import Batch, Course, Seen, create
from kdnb.distillation.base import Lesson, see
from kdnb.distillation.crckd import sigmoid_ramp
from kdnb.distillation.memory import Memory, noise_contrast, others_of_class
from kdnb.distillation.relations import (
    angles,
    distances,
    gram,
    gram_distance,
    root_mean_square,
)
from kdnb.distillation.ssd_kd import learnable_rows, rotated, similarities, train_head
from kdnb.models import zoo
from kdnb.study import Study
from kdnb.training import loop

STUDENT = zoo.create("kdfmv5", 3, 32)
METHODS = ("ssd_kd", "crckd")


def wave(*shape, phase):
    """Numbers between −1 and 1 that plain loops can repeat."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * count + phase).float().reshape(shape)


# relations


def test_distances_and_angles_of_a_triangle():
    """Sides 3, 4 and 5: the mean distance is 4."""
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert torch.allclose(
        distances(corners), torch.tensor([[0, 0.75, 1], [0.75, 0, 1.25], [1, 1.25, 0]])
    )
    found = angles(corners)
    for vertex, cosine in enumerate((0.0, 0.6, 0.8)):
        first, second = (k for k in range(3) if k != vertex)
        assert found[vertex, first, second].item() == pytest.approx(cosine, abs=1e-6)
    assert torch.allclose(distances(7 * corners + 2), distances(corners))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_points_that_coincide_have_no_relation_and_no_gradient(count):
    points = torch.ones(count, 3, requires_grad=True)
    (distances(points).sum() + angles(points).sum()).backward()
    assert torch.equal(points.grad, torch.zeros(count, 3))


def test_gram_matrix_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])
    assert torch.allclose(gram(maps), torch.tensor([[[5.0, 6.0], [6.0, 9.0]]]) / 4)


def test_the_root_of_a_mean_square_has_a_gradient_everywhere():
    """d/dx √mean(x²) is x / (n · √mean(x²)), and zero where student and teacher are equal."""
    difference = torch.tensor([3.0, -4.0], requires_grad=True)
    root_mean_square(difference).backward()
    assert torch.allclose(difference.grad, torch.tensor([3.0, -4.0]) / (2 * math.sqrt(12.5)))
    equal = torch.zeros(2, requires_grad=True)
    root_mean_square(equal).backward()
    assert torch.equal(equal.grad, torch.zeros(2))


@pytest.mark.parametrize("shape", [(3, 40, 2, 3), (3, 5, 3, 3), (1, 64, 1, 1)])
@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_the_distance_of_gram_matrices_needs_no_gram_matrix(shape, apart):
    torch.manual_seed(0)
    other = torch.rand(shape)
    own = (other + apart * torch.randn(shape)).requires_grad_()
    direct, ours = root_mean_square(gram(own) - gram(other)), gram_distance(own, other)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(direct.item(), rel=1e-3)
    wanted, found = (torch.autograd.grad(each, own)[0] for each in (direct, ours))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_equal_maps_have_distance_and_gradient_zero(level):
    maps = torch.full((2, 40, 2, 2), level, requires_grad=True)
    distance = gram_distance(maps, maps.detach().clone())
    distance.backward()
    assert distance == 0 and not maps.grad.any()


# SSD-KD


def test_rotated_views_follow_each_other():
    images = torch.rand(2, 3, 4, 4)
    views = rotated(images)
    assert views.shape == (8, 3, 4, 4) and torch.equal(views[:2], images)
    assert all(torch.equal(views[2 * k : 2 * k + 2].rot90(-k, (2, 3)), images) for k in range(4))
    batch, generator = Batch(images, torch.tensor([0, 1]), torch.tensor([5, 6])), torch.Generator()
    every = create("ssd_kd").change_batch(batch, STUDENT, generator)
    assert torch.equal(every.images, views) and len(every.labels) == len(every.rows) == 2
    one = create("ssd_kd", rotated_views=1)
    drawn = [one.change_batch(batch, STUDENT, generator).images for _ in range(30)]
    found = {k for each in drawn for k in range(4) if torch.equal(each[2:], views[2 * k :][:2])}
    assert found == {1, 2, 3} and all(torch.equal(each[:2], images) for each in drawn)


def test_similarities_are_cosines_of_rotated_images_with_originals():
    points = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [0.0, -1.0]])
    assert torch.allclose(similarities(points, 2), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_the_rows_that_the_teacher_ranks_right_and_the_best_of_the_others_are_kept():
    similarity = torch.tensor(
        [[0.1, 0.5, 0.9], [0.2, 0.8, 0.3], [0.4, 0.5, 0.3], [0.7, 0.6, 0.5], [0.9, 0.1, 0.2]]
    )
    targets = torch.tensor([0, 1, 2, 1, 0])  # ranks 2, 0, 2, 1, 0
    for share, wanted in (
        (0, [1, 4]),
        (0.5, [1, 4, 3]),
        (0.75, [1, 4, 3, 0]),
        (1, [1, 4, 3, 0, 2]),
    ):
        assert learnable_rows(similarity, targets, share).tolist() == wanted


def ssd_answers():
    student = Seen(
        2 * wave(12, 4, phase=0.1),
        (wave(3, 5, phase=0.3), wave(12, 5, phase=2.2), wave(3, 3, 2, 2, phase=0.4).abs()),
    )
    teacher = Seen(
        2 * wave(12, 4, phase=0.7),
        (wave(3, 6, phase=1.1), wave(12, 6, phase=0.9), wave(3, 3, 2, 2, phase=1.3).abs()),
    )
    return student, teacher


SSD_TERMS = {
    "loss": 28.4241041,
    "hard_loss": 2.2296131,
    "soft_loss": 0.3609139,
    "rotated_loss": 0.3283652,
    "similarity_loss": 0.1219862,
    "distance_loss": 0.0084207,
    "angle_loss": 0.0038702,
    "gram_loss": 0.0253658,
}


def test_all_terms_of_ssd_kd_agree_with_plain_loops():
    """Double precision, one pair of images and channels after another."""
    method, labels = create("ssd_kd"), torch.tensor([2, 0, 2])
    method.class_weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    student, teacher = ssd_answers()
    found = method.loss(student, [teacher], labels)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        SSD_TERMS, rel=1e-5, abs=2e-7
    )


def test_several_teachers_of_ssd_kd_are_weighted():
    student, teacher = ssd_answers()
    other = Seen(teacher.logits.flip(1), tuple(each.flip(0) for each in teacher.features))
    own = Seen(student.logits, (*student.features, student.features[2]))
    labels = torch.tensor([2, 0, 2])
    alone = [create("ssd_kd").loss(student, [each], labels) for each in (teacher, other)]
    both = create("ssd_kd", teacher_weights=(3.0, 1.0)).loss(own, [teacher, other], labels)
    for name in ("similarity_loss", "distance_loss", "angle_loss", "gram_loss"):
        expected = 0.75 * alone[0][name] + 0.25 * alone[1][name]
        assert both[name].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradients_of_ssd_kds_logits_are_those_of_their_terms():
    """α·(p − y)/N + (1−α)·T·(p_T − q_T)/N for originals, w·T·(p_T − q_T)/(3N) for the views."""
    student, teacher = ssd_answers()
    logits, labels = student.logits.requires_grad_(), torch.tensor([2, 0, 2])
    create("ssd_kd").loss(student, [teacher], labels)["loss"].backward()
    plain = F.softmax(logits, 1)[:3] - F.one_hot(labels, 4)
    soft = F.softmax(logits / 4, 1) - F.softmax(teacher.logits / 4, 1)
    expected = torch.cat([(0.1 * plain + 0.9 * 4 * soft[:3]) / 3, 2.7 * 4 * soft[3:] / 9])
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_finite_gradients():
    student, _ = ssd_answers()
    leaves = [each.clone().requires_grad_() for each in (student.logits, *student.features)]
    parts = create("ssd_kd").loss(Seen(leaves[0], tuple(leaves[1:])), [student], torch.arange(3))
    relations = [f"{name}_loss" for name in ("similarity", "distance", "angle", "gram")]
    assert max(abs(parts[name].item()) for name in relations) < 1e-6
    parts["loss"].backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def maps(count, width=6, side=3, classes=3):
    return Seen(torch.randn(count, classes), (torch.randn(count, width, side, side),))


def built(name, student, teachers, labels=None, epochs=8, **options):
    """A method whose parts fit these answers; 12 training images of three classes by default."""
    torch.manual_seed(0)
    method = create(name, **options)
    labels = torch.arange(12) % 3 if labels is None else labels
    method.build(student, teachers, Course(labels, epochs, STUDENT))
    return method


def test_the_parts_of_ssd_kd_meet_on_the_coarser_grid_and_all_learn():
    torch.manual_seed(1)
    student, teachers = maps(12), [maps(12, width=5, side=7), maps(12, width=4, side=2)]
    student.features[0].requires_grad_()
    method = built("ssd_kd", student, teachers)
    own, others = method.embed(torch.empty(12, 3, 8, 8), student, teachers)
    assert [each.shape for each in own.features[2:]] == [(3, 5, 3, 3), (3, 4, 2, 2)]
    assert [each.features[2].shape for each in others] == [(3, 5, 3, 3), (3, 4, 2, 2)]
    assert (own.features[2] >= 0).all()
    method.loss(own, others, torch.tensor([0, 1, 2]))["loss"].backward()
    learnt = {name for name, weights in method.named_parameters() if weights.requires_grad}
    assert {name.split(".")[0] for name in learnt} == {"head", "regressors"}
    for name, weights in method.named_parameters():
        assert (weights.grad is not None) == (name in learnt)
    assert student.features[0].grad.isfinite().all()


def test_one_image_with_one_cell_is_refused():
    student, teachers = maps(4, side=1), [maps(4)]
    method = built("ssd_kd", student, teachers)
    with pytest.raises(ValueError, match="raise -p batch_size or -p image_size"):
        method.embed(torch.empty(4, 3, 8, 8), student, teachers)


def test_a_teachers_head_learns_to_find_originals():
    """Views of an image share a direction that most of a feature's dimensions hide."""
    torch.manual_seed(0)
    kept = torch.randn(1, 200, 4)
    points = torch.cat([kept.expand(4, -1, -1), 2 * torch.randn(4, 200, 28)], dim=2)
    fresh = torch.cat([kept.expand(4, -1, -1), 2 * torch.randn(4, 200, 28)], dim=2)
    method = built("ssd_kd", maps(4), [maps(4, width=32)], head_lr=0.01)
    head = method.teacher_heads[0]

    def right():
        with torch.no_grad():
            found = similarities(head(fresh.flatten(0, 1)), 4).argmax(1)
        return (found == torch.arange(200).repeat(3)).float().mean()

    before = right()
    train_head(head, points, method.options)
    assert right() > 3 * before
    assert not any(
        weights.requires_grad or weights.grad is not None for weights in head.parameters()
    )


def test_teachers_heads_see_training_images_only_and_learn_once():
    teacher = zoo.create("resnet10t", 3, 32)
    labels, asked = torch.tensor([0, -1, 2, 1, -1, 0]), []

    def images(rows):
        asked.extend(rows.tolist())
        return torch.rand(len(rows), 3, 32, 32)

    torch.manual_seed(0)
    method = create("ssd_kd", head_epochs=2)
    shapes = [see(each.eval(), torch.rand(2, 3, 32, 32), 1) for each in (STUDENT, teacher)]
    method.build(shapes[0], shapes[1:], Course(labels, 3, STUDENT, [teacher], images))
    states = [method.teacher_heads[0][0].weight.detach().clone()]
    for epoch in range(2):
        method.start_epoch(epoch, STUDENT)
        states.append(method.teacher_heads[0][0].weight.detach().clone())
    assert asked == [0, 2, 3, 5]
    assert not torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])
    assert not any(module._forward_hooks for module in teacher.modules())


def test_without_training_images_the_head_stays_or_is_refused():
    student, teachers = maps(4), [maps(4)]
    with pytest.raises(ValueError, match="set head_epochs to 0"):
        built("ssd_kd", student, teachers).start_epoch(0, STUDENT)
    built("ssd_kd", student, teachers, head_epochs=0).start_epoch(0, STUDENT)


# CRCKD


def test_the_noise_contrast_by_hand():
    """Scores ln 2 and ln 6 against level ln 1 and two negatives: h = 2/(2+2) and 6/(6+2)."""
    positive = torch.tensor([[math.log(2), math.log(6)]])
    negative = torch.tensor([[math.log(2), math.log(6)]], requires_grad=True)
    found = noise_contrast(positive, negative, torch.tensor(0.0))
    expected = -(math.log(1 / 2) + math.log(3 / 4)) / 2 - (math.log(1 / 2) + math.log(1 / 4))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()  # d/ds −log(1 − h) = h
    assert torch.allclose(negative.grad, torch.tensor([[1 / 2, 3 / 4]]))


def test_scores_of_a_thousand_stay_finite():
    scores = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    noise_contrast(scores, scores, torch.tensor(0.0)).backward()
    assert scores.grad.isfinite().all()


def test_positives_are_other_rows_of_the_class():
    members, rows = torch.tensor([2, 5, 7, 11, 13]), torch.tensor([5, 13])
    drawn = [
        others_of_class(rows, members, 3, torch.Generator().manual_seed(seed)) for seed in range(40)
    ]
    assert all(len(set(row.tolist())) == 3 for found in drawn for row in found)
    for place, row in enumerate(rows.tolist()):
        assert {int(n) for found in drawn for n in found[place]} == set(members.tolist()) - {row}
    assert others_of_class(rows, members, 20).shape == (2, 4)


def test_a_memory_moves_by_its_momentum_and_stays_on_the_sphere():
    memory = Memory(4, 2, 0.75)
    memory.bank[2] = torch.tensor([1.0, 0.0])
    before = memory.bank.clone()
    memory.update(torch.tensor([2]), torch.tensor([[0.0, 1.0]]))
    assert torch.allclose(memory.bank[2], torch.tensor([0.75, 0.25]) / math.sqrt(0.625))
    others = torch.tensor([0, 1, 3])
    assert torch.equal(memory.bank[others], before[others])


def test_the_level_is_measured_once():
    memory = Memory(4, 2, 0.5)
    memory.measure_level([torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(2)]])])
    memory.measure_level([torch.tensor([[9.0]])])
    assert memory.level.item() == pytest.approx(math.log(2))


def test_the_ramp_is_that_of_its_paper():
    assert [sigmoid_ramp(t, 30) for t in (0, 15, 30, 80)] == pytest.approx(
        [math.exp(-5), math.exp(-1.25), 1, 1]
    )
    assert sigmoid_ramp(0, 0) == 1


CRCKD_LABELS = torch.tensor([0, 0, 1, -1, 1, 1, 0, 2, -1])  # class 2 has one image
CRCKD_ROWS = torch.tensor([6, 2, 7, 0])
CRCKD_TERMS = {
    "hard_loss": 0.7180103,
    "consistency_loss": 0.8965982,
    "contrast_loss": 27.4900644,
    "relation_loss": 0.2527575,
}


def crckd_case(labels=CRCKD_LABELS, epochs=80, **options):
    method = built("crckd", maps(4), [], labels, epochs, embedding_size=4, **options)
    for memory, phase in zip(method.memories, (0.2, 1.4), strict=True):
        memory.bank.copy_(F.normalize(wave(len(labels), 4, phase=phase), dim=1))
    answers = [
        Seen(2 * wave(4, 3, phase=one), (F.normalize(wave(4, 4, phase=two), dim=1),))
        for one, two in ((0.5, 0.8), (1.9, 2.5))
    ]
    return method, *answers


@pytest.mark.parametrize(
    ("epoch", "loss"), [(19, 3.4670168), (20, 4.2342006), (30, 4.6163725), (79, 4.6163725)]
)
def test_all_terms_of_crckd_agree_with_plain_loops(epoch, loss):
    """Double precision, one image and one row of the memory after another; 80 epochs, as in the
    paper. From epoch 20 on the weight of the contrast is the same as before, not its square."""
    method, student, smooth = crckd_case()
    method.start_epoch(epoch, STUDENT)
    labels = CRCKD_LABELS[CRCKD_ROWS]
    found = {
        name: value.item()
        for name, value in method.loss(student, [smooth], labels, CRCKD_ROWS).items()
    }
    assert found == pytest.approx({"loss": loss} | CRCKD_TERMS, rel=1e-5)
    own, other = (memory.bank for memory in method.memories)
    expected = torch.tensor([0.1605653, -0.7003505, 0.0199073, 0.6952206])
    assert torch.allclose(own[7], expected, atol=1e-6)
    expected = torch.tensor([-0.2904631, -0.6501546, 0.4580008, 0.5321329])
    assert torch.allclose(other[6], expected, atol=1e-6)


@pytest.mark.parametrize("epoch", [0, 40])
def test_the_contrast_has_its_weight_and_not_its_square(epoch):
    losses = []
    for weight in (0.1, 0.3):
        method, student, smooth = crckd_case(contrast_weight=weight)
        method.start_epoch(epoch, STUDENT)
        labels = CRCKD_LABELS[CRCKD_ROWS]
        losses.append(method.loss(student, [smooth], labels, CRCKD_ROWS)["loss"].item())
    assert losses[1] - losses[0] == pytest.approx(0.2 * CRCKD_TERMS["contrast_loss"], rel=1e-5)


def test_the_memory_follows_rows_wherever_they_stand_in_a_batch():
    results = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        method, *answers = crckd_case()
        answers = [Seen(each.logits[order], (each.features[0][order],)) for each in answers]
        rows = CRCKD_ROWS[order]
        losses = method.loss(answers[0], answers[1:], CRCKD_LABELS[rows], rows)
        results.append((losses["loss"], method.memories[0].bank, method.memories[1].bank))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_the_target_of_the_relations_has_no_gradient():
    """KL at similarities x of the student: d/dx = (softmax(x) − target) / N."""
    method, student, smooth = crckd_case()
    own, other = (each.features[0].requires_grad_() for each in (student, smooth))
    labels = CRCKD_LABELS[CRCKD_ROWS]
    method.loss(student, [smooth], labels, CRCKD_ROWS)["relation_loss"].backward()
    assert other.grad is None
    centres = [memory.class_directions(method.shares) for memory in method.memories]
    shares = [
        F.softmax(points.detach() @ centre.T / 0.07, 1)
        for points, centre in zip((own, other), centres, strict=True)
    ]
    expected = (shares[0] - shares[1]) @ centres[0] / 0.07 / 4
    assert torch.allclose(own.grad, expected, atol=1e-5)


def test_centres_of_classes_leave_out_negative_parts_and_other_images():
    memory, shares = Memory(3, 2, 0.5), torch.tensor([[0.5, 0.5, 0.0]])
    memory.bank.copy_(torch.tensor([[3.0, -9.0], [3.0, 8.0], [7.0, 7.0]]))
    assert torch.allclose(memory.class_directions(shares), torch.tensor([[0.6, 0.8]]))


def test_images_without_another_of_their_class_are_in_no_contrast():
    method, student, smooth = crckd_case()
    one = [
        Seen(each.logits[:1], (each.features[0][:1].requires_grad_(),))
        for each in (student, smooth)
    ]
    parts = method.loss(one[0], one[1:], torch.tensor([2]), torch.tensor([7]))
    assert parts["contrast_loss"] == 0 and parts["relation_loss"].isfinite()
    parts["loss"].backward()
    assert all(each.features[0].grad.isfinite().all() for each in one)


def test_negatives_are_bounded_by_the_images_and_by_their_option():
    method = crckd_case()[0]
    assert {len(found[2]) for found in method._pairs(CRCKD_ROWS)} == {4}
    method = crckd_case(negatives=2)[0]
    negatives = [found[2] for found in method._pairs(CRCKD_ROWS)]
    assert {len(each) for each in negatives} == {2}
    assert all(len(each.unique()) == 2 for each in negatives)


@pytest.mark.parametrize(
    ("rows", "hint"), [(None, "give the batch's rows"), ([0, 3], "row 3 is no training image")]
)
def test_rows_that_crckd_cannot_place_are_refused(rows, hint):
    method, student, smooth = crckd_case()
    rows = rows and torch.tensor(rows)
    with pytest.raises(ValueError, match=hint):
        method.loss(student, [smooth], torch.tensor([0, 0, 1, 1]), rows)


def test_one_class_cannot_be_contrasted():
    with pytest.raises(ValueError, match="are of 1 class: train on more classes"):
        built("crckd", maps(2), [], torch.tensor([1, 1, -1]))


def test_the_mean_teacher_is_a_moving_average_with_its_buffers():
    student = zoo.create("resnet10t", 3, 32)
    torch.manual_seed(0)
    method = create("crckd", ema_decay=0.75)
    seen = see(student.eval(), torch.rand(2, 3, 32, 32), 1)
    method.build(seen, [], Course(torch.arange(6) % 3, 8, student))
    expected, names = {}, ("network.conv1.0.weight", "network.bn1.running_mean")
    for step in range(6):
        with torch.no_grad():
            for name in names:
                student.state_dict()[name].add_(torch.randn(()))
        method.after_step(student, step)
        decay = min(1 - 1 / (step + 1), 0.75)
        for name in names:
            new = student.state_dict()[name]
            expected[name] = decay * expected.get(name, 0) + (1 - decay) * new
    kept = method.state_dict()
    for name in names:
        assert torch.allclose(kept[f"mean_teacher.module.{name}"], expected[name], atol=1e-6)
    method.train()
    images = torch.rand(2, 3, 32, 32)
    before = kept["mean_teacher.module.network.bn1.running_mean"].clone()
    _, (smooth,) = method.embed(images, see(student, images, 1), [])
    assert torch.equal(before, kept["mean_teacher.module.network.bn1.running_mean"])
    assert not smooth.logits.requires_grad and smooth.features[0].requires_grad
    assert not any(weights.requires_grad for weights in method.mean_teacher.parameters())


# both


def lesson_of(name, student="kdfmv5", teachers=("resnet10t",), size=32, classes=3, **options):
    """A lesson with networks that answer, the teachers' answers, images and rows of four images."""
    torch.manual_seed(0)
    networks = [zoo.create(each, classes, size).eval() for each in (student, *teachers)]
    method = create(name, **({"head_epochs": 1} if name == "ssd_kd" else {}) | options)
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        shapes = [see(network, images[:2], method.taps) for network in networks]
    labels = torch.arange(10) % classes
    given = networks[1:] if method.needs_teacher else []
    course = Course(
        labels, 4, networks[0], given, lambda rows: torch.rand(len(rows), 3, size, size)
    )
    method.build(shapes[0], shapes[1:] if given else [], course)
    method.start_epoch(0, networks[0])
    rows = torch.tensor([3, 8, 1, 6])
    batch = Batch(images, labels[rows], rows)
    batch = method.change_batch(batch, networks[0], torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = [see(network, batch.images, method.taps) for network in given]
    return Lesson(networks[0], method), batch, seen


@pytest.mark.parametrize(
    "case",
    [
        {"size": 64},
        {"classes": 2},
        {"student": "resnet10t", "teachers": ("kdfmv5", "kdfmv8", "resnet10t")},
    ],
    ids=["64 px", "two classes", "three teachers"],
)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_works_for_networks_and_data_of_any_kind(name, case):
    lesson, batch, seen = lesson_of(name, **case)
    lesson.train()
    answer, teachers = lesson(batch.images, seen)
    losses = lesson.method.loss(answer, teachers, batch.labels, batch.rows)
    assert all(value.isfinite() for value in losses.values())
    losses["loss"].backward()
    for weights in lesson.parameters():
        assert not weights.requires_grad or weights.grad.isfinite().all()
    assert not any(module._forward_hooks for module in lesson.modules())


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_stays_finite(name):
    lesson, batch, seen = lesson_of(name)
    lesson.train()
    with torch.autocast("cpu", torch.bfloat16):
        answer, teachers = lesson(batch.images, seen)
    answer = Seen(answer.logits.bfloat16(), tuple(each.bfloat16() for each in answer.features))
    losses = lesson.method.loss(answer, teachers, batch.labels, batch.rows)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    losses["loss"].backward()
    assert all(w.grad.isfinite().all() for w in lesson.parameters() if w.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_one_image_in_a_batch(name):
    lesson, batch, seen = lesson_of(name)
    keep = torch.arange(0, len(batch.images), 4)
    seen = [Seen(each.logits[keep], (each.features[0][keep],)) for each in seen]
    answer, teachers = lesson.train()(batch.images[keep], seen)
    losses = lesson.method.loss(answer, teachers, batch.labels[:1], batch.rows[:1])
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(w.grad.isfinite().all() for w in lesson.parameters() if w.requires_grad)


def joined(parts):
    """Answers of two processes as the loop gathers them: all images of a view together."""

    def together(*tensors):
        return torch.cat([each.unflatten(0, (-1, 2)) for each in tensors], 1).flatten(0, 1)

    features = zip(*(each.features for each in parts), strict=True)
    return Seen(together(*(p.logits for p in parts)), tuple(together(*f) for f in features))


@pytest.mark.parametrize("name", METHODS)
def test_halves_of_a_batch_that_are_gathered_give_its_loss(name):
    """With running statistics; in training each process normalises its own part."""
    lesson, batch, seen = lesson_of(name)
    answer, teachers = lesson.eval()(batch.images, seen)
    places = torch.arange(len(batch.images))
    halves = []
    for first in (0, 2):
        part = (places % 4 >= first) & (places % 4 < first + 2)
        own = [Seen(each.logits[part], (each.features[0][part],)) for each in seen]
        halves.append(lesson(batch.images[part], own))
    student = joined([half[0] for half in halves])
    others = [joined(each) for each in zip(*(half[1] for half in halves), strict=True)]
    state = {name: value.clone() for name, value in lesson.method.state_dict().items()}
    found = []
    for given in ((answer, teachers), (student, others)):
        lesson.method.load_state_dict(state)
        lesson.method.start_epoch(3, lesson.student)
        found.append(lesson.method.loss(*given, batch.labels, batch.rows))
    for term, value in found[0].items():
        assert found[1][term].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(folder, monkeypatch, name, capsys):
    """The weights agree to the last bit: heads, regressors, memories and mean teacher included."""
    mine = data.load("folder", folder)
    options = (
        {"head_epochs": 2, "rotated_views": 1}
        if name == "ssd_kd"
        else {"positives": 3, "negatives": 9}
    )
    wanted = Study(
        dataset="folder",
        data_root=folder.name,
        teacher="kdfmv5",
        student="kdfmv5" if name == "ssd_kd" else "resnet10t",
        image_size=32,
        teacher_epochs=1,
        student_epochs=2,
        batch_size=36,
        method=name,
        options=options,
    )
    trained = loop.train_teachers(wanted, mine)
    whole = loop.distil(wanted, mine, trained)
    shutil.rmtree(whole.folder)
    keep = loop.checkpoints.keep

    def keep_then_die(run, lesson, optimizer, state, *rest):
        keep(run, lesson, optimizer, state, *rest)
        if state.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoints, "keep", keep_then_die)
        with pytest.raises(KeyboardInterrupt):
            loop.distil(wanted, mine, trained)
    kept = {each.removeprefix("method.") for each in load_file(whole.folder / "last.safetensors")}
    parts = {
        "ssd_kd": {"teacher_heads.0.2.weight", "head.0.weight", "regressors.0.1.running_mean"},
        "crckd": {
            "memories.0.bank",
            "memories.1.level",
            "heads.0.weight",
            "mean_teacher.module.network.bn1.running_mean",
        },
    }
    assert parts[name] <= kept
    resumed = loop.distil(wanted, mine, trained)
    assert "resumes after epoch 1" in capsys.readouterr().out
    assert resumed.checksum == whole.checksum
    same = whole.history.drop(columns="seconds")
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), same)
