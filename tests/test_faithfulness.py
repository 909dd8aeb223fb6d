"""Measures of explanations on maps and masks with known values."""

import numpy as np
import pytest
import torch
from scipy import stats
from test_explain import SIZE, Linear, Pooled, wrap

from kdnb.evaluation import statistics
from kdnb.explanations import (
    activations,
    agreement,
    faithfulness,
    localisation,
    registry,
    robustness,
)
from kdnb.explanations.maps import rank_correlation, rank_pixels
from kdnb.models import zoo


def square(row=10, column=20, side=8, count=2):
    masks = np.zeros((count, SIZE, SIZE), bool)
    masks[:, row : row + side, column : column + side] = True
    return masks


def test_localisation_by_hand():
    masks = square()
    found = localisation.localisation(masks.astype(float), masks)
    assert all((found[name] == 1).all() for name in ("pointing", "mass", "rank", "iou"))
    assert np.allclose(found["area"], 64 / SIZE**2)
    missed = localisation.localisation((~masks).astype(float), masks)
    assert all((missed[name] == 0).all() for name in ("pointing", "mass", "rank"))
    half = masks.astype(float)
    half[:, 10:18, 28:36] = 1  # as much beside the mask as in it
    found = localisation.localisation(half, masks)
    assert (
        np.allclose(found["mass"], 0.5)
        and np.allclose(found["pointing"], 0.5)
        and np.allclose(found["iou"], 0.5, atol=0.25)
    )


def test_a_flat_map_scores_what_chance_scores():
    found = localisation.localisation(np.ones((2, SIZE, SIZE)), square(side=16))
    for name in ("pointing", "mass", "rank"):
        assert np.allclose(found[name], found["area"], atol=0.05), name


def test_nothing_to_find_is_nan_and_never_a_hit():
    empty = np.zeros((1, SIZE, SIZE))
    for maps, masks in ((np.ones_like(empty), empty), (empty, square(count=1))):
        found = localisation.localisation(maps, masks)
        assert all(np.isnan(found[name]).all() for name in ("pointing", "mass", "rank", "iou"))
    with pytest.raises(ValueError, match="masks must be"):
        localisation.localisation(np.ones((1, 8, 8)), empty)


def test_attention_outside_the_organ():
    organ = square(0, 0, 32)
    maps = np.zeros((2, SIZE, SIZE))
    maps[:, 0, 0], maps[:, 63, 63] = 3, 1
    assert np.allclose(localisation.outside(maps, organ), 0.25)


def counting_model():
    """The logit of class 1 counts bright pixels in a square: nothing else matters."""
    model = wrap(Linear(), "head")
    with torch.no_grad():
        model.network.head.weight.zero_()
        model.network.head.bias.zero_()
        model.network.head.weight.view(2, 3, SIZE, SIZE)[1, :, 10:18, 20:28] = 0.1
        model.network.head.bias[1] = -9.6
    return model


def test_deletion_and_insertion_by_hand():
    model = counting_model()
    images = torch.zeros(2, 3, SIZE, SIZE)
    images[:, :, 10:18, 20:28] = 1
    good, bad = square().astype(float), 1.0 - square()
    top = faithfulness.curves(model, images, good, np.array([1, 1]), steps=64, fill="mean")
    low = faithfulness.curves(model, images, bad, np.array([1, 1]), steps=64, fill="mean")
    assert top["deletion"].shape == (2, 65)
    # 64 of 4096 pixels are one step of 64: the answer is gone after it, and back after it
    assert (
        top["deletion"][0, 0] > 0.99
        and top["deletion"][0, 1] < 0.01
        and top["insertion"][0, 1] > 0.9
    )
    assert low["deletion"][0, -2] > 0.9 and low["insertion"][0, -2] < 0.01
    areas = {name: faithfulness.area(curve)[0] for name, curve in top.items()}
    assert areas["deletion"] < 0.03 and areas["insertion"] > 0.9
    assert faithfulness.area(np.array([[0.0, 1.0]]))[0] == 0.5


def test_baselines():
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[:, :, :, 32:] = 1
    assert torch.allclose(faithfulness.filled(images, "mean"), torch.full_like(images, 0.5))
    blurred = faithfulness.filled(images, "blur")
    assert (
        blurred.shape == images.shape
        and 0.4 < blurred[0, 0, 32, 32] < 0.6
        and blurred[0, 0, 32, 0] < 0.05
    )
    assert torch.allclose(
        faithfulness.filled(torch.full_like(images, 0.3)), torch.full_like(images, 0.3), atol=1e-5
    )
    with pytest.raises(ValueError, match="blur, mean"):
        faithfulness.filled(images, "black")


def test_confidence_change_by_hand():
    model = counting_model()
    images = torch.zeros(2, 3, SIZE, SIZE)
    images[:, :, 10:18, 20:28] = 0.6
    kept = faithfulness.confidence_change(model, images, square().astype(float), np.array([1, 1]))
    assert np.allclose(kept["average_drop"], 0, atol=1e-6) and (kept["increase"] == 0).all()
    lost = faithfulness.confidence_change(model, images, 1.0 - square(), np.array([1, 1]))
    assert (lost["average_drop"] > 0.9).all()
    # the other class gains when this square goes
    assert (
        faithfulness.confidence_change(model, images, 1.0 - square(), np.array([0, 0]))["increase"]
        == 1
    ).all()


def test_an_image_left_over_is_a_batch_of_one():
    model = zoo.create("kdfmv5", 2, 32).eval()
    images, maps = torch.rand(4, 3, 32, 32), np.random.default_rng(0).random((4, 32, 32))
    whole = faithfulness.curves(model, images, maps, np.zeros(4, int), 4)
    parts = faithfulness.curves(
        model, images, maps, np.zeros(4, int), 4, batch_size=15
    )  # three images a batch
    assert all(np.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_road_prefers_the_right_pixels():
    model = counting_model()
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:, :, 10:18, 20:28] = 1
    good = faithfulness.road(model, images, square().astype(float), np.array([1, 1]))
    bad = faithfulness.road(model, images, 1.0 - square(), np.array([1, 1]))
    assert (good > 0.3).all() and (bad < -0.3).all()


def test_sparseness():
    assert localisation.sparseness(np.ones((1, 8, 8)))[0] == pytest.approx(0, abs=1e-9)
    one = np.zeros((1, 8, 8))
    one[0, 3, 3] = 5
    assert localisation.sparseness(one)[0] == pytest.approx(1 - 1 / 64)
    assert np.isnan(localisation.sparseness(np.zeros((1, 8, 8)))[0])


def test_rank_correlation():
    maps = np.random.default_rng(0).random((2, 8, 8))
    assert np.allclose(rank_correlation(maps, np.exp(maps)), 1)
    assert np.allclose(rank_correlation(maps, -maps), -1)
    assert np.isnan(rank_correlation(maps, np.ones_like(maps))).all()


def test_ties_favour_no_corner():
    top = rank_pixels(np.ones((1, 32, 32)))[0, :100]
    assert top.min() < 200 and top.max() > 800


def test_randomisation_moves_maps_of_methods_that_explain_the_network():
    torch.manual_seed(0)
    model = zoo.create("resnet10t", 3, SIZE)
    images = torch.rand(2, 3, SIZE, SIZE)
    before = zoo.checksum(model.network)
    for method, moves in (("saliency", True), ("centre", False)):
        table = robustness.randomisation_test(
            model, lambda m, name=method: registry.explain(m, images, name, targets=0), stages=3
        )
        assert table["spearman"].iloc[0] == 1 and len(table) == 4
        assert (table["spearman"].iloc[-1] < 0.5) == moves
    assert zoo.checksum(model.network) == before


def test_cascading_randomisation_goes_from_head_to_stem():
    model = zoo.create("resnet10t", 3, SIZE)
    stages = robustness.randomised(model, stages=3)
    heads = [
        not torch.equal(broken.network.fc.weight, model.network.fc.weight) for _, broken in stages
    ]
    stems = [
        not torch.equal(broken.network.conv1[0].weight, model.network.conv1[0].weight)
        for _, broken in stages
    ]
    assert heads == [True] * 3 and stems == [False, False, True]
    assert stages[0][0].startswith("1 of")


def test_sensitivity_to_noise():
    images = torch.rand(2, 3, SIZE, SIZE)
    model = zoo.create("resnet10t", 3, SIZE)
    still = robustness.sensitivity(lambda x: registry.explain(model, x, "centre"), images)
    moved = robustness.sensitivity(
        lambda x: registry.explain(model, x, "saliency", targets=0), images
    )
    assert (still == 0).all() and (moved > 0).all()


def test_intervals_and_pairs():
    values = np.array([0.1, 0.2, 0.3, np.nan])
    found = statistics.mean_interval(values)
    assert (
        found["mean"] == pytest.approx(0.2)
        and found["n"] == 3
        and found["low"] < 0.2 < found["high"]
    )
    assert statistics.mean_interval(np.array([np.nan]))["mean"] is None
    gain = statistics.paired_difference(np.linspace(0.5, 0.9, 20), np.linspace(0.4, 0.7, 20))
    assert gain["low"] > 0 and gain["p_wilcoxon"] < 0.01
    assert statistics.paired_difference(np.ones(5), np.ones(5))["p_wilcoxon"] == 1


def test_an_interval_of_measures_draws_patients_and_not_images():
    rng, patients = np.random.default_rng(0), np.repeat(np.arange(8), 10)
    values = rng.normal(0, 1, 8)[patients] + rng.normal(0, 0.1, 80)
    alone = statistics.mean_interval(values)
    assert alone == statistics.mean_interval(values, groups=np.arange(80))
    together = statistics.mean_interval(values, groups=patients)
    assert together["mean"] == pytest.approx(alone["mean"]) and together["n"] == 80
    width = [found["high"] - found["low"] for found in (alone, together)]
    assert width[1] == pytest.approx(10**0.5 * width[0], rel=0.15)
    gap = statistics.paired_difference(values, np.zeros(80), patients)
    means = np.array([values[patients == n].mean() for n in range(8)])
    assert gap["p_wilcoxon"] == pytest.approx(stats.wilcoxon(means).pvalue)


def test_similarity_of_equal_opposite_and_flat_maps():
    maps = np.random.default_rng(0).random((3, SIZE, SIZE)).astype(np.float32)
    same = agreement.similarity(maps, maps, (6, 6)).mean()
    assert same[["spearman", "pearson", "top10_iou", "ssim"]].tolist() == pytest.approx(
        [1, 1, 1, 1]
    )
    assert same["js_divergence"] == pytest.approx(0, abs=1e-6)
    other = agreement.similarity(maps, 1 - maps, (6, 6)).mean()
    assert other["spearman"] == pytest.approx(-1) and other["pearson"] == pytest.approx(-1)
    apart = np.zeros((2, 1, SIZE, SIZE), np.float32)
    apart[0, :, :32], apart[1, :, 32:] = 1, 1
    assert agreement.similarity(apart[0], apart[1], (4, 4))["js_divergence"][0] == pytest.approx(1)
    assert agreement.similarity(maps, np.zeros_like(maps), (6, 6)).isna().all(axis=None)


def test_similarity_is_not_inflated_by_enlarging():
    """Two independent 3×3 maps, enlarged: pixel by pixel they would seem far more certain than nine
    cells can be."""
    rng = np.random.default_rng(0)
    small = rng.random((2, 200, 3, 3)).astype(np.float32)
    large = [activations.enlarge(torch.from_numpy(m), (48, 48)).numpy() for m in small]
    found = agreement.similarity(large[0], large[1], (3, 3))["spearman"]
    assert abs(found.mean()) < 0.1


def test_a_student_with_its_teachers_maps_is_more_similar_than_the_baseline():
    rng = np.random.default_rng(0)
    teacher = rng.random((24, 6, 6)).astype(np.float32)
    close, far = (
        teacher + 0.3 * rng.random(teacher.shape).astype(np.float32),
        rng.random(teacher.shape).astype(np.float32),
    )
    table, gaps = agreement.similarity_to_teacher(
        teacher.repeat(8, 1).repeat(8, 2),
        close.repeat(8, 1).repeat(8, 2),
        far.repeat(8, 1).repeat(8, 2),
        (6, 6),
        np.arange(24) % 3 > 0,
    )
    for control in ("baseline", "other_image"):
        assert (
            gaps[control]["spearman"]["low"] > 0.3
            and gaps[control]["spearman"]["p_wilcoxon"] < 0.001
        )
    mean = table[table["measure"] == "spearman"].set_index("comparison")["mean"]
    assert (
        mean["distilled student"] > 0.7
        and abs(mean["baseline student"]) < 0.2
        and abs(mean["distilled, other image"]) < 0.2
    )
    assert {"centre prior", "distilled, same prediction", "distilled, other prediction"} <= set(
        mean.index
    )


def test_the_grid_of_a_network():
    assert activations.map_size(wrap(Pooled(), "act")) == (8, 8)
    assert activations.map_size(zoo.create("densenet121", 3, 96)) == (6, 6)


def test_localisation_and_sparseness_equal_quantus():
    quantus = pytest.importorskip(
        "quantus",
        reason="cross-check only (it brings a second OpenCV): pip install --no-deps quantus",
    )
    masks = np.concatenate([square(count=3), square(40, 5, 16, count=3)])
    maps = (
        np.random.default_rng(0).random(masks.shape) + masks * np.linspace(0, 1, 6)[:, None, None]
    )
    model, x, y = (
        zoo.create("kdfmv5", 2, SIZE),
        np.zeros((6, 3, SIZE, SIZE), np.float32),
        np.zeros(6, int),
    )
    settings = {"abs": False, "normalise": False, "disable_warnings": True}
    ours = localisation.localisation(maps, masks) | {"sparseness": localisation.sparseness(maps)}
    theirs = {
        "mass": quantus.RelevanceMassAccuracy,
        "rank": quantus.RelevanceRankAccuracy,
        "pointing": quantus.PointingGame,
        "sparseness": quantus.Sparseness,
    }
    for name, metric in theirs.items():
        found = metric(**settings)(
            model=model,
            x_batch=x,
            y_batch=y,
            a_batch=maps[:, None],
            s_batch=masks[:, None].astype(float),
        )
        assert np.allclose(ours[name], np.asarray(found, float), atol=1e-5), name
