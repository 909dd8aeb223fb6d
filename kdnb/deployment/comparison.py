"""Accuracy against cost: a student beside its teachers, in every runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import pandas as pd
from PIL import Image

from kdnb import errors
from kdnb.data import Dataset
from kdnb.deployment import efficiency
from kdnb.deployment.onnx_export import Reading
from kdnb.evaluation import metrics
from kdnb.training.trio import Comparison, Trio

SECONDS = {"smoke": 0.1, "quick": 0.4, "paper": 2.0}  # of measuring, by profile


class NotOpened(
    errors.UserError,
    ValueError,
    code="KD604",
    way_out="save the images as PNG, 16-bit where they have more than 8 bits",
):
    """An exported network reads images through Pillow, which opens none of these files."""


def costs(tested: Comparison) -> pd.DataFrame:
    """Parameters, MACs, weights, memory and test accuracy with its interval: one row a network."""
    trio = tested.trio
    table = pd.DataFrame({n: efficiency.static(m) for n, m in trio.models.items()}).T
    table["accuracy"] = [tested.scores[name]["accuracy"] for name in table.index]
    table[["low", "high"]] = [tested.scores[n]["intervals"]["accuracy"] for n in table.index]
    return table.assign(role=[trio.roles[name] for name in table.index])


def reading(dataset: Dataset) -> Reading:
    """How the image files of a dataset are read, for the metadata of an exported network."""
    rule = dataset.index.rule
    return Reading(dataset.color, rule.low, rule.high, rule.from_file)


def pictures(dataset: Dataset, count: int) -> tuple[list[int], list[str]]:
    """Rows and files of about ``count`` test images, the same number of each class.

    Raises ``ValueError`` where Pillow opens none of them, as in a set of DICOM files: those are
    saved as PNG first.
    """
    found = {}
    for row in dataset.sample("test", count):
        path = dataset.index.root / dataset.table["path"].iloc[row]
        with contextlib.suppress(OSError), Image.open(path):
            found[int(row)] = str(path)
    if not found:
        raise NotOpened(
            f"{dataset.title}: Pillow opens none of these files. Save them as PNG (16-bit where "
            "they have more than 8 bits) to use the exported network without this package"
        )
    return list(found), list(found.values())


def measure(
    trio: Trio, dataset: Dataset, runtimes: Sequence[str], profile: str
) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Latency and throughput of teachers and distilled student in each runtime.

    The baseline is left out: it is the same network as the distilled student. Returns the timings,
    one row a network, runtime and batch size, and the callables by network and runtime.
    """
    size, how = trio.distilled.model.image_size, reading(dataset)
    images = dataset.pixels(size).floats(dataset.sample("train", 64)).expand(-1, 3, -1, -1)
    tables, runs = [], {}
    for name, model in trio.pair.items():
        table, runs[name] = efficiency.measure(
            model, dataset.classes, runtimes, images.contiguous(), SECONDS[profile], how
        )
        tables.append(table.assign(model=name, role=trio.roles[name]))
    return pd.concat(tables, ignore_index=True), runs


def against_eager(tested: Comparison, runs: Mapping[str, dict]) -> pd.DataFrame:
    """What each runtime changes in the answers on the test images, against PyTorch float32.

    ``points`` is the paired difference in accuracy in percentage points, with its 95 % interval.
    """
    pixels = tested.dataset.pixels(tested.trio.distilled.model.image_size, "test")
    rows = []
    for name, each in runs.items():
        answers = {runtime: efficiency.answers(run, pixels) for runtime, run in each.items()}
        for runtime, logits in answers.items():
            gap = metrics.compare(tested.labels, logits, answers["eager"], tested.groups)
            rows.append(
                {
                    "model": name,
                    "runtime": runtime,
                    "accuracy": float((logits.argmax(1) == tested.labels).mean()),
                    **in_points(gap),
                    "largest logit difference": float(abs(logits - answers["eager"]).max()),
                }
            )
    return pd.DataFrame(rows)


def in_points(gap: Mapping[str, float]) -> dict[str, float]:
    """A difference of ``evaluation.compare`` in percentage points, with its interval and n."""
    limits = {name: 100 * gap[name] for name in ("low", "high")}
    return {"points": 100 * gap["difference"], **limits, "n": gap["n"]}


def with_latency(table: pd.DataFrame, timings: pd.DataFrame, trio: Trio) -> pd.DataFrame:
    """The table of :func:`costs` with the latency in PyTorch float32 (ms); the baseline has that of
    the distilled student, which is the same network."""
    eager = timings[timings["runtime"] == "eager"].set_index("model")["latency_ms"]
    latency = eager.reindex(table.index)
    latency[trio.baseline_name] = latency[trio.distilled_name]
    return table.assign(latency_ms=latency)


def ratios(table: pd.DataFrame, timings: pd.DataFrame, tested: Comparison) -> dict[str, dict]:
    """How many times cheaper the distilled student is than each teacher, and the accuracy it loses.

    ``table`` is that of :func:`with_latency`.
    """
    known = timings.dropna(subset="latency_ms").sort_values("latency_ms")
    best, student = known.groupby("model")["latency_ms"].first(), tested.trio.distilled_name
    found = {}
    for name in tested.trio.teacher_names:
        teacher, own = table.loc[name], table.loc[student]
        lost = in_points(tested.compare(name, student))
        found[name] = {
            "× fewer parameters": teacher["parameters"] / own["parameters"],
            "× fewer MACs": teacher["macs"] / own["macs"],
            "× smaller": teacher["weights_mb"] / own["weights_mb"],
            "× faster (float32)": teacher["latency_ms"] / own["latency_ms"],
            "× faster (each at its best)": best[name] / best[student],
            "points of accuracy lost": lost.pop("points"),
            **lost,
        }
    return found
