"""Where things lie on disk, and how they are written so that nothing is lost or half there."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock
from safetensors import SafetensorError

from kdnb.errors import UserError as UserError

_HERE = Path(__file__).resolve().parents[1]
_WITHIN = (_HERE / "pyproject.toml").exists() and (_HERE / "notebooks").is_dir()
# A notebook's working directory is its own folder; an installed copy has no repository around it.
ROOT = _HERE if _WITHIN else Path.cwd()


# what a file system answers that cannot lock or sync
UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EBADF")
    if hasattr(errno, name)
}


class UnknownName(
    UserError,
    ValueError,
    code="KD201",
    way_out="take the nearest match or a name from the list in the message; python -m kdnb.run "
    "--help lists all parameters",
):
    """A name that no registry holds; the message lists the allowed ones and the nearest match."""


def lookup(name: str, known: Iterable[str], what: str) -> str:
    """Return ``name`` if it is known, else raise :class:`UnknownName` with the nearest match."""
    known = list(known)
    if name in known:
        return name
    text = str(name).lower()
    cut = [
        option for option in known if len(option) > 2 and text.startswith(option)
    ]  # "validation" is not near "val" by letters
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.5) or cut
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownName(f"unknown {what} {name!r}.{hint} Allowed: {', '.join(known)}.")


def simplify(text: str) -> str:
    """Lower case, letters and digits only: ``No_Tumor`` and ``notumor`` are one name."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _folder(variable: str, default: str) -> Path:
    chosen = Path(os.environ.get(variable) or default).expanduser()
    if chosen.is_absolute():
        return chosen
    if not os.access(ROOT, os.W_OK):  # a repository that Kaggle or a course mounts for reading
        return chosen.resolve()
    # Relative paths mean the repository's root, as typed there; a reader inside notebooks/ may mean
    # that folder.
    return (
        (Path.cwd() / chosen).resolve()
        if not (ROOT / chosen).exists() and chosen.exists()
        else (ROOT / chosen).resolve()
    )


def data_dir() -> Path:
    """Where datasets lie: ``KDNB_DATA``, else ``data/``."""
    return _folder("KDNB_DATA", "data")


def cache_dir() -> Path:
    """Where what can be made again lies (indexes, pixels, checkpoints): ``KDNB_CACHE``, else
    ``cache/``."""
    return _folder("KDNB_CACHE", "cache")


def weights_dir() -> Path:
    """Where downloaded pretrained weights lie: ``KDNB_WEIGHTS``, else ``weights/``."""
    return _folder("KDNB_WEIGHTS", "weights")


def outputs_dir() -> Path:
    """Where results lie: ``KDNB_OUTPUTS``, else ``outputs/``."""
    return _folder("KDNB_OUTPUTS", "outputs")


def shown(path: Path) -> str:
    """A path as a page may print it: from the repository's, the cache's or the outputs' folder on,
    not where that lies."""
    for base, name in ((ROOT, ""), (cache_dir(), "cache"), (outputs_dir(), "outputs")):
        if Path(path).is_relative_to(base):
            return str(Path(name, Path(path).relative_to(base)))
    return str(path)


class DiskFull(
    UserError,
    OSError,
    code="KD702",
    way_out="free some space, or set KDNB_CACHE and KDNB_OUTPUTS to folders on a larger disk, and "
    "run the notebook again: it goes on",
):
    """No space is left for a file; earlier files are as they were. The message says where and what
    to do."""


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Raise :class:`DiskFull` for a full disk inside the block, which was to write ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        hidden = re.search(
            r"os error (\d+)", str(error)
        )  # safetensors hides the system's number in its text
        number = int(hidden[1]) if hidden else getattr(error, "errno", None)
        if number not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ):  # the last: this disk or user may have no file so large
            raise
        raise DiskFull(
            number,
            f"no space left to write {shown(path)}; nothing that was there is lost. Free some, or "
            "set KDNB_CACHE (or KDNB_OUTPUTS) to a folder on another disk, and run the same again",
        ) from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it only when the block ends without an
    error.

    The file is on the disk, not only in memory, when the block is left. Raises :class:`DiskFull`.
    """
    path = Path(path)
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:60]}.", suffix=path.suffix
        )
        temporary = Path(name)
        try:
            os.close(handle)
            yield temporary
            os.chmod(
                temporary, 0o644
            )  # mkstemp is private; results are for everyone who may read the folder
            put_in_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a finished file its final name once its bytes are on the disk.

    The name is on the disk too when this returns, where the file system can promise that.
    """
    _sync(finished)
    os.replace(finished, path)
    with contextlib.suppress(OSError):
        # Windows opens no folder, and SMB and some FUSE file systems sync none
        _sync(path.parent)


def _sync(path: Path) -> None:
    # Windows flushes only what is open for writing
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` atomically and return the path."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path, value: object) -> Path:
    """Write ``value`` as strict JSON (NaN is refused), atomically."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | list:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def remembered(path: Path, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that ``work()`` gives: computed once, then read from ``path`` (``.npz``, never
    with pickle).

    What takes minutes is cut into such parts, so that a killed process loses one of them.
    """
    with lock(path):
        if not Path(path).exists():
            arrays = work()
            with atomic(path) as temporary:
                np.savez(temporary, **arrays)
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array in a nameless file of the cache, for what need not stay in memory; it is gone
    with the process.

    Every block is taken now: a disk that is full later kills the process that writes into a mapped
    file. Raises :class:`DiskFull`.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with told_when_full(folder), tempfile.TemporaryFile(dir=folder) as file:
        array = np.memmap(file, dtype, "w+", shape=shape)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, array.nbytes)
        return array


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """A lock between processes on ``path``: the second one waits, and then finds the work done.

    Where the file system has no locks (NFS without a lock service, some FUSE and SMB mounts), the
    lock is a file that only one process can create; a warning says that a killed process may leave
    it behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(path.name + ".lock")
    held: BaseFileLock = FileLock(name)
    try:
        held.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        held = _soft_lock(name, error)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _soft_lock(name: Path, error: Exception) -> SoftFileLock:
    own = name.with_suffix(".softlock")
    warnings.warn(
        f"{shown(name.parent)} lies on a file system without locks ({error}): {shown(own)} takes "
        "their place. If no other process works here and this one waits for long, delete that file",
        stacklevel=4,
    )
    return SoftFileLock(own)
