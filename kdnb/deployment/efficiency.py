"""Costs of a network on this machine: parameters, operations, memory, and latency and throughput in
every runtime."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from tqdm import tqdm

from kdnb import device, files, provenance
from kdnb.deployment import onnx_export
from kdnb.deployment.onnx_export import COLOUR, Reading
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.zoo import Classifier
from kdnb.parameters import Parameters, parameter

BATCHES = (1, 8, 32)


class NotHere(
    files.UserError,
    RuntimeError,
    code="KD601",
    way_out="install what the message names, or choose another runtime",
):
    """A runtime that this machine cannot offer; the message says what it lacks."""


@dataclass(frozen=True)
class RuntimeParameters(Parameters):
    """Settings of notebook 06."""

    needs: ClassVar[tuple[str, ...]] = ("export",)
    extras: ClassVar[tuple[str, ...]] = ("export",)

    compiled: bool | None = parameter(
        None,
        "time torch.compile too: minutes a network",
        profiles={"smoke": False, "quick": False, "paper": True},
    )


def thread_counts() -> list[int]:
    """1, 2, 4 … threads, and torch's own number: the fastest depends on network and machine."""
    most = torch.get_num_threads()
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def _one_count() -> list[int]:
    return [torch.get_num_threads()]


@dataclass(frozen=True)
class Runtime:
    """A way to run a network on a kind of device.

    ``build`` makes of a :class:`Task` a callable from images ``(N, 3, S, S)`` float32 in [0, 1] to
    logits ``(N, K)``, and raises :class:`NotHere` where it cannot. ``counts`` are the numbers of
    threads that it is tried on.
    """

    title: str
    build: Callable[[Task], Callable[[Tensor], object]]
    device: str = "cpu"
    counts: Callable[[], Sequence[int]] = thread_counts


@dataclass(frozen=True)
class Task:
    """A network to be run on ``threads`` (0: as many as the runtime likes), with what its files
    need: class names, training images ``(N, 3, S, S)`` in [0, 1] for int8, and how image files are
    read."""

    model: Classifier
    classes: tuple[str, ...]
    calibration: Tensor | None = None
    reading: Reading = COLOUR
    threads: int | None = None


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
    least: int = 5,
) -> Timing:
    """Time ``run(images)`` for about ``seconds``, and ``least`` times at least, after a warm-up, on
    ``threads`` threads (torch's own number by default)."""
    with torch.inference_mode():
        for _ in range(-(-least // 2)):
            run(images)
        timer = Timer(
            "run(images)",
            globals={"run": run, "images": images},
            num_threads=threads or torch.get_num_threads(),
        )
        calls = max(1, round(0.002 / timer.timeit(1).mean))  # short calls are timed by the handful
        times, end = [], time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            times.append(timer.timeit(calls).mean)
    low, median, high = np.percentile(times, (25, 50, 75)) * 1e3
    return Timing(float(median), float(low), float(high), len(times))


def throughput(
    run: Callable[[Tensor], object],
    image: Tensor,
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.5,
    threads: int | None = None,
) -> tuple[float, int]:
    """Images a second at the best of some batch sizes, and that size.

    ``image`` ``(1, 3, S, S)`` is repeated to fill a batch; each size is timed for ``seconds`` on
    ``threads`` threads (torch's own number by default).
    """
    # two calls at least: a batch is a mean over images already
    filled = {size: image.expand(size, -1, -1, -1).contiguous() for size in batches}
    rates = {
        size: 1e3 * size / latency(run, images, seconds, threads, least=2).median_ms
        for size, images in filled.items()
    }
    best = max(rates, key=rates.get)
    return rates[best], best


def peak_memory(model: Classifier) -> float:
    """Peak memory of one inference in megabytes (2²⁰ bytes): weights, buffers and live activations
    in float32.

    Torch's memory tracker counts tensors; a runtime's own memory comes on top.
    """
    # imported here: it brings torch's compiler and takes seconds
    from torch.distributed._tools.mem_tracker import MemTracker

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
    reading: Reading = COLOUR,
    batches: Sequence[int] = BATCHES,
) -> tuple[pd.DataFrame, dict[str, Callable]]:
    """Time a network in each runtime (all of this machine by default): one row each, and the
    callables, so that their answers can be checked.

    Columns: runtime, title, ``latency_ms`` with quartiles at batch 1 on the ``threads`` that are
    fastest, ``images_per_second`` at the best of ``batches`` and threads (``best_batch``,
    ``best_batch_threads``), file or weight size, clock, and ``note`` for a runtime that is not
    available (its numbers are then missing). ``calibration`` ``(N, 3, S, S)`` are training images
    for int8; ``reading`` goes into the files. Raises ``UnknownName`` for a runtime.
    """
    names = here() if runtimes is None else runtimes
    names = [files.lookup(name, RUNTIMES, "runtime") for name in names]
    task, rows, runs = Task(model, tuple(classes), calibration, reading), [], {}
    bar = tqdm(names, unit="runtime", leave=False)
    for name in bar:
        bar.set_description(f"{model.name} in {name}")
        row = {"model": model.name, "runtime": name, "title": RUNTIMES[name].title, "note": ""}
        try:
            timed, runs[name] = _fastest(RUNTIMES[name], task, seconds, batches)
            rows.append(row | timed)
        except NotHere as error:
            rows.append(row | {"note": str(error)})
    return pd.DataFrame(rows), runs


def _fastest(
    runtime: Runtime, task: Task, seconds: float, batches: Sequence[int]
) -> tuple[dict[str, object], Callable]:
    """The row of a runtime, each number on the threads that serve it best, and the callable that
    answers one image soonest."""
    found = []
    for threads in runtime.counts():
        run = runtime.build(replace(task, threads=threads))
        found.append((_timed(run, task.model, seconds, threads, batches), run))
    soonest, run = min(found, key=lambda each: each[0]["latency_ms"])
    most = max((row for row, _ in found), key=lambda row: row["images_per_second"])
    return soonest | {
        "images_per_second": most["images_per_second"],
        "best_batch": most["best_batch"],
        "best_batch_threads": most["threads"],
    }, run


def _timed(
    run: Callable, model: Classifier, seconds: float, threads: int, batches: Sequence[int]
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, model.image_size, model.image_size, generator=generator)
    timing = latency(run, image, seconds, threads)
    rate, batch = throughput(run, image, batches, seconds / 2, threads)
    return {
        "latency_ms": timing.median_ms,
        "latency_low": timing.low_ms,
        "latency_high": timing.high_ms,
        "images_per_second": rate,
        "best_batch": batch,
        "threads": threads,
        "megabytes": getattr(run, "megabytes", weight_size(model)),
        "clock_mhz": clock(),
    }


def speedups(timings: pd.DataFrame, student: str) -> list[dict]:
    """Ratios of latency: how many times as fast ``student`` is as each other network in the same
    runtime, one row each, from the table of :func:`measure`.

    ``low`` and ``high`` divide the less and the more favourable pair of quartiles.
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
    """Costs that need no timing: parameters, MACs of one image (convolutions and linear layers),
    weights and peak memory in MB."""
    macs = zoo.count_macs(model.name, model.num_classes, model.image_size)
    return {
        "parameters": zoo.count_parameters(model),
        "macs": macs,
        "weights_mb": weight_size(model),
        "peak_memory_mb": peak_memory(model),
    }


def weight_size(model: Classifier) -> float:
    """Megabytes (2²⁰ bytes) of weights and buffers in their present precision."""
    return (
        sum(value.numel() * value.element_size() for value in model.network.state_dict().values())
        / 2**20
    )


def clock() -> float | None:
    """The processor's clock in MHz, None where the system does not report it."""
    found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return round(found.current) if found else None


def here(compiled: bool = True) -> list[str]:
    """Names of the runtimes for this machine's devices; torch.compile, which takes minutes, only if
    ``compiled``."""
    devices = ("cpu", device.default().type)
    return [
        name
        for name, runtime in RUNTIMES.items()
        if runtime.device in devices and (compiled or name != "compile")
    ]


def _copy(
    model: Classifier, place: str = "cpu", layout: torch.memory_format = torch.contiguous_format
) -> Classifier:
    return copy.deepcopy(model).to(place, memory_format=layout).eval()


def _eager(task: Task) -> Callable:
    return _copy(task.model)


def _bf16(task: Task, place: str = "cpu") -> Callable:
    if device.precision(place) != "bf16":
        raise NotHere("this device computes no bf16; emulated it is slower than float32")
    fast = _copy(task.model, place, torch.channels_last)

    def run(images):
        with torch.autocast(place, torch.bfloat16):
            return fast(images.to(place, memory_format=torch.channels_last)).float()

    return run


def _cuda(task: Task) -> Callable:
    return _bf16(task, "cuda")


def _compiled(task: Task) -> Callable:
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise NotHere("torch.compile needs a C++ compiler (g++ or clang++) on this machine")
    # dynamic: compiled twice, for one image and for more, not for each batch size
    return torch.compile(_copy(task.model), dynamic=True)


class _Session:
    """An opened ONNX file as a runtime; ``megabytes`` is the file's size."""

    def __init__(self, path: Path, threads: int | None):
        self.deployed = onnx_export.open(path, threads)
        self.megabytes = path.stat().st_size / 2**20

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.deployed(images.numpy()))


def _onnx(task: Task) -> Callable:
    path = exported(task.model, task.classes, reading=task.reading)
    return _Session(path, task.threads)


def _onnx_defaults(task: Task) -> Callable:
    return _onnx(replace(task, threads=0))


def _cores() -> list[int]:
    return [psutil.cpu_count(logical=False) or 1]


def _int8(task: Task) -> Callable:
    if task.calibration is None:
        raise NotHere(
            "int8 needs calibration images: calibration=(N, 3, S, S), some training images"
        )
    path = exported(task.model, task.classes, task.calibration, task.reading)
    return _Session(path, task.threads)


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
    model: Classifier,
    classes: Sequence[str],
    calibration: Tensor | None = None,
    reading: Reading = COLOUR,
) -> Path:
    """The model as an ONNX file in the cache, written once for its weights; int8 where
    ``calibration`` images ``(N, 3, S, S)`` are given.

    ``reading`` tells how image files were read for training; it goes into the metadata.
    """
    about = [list(classes), reading.metadata(model.image_size), onnx_export.FORMAT]
    key = [zoo.checksum(model.network), model.image_size, *about]
    path = files.cache_dir() / "onnx" / f"{model.name}-{files.digest(key)}.onnx"
    with files.lock(path):
        if not path.exists():
            onnx_export.export(model, path, classes, reading)
    if calibration is None:
        return path
    small = path.with_name(f"{path.stem}-int8-{len(calibration)}.onnx")
    with files.lock(small):
        if not small.exists():
            onnx_export.quantise(path, small, calibration)
    return small


RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime("PyTorch, float32", _eager),
    "bf16": Runtime("PyTorch, channels_last and bf16", _bf16),
    "compile": Runtime("torch.compile, float32", _compiled, counts=_one_count),
    "onnx": Runtime("ONNX Runtime, float32", _onnx),
    "onnx_defaults": Runtime("ONNX Runtime, float32, its defaults", _onnx_defaults, counts=_cores),
    "onnx_int8": Runtime("ONNX Runtime, int8", _int8),
    "cuda_bf16": Runtime(
        "PyTorch on the GPU, channels_last and bf16", _cuda, "cuda", counts=_one_count
    ),
}


def hardware() -> dict[str, object]:
    """The machine that the numbers of this module belong to, JSON-ready."""
    return provenance.hardware() | {"clock_mhz": clock()}
