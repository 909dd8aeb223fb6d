"""Rare positives: the AUC margin loss, a start without labels, shares of positives, ROC areas."""

import sys

import numpy as np
import pytest
import torch
from conftest import study
from sklearn.metrics import roc_auc_score

from kdnb import extras, report, training
from kdnb.distillation import Batch, Course, Seen, create
from kdnb.distillation.aucm import auc_margin_loss
from kdnb.evaluation import roc
from kdnb.models import zoo
from kdnb.parameters import BadParameter, declared
from kdnb.study import Study
from kdnb.training import LabelParameters, contrast, loop, rare, recipes
from kdnb.training.recipes import TrainingRecipe

STUDENT = zoo.create("kdfmv5", 2, 32)


def test_the_margin_loss_by_hand():
    """One positive of score 0.8 and one negative of 0.3; p = 1/4, a = 0.7, b = 0.2, α = 0.5, m = 1.

    (1 − p)(h − a)² = 0.75 · 0.01 = 0.0075, with 2α(p(1 − p)m − (1 − p)h) = 0.1875 − 0.6 = −0.4125
    and p(1 − p)α² = 0.046875: F of the positive is −0.451875. Of the negative: p(h − b)² = 0.0025,
    2α(0.1875 + p h) = 0.2625, so F = 0.218125. Their mean is −0.116875. libauc is
    no dependency, so its AUCMLoss (v1) is not called here: these are its terms one by one.
    """
    scores = torch.tensor([[0.8], [0.3]], requires_grad=True)
    positive, share = torch.tensor([[1], [0]]), torch.tensor([0.25])
    centres, alpha = torch.tensor([[0.7], [0.2]]), torch.tensor([0.5])
    found = auc_margin_loss(scores, positive, share, centres, alpha)
    assert found.item() == pytest.approx(-0.116875, rel=1e-5)
    # ∂F/∂h: 2(1 − p)(h − a) − 2α(1 − p) for the positive, 2p(h − b) + 2αp for the negative, halved
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.flatten().tolist() == pytest.approx([(0.15 - 0.75) / 2, (0.05 + 0.25) / 2])


def test_at_the_saddle_point_the_loss_is_variances_and_the_squared_gap():
    torch.manual_seed(0)
    scores, positive = torch.rand(40, 3), (torch.arange(120).view(40, 3) % 4 == 0).long()
    share = positive.float().mean(0)
    kinds = [positive.bool(), ~positive.bool()]
    means = [torch.stack([scores[k[:, c], c].mean() for c in range(3)]) for k in kinds]
    spread = sum(
        torch.stack([scores[k[:, c], c].var(unbiased=False) for c in range(3)]) for k in kinds
    )
    gap = 1 + means[1] - means[0]
    found = auc_margin_loss(scores, positive, share, torch.stack(means), gap)
    assert torch.allclose(found, share * (1 - share) * (spread + gap**2), atol=1e-6)
    # no other a, b is lower there, and no other α is higher
    for _ in range(5):
        moved = torch.stack(means) + 0.1 * torch.randn(2, 3)
        assert (auc_margin_loss(scores, positive, share, moved, gap) >= found - 1e-6).all()
        other = (gap + 0.1 * torch.randn(3)).clamp(min=0)
        assert (auc_margin_loss(scores, positive, share, torch.stack(means), other) <= found).all()


def built(epochs=4, classes=2, **options):
    method, network = create("aucm", **options), zoo.create("kdfmv5", classes, 32)
    labels = torch.tensor([0, 0, 0, 1] * 5 + [-1])
    method.build(Seen(torch.zeros(2, classes)), [], Course(labels, epochs, network))
    return method, network


def test_its_centres_and_alpha_find_the_saddle_point():
    method, network = built()
    assert method.share.tolist() == [0.75, 0.25]
    logits, labels = torch.tensor([[2.0, 0.0]] * 3 + [[1.0, 0.0]]), torch.tensor([0, 0, 0, 1])
    h = logits.softmax(1)
    method.start_epoch(3, network)
    for _ in range(400):
        found = method.loss(Seen(logits), [], labels)
    high, low = float(h[0, 0]), float(h[3, 0])
    assert method.centres[0].tolist() == pytest.approx([high, 1 - low], abs=1e-3)
    assert method.centres[1].tolist() == pytest.approx([low, 1 - high], abs=1e-3)
    assert method.slope.tolist() == pytest.approx([1 + low - high] * 2, abs=1e-3)
    assert found["loss"].item() == pytest.approx(3 / 16 * (1 + low - high) ** 2, abs=1e-4)
    # a margin that is reached leaves nothing to pull apart: α stays at zero
    reached, _ = built(margin=0.0)
    for _ in range(50):
        reached.loss(Seen(logits), [], labels)
    assert reached.slope.tolist() == [0, 0]


def test_warm_up_is_cross_entropy_and_no_epoch_of_it_is_kept():
    method, network = built(epochs=4)
    logits, labels = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 1, 0, 0])
    for epoch in range(4):
        method.start_epoch(epoch, network)
        found = method.loss(Seen(logits), [], labels)
        same = found["loss"].item() == pytest.approx(found["hard_loss"].item())
        assert same == (epoch < 2) and method.selectable(epoch) == (epoch >= 2)
        assert torch.autograd.grad(found["loss"], logits)[0].any()


def test_weights_are_pulled_towards_those_at_the_start_of_the_epoch():
    method, network = built(epochs=1, pull=0.25)
    method.start_epoch(0, network)
    weights = next(network.network.parameters())
    before = weights.detach().clone()
    with torch.no_grad():
        weights += 4
    method.after_step(network, 0)
    assert torch.allclose(weights, before + 3)


def test_mixed_labels_and_the_supernet_are_refused_in_a_sentence(mine):
    method, _ = built()
    with pytest.raises(ValueError, match="without mixup"):
        method.loss(Seen(torch.zeros(2, 2)), [], torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="learn from logits only; aucm needs more"):
        loop.fit(study(), mine, zoo.SUPERNET, create("aucm"), 1)


def test_a_teacher_may_maximise_the_area_and_half_precision_is_finite(mine):
    own = study(teacher="kdfmv5", teacher_epochs=1, teacher_recipe="deep_auc")
    (run,) = loop.train_teachers(own, mine)
    assert run.record["key"]["objective"]["method"] == "aucm"
    assert np.isfinite(run.history["auc_loss"]).all()
    method, _ = built(epochs=1)
    logits = torch.tensor([[60000.0, -60000.0]] * 2, dtype=torch.float16)
    assert torch.isfinite(method.loss(Seen(logits), [], torch.tensor([0, 1]))["loss"])


def test_a_recipe_without_class_weights_changes_no_other_key():
    assert recipes.PLAIN.key == {}
    found = TrainingRecipe(patience=0, class_weights=False)
    assert found.key == {"recipe": {"patience": 0, "class_weights": False}}


# areas


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.5, 1.0])
def test_areas_are_those_of_scikit_learn(limit):
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    for scores in (rng.random(60) + 0.4 * truth, rng.integers(0, 4, 60) + truth):
        counts = rng.integers(0, 3, (5, 60))
        found = roc.Areas(truth, scores, limit)(counts)
        for row, drawn in enumerate(counts):
            kept = np.repeat(np.arange(60), drawn)
            exact = roc_auc_score(truth[kept], scores[kept])
            assert found["auc"][row] == pytest.approx(exact)
            part = roc_auc_score(truth[kept], scores[kept], max_fpr=limit) if limit < 1 else exact
            assert found["partial_auc"][row] == pytest.approx(part)


def test_areas_in_closed_form_with_intervals_and_paired_differences():
    truth = np.arange(40) % 2 == 0
    perfect = roc.evaluate(truth, truth * 1.0)
    assert perfect["auc"] == perfect["partial_auc"] == 1
    assert perfect["intervals"]["auc"] == [1, 1]
    flat = roc.evaluate(truth, np.zeros(40))
    assert flat["auc"] == flat["partial_auc"] == 0.5
    gap = roc.compare(truth, truth * 1.0, np.zeros(40))["partial_auc"]
    assert gap == {"difference": 0.5, "n": 40, "low": 0.5, "high": 0.5}
    assert roc.compare(truth, np.arange(40.0), np.arange(40.0))["auc"]["low"] == 0
    one_kind = roc.evaluate(np.ones(4, bool), np.arange(4.0))
    assert np.isnan(one_kind["auc"]) and one_kind["intervals"]["auc"] is None
    with pytest.raises(ValueError, match="limit"):
        roc.Areas(truth, np.zeros(40), 0)


# shares of positives


def test_shares_of_positives_are_exact_nested_and_of_one_size(mine):
    shares = (0.2, 0.5)
    few, half = (rare.with_positives(mine, share, shares, 3) for share in shares)
    for dataset, share in ((few, 0.2), (half, 0.5)):
        assert dataset.classes == ("not dark", "dark") and dataset.split.startswith("official")
        counts = dataset.counts()
        assert counts["train"].sum() == 48 and counts["val"].sum() == 18
        assert counts.loc["dark", "train"] == round(48 * share)
        assert counts["test"].tolist() == [18, 9]
    kept = [
        set(d.table.loc[(d.table["split"] == "train") & (d.table["label"] == "dark"), "path"])
        for d in (few, half)
    ]
    assert kept[0] < kept[1]
    again = rare.with_positives(mine, 0.2, shares, 3)
    assert again.checksum == few.checksum
    assert rare.with_positives(mine, 0.2, shares, 4).checksum != few.checksum
    with pytest.raises(BadParameter, match=r"positive_shares 0.02: 1 of 48 images for train"):
        rare.with_positives(mine, 0.02, (0.02,), 0)
    with pytest.raises(BadParameter, match="positive_shares must be numbers between 0 and 1"):
        Study.of(LabelParameters)(positive_shares="5")
    assert declared(LabelParameters)["positive_shares"].metadata["help"]


def test_each_positive_is_drawn_as_often_as_any_other(mine):
    drawn = np.zeros(len(mine.table))
    for seed in range(200):
        found = rare.with_positives(mine, 0.25, (0.25, 0.5), seed)
        drawn += (found.table["split"] == "train").to_numpy()
    train = (mine.table["split"] == "train").to_numpy()
    dark = (mine.table["label"] == "dark").to_numpy()
    # 12 of 24 positives, 36 of 48 negatives; five standard deviations of 200 draws
    for rows, share in ((train & dark, 0.5), (train & ~dark, 0.75)):
        assert abs(drawn[rows] / 200 - share).max() < 5 * np.sqrt(share * (1 - share) / 200)
    assert not drawn[~train].any()


# a start without labels


def test_views_of_one_image_attract_in_closed_form():
    """Two images, views (1, 0) and (1, 0), (0, 1) and (0, 1), temperature 1: each view meets one
    twin of similarity 1 and two others of 0, so the loss is log(1 + 2/e)."""
    method = contrast.SimCLR(contrast.SimCLR.Options(contrast_temperature=1.0))
    method.criterion = contrast.criterion(1.0)
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1)
    found = method.loss(Seen(torch.zeros(4, 2), (points,)), [], torch.zeros(2).long())
    assert found["loss"].item() == pytest.approx(np.log(1 + 2 / np.e), rel=1e-5)


def test_views_are_drawn_by_the_generator_and_stand_one_after_the_other():
    method = contrast.SimCLR()
    method.views = contrast.RandAugment()
    batch = Batch(torch.rand(3, 3, 32, 32), torch.zeros(3).long(), torch.arange(3))
    first, second = (
        method.change_batch(batch, STUDENT, torch.Generator().manual_seed(5)).images
        for _ in range(2)
    )
    assert torch.equal(first, second) and first.shape == (6, 3, 32, 32)
    assert not torch.equal(first[:3], first[3:])


def test_any_student_and_teacher_may_start_without_labels(mine):
    """``-p recipe simclr``: distilled student and baseline begin with the same network, which has
    seen no label, at a tenth of the rate that the student has from random weights."""
    own = study(student="kdfmv5", student_epochs=2, recipe="simclr")
    trio = training.trio(own, mine)
    begun = loop.begin(own, mine, "kdfmv5", 2)
    named = {"name": recipes.SIMCLR.name, "paper": recipes.SIMCLR.paper}
    plain = loop.train_baseline(study(student="kdfmv5", student_epochs=2), mine)
    for run in (trio.distilled, trio.baseline):
        key = run.record["key"]
        assert key["start"] == begun.checksum and key["recipe"] == {"started": True} | named
        assert key["settings"]["lr"] == pytest.approx(plain.record["key"]["settings"]["lr"] / 10)
    shuffled = loop.begin(own, mine.shuffled(), "kdfmv5", 2)
    assert shuffled.checksum == begun.checksum, "labels change nothing"
    # a teacher from published weights does not make the student's rate one of fine-tuning
    taught = study(
        student="kdfmv5",
        student_epochs=2,
        recipe="simclr",
        pretrained="teacher",
        teacher="tf_efficientnet_lite0",
    )
    recipe = recipes.of_student("simclr")
    rate = loop._settings(taught, "kdfmv5", 2, begun.model.network, recipe, "student").lr
    assert rate == pytest.approx(key["settings"]["lr"])
    with pytest.raises(ValueError, match="leave -p recipe out"):
        loop.fit(own, mine, zoo.SUPERNET, create("hard"), 1)
    teacher = study(teacher="kdfmv5", teacher_epochs=1, teacher_recipe="simclr")
    (run,) = loop.train_teachers(teacher, mine)
    assert run.record["key"]["start"] == loop.begin(teacher, mine, "kdfmv5", 1, "teacher").checksum


def test_a_missing_library_is_answered_with_the_way_to_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(extras.MissingExtra, match=r"pip install 'kdnb\[auc\]'"):
        contrast.criterion(0.5)


def test_all_losses_are_compared_on_equal_images(mine):
    own = Study.of(LabelParameters)(
        **{name: getattr(study(), name) for name in ("dataset", "data_root", "image_size")},
        student="kdfmv5",
        student_epochs=1,
        positive_shares="0.5",
    )
    rows = {row["loss"]: row for row in rare.train_rare(own, mine)}
    assert rows.keys() == rare.LOSSES.keys()
    images = {name: row["images"] for name, row in rows.items()}
    first = images.pop(rare.STARTED)
    assert len({*images.values()}) == 1 and first == 2 * images[rare.COLD], "the start counts"
    cold = rows[rare.STARTED]["against_cold"]["auc"]["difference"]
    assert cold == pytest.approx(rows[rare.STARTED]["auc"] - rows[rare.COLD]["auc"])
    found = report.labels.gains_in_areas(list(rows.values()))
    assert len(found) == 2 * len(rows) and found["label"].iloc[-1].endswith("without this start")
    for name, row in rows.items():
        low, high = row["partial_auc_interval"]
        assert low <= row["partial_auc"] <= high and row["positives"] == 0.5
        assert (row["against"] == {}) == (name == rare.REFERENCE)
