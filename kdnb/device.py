"""Which device computes, and in which precision: the one module that asks torch."""

from __future__ import annotations

import contextlib

import torch
from torch import nn


def default() -> torch.device:
    """The device for training and for trained networks, as accelerate gives it to this process.

    A CUDA GPU, else Apple's GPU, else the processor; ``ACCELERATE_USE_CPU=true`` forces the last.
    """
    from accelerate import PartialState  # slow to import, and most callers never train

    return PartialState().device


def of(model: nn.Module) -> torch.device:
    """The device that a network is on; the processor for a network without tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def precision(device: torch.device | str | None = None) -> str:
    """The precision that is fast on a device, the default one unless given.

    ``bf16`` where the hardware computes with it; ``fp16`` on CUDA GPUs without (T4, P100), where
    training scales the gradient; else ``no``, also on Apple's GPU.
    """
    kind = torch.device(default() if device is None else device).type
    if kind == "cuda":
        # torch also counts a bf16 that is emulated, and slower than float32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = kind == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return "bf16" if fast else "no"


def autocast(device: torch.device | str) -> contextlib.AbstractContextManager:
    """Mixed precision on a device in its fast precision; does nothing where that is float32."""
    chosen = precision(device)
    if chosen == "no":
        return contextlib.nullcontext()
    dtype = torch.float16 if chosen == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype)


def without_autocast(device: torch.device | str) -> contextlib.AbstractContextManager:
    """Tensors keep their precision, for products that overflow or lose too much in half of it."""
    return torch.autocast(torch.device(device).type, enabled=False)


def holds(device: torch.device, size: int) -> bool:
    """Whether a device is a CUDA GPU on which ``size`` bytes are less than a quarter of what is
    free."""
    return device.type == "cuda" and 4 * size < torch.cuda.mem_get_info(device)[0]


def gpu() -> str | None:
    """Number and name of the GPUs, or None."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else None
