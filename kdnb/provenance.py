"""Where a result comes from: commit, package versions, hardware, time."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from kdnb import device, files

PACKAGES = (
    "kdnb",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pandas",
    "scikit-learn",
    "safetensors",
    "pillow",
)


def collect() -> dict[str, object]:
    """Commit, package versions, hardware and the time, JSON-ready."""
    return {
        "commit": _commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> dict[str, object]:
    """Processor, cores that this process may use, threads of torch, memory in GB, GPU if there is
    one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, object] = {
        "cpu": _processor(),
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
    }
    if hasattr(os, "sysconf"):
        found["memory_gb"] = round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        )
    if (gpu := device.gpu()) is not None:
        found["gpu"] = gpu
    return found


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit this code is at; ``+changes`` when tracked code differs from it, ``unknown``
    outside a repository."""

    def git(*arguments):
        run = subprocess.run(
            ["git", *arguments],
            cwd=files.ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return run.stdout.strip()

    try:
        code = ("kdnb", "notebooks", "pyproject.toml", "requirements.lock")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
