"""Teachers' answers on disk: named by all they follow from, checked when read, bounded in size.

A damaged or unfinished file, or one of another teacher, is never read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdnb import files, parameters
from kdnb.models import zoo

LIMIT = "KDNB_ANSWERS_GB"  # the environment variable that bounds the folder
GIGABYTES = 4.0


def folder() -> Path:
    """The folder of all teachers' answers."""
    return files.cache_dir() / "answers"


def limit() -> int:
    """The bytes that the folder of answers may hold, from the environment variable
    ``KDNB_ANSWERS_GB`` (4 by default; 0 keeps nothing)."""
    try:
        gigabytes = float(os.environ.get(LIMIT) or GIGABYTES)
    except ValueError:
        raise parameters.BadParameter(
            f"{LIMIT} must be a number, got {os.environ[LIMIT]!r}"
        ) from None
    return int(gigabytes * 1e9)


def make_room(size: int, own: Path) -> bool:
    """Remove the oldest answers of other runs until ``size`` bytes more fit; whether they do.

    Answers in the folder ``own`` stay: the first epochs of these views are worth as much as the
    last.
    """
    found = []
    for path in folder().glob("*/*.safetensors"):
        with contextlib.suppress(OSError):  # another run may have removed it
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    free = limit() - sum(held for _, held, _ in found)
    for _, held, path in sorted(entry for entry in found if entry[2].parent != own):
        if free >= size:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            free += held
    return free >= size


def write(path: Path, about: dict, tensors: Sequence[Tensor]) -> None:
    """Write answers with all they follow from, and a checksum."""
    named = {f"{number:02}": each.contiguous() for number, each in enumerate(tensors)}
    metadata = {"about": json.dumps(about, sort_keys=True), "checksum": zoo.tensors_checksum(named)}
    with files.atomic(path) as temporary:
        save_file(named, temporary, metadata)


def read(path: Path, about: dict) -> list[Tensor] | None:
    """Answers that were written for exactly this; None where there are none, or damaged ones."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("about") != json.dumps(about, sort_keys=True):
                return None
            # copied, so that the file is not held open and may be removed by another run
            named = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (OSError, SafetensorError):
        return None
    return [*named.values()] if zoo.tensors_checksum(named) == metadata["checksum"] else None
