"""What a network costs: counts, memory, times and the runtimes, on small networks."""

import numpy as np
import pandas as pd
import pytest
import torch

from kdnb.deployment import efficiency, onnx_export
from kdnb.images import pixels
from kdnb.models import zoo

SIZE = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return zoo.create("resnet10t", 3, SIZE)


def test_latency_grows_with_the_work():
    def work(rounds):
        def run(x):
            for _ in range(rounds):
                x = x @ x / 300
            return x

        return run

    x = torch.rand(300, 300)
    few, many = (efficiency.latency(work(rounds), x, 0.05) for rounds in (1, 30))
    assert 0 < few.low_ms <= few.median_ms <= few.high_ms and few.runs >= 5
    assert many.median_ms > 5 * few.median_ms


def test_at_least_so_many_timings_are_taken():
    x = torch.zeros(1)
    assert efficiency.latency(torch.neg, x, seconds=0.0).runs == 5
    assert efficiency.latency(torch.neg, x, seconds=0.0, least=2).runs == 2


def test_throughput_takes_the_best_batch():
    def run(images):  # a call costs the same whatever it holds: large batches win
        return torch.linalg.eigvals(torch.eye(60)).sum() + images.sum()

    rate, batch = efficiency.throughput(run, torch.rand(1, 3, 4, 4), (1, 4, 16), 0.05)
    assert batch == 16 and rate > 0


def test_memory_is_weights_and_the_largest_moment(model):
    found = efficiency.peak_memory(model)
    weights = efficiency.weight_size(model)
    assert weights < found < weights + 30
    wide = zoo.create("resnet10t", 3, 4 * SIZE)
    assert efficiency.peak_memory(wide) - weights > 8 * (
        found - weights
    )  # activations grow with the area
    kinds = {type(module) for module in model.modules()}
    assert (
        kinds == {type(module) for module in model.modules()}
        and not model.network.conv1[0]._forward_hooks
    )


def test_static_costs_are_those_of_the_zoo():
    found = efficiency.static(zoo.create("ofa595", 1000, SIZE))
    assert found["parameters"] == 9_135_928 and found["macs"] == zoo.count_macs(
        "ofa595", 1000, SIZE
    )
    assert 35 < found["weights_mb"] < 36 and found["peak_memory_mb"] > 29


def test_every_runtime_answers_alike(model, home, monkeypatch):
    images, threads, opened = torch.rand(9, 3, SIZE, SIZE), [], onnx_export._session
    monkeypatch.setattr(
        onnx_export, "_session", lambda path, n: threads.append(n) or opened(path, n)
    )
    table, runs = efficiency.measure(
        model, ("a", "b", "c"), efficiency.here(compiled=False), images, seconds=0.05
    )
    assert list(table["runtime"]) == efficiency.here(compiled=False) and set(runs) >= {
        "eager",
        "onnx",
        "onnx_defaults",
        "onnx_int8",
    }
    own = efficiency.thread_counts()
    asked = [count for count in threads if count is not None]  # quantising opens the file itself
    assert asked == [*own, 0, *own]  # 0: ONNX Runtime decides
    output = table[table["note"] == ""]
    assert (output[["latency_ms", "images_per_second", "megabytes", "threads"]] > 0).all(axis=None)
    assert (output["latency_low"] <= output["latency_ms"]).all() and (
        output["latency_ms"] <= output["latency_high"]
    ).all()
    subset = pixels.Pixels((images * 255).round().to(torch.uint8).numpy(), np.zeros(9, int))
    answers = {name: efficiency.answers(run, subset, 4) for name, run in runs.items()}
    assert all(z.shape == (9, 3) for z in answers.values())
    scale = np.abs(answers["eager"]).max()
    assert np.abs(answers["onnx"] - answers["eager"]).max() < 1e-4 * max(1, scale)
    assert np.abs(answers["onnx_int8"] - answers["eager"]).max() < 0.5 * scale
    size = table.set_index("runtime")["megabytes"]
    assert size["onnx_int8"] < 0.4 * size["onnx"]


def test_each_runtime_stands_with_the_threads_that_are_fastest_for_it(model, monkeypatch):
    """Here one image is answered soonest on one thread, and a batch on four."""
    asked = []

    def took(run, images, seconds=1.0, threads=None, least=5):
        asked.append(threads)
        ms = len(images) / threads + 2 * threads
        return efficiency.Timing(ms, ms, ms, 5)

    monkeypatch.setattr(efficiency, "latency", took)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert efficiency.thread_counts() == [1, 2, 4, 6]
    table, _ = efficiency.measure(model, ("a", "b", "c"), ["eager"])
    (row,) = table.to_dict("records")
    assert (row["threads"], row["latency_ms"]) == (1, 3)
    assert (row["best_batch"], row["best_batch_threads"]) == (32, 4)
    assert row["images_per_second"] == 1e3 * 32 / (32 / 4 + 8) and set(asked) == {1, 2, 4, 6}


def test_what_is_not_to_be_had_is_a_row_that_says_so(model, home, monkeypatch):
    monkeypatch.setattr(efficiency.shutil, "which", lambda name: None)
    monkeypatch.setattr(efficiency.device, "precision", lambda place: "no")
    table, runs = efficiency.measure(
        model, ("a", "b", "c"), ["compile", "bf16", "onnx_int8"], seconds=0.05
    )
    assert not runs and table["note"].str.contains("compiler|bf16|calibration").all()
    with pytest.raises(ValueError, match="unknown runtime 'onxx'. Did you mean 'onnx'"):
        efficiency.measure(model, ("a", "b", "c"), ["onxx"])


def test_speedups_by_hand():
    timings = pd.DataFrame(
        {
            "model": ["teacher a", "distilled b", "teacher a"],
            "runtime": ["eager", "eager", "onnx"],
            "latency_ms": [10.0, 2.0, 5.0],
            "latency_low": [8.0, 1.0, 4.0],
            "latency_high": [12.0, 4.0, 6.0],
        }
    )
    assert efficiency.speedups(timings, "distilled b") == [
        {
            "teacher": "a",
            "student": "b",
            "runtime": "eager",
            "times_as_fast": 5.0,
            "low": 2.0,
            "high": 12.0,
        }
    ]


def test_a_file_is_written_once_for_its_weights(model, home):
    first = efficiency.exported(model, ("a", "b", "c"))
    stamp = first.stat().st_mtime_ns
    assert (
        efficiency.exported(model, ("a", "b", "c")) == first and first.stat().st_mtime_ns == stamp
    )
    assert efficiency.exported(model, ("a", "b", "d")) != first
