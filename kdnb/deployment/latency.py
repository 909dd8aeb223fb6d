"""Latency of any subnet on this machine: every block is measured once, whole networks are
predicted.

Cai et al. (2020), Once-for-All, arXiv:1908.09791, section 3.4: a look-up table of latencies in
place of one measurement per subnet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import checks, extras, files, provenance
from kdnb.deployment import efficiency
from kdnb.models import ofa, zoo
from kdnb.models.ofa import LARGEST, OFA595_CHOICE, SMALLEST, Block, Choice

onnxruntime = extras.late("onnxruntime")

# measurements of a whole network, each next to one of OFA-595: load on the machine slows both and
# cancels in the ratio
ROUNDS = 6
# as small devices serve; on two shared cores two threads wait for each other, and no measurement
# repeats itself
THREADS = 1
TOGETHER = 10  # networks held in memory at a time


@dataclass(frozen=True)
class LatencyTable:
    """Predicts milliseconds of a subnet: ``offset + scale · Σ blocks + weights · (millions of
    parameters)``.

    ``blocks`` maps :func:`_key` to milliseconds of one block, measured alone on this device.
    ``scale``, ``weights`` and ``offset`` are fitted on a few whole subnets: a block alone finds its
    weights in the processor's cache, those of a whole network have to be fetched; ``offset`` also
    holds what all subnets share (stem, head). ``reference_ms`` is what OFA-595 took when they were
    fitted: all milliseconds of a table are those of that moment.
    """

    image_size: int
    num_classes: int
    runtime: str
    blocks: dict[str, float]
    scale: float = 1.0
    weights: float = 0.0
    offset: float = 0.0
    reference_ms: float = 1.0

    def __call__(self, choice: Choice) -> float:
        """Predicted latency at batch 1, in milliseconds."""
        return float(self.features(choice) @ [self.scale, self.weights, self.offset])

    def features(self, choice: Choice) -> np.ndarray:
        """Regressors of a prediction: the sum over blocks in milliseconds, millions of parameters,
        and 1."""
        parts = zip(choice.blocks()[1:], _sides(choice.blocks(), self.image_size)[1:], strict=True)
        millions = zoo.count_parameters(ofa.skeleton(choice, self.num_classes)) / 1e6
        return np.array(
            [sum(self.blocks[_key(block, side)] for block, side in parts), millions, 1.0]
        )


def _key(block: Block, side: int) -> str:
    return f"k{block.kernel} s{block.stride} {block.inner}-{block.mid}-{block.out} at {side} px"


def _sides(blocks: list[Block], image_size: int) -> list[int]:
    """Height and width of each block's input; the stem has halved the image."""
    sides, side = [], -(-image_size // 2)
    for block in blocks:
        sides.append(side)
        side = -(-side // block.stride)
    return sides


def latency_table(
    image_size: int, num_classes: int, runtime: str = "onnx", whole: int = 24, seconds: float = 0.05
) -> LatencyTable:
    """Measure every block that a subnet can have, and ``whole`` random subnets to fit the rest.

    Kept on disk, each measurement as soon as it is made. ``runtime`` is one of ``RUNTIMES``; every
    measurement takes ``seconds``. Raises ``UnknownName``.
    """
    files.lookup(runtime, RUNTIMES, "runtime")
    key = {
        "hardware": provenance.hardware(),
        "size": image_size,
        "classes": num_classes,
        "runtime": runtime,
        "rounds": ROUNDS,
        "threads": THREADS,
        "seconds": seconds,
        "whole": whole,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    path = files.cache_dir() / "latency" / f"{runtime}-{image_size}px-{files.digest(key)}.json"
    with files.lock(path):
        if path.exists():
            return LatencyTable(**files.read_json(path))
        once = _Once(path.with_suffix(".part"))
        blocks = _measured_blocks(image_size, runtime, seconds, once)
        table = _fitted(
            LatencyTable(image_size, num_classes, runtime, blocks), whole, seconds, once
        )
        files.write_json(path, dataclasses.asdict(table))
        once.path.unlink()
    return table


class _Once:
    """Results by name in a JSON file: an interrupted process repeats no measurement."""

    def __init__(self, path: Path):
        self.path = path
        self.known = files.read_json(path) if path.exists() else {}

    def __call__(self, name: str, work: Callable[[], object]) -> object:
        if name not in self.known:
            self.known[name] = work()
            files.write_json(self.path, self.known)
        return self.known[name]


def _measured_blocks(
    image_size: int, runtime: str, seconds: float, once: _Once
) -> dict[str, float]:
    """Milliseconds of every block that a subnet can have."""
    wanted = {}
    for choice in (Choice.uniform(4, k, e) for k in ofa.KERNELS for e in ofa.EXPANSIONS):
        sides = _sides(choice.blocks(), image_size)[1:]
        wanted |= {
            _key(b, side): (b, side) for b, side in zip(choice.blocks()[1:], sides, strict=True)
        }
    blocks = dict.fromkeys(wanted, np.inf)

    @functools.cache
    def prepared(name):  # exporting a block takes longer than measuring it
        block, side = wanted[name]
        return ready(ofa.Residual(block, False), (1, block.inner, side, side), runtime)

    # each is measured twice, the faster kept: a busy moment spoils one of them
    turns = [(turn, name) for turn in ("first", "second") for name in wanted]
    for turn, name in tqdm(turns, desc="measuring blocks", unit="block", leave=False):
        value = once(f"{turn} {name}", lambda name=name: prepared(name)(seconds))
        blocks[name] = min(blocks[name], value)
    return blocks


def _fitted(table: LatencyTable, whole: int, seconds: float, once: _Once) -> LatencyTable:
    """The table with ``scale``, ``weights`` and ``offset`` fitted to ``whole`` measured subnets."""
    some = [SMALLEST, LARGEST, *ofa.random_choices(whole, seed=1)]
    groups = [some[start : start + TOGETHER] for start in range(0, len(some), TOGETHER)]
    how = (table.image_size, table.num_classes, table.runtime, seconds)
    parts = [
        once(f"networks {number}", functools.partial(_beside, group, *how))
        for number, group in enumerate(groups)
    ]
    reference_ms = float(np.median([times for _, times in parts]))
    measured = np.concatenate([ratios for ratios, _ in parts]) * reference_ms
    # relative errors count: each row is divided by the measured latency
    rows = np.stack([table.features(choice) for choice in some]) / measured[:, None]
    scale, weights, offset = np.linalg.lstsq(rows, np.ones(len(some)), rcond=None)[0].tolist()
    return dataclasses.replace(
        table, scale=scale, weights=weights, offset=offset, reference_ms=reference_ms
    )


def _beside(*arguments: object) -> tuple[list[float], float]:
    """What :func:`measure` gives, as JSON keeps it."""
    ratios, reference_ms = measure(*arguments)
    return ratios.tolist(), reference_ms


def measure(
    choices: Sequence[Choice],
    image_size: int,
    num_classes: int,
    runtime: str = "onnx",
    seconds: float = 0.05,
) -> tuple[np.ndarray, float]:
    """Latency of whole subnets at batch 1 as multiples of OFA-595's, ``(len(choices),)``, and
    OFA-595's milliseconds.

    Weights do not matter for time: the networks are untrained.
    """
    nets = [
        functools.partial(zoo.create, choice.name, num_classes, image_size) for choice in choices
    ]
    reference = zoo.create(OFA595_CHOICE.name, num_classes, image_size)
    return compare(nets, reference, image_size, runtime, seconds)


def compare(
    nets: Sequence[Callable[[], nn.Module]],
    reference: nn.Module,
    image_size: int,
    runtime: str = "onnx",
    seconds: float = 0.05,
) -> tuple[np.ndarray, float]:
    """Latency of networks as multiples of a reference's, and the reference's milliseconds.

    ``nets`` build the networks one after the other. Each is timed right after the reference,
    ``ROUNDS`` times; the median of the ratios is robust to a load that changes with time.
    """
    shape, times = (1, 3, image_size, image_size), []
    beside = ready(reference, shape, runtime)
    bar = tqdm(total=len(nets), desc="measuring networks", unit="network", leave=False)
    for start in range(0, len(nets), TOGETHER):
        runs = [ready(net(), shape, runtime) for net in nets[start : start + TOGETHER]]
        times.append([[(beside(seconds / 2), run(seconds)) for run in runs] for _ in range(ROUNDS)])
        bar.update(len(runs))
    bar.close()
    theirs, own = np.moveaxis(np.concatenate(times, axis=1), 2, 0)
    return np.median(own / theirs, axis=0), float(np.median(theirs))


def ready(
    module: nn.Module, shape: tuple[int, ...], runtime: str = "onnx"
) -> Callable[[float], float]:
    """A module prepared for a runtime: call it with the seconds to spend, it returns median
    milliseconds of one call."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    run = RUNTIMES[files.lookup(runtime, RUNTIMES, "runtime")](module.eval(), x)
    # callers time each network several times: two calls a time are enough for a slow one
    return lambda seconds: efficiency.latency(run, x, seconds, THREADS, least=2).median_ms


def _onnx(module: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    """A session of ONNX Runtime; through torch's older exporter, which takes a fifth of the time
    and gives the same graph of convolutions (what is deployed goes through ``onnx_export``)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), buffer, dynamo=False, input_names=["images"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        buffer.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    array = x.numpy()
    return lambda _: session.run(None, {"images": array})


def _eager(module: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    return module


RUNTIMES: dict[str, Callable[[nn.Module, Tensor], Callable]] = {"onnx": _onnx, "eager": _eager}


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Accuracy of predictions: mean absolute percentage error (0.1 is 10 %) and Kendall's τ (1 for
    the same order)."""
    checks.shapes(predicted=(predicted, "N"), measured=(measured, "N"))
    predicted, measured = np.asarray(predicted), np.asarray(measured)
    return {
        "latency_mape": float(np.mean(np.abs(predicted - measured) / measured)),
        "kendall_tau": float(stats.kendalltau(predicted, measured).statistic),
        "subnets": len(measured),
    }
