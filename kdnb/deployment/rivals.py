"""A searched student beside OFA-595 and the hand-made one: cost, accuracy and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from kdnb.data import Dataset
from kdnb.deployment import latency
from kdnb.deployment.latency import LatencyTable
from kdnb.deployment.search import SearchParameters, SubnetEvaluator
from kdnb.evaluation import metrics
from kdnb.models import ofa, zoo
from kdnb.models.ofa import Choice
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier

KNOWN = {"smallest": ofa.SMALLEST, "OFA-595": ofa.OFA595_CHOICE, "largest": ofa.LARGEST}
UNITS = {"latency": "ms", "macs": "MACs", "parameters": "parameters"}


def known_subnets(evaluator: SubnetEvaluator, num_classes: int, image_size: int) -> pd.DataFrame:
    """The smallest subnet, OFA-595 and the largest: millions of parameters and MACs, and balanced
    validation accuracy with shared weights."""
    return pd.DataFrame(
        [
            {
                "subnet": name,
                "parameters (M)": zoo.count_parameters(ofa.skeleton(choice, num_classes)) / 1e6,
                "MACs (M)": zoo.count_macs(choice.name, num_classes, image_size) / 1e6,
                "validation balanced accuracy, shared weights": evaluator(choice),
            }
            for name, choice in KNOWN.items()
        ]
    )


def place_of(
    model: Classifier, settings: SearchParameters, table: LatencyTable, evaluator: SubnetEvaluator
) -> tuple[float, float]:
    """Cost and balanced validation accuracy of a network that is no subnet.

    Its latency is measured beside OFA-595's and expressed in the milliseconds of ``table``.
    """
    val = evaluator.val
    labels = val.labels[val.rows].numpy()
    accuracy = metrics.balanced_accuracy(labels, predict(model, val).argmax(1))
    if settings.cost == "latency":
        like = zoo.create("ofa595", model.num_classes, model.image_size)
        (times,), _ = latency.compare([lambda: model], like, model.image_size, settings.runtime)
        return float(times * table.reference_ms), accuracy
    return float(counts(model)[settings.cost]), accuracy


def counts(model: Classifier) -> dict[str, int]:
    """MACs of one image and parameters of a network."""
    macs = zoo.count_macs(model.name, model.num_classes, model.image_size)
    return {"macs": macs, "parameters": zoo.count_parameters(model)}


def compare(models: Mapping[str, Classifier], runtime: str, dataset: Dataset) -> pd.DataFrame:
    """Latency (ms), MACs, parameters and balanced test accuracy with its interval: one row a
    network, of which one is named ``OFA-595``."""
    reference = models["OFA-595"]
    nets = [lambda model=model: model for model in models.values()]
    ratios, milliseconds = latency.compare(nets, reference, reference.image_size, runtime, 0.2)
    test = dataset.pixels(reference.image_size, "test")
    labels, groups = test.labels[test.rows].numpy(), dataset.groups("test")
    rows = {}
    for (name, model), ratio in zip(models.items(), ratios, strict=True):
        score = metrics.evaluate(
            labels, predict(model, test), dataset.classes, dataset.split_name, groups
        )
        low, high = score["intervals"]["balanced_accuracy"]
        rows[name] = {
            "latency_ms": float(ratio * milliseconds),
            **counts(model),
            "balanced_accuracy": score["balanced_accuracy"],
            "low": low,
            "high": high,
            "n": score["n"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def difference(model: Classifier, other: Classifier, dataset: Dataset) -> dict:
    """One network minus another on the test images (:func:`kdnb.evaluation.compare`)."""
    test = dataset.pixels(model.image_size, "test")
    labels = test.labels[test.rows].numpy()
    logits = (predict(model, test), predict(other, test))
    return metrics.compare(labels, *logits, dataset.groups("test"))


def check_predictor(
    probes: Sequence[Choice], predicted: Sequence[float], measured: Sequence[float]
) -> list[dict[str, object]]:
    """The subnets that checked the latency predictor, as a result file holds them."""
    return [
        {"name": choice.name, "predicted_ms": float(guess), "measured_ms": float(found)}
        for choice, guess, found in zip(probes, predicted, measured, strict=True)
    ]


def record(rows: pd.DataFrame, name: str) -> dict:
    """One row of :func:`compare` with whole numbers as such."""
    whole = ("macs", "parameters", "n")
    return {key: int(v) if key in whole else float(v) for key, v in rows.loc[name].items()}
