"""Metrics against numbers worked out by hand."""

import json
import math
import time

import numpy as np
import pytest

from kdnb.evaluation import calibration, metrics, statistics

CLASSES = ("a", "b", "c")


def answers(*predicted, sure=4.0):
    return np.eye(3)[list(predicted)] * sure


def test_metrics_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    score = metrics.evaluate(labels, answers(0, 0, 1, 1, 1, 0), CLASSES)
    assert score["n"] == 6 and score["accuracy"] == pytest.approx(4 / 6)
    assert score["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert score["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    a, b, c = score["per_class"]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((2 / 3, 1, 0.8))
    assert (c["precision"], c["recall"], c["f1"]) == (0, 0, 0)
    assert score["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 3)
    # b against the rest: both b images are ranked above three of four others and level with one
    assert b["auc"] == pytest.approx(7 / 8)
    json.dumps(score, allow_nan=False)


def test_an_absent_class_leaves_the_averages_alone():
    score = metrics.evaluate(np.array([0, 1, 0, 1]), answers(0, 1, 0, 2), CLASSES)
    assert score["balanced_accuracy"] == 0.75
    assert score["per_class"][2]["recall"] is None and score["per_class"][2]["auc"] is None
    assert metrics.evaluate(np.array([0, 0]), answers(0, 0), CLASSES)["macro_auc"] is None
    json.dumps(score, allow_nan=False)


def test_two_classes_and_one_image():
    score = metrics.evaluate(np.array([1]), np.array([[0.0, 1.0]]), ("no", "yes"))
    assert score["accuracy"] == 1 and score["macro_auc"] is None


def test_a_diverged_network_is_named():
    with pytest.raises(ValueError, match="learning rate"):
        metrics.evaluate(np.array([0]), np.array([[math.nan, 0.0]]), ("a", "b"))


def test_calibration_error_by_hand():
    """Ten answers of 80 % confidence, six right: the error is 0.2."""
    logits = np.tile([math.log(4), 0.0], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert calibration.calibration_error(labels, logits) == pytest.approx(0.2)
    table = calibration.reliability(labels, logits)
    assert len(table) == 1 and table.loc[0].tolist() == pytest.approx([0.8, 0.6, 10])
    sure = np.tile([50.0, 0.0], (4, 1))  # confidence 1 falls into the last bin, not beyond it
    assert calibration.calibration_error(np.zeros(4, int), sure) == pytest.approx(0, abs=1e-9)


def test_equal_models_do_not_differ():
    labels = np.array([0, 1, 2, 0])
    same = metrics.compare(labels, answers(0, 1, 1, 0), answers(0, 1, 1, 0))
    assert (same["difference"], same["low"], same["high"], same["p_mcnemar"]) == (0, 0, 0, 1)


def test_a_difference_and_its_interval():
    labels = np.zeros(200, int)
    better = answers(*([0] * 190 + [1] * 10))
    worse = answers(*([0] * 170 + [1] * 30))
    found = metrics.compare(labels, better, worse)
    assert found["difference"] == pytest.approx(0.1) and found["low"] < 0.1 < found["high"]
    assert found["low"] > 0 and found["p_mcnemar"] == pytest.approx(2 * 0.5**20)
    assert (found["only_first_right"], found["only_second_right"]) == (20, 0)
    assert metrics.compare(labels, worse, better)["difference"] == pytest.approx(-0.1)


def test_weighted_metrics_are_the_metrics():
    """One draw that holds each image once gives what scikit-learn gives; another equals repeating
    images."""
    rng = np.random.default_rng(0)
    labels, logits = (
        rng.integers(0, 3, 60),
        rng.normal(size=(60, 3)).round(1),
    )  # rounded: ties in the scores
    counts = rng.integers(0, 4, 60)
    for weights in (np.ones(60, int), counts):
        rows = np.repeat(np.arange(60), weights)
        score = metrics.evaluate(labels[rows], logits[rows], CLASSES)
        measured = metrics.Measures(labels, logits)(weights[None].astype(np.float32))
        for name in (
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "macro_auc",
            "cross_entropy",
            "brier",
            "ece",
        ):
            assert measured[name][0] == pytest.approx(score[name], abs=1e-6), name


def test_intervals_hold_the_metric_and_narrow_with_images():
    rng = np.random.default_rng(0)
    widths = []
    for count in (100, 1600):
        labels = rng.integers(0, 3, count)
        score = metrics.evaluate(
            labels, np.eye(3)[labels] + rng.normal(size=(count, 3)), CLASSES, "group"
        )
        for name, (low, high) in score["intervals"].items():
            assert low < high and (name.startswith("ece") or low <= score[name] <= high), name
        low, high = score["intervals"]["accuracy"]
        widths.append(high - low)
        normal = 2 * 1.96 * math.sqrt(score["accuracy"] * (1 - score["accuracy"]) / count)
        assert high - low == pytest.approx(normal, rel=0.2)
    assert score["split"] == "group" and widths[1] < widths[0] / 3


def test_groups_widen_the_interval():
    """Ten copies of an image are one piece of evidence, not ten."""
    rng = np.random.default_rng(0)
    labels, logits = (
        np.repeat(rng.integers(0, 3, 60), 10),
        np.repeat(rng.normal(size=(60, 3)), 10, axis=0),
    )
    groups = np.repeat(np.arange(60), 10)
    single, together = (
        metrics.evaluate(labels, logits, CLASSES, groups=g)["intervals"]["accuracy"]
        for g in (None, groups)
    )
    assert together[1] - together[0] > 2.5 * (single[1] - single[0])


def test_intervals_of_a_test_set_take_about_a_second():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1300)
    begun = time.process_time()
    metrics.evaluate(labels, rng.normal(size=(1300, 3)), CLASSES)
    assert time.process_time() - begun < 5  # generous: the machine may be busy


def test_paired_differences_of_f1_and_auc():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    good, bad = (np.eye(3)[labels] + noise * rng.normal(size=(400, 3)) for noise in (0.5, 2.0))
    found = metrics.compare(labels, good, bad)
    scores = [metrics.evaluate(labels, z, CLASSES) for z in (good, bad)]
    for name in ("macro_f1", "macro_auc"):
        assert found[name]["difference"] == pytest.approx(scores[0][name] - scores[1][name])
        assert (
            0 < found[name]["low"] < found[name]["difference"] < found[name]["high"]
            and found[name]["p_bootstrap"] < 0.01
        )
    same = metrics.compare(labels, good, good)
    assert same["macro_f1"]["p_bootstrap"] == 1 and same["macro_auc"]["low"] == 0
    table = metrics.table_of_tests({"good − bad": found, "good − good": same})
    assert (table["p McNemar"] >= [found["p_mcnemar"], 1]).all() and table["n"].tolist() == [
        400,
        400,
    ]


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]


def test_spread_over_seeds():
    assert statistics.over_seeds([0.8, 0.9]) == pytest.approx(
        {"mean": 0.85, "sd": math.sqrt(0.005), "seeds": 2}
    )
    assert statistics.over_seeds([0.8])["sd"] is None


def test_brier_by_hand():
    """Probabilities 0.8 and 0.2: 0.08 when right, 1.28 when wrong."""
    logits = np.tile([math.log(4), 0.0], (2, 1))
    assert calibration.brier(np.array([0, 1]), logits) == pytest.approx([0.08, 1.28])


def test_temperature_undoes_what_was_done():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((4000, 1)) > probabilities.cumsum(1)).sum(1)
    assert calibration.fit_temperature(labels, logits) == pytest.approx(1, abs=0.1)
    assert calibration.fit_temperature(labels, 3 * logits) == pytest.approx(3, abs=0.3)
    before, after = (calibration.scores(labels, 3 * logits, t) for t in (1.0, 3.0))
    assert after["ece"] < 0.05 < before["ece"] and after["brier"] < before["brier"]
    found = calibration.calibrate(labels, 3 * logits, labels, 3 * logits)
    assert found.before == before and found.after["ece"] == pytest.approx(after["ece"], abs=0.02)
    assert found.temperature == pytest.approx(3, abs=0.3)


def test_adaptive_bins_hold_equal_numbers():
    table = calibration.reliability(
        np.zeros(300, int), np.random.default_rng(0).normal(size=(300, 3)), bins=10, adaptive=True
    )
    assert table["count"].tolist() == pytest.approx([30] * 10, abs=2)
    assert calibration.reliability(np.zeros(8, int), np.tile([1.0, 0.0], (8, 1)), adaptive=True)[
        "count"
    ].tolist() == [8]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(50)
    found = statistics.jackknife(lambda rows: float(values[rows].mean()), np.arange(50))
    half = 1.96 * values.std(ddof=1) / np.sqrt(50)
    assert found["mean"] == pytest.approx(values.mean()) and found["high"] - found[
        "mean"
    ] == pytest.approx(half)
    twice = statistics.jackknife(
        lambda rows: float(np.repeat(values, 2)[rows].mean()), np.repeat(np.arange(50), 2)
    )
    assert (
        twice["low"] == pytest.approx(found["low"]) and twice["n"] == 100
    )  # a copy adds no certainty
