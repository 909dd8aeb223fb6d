"""What a network costs on this machine: parameters, operations, memory, latency, throughput, in
every runtime side by side."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.benchmark import Timer
from tqdm import tqdm

from kdnb import files, provenance
from kdnb.deployment import onnx_export
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.zoo import Classifier
from kdnb.parameters import Parameters, parameter

BATCHES = (1, 8, 32)


class NotHere(files.UserError, RuntimeError):
    """A runtime that this machine cannot offer; the message says what it lacks."""


@dataclass(frozen=True)
class RuntimeParameters(Parameters):
    """Settings of notebook 06."""

    compiled: bool | None = parameter(
        None,
        "time torch.compile too: minutes a network",
        profiles={"smoke": False, "quick": False, "paper": True},
    )


@dataclass(frozen=True)
class Runtime:
    """A way to run a network: ``build(model, example, calibration)`` returns a callable from images
    ``(N, 3, S, S)`` float32 in [0, 1] to logits, and raises :class:`NotHere` where it cannot."""

    title: str
    build: Callable[[Classifier, Tensor | None], Callable[[Tensor], object]]
    device: str = "cpu"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, lower and upper quartile, and how many measurements they
    come from."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


def latency(
    run: Callable[[Tensor], object],
    images: Tensor,
    seconds: float = 1.0,
    threads: int | None = None,
) -> Timing:
    """Time ``run(images)`` for about so many seconds after a warm-up, with torch's own number of
    threads by default."""
    with torch.inference_mode():
        for _ in range(3):
            run(images)
        timer = Timer(
            "run(images)",
            globals={"run": run, "images": images},
            num_threads=threads or torch.get_num_threads(),
        )
        calls = max(1, round(0.002 / timer.timeit(1).mean))  # short calls are timed by the handful
        times, end = [], time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            times.append(timer.timeit(calls).mean)
    low, median, high = np.percentile(times, (25, 50, 75)) * 1e3
    return Timing(float(median), float(low), float(high), len(times))


def throughput(
    run: Callable[[Tensor], object],
    image: Tensor,
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.5,
) -> tuple[float, int]:
    """Images a second at the best of some batch sizes, and that size; ``image`` ``(1, 3, S, S)`` is
    repeated."""
    rates = {
        size: 1e3
        * size
        / latency(run, image.expand(size, -1, -1, -1).contiguous(), seconds).median_ms
        for size in batches
    }
    best = max(rates, key=rates.get)
    return rates[best], best


def peak_memory(model: Classifier) -> float:
    """Megabytes (2²⁰ bytes) that one image needs at the worst moment: weights, buffers and live
    activations in float32.

    Counted by torch's memory tracker, tensor by tensor; what a runtime takes for itself comes on
    top.
    """
    tracker, was = MemTracker(), model.training
    x = torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)
    tracker.track_external(model)
    try:
        with torch.no_grad(), tracker:
            model.eval()(x)
    finally:
        model.train(was)
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values()) / 2**20


def measure(
    model: Classifier,
    classes: Sequence[str],
    runtimes: Sequence[str] | None = None,
    calibration: Tensor | None = None,
    seconds: float = 1.0,
) -> tuple[pd.DataFrame, dict[str, Callable]]:
    """Time a network in each runtime: one row each, and the callables, so that what is fast can be
    checked for being right.

    Columns: runtime, title, ``latency_ms`` with quartiles at batch 1, ``images_per_second`` at
    ``best_batch``, file or weight size, threads, clock, and ``note`` where a runtime is not to be
    had (its numbers are then missing). ``calibration`` ``(N, 3, S, S)`` are training images for
    int8. All runtimes of this machine by default.
    """
    runtimes = (
        here()
        if runtimes is None
        else [files.lookup(name, RUNTIMES, "runtime") for name in runtimes]
    )
    image = torch.rand(
        1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0)
    )
    rows, runs = [], {}
    bar = tqdm(runtimes, unit="runtime", leave=False)
    for name in bar:
        bar.set_description(f"{model.name} in {name}")
        row = {"model": model.name, "runtime": name, "title": RUNTIMES[name].title, "note": ""}
        try:
            run = RUNTIMES[name].build(model, tuple(classes), calibration)
            timing, (rate, batch) = (
                latency(run, image, seconds),
                throughput(run, image, seconds=seconds / 2),
            )
        except NotHere as error:
            rows.append(row | {"note": str(error)})
            continue
        runs[name] = run
        rows.append(
            row
            | {
                "latency_ms": timing.median_ms,
                "latency_low": timing.low_ms,
                "latency_high": timing.high_ms,
                "images_per_second": rate,
                "best_batch": batch,
                "threads": torch.get_num_threads(),
                "megabytes": getattr(run, "megabytes", weight_size(model)),
                "clock_mhz": clock(),
            }
        )
    return pd.DataFrame(rows), runs


def speedups(timings: pd.DataFrame, student: str) -> list[dict]:
    """How many times faster one network is than each other in the same runtime: one row each, from
    the columns of :func:`measure`.

    ``low`` and ``high`` set the quartiles of one against those of the other, the less favourable
    and the more favourable pair.
    """
    timed, rows = timings.dropna(subset="latency_ms"), []
    own = timed[timed["model"] == student].set_index("runtime")
    for row in timed[timed["model"] != student].itertuples():
        if row.runtime in own.index:
            mine = own.loc[row.runtime]
            rows.append(
                {
                    "teacher": row.model.split()[-1],
                    "student": student.split()[-1],
                    "runtime": row.runtime,
                    "times_as_fast": row.latency_ms / mine["latency_ms"],
                    "low": row.latency_low / mine["latency_high"],
                    "high": row.latency_high / mine["latency_low"],
                }
            )
    return rows


def static(model: Classifier) -> dict[str, float]:
    """What needs no clock: parameters, MACs of one image (convolutions and linear layers), weights
    and peak memory in MB."""
    macs = zoo.count_macs(model.name, model.num_classes, model.image_size)
    return {
        "parameters": zoo.count_parameters(model),
        "macs": macs,
        "weights_mb": weight_size(model),
        "peak_memory_mb": peak_memory(model),
    }


def weight_size(model: Classifier) -> float:
    """Megabytes of the weights and buffers as they are."""
    return (
        sum(value.numel() * value.element_size() for value in model.network.state_dict().values())
        / 2**20
    )


def clock() -> float | None:
    """The processor's clock in MHz as the system tells it, None where it does not."""
    found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return round(found.current) if found else None


def here(compiled: bool = True) -> list[str]:
    """The runtimes that this machine's devices allow; torch.compile, which takes minutes, only
    where ``compiled``."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [
        name
        for name, runtime in RUNTIMES.items()
        if runtime.device in devices and (compiled or name != "compile")
    ]


def _copy(
    model: Classifier, device: str = "cpu", layout: torch.memory_format = torch.contiguous_format
) -> Classifier:
    return copy.deepcopy(model).to(device, memory_format=layout).eval()


def _eager(model: Classifier, classes: tuple, calibration: Tensor | None) -> Callable:
    return _copy(model)


def _bf16(
    model: Classifier, classes: tuple, calibration: Tensor | None, device: str = "cpu"
) -> Callable:
    if device == "cpu" and zoo.precision() != "bf16":
        raise NotHere("this processor computes no bf16; emulated it is slower than float32")
    fast = _copy(model, device, torch.channels_last)

    def run(images):
        with torch.autocast(device, torch.bfloat16):
            return fast(images.to(device, memory_format=torch.channels_last)).float()

    return run


def _compiled(model: Classifier, classes: tuple, calibration: Tensor | None) -> Callable:
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise NotHere("torch.compile needs a C++ compiler (g++ or clang++) on this machine")
    return torch.compile(
        _copy(model), dynamic=True
    )  # any batch after the first of one image: compiled twice, not for each


class _Session:
    """An opened ONNX file as a runtime; ``megabytes`` is the file's size."""

    def __init__(self, path: Path):
        self.deployed, self.megabytes = onnx_export.open(path), path.stat().st_size / 2**20

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.deployed(images.numpy()))


def _onnx(model: Classifier, classes: tuple, calibration: Tensor | None) -> Callable:
    return _Session(exported(model, classes))


def _int8(model: Classifier, classes: tuple, calibration: Tensor | None) -> Callable:
    if calibration is None:
        raise NotHere(
            "int8 needs calibration images: calibration=(N, 3, S, S), some training images"
        )
    return _Session(exported(model, classes, calibration))


def answers(run: Callable[[Tensor], object], pixels: Pixels, batch_size: int = 32) -> np.ndarray:
    """Logits ``(N, K)`` of a runtime for un-augmented images."""
    parts = []
    with torch.inference_mode():
        for images, _, _ in tqdm(
            pixels.batches(batch_size), desc="answering", unit="batch", leave=False
        ):
            parts.append(
                torch.as_tensor(run(images.expand(-1, 3, -1, -1).contiguous())).float().cpu()
            )
    return torch.cat(parts).numpy()


def exported(
    model: Classifier, classes: Sequence[str], calibration: Tensor | None = None, color: str = "RGB"
) -> Path:
    """The model as an ONNX file in the cache, int8 where ``calibration`` images are given; written
    once for its weights.

    ``color`` (``L`` or ``RGB``) is how image files are read before they are given to it; it stands
    in the metadata.
    """
    key = [zoo.checksum(model.network), model.image_size, list(classes), color, onnx_export.FORMAT]
    path = files.cache_dir() / "onnx" / f"{model.name}-{files.digest(key)}.onnx"
    with files.lock(path):
        if not path.exists():
            onnx_export.export(model, path, classes, {"color": color})
    if calibration is None:
        return path
    small = path.with_name(f"{path.stem}-int8-{len(calibration)}.onnx")
    with files.lock(small):
        if not small.exists():
            onnx_export.quantise(path, small, calibration)
    return small


def _cuda(model: Classifier, classes: tuple, calibration: Tensor | None) -> Callable:
    return _bf16(model, classes, calibration, "cuda")


RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime("PyTorch, float32", _eager),
    "bf16": Runtime("PyTorch, channels_last and bf16", _bf16),
    "compile": Runtime("torch.compile, float32", _compiled),
    "onnx": Runtime("ONNX Runtime, float32", _onnx),
    "onnx_int8": Runtime("ONNX Runtime, int8", _int8),
    "cuda_bf16": Runtime("PyTorch on the GPU, channels_last and bf16", _cuda, "cuda"),
}


def hardware() -> dict[str, object]:
    """What the numbers of this module belong to."""
    return provenance.hardware() | {"clock_mhz": clock()}
