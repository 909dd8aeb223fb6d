"""Metrics against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest

from kdnb import evaluation

CLASSES = ("a", "b", "c")


def answers(*predicted, sure=4.0):
    return np.eye(3)[list(predicted)] * sure


def test_metrics_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    score = evaluation.evaluate(labels, answers(0, 0, 1, 1, 1, 0), CLASSES)
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
    score = evaluation.evaluate(np.array([0, 1, 0, 1]), answers(0, 1, 0, 2), CLASSES)
    assert score["balanced_accuracy"] == 0.75
    assert score["per_class"][2]["recall"] is None and score["per_class"][2]["auc"] is None
    assert evaluation.evaluate(np.array([0, 0]), answers(0, 0), CLASSES)["macro_auc"] is None
    json.dumps(score, allow_nan=False)


def test_two_classes_and_one_image():
    score = evaluation.evaluate(np.array([1]), np.array([[0.0, 1.0]]), ("no", "yes"))
    assert score["accuracy"] == 1 and score["macro_auc"] is None


def test_a_diverged_network_is_named():
    with pytest.raises(ValueError, match="learning rate"):
        evaluation.evaluate(np.array([0]), np.array([[math.nan, 0.0]]), ("a", "b"))


def test_calibration_error_by_hand():
    """Ten answers of 80 % confidence, six right: the error is 0.2."""
    logits = np.tile([math.log(4), 0.0], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert evaluation.calibration_error(labels, logits) == pytest.approx(0.2)
    table = evaluation.reliability(labels, logits)
    assert len(table) == 1 and table.loc[0].tolist() == pytest.approx([0.8, 0.6, 10])
    sure = np.tile([50.0, 0.0], (4, 1))  # confidence 1 falls into the last bin, not beyond it
    assert evaluation.calibration_error(np.zeros(4, int), sure) == pytest.approx(0, abs=1e-9)


def test_equal_models_do_not_differ():
    labels = np.array([0, 1, 2, 0])
    same = evaluation.compare(labels, answers(0, 1, 1, 0), answers(0, 1, 1, 0))
    assert (same["difference"], same["low"], same["high"], same["p_mcnemar"]) == (0, 0, 0, 1)


def test_a_difference_and_its_interval():
    labels = np.zeros(200, int)
    better = answers(*([0] * 190 + [1] * 10))
    worse = answers(*([0] * 170 + [1] * 30))
    found = evaluation.compare(labels, better, worse)
    assert found["difference"] == pytest.approx(0.1) and found["low"] < 0.1 < found["high"]
    assert found["low"] > 0 and found["p_mcnemar"] == pytest.approx(2 * 0.5**20)
    assert (found["only_first_right"], found["only_second_right"]) == (20, 0)
    assert evaluation.compare(labels, worse, better)["difference"] == pytest.approx(-0.1)
