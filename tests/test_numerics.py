"""Degenerate data from training to figures: no NaN reaches a table or a figure."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_plots import png

from kdnb import data, explanations, plots
from kdnb.distillation import Seen, create
from kdnb.evaluation import metrics
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.study import Study
from kdnb.training import loop


@pytest.fixture
def constant(home):
    """Two classes of images without any detail, seven to train: a last batch of one, batches that
    lack a class."""
    root = home / "data" / "flat"
    for part, count in (("train", 7), ("val", 2), ("test", 2)):
        for label, level in (("black", 0), ("white", 255)):
            for number in range(count if label == "black" else max(1, count // 3)):
                path = root / part / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full(
                    (40 + number, 40), level, np.uint8
                )  # other sizes: they are no copies of each other
                Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize("method", ["hard", "hybrid", "kd_fmv_as_released"])
def test_constant_images_train_and_are_scored(constant, method):
    study = Study(
        dataset="folder",
        data_root=str(constant),
        split="official",
        image_size=32,
        batch_size=2,
        teacher="kdfmv5",
        student="kdfmv5",
        teacher_epochs=1,
        student_epochs=2,
        method=method,
        seed=1,
    )
    dataset = study.load_data()
    run = loop.distil(study, dataset, loop.train_teachers(study, dataset))
    assert np.isfinite(run.history.select_dtypes("number").to_numpy()).all()
    test = dataset.pixels(32, "test")
    score = metrics.evaluate(
        test.labels[test.rows].numpy(), predict(run.model, test), dataset.classes
    )
    numbers = [value for value in score.values() if isinstance(value, float)]
    assert len(numbers) > 6 and np.isfinite(numbers).all()


def test_half_precision_logits_with_a_gap_of_500_and_a_class_that_no_label_has():
    logits = torch.tensor(
        [[500.0, 0.0, -500.0], [0.0, 500.0, 0.0]], dtype=torch.bfloat16, requires_grad=True
    )
    teacher = torch.tensor([[[-500.0, 500.0, 0.0], [0.0, 0.0, 0.0]]])
    for method in ("hard", "hybrid", "kd_fmv", "kd_fmv_as_released"):
        taught = create(method)
        taught.class_weights = torch.tensor([1.0, 0.0, 2.0])
        parts = taught.loss(Seen(logits), [Seen(teacher[0])], torch.tensor([0, 0]))
        (gradient,) = torch.autograd.grad(parts["loss"], logits)
        assert (
            all(torch.isfinite(value) for value in parts.values())
            and torch.isfinite(gradient).all()
        )


def test_maps_of_nothing_are_counted_and_drawn(home):
    """A network that answers the same whatever it sees: every map is empty or flat, every measure a
    number or left out."""
    model = zoo.create("kdfmv5", 2, 32).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    images, targets = torch.full((4, 3, 32, 32), 0.5), np.zeros(4, int)
    methods = {"score_cam": {"channels": 4}, "grad_cam": {}, "saliency": {}, "centre": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = explanations.audit({"dead": model}, images, targets, methods, steps=4)
        summary = found.summary()
        maps = {method: found.explanations["dead"][method].maps for method in methods}
        assert all(np.isfinite(each).all() for each in maps.values())
        assert not maps["grad_cam"].any() and (found.of("dead", "grad_cam", "empty") == 1).all()
        kept = summary[summary["n"] > 0]
        assert np.isfinite(kept[["mean", "low", "high"]].to_numpy(float)).all()
        shown = {
            name: measure.label
            for name, measure in explanations.MEASURES.items()
            if name in set(kept["measure"])
        }
        png(plots.measures(summary, shown, "nothing"))
        titles = {method: ["a"] * 4 for method in maps}
        png(plots.maps_over_images(np.full((4, 32, 32), 127, np.uint8), maps, ["a"] * 4, titles))


def test_one_image_and_one_class_in_the_test_set():
    score = metrics.evaluate(np.array([1]), np.array([[0.0, 0.0, 0.0]]), ["a", "b", "c"])
    assert (
        score["n"] == 1
        and score["macro_auc"] is None
        and np.isfinite([score["ece"], score["brier"], score["macro_f1"]]).all()
    )
    png(plots.confusion({"one": score["confusion"]}, ["a", "b", "c"]))
    assert not pd.DataFrame(score["per_class"])["f1"].dropna().isna().any()


def test_an_empty_dataset_is_no_dataset(home):
    (home / "data" / "none" / "train" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        data.load("folder", home / "data" / "none")
