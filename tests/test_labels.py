"""What to learn from: images without a label, and batches that a reference chooses."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import study
from scipy import stats
from test_training import killed_after

from kdnb import device, files, plots, report
from kdnb.distillation import Batch, Course, Seen, create
from kdnb.distillation.self_training import entropy, labelled_loss
from kdnb.evaluation import predictions
from kdnb.models import zoo
from kdnb.parameters import BadParameter, declared
from kdnb.study import Recipe, Study
from kdnb.training import answers, curation, labels, loop, schedule
from kdnb.training import teachers as teaching
from kdnb.training.curation import Curation, Curator, SuperBatches, drawn
from kdnb.training.schedule import Settings

STUDENT = zoo.create("kdfmv5", 3, 32)

# self-training


def test_entropy_in_closed_form():
    assert entropy(torch.zeros(2, 4)).item() == pytest.approx(np.log(4))
    half = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert entropy(half).item() == pytest.approx(1.5 * np.log(2))
    certain = torch.tensor([[500.0, -500.0]], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy(certain), certain)
    assert entropy(certain) == 0 and torch.isfinite(gradient).all()


def test_only_labelled_images_count_in_cross_entropy():
    torch.manual_seed(0)
    logits, numbers = torch.randn(6, 3, requires_grad=True), torch.tensor([2, -1, 0, -1, -1, 1])
    known = numbers >= 0
    for weights in (None, torch.tensor([0.5, 2.0, 1.0])):
        each = F.cross_entropy(logits[known], numbers[known], weights, reduction="none")
        found = labelled_loss(logits, numbers, weights)
        assert found.item() == pytest.approx(each.mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient[known].any(1).all() and not gradient[~known].any()
    shares = F.one_hot(numbers.clamp(min=0), 3).float() * known[:, None]
    assert labelled_loss(logits, shares, weights).item() == pytest.approx(found.item())
    # half a label counts as half an image, and is never enlarged to a whole one
    assert labelled_loss(logits, shares / 6).item() == pytest.approx(
        labelled_loss(logits, shares).item() / 2, rel=1e-6
    )


def test_a_batch_without_labels_has_no_cross_entropy():
    logits = torch.randn(4, 3, requires_grad=True)
    found = labelled_loss(logits, torch.full((4,), -1))
    (gradient,) = torch.autograd.grad(found, logits)
    assert found == 0 and not gradient.any()


def test_the_loss_of_self_training_in_closed_form():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    numbers = torch.tensor([1, -1, -1, 0, -1])
    method = create("self_training", temperature=2.0, pseudo_weight=0.5, tempering=0.3)
    parts = method.loss(Seen(student), [Seen(teacher)], numbers)
    (gradient,) = torch.autograd.grad(parts["loss"], student)
    log_p, soft = F.log_softmax(student, 1), F.softmax(teacher / 2, 1)
    p, spread = log_p.exp(), -(log_p.exp() * log_p).sum(1)
    hard = -(log_p[0, 1] + log_p[3, 0]) / 2
    divergence = (soft * (soft.log() - F.log_softmax(student / 2, 1))).sum(1).mean()
    expected = hard + 0.5 * 4 * divergence - 0.3 * spread.mean()
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    of_hard = (p - F.one_hot(numbers.clamp(min=0), 3)) * (numbers >= 0)[:, None] / 2
    of_soft = 0.5 * 2 * (F.softmax(student / 2, 1) - soft) / 5
    of_spread = 0.3 * p * (log_p + spread[:, None]) / 5
    assert torch.allclose(gradient, of_hard + of_soft + of_spread, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 6])
def test_mixed_images_keep_the_part_of_a_label_that_is_known(count):
    method = create("self_training", mixup=1.0)
    method.build(Seen(torch.zeros(2, 3)), [], Course(torch.zeros(9), 1, STUDENT))
    images = torch.arange(count * 1.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    numbers = torch.where(torch.arange(count) == 0, 2, -1)
    batch = Batch(images, numbers, torch.arange(count))
    found = method.change_batch(batch, STUDENT, torch.Generator().manual_seed(1))
    assert found.labels.shape == (count, 3) and not found.labels[:, :2].any()
    # the first image, whose value is 0, is mixed with the last
    share = 1 - float(found.images[0, 0, 0, 0]) / max(1, count - 1)
    assert found.labels[0, 2].item() == pytest.approx(share, abs=1e-5)
    # in an odd batch the last image has another partner
    expected = share if count == 5 else 1.0
    assert found.labels.sum().item() == pytest.approx(expected, abs=1e-5)


def test_left_out_training_images_come_back_without_their_label(mine):
    part = mine.labelled(0.25, seed=1)
    every = part.with_unlabelled()
    train = every.pixels(32, "train")
    assert len(train) == (mine.table["split"] == "train").sum()
    numbers = train.labels[train.rows]
    assert (numbers == -1).sum() == len(part.unlabelled) == 72 - 18
    own = part.pixels(32, "train")
    known = set(train.rows[numbers >= 0].tolist())
    assert known == set(own.rows.tolist())
    for split in ("val", "test"):
        assert (every.groups(split) == part.groups(split)).all()
    assert every.counts()["train"].equals(part.counts()["train"])
    assert every.checksum != part.checksum and every.with_unlabelled() is every
    assert mine.with_unlabelled() is mine
    assert set(part.unlabelled) > set(mine.labelled(0.5, seed=1).unlabelled)


def self_training(**changes):
    return study(**{"method": "self_training", "student_epochs": 1, "teacher_epochs": 1} | changes)


def test_true_labels_of_unlabelled_images_are_never_read(mine):
    wanted, part = self_training(), mine.labelled(0.25)
    teachers = loop.train_teachers(wanted, part)
    found = loop.distil(wanted, part, teachers)
    wrong = part.table.copy()
    rows = list(part.unlabelled)
    wrong.loc[rows, "label"] = np.roll(wrong.loc[rows, "label"], 24)
    assert (wrong["label"] != part.table["label"]).any()
    shutil.rmtree(found.folder)
    again = loop.distil(wanted, dataclasses.replace(part, table=wrong), teachers)
    assert again.checksum == found.checksum and again.record["budget"]["images"] == 72


def test_the_student_of_a_round_teaches_the_next(mine):
    wanted, part = self_training(teacher_weights=(2.0,)), mine.labelled(0.25)
    teachers = loop.train_teachers(wanted, part)
    first, second = loop.distil_rounds(wanted, part, teachers)
    assert first.record["key"]["teachers"] == [teachers[0].checksum]
    assert second.record["key"]["teachers"] == [first.checksum]
    assert first.checksum != second.checksum
    assert np.isfinite(second.history[["soft_loss", "entropy", "hard_loss"]]).all(axis=None)
    (once,) = loop.distil_rounds(self_training(options={"rounds": 1}), part, teachers)
    assert once.record["key"]["teachers"] == first.record["key"]["teachers"]


def test_self_training_without_unlabelled_images_is_refused(mine):
    wanted = self_training()
    with pytest.raises(ValueError, match="all training images have one: -p label_share 0.15"):
        loop.distil(wanted, mine, loop.train_teachers(wanted, mine))


def test_class_weights_are_those_of_the_labelled_images():
    weights = schedule.class_weights(torch.tensor([0, -1, 0, 1, -1, -1]), 2)
    assert weights.tolist() == pytest.approx([3 / 4, 3 / 2])


# curation


def successive(weights, count):
    """The probability of each ordered draw of ``count`` places, by the definition."""
    found = {(): 1.0}
    for _ in range(count):
        found = {
            (*held, place): chance * weight / (sum(weights) - sum(weights[h] for h in held))
            for held, chance in found.items()
            for place, weight in enumerate(weights)
            if place not in held
        }
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_distribution_of_successive_sampling(temperature):
    scores = torch.tensor([1.0, 0.0, -0.5, 0.7])
    exact = successive((scores / temperature).exp().tolist(), 2)
    assert sum(exact.values()) == pytest.approx(1) and len(exact) == 12
    generator, draws = torch.Generator().manual_seed(3), 6000
    counts = dict.fromkeys(exact, 0)
    for _ in range(draws):
        counts[tuple(drawn(scores, 2, temperature, generator).tolist())] += 1
    test = stats.chisquare(list(counts.values()), [draws * p for p in exact.values()])
    assert test.pvalue > 0.01
    # the same draws do not fit another temperature: the test can fail
    other = successive((scores / (2 * temperature)).exp().tolist(), 2)
    wrong = stats.chisquare(list(counts.values()), [draws * p for p in other.values()])
    assert wrong.pvalue < 1e-6


def test_a_draw_is_without_replacement_and_repeats_with_its_seed():
    scores = torch.randn(40)
    first, again = (drawn(scores, 40, 1.0, torch.Generator().manual_seed(5)) for _ in range(2))
    assert sorted(first.tolist()) == list(range(40)) and torch.equal(first, again)
    cold = drawn(scores, 8, 1e-4, torch.Generator().manual_seed(5))
    assert set(cold.tolist()) == set(scores.topk(8).indices.tolist())
    with pytest.raises(ValueError, match="count must lie between 1 and 40"):
        drawn(scores, 41, 1.0, torch.Generator())


def test_each_rule_chooses_by_its_score():
    """Of ten images, the student does not know 0 to 3, and the reference does not know 2 to 5."""
    numbers = torch.zeros(10, dtype=torch.int64)
    logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
    student, reference = logits.clone(), logits.clone()
    student[:4], reference[2:6] = -student[:4], -reference[2:6]
    model, modes = zoo.create("kdfmv5", 2, 32).train(), []
    model.forward = lambda images: modes.append(model.training) or student
    batch = Batch(torch.rand(10, 3, 2, 2), numbers, torch.arange(10))
    chosen = {}
    for name in ("acid", "easy_reference", "random"):
        curator = Curator(Curation(name, 1e-3), [reference], numbers)
        found = [curator.choose(batch, model, torch.Generator().manual_seed(n)) for n in range(60)]
        assert {len(each.rows) for each in found} == {2}
        assert all(torch.equal(each.images, batch.images[each.rows]) for each in found)
        chosen[name] = {row for each in found for row in each.rows.tolist()}
    assert chosen["acid"] == {0, 1} and chosen["random"] == set(range(10))
    assert chosen["easy_reference"] == {0, 1, 6, 7, 8, 9}
    assert model.training and modes == [False] * 60  # acid alone asks the student


def test_losses_of_several_references_are_those_of_their_mean_probability():
    logits, numbers = torch.randn(2, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    mean = F.softmax(logits, -1).mean(0)
    expected = -mean[torch.arange(5), numbers].log()
    assert torch.allclose(curation.losses(logits, numbers), expected, atol=1e-6)


def test_super_batches_are_drawn_anew_and_divided_among_processes():
    settings = Settings(1, 4, 1.0, 0)
    whole = SuperBatches(44, settings)
    whole.epoch = 2
    steps = list(whole)
    assert len(steps) == len(whole) == len(schedule.Batches(44, settings)) == 11
    assert all(len(set(step)) == 20 for step in steps) and steps == list(whole)
    assert len({tuple(step) for step in steps}) == 11 and whole.images == 44
    parts = [SuperBatches(44, settings, part, 2) for part in (0, 1)]
    for part in parts:
        part.epoch = 2
    joined = [one + other for one, other in zip(*parts, strict=True)]
    assert joined == steps


def test_a_super_batch_that_is_larger_than_the_set_is_refused_with_one_that_fits(mine):
    with pytest.raises(BadParameter, match=r"5 · 16 images.*the 72 training images: -p batch_size"):
        loop.distil(study(method="hard", curation="random"), mine, [])
    SuperBatches(72, Settings(1, 14, 1.0, 0))


def test_what_curation_cannot_do_is_refused(mine):
    small = {"batch_size": 8, "curation": "acid"}
    with pytest.raises(ValueError, match="there is no teacher to be one; -p curation random"):
        loop.distil(study(method="hard", **small), mine, [])
    part = mine.labelled(0.5)
    with pytest.raises(ValueError, match="images without a label: choose one of the two"):
        loop.distil(self_training(**small), part, [])
    with pytest.raises(ValueError, match="several subnets at once"):
        loop.fit(study(**small), mine, zoo.SUPERNET, create("hard"), 1)
    with pytest.raises(files.UnknownName, match="Did you mean 'acid'"):
        study(curation="acd")
    assert declared(Recipe)["curation"].metadata["choices"] == curation.RULES


@pytest.mark.parametrize("method", ["hard", "hybrid", "self_training", "aucm"])
def test_a_resumed_run_equals_an_uninterrupted_one(mine, monkeypatch, method):
    """Draws, super-batches and mixed images: the weights agree to the last bit."""
    curated = {"curation": "acid", "batch_size": 8} if method in ("hard", "hybrid") else {}
    wanted = study(method=method, student_epochs=3, **curated)
    images = mine.labelled(0.5) if method == "self_training" else mine
    teachers = loop.train_teachers(wanted, images)
    whole = loop.distil_rounds(wanted, images, teachers)
    for run in whole:
        shutil.rmtree(run.folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(2, patch)
        loop.distil(wanted, images, teachers)
    again = loop.distil_rounds(wanted, images, teachers)
    assert [run.checksum for run in again] == [run.checksum for run in whole]
    assert again[0].record["resumed_after_epoch"] == 2


def test_images_are_scored_at_a_share_of_their_sides(mine, monkeypatch):
    """The losses of the draw are those of smaller images, and a run of whole images keeps its
    key."""
    rule = Curation("acid", scale=0.5)
    assert "scale" not in Curation("acid").key and rule.key["scale"] == 0.5
    assert Curation("random", scale=0.5).key == Curation("random").key, "nothing is scored"
    assert curation.passes(1, 5, 0.5) == 3 + 5 / 4 and curation.passes(1, 5) == 8
    model, images = zoo.create("resnet10t", 3, 32), torch.rand(10, 3, 32, 32)
    labels = torch.arange(10) % 3
    batch = Batch(images, labels, torch.arange(10))
    with monkeypatch.context() as patch:
        patch.setattr(device, "precision", lambda *place: "no")  # bf16 rounds more than 1e-4
        found = Curator(rule, [torch.zeros(10, 3)], labels)._student(batch, model)
    model.eval()
    with torch.no_grad():
        logits = model(F.avg_pool2d(images, 2))
    assert torch.allclose(found, F.cross_entropy(logits, labels, reduction="none"), atol=1e-4)
    wanted = study(method="hard", curation="acid", batch_size=8, student_epochs=1)
    teachers = loop.train_teachers(wanted, mine)
    half = dataclasses.replace(wanted, student="resnet10t", curation_scale=0.5)
    assert loop.distil(half, mine, teachers).record["budget"]["scored_images"] == 5 * 72
    with pytest.raises(ValueError, match="kdfmv5 cannot score images of 16 px.*built for 32 px"):
        loop.distil(dataclasses.replace(wanted, curation_scale=0.5), mine, teachers)


def test_the_losses_of_the_reference_are_kept_on_disk(mine, monkeypatch):
    wanted = study(method="hard", curation="acid", batch_size=8, student_epochs=1)
    teachers = loop.train_teachers(wanted, mine)
    loop.distil(wanted, mine, teachers)
    assert len(list(answers.folder().rglob("fixed.safetensors"))) == 1
    monkeypatch.setattr(teaching, "predict", lambda *_: pytest.fail("asked a second time"))
    found = loop.distil(dataclasses.replace(wanted, curation="easy_reference"), mine, teachers)
    assert found.record["key"]["curation"]["reference"] == [teachers[0].checksum]
    assert found.record["budget"] == {"steps": 9, "images": 72, "scored_images": 0}


def test_a_run_without_curation_has_the_key_it_had(mine):
    found = loop.distil(study(method="hard", student_epochs=1), mine, [])
    assert found.record["key"].keys() == {
        "version",
        "model",
        "classes",
        "data",
        "image_size",
        "settings",
        "objective",
        "teachers",
    }
    assert found.record["budget"] == {"steps": 5, "images": 72, "scored_images": 0}


# the comparison


def compared(**changes):
    return Study.of(labels.LabelParameters)(
        **{"dataset": "folder", "data_root": "mine", "teacher": "kdfmv5", "image_size": 32}
        | {"profile": "smoke", "batch_size": 8}
        | changes
    )


@pytest.mark.parametrize("stated", ["0.1+1", "0", "a+b", "", 1.5])
def test_shares_that_are_none_are_refused(stated):
    with pytest.raises(BadParameter, match="label_shares must be"):
        compared(label_shares=stated)


def test_shares_are_read_in_order():
    assert labels.shares("0.3+0.1") == (0.1, 0.3) and labels.shares(0.15) == (0.15,)
    assert compared(label_shares=0.15).label_shares == 0.15
    assert compared(profile="quick").label_shares == "0.15+0.3"


def test_the_budget_is_one_number_of_steps(mine):
    wanted, part = compared(student_epochs=5), mine.labelled(0.25)
    assert labels.budget(wanted) == 6  # two rounds of three
    own = labels.ways(wanted)
    fitted = {name: labels.with_equal_steps(each, mine, part) for name, each in own.items()}
    # 72 images are nine steps, 18 are three
    assert {name: each.student_epochs for name, each in fitted.items()} == {
        "hard": 18,
        "hybrid": 18,
        "self_training": 3,
    }
    assert fitted["hard"].teacher_epochs == 3 * wanted.teacher_epochs


def test_shares_and_curation_are_compared_with_equal_budgets(mine):
    wanted = compared(label_shares="0.25", method="hybrid")
    rows = list(labels.train_on_shares(wanted, mine))
    names = [(row["share"], row["method"]) for row in rows]
    assert names == [
        (0.25, "teacher kdfmv5"),
        (0.25, "hard"),
        (0.25, "hybrid"),
        (0.25, "self_training"),
        (1.0, "teacher kdfmv5"),
        (1.0, "hard"),
        (1.0, "hybrid"),
    ]
    students = [row for row in rows if row["method"] in ("hard", "hybrid", "self_training")]
    assert {row["steps"] for row in students} == {18}
    assert {row["labelled"] for row in rows} == {18, 72} and {row["n"] for row in rows} == {27}
    table = report.labels.table(rows)
    assert (table["low"] <= table["balanced_accuracy"] + 1e-9).all()
    gains = report.labels.gains_by_share(wanted, mine, rows)
    gap = rows[3]["balanced_accuracy"] - rows[5]["balanced_accuracy"]
    last = gains.iloc[-1]
    assert last["label"] == "self_training with 25%" and last["group"].startswith("minus hard")
    assert last["difference"] == pytest.approx(gap)
    assert plots.accuracy_by_share(table, "shares").axes[0].get_xscale() == "log"
    with pytest.raises(BadParameter, match="draws its own shares"):
        list(labels.train_on_shares(wanted, mine.labelled(0.5)))


def test_a_rule_is_compared_at_equal_images_and_at_equal_cost(mine):
    wanted = compared(method="hard", batch_size=16, student_epochs=3)
    rows = {row["name"]: row for row in labels.train_curated(wanted, mine)}
    assert list(rows) == [
        "hard, acid",
        "hard, easy_reference",
        "hard, random",
        "hard, random, equal cost",
    ]
    images = {name: row["images"] for name, row in rows.items()}
    assert len({images[f"hard, {rule}"] for rule in curation.RULES}) == 1
    acid, longer = rows["hard, acid"], rows["hard, random, equal cost"]
    assert acid["scored_images"] == 5 * acid["images"]
    assert acid["forward_passes"] == longer["forward_passes"] == 8 * acid["images"]
    gains = report.labels.gains_of_curation(wanted, mine, list(rows.values()))
    assert list(gains["group"].unique()) == [
        "minus random, equal images",
        "minus random, equal cost",
    ]
    # a rule that scores nothing costs as much as random batches
    assert list(gains["label"]) == ["hard, acid", "hard, easy_reference", "hard, acid"]


def test_each_comparison_is_written_when_it_is_done(mine):
    """A killed notebook keeps those that it finished; other settings or images keep none."""
    wanted = compared()
    path = report.save_labels(wanted, mine, {"shares": [{"share": 1.0}]})
    assert report.save_labels(wanted, mine, {"curated": []}) == path
    held = files.read_json(path)["results"]
    assert held["shares"] == [{"share": 1.0}] and held["curated"] == []
    report.save_labels(dataclasses.replace(wanted, student_epochs=2), mine, {"positives": []})
    held = files.read_json(path)["results"]
    assert "positives" in held and "shares" not in held


def test_differences_are_paired_image_by_image(mine):
    test = mine.pixels(32, "test")
    truth = test.labels[test.rows].numpy()
    wrong = np.where(np.arange(len(truth)) % 3 == 0, (truth + 1) % 3, truth)
    right, worse = ({"predicted": predictions.as_text(each)} for each in (truth, wrong))
    found = report.labels.differences(compared(), mine, {("a", "b"): (right, worse)})
    assert found["difference"].item() == pytest.approx(1 / 3) and found["n"].item() == 27
    assert found["low"].item() > 0 and isinstance(found, pd.DataFrame)
