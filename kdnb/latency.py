"""How long any subnet takes on the device at hand: every block measured once, whole networks predicted.

Cai et al. (2020), Once-for-All, arXiv:1908.09791, section 3.4: a look-up table of latencies instead of a measurement each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from kdnb import efficiency, files, models, ofa, provenance
from kdnb.ofa import LARGEST, SMALLEST, Block, Choice

ROUNDS = 2  # everything is measured so often, one round after the other, and the faster kept: a busy moment spoils one round


@dataclass(frozen=True)
class LatencyTable:
    """Predicts milliseconds of a subnet: ``offset + scale · Σ blocks``, each block measured alone on this device.

    ``blocks`` maps :func:`_key` to milliseconds; ``fixed`` is what all subnets share (stem, first block, head). ``scale`` and
    ``offset`` are fitted on a few whole subnets: what blocks cost together is a little less than what they cost alone.
    """

    image_size: int
    runtime: str
    fixed: float
    blocks: dict[str, float]
    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, choice: Choice) -> float:
        """Predicted latency at batch 1, in milliseconds."""
        parts = zip(choice.blocks()[1:], _sides(choice.blocks(), self.image_size)[1:], strict=True)
        return self.offset + self.scale * (self.fixed + sum(self.blocks[_key(block, side)] for block, side in parts))


def _key(block: Block, side: int) -> str:
    return f"k{block.kernel} s{block.stride} {block.inner}-{block.mid}-{block.out} at {side} px"


def _sides(blocks: list[Block], image_size: int) -> list[int]:
    """Height and width of each block's input; the stem has halved the image."""
    sides, side = [], -(-image_size // 2)
    for block in blocks:
        sides.append(side)
        side = -(-side // block.stride)
    return sides


def latency_table(image_size: int, num_classes: int, runtime: str = "onnx", whole: int = 10, seconds: float = 0.05) -> LatencyTable:
    """Measure every block that a subnet can have, and ``whole`` random subnets to fit scale and offset; kept on disk.

    ``runtime`` is one of ``RUNTIMES``; ``seconds`` is spent on each measurement (a minute for all on two cores).
    """
    files.lookup(runtime, RUNTIMES, "runtime")
    key = {"hardware": provenance.hardware(), "size": image_size, "classes": num_classes, "runtime": runtime, "rounds": ROUNDS,
           "seconds": seconds, "whole": whole, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}  # fmt: skip
    path = files.cache_dir() / "latency" / f"{runtime}-{image_size}px-{files.digest(key)}.json"
    with files.lock(path):
        if path.exists():
            return LatencyTable(**files.read_json(path))
        largest = ofa.OFA(num_classes, blocks=LARGEST.blocks())
        wanted = {}
        for choice in (Choice.uniform(4, k, e) for k in ofa.KERNELS for e in ofa.EXPANSIONS):
            wanted |= {_key(b, side): (b, side) for b, side in zip(choice.blocks()[1:], _sides(choice.blocks(), image_size)[1:],
                                                                     strict=True)}  # fmt: skip
        blocks = dict.fromkeys(wanted, np.inf)
        for name, (block, side) in tqdm(ROUNDS * list(wanted.items()), desc="measuring blocks", unit="block", leave=False):
            found = milliseconds(ofa.Residual(block, False), (1, block.inner, side, side), runtime, seconds)
            blocks[name] = min(blocks[name], found)
        sides = _sides(LARGEST.blocks(), image_size)
        last = -(-sides[-1] // LARGEST.blocks()[-1].stride)
        head = nn.Sequential(largest.final_expand_layer, nn.AdaptiveAvgPool2d(1), largest.feature_mix_layer, nn.Flatten(1),
                             largest.classifier)  # fmt: skip
        stem = nn.Sequential(largest.first_conv, largest.blocks[0])
        fixed = (milliseconds(stem, (1, 3, image_size, image_size), runtime, seconds)
                 + milliseconds(head, (1, 192, last, last), runtime, seconds))  # fmt: skip
        table = LatencyTable(image_size, runtime, fixed, blocks)
        some = [SMALLEST, LARGEST, *ofa.random_choices(whole, seed=1)]
        whole_ms = measure(some, image_size, num_classes, runtime)
        fit = stats.theilslopes(whole_ms, [table(choice) for choice in some])  # one disturbed measurement does not tilt it
        table = dataclasses.replace(table, scale=float(fit.slope), offset=float(fit.intercept))
        files.write_json(path, dataclasses.asdict(table))
    return table


def measure(choices: list[Choice], image_size: int, num_classes: int, runtime: str = "onnx", seconds: float = 0.2) -> np.ndarray:
    """Measured milliseconds of whole subnets at batch 1 (weights do not matter for time), ``(len(choices),)``."""
    bar = tqdm(ROUNDS * choices, desc="measuring subnets", unit="subnet", leave=False)
    found = [milliseconds(models.create(choice.name, num_classes, image_size), (1, 3, image_size, image_size), runtime, seconds)
             for choice in bar]  # fmt: skip
    return np.min(np.reshape(found, (ROUNDS, len(choices))), axis=0)


def milliseconds(module: nn.Module, shape: tuple[int, ...], runtime: str = "onnx", seconds: float = 0.2) -> float:
    """Median milliseconds of one call with an input of this shape."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return efficiency.latency(RUNTIMES[files.lookup(runtime, RUNTIMES, "runtime")](module.eval(), x), x, seconds).median_ms


def _onnx(module: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    """A session of ONNX Runtime; through torch's older exporter, which takes a fifth of the time and gives the same graph of
    convolutions (what is deployed goes through ``onnx_export``)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), buffer, dynamo=False, input_names=["images"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    return lambda _: session.run(None, {"images": array})


def _eager(module: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    return module


RUNTIMES: dict[str, Callable[[nn.Module, Tensor], Callable]] = {"onnx": _onnx, "eager": _eager}


def agreement(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """How good predictions are: mean absolute percentage error (0.1 is 10 %) and Kendall's τ (1: the same order)."""
    return {"latency_mape": float(np.mean(np.abs(predicted - measured) / measured)),
            "kendall_tau": float(stats.kendalltau(predicted, measured).statistic), "subnets": len(measured)}  # fmt: skip
