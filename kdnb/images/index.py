"""The index: one row an image, read from the file tree a download really has, with every bad file
named."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.contrib.concurrent import thread_map

from kdnb import files
from kdnb.images.catalogue import DatasetSpec

VERSION = 3  # part of the stored index's fingerprint: raise it when a column or a rule changes
COLUMNS = [
    "path",
    "label",
    "split",
    "patient",
    "mask",
    "organ_mask",
    "width",
    "height",
    "mode",
    "sha256",
    "mask_sha256",
    "organ_mask_sha256",
]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".gif"}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
MASKS = {
    "lungmasks": "organ_mask",
    "organmasks": "organ_mask",
    "infectionmasks": "mask",
    "lesionmasks": "mask",
    "masks": "mask",
}
LARGEST = 80_000_000  # pixels of one image; larger ones are named, not decoded
UNREADABLE = re.compile(
    r"[\x00-\x1f\x7f\ud800-\udfff]"
)  # breaks a row of the table, or (a surrogate) is a byte that is no UTF-8
ORIENTATION = 0x0112  # the EXIF tag that says how a picture is to be turned
WRAPPERS = {"images", "image"}  # folders that hold a class's images and are not classes themselves


@dataclass(frozen=True)
class Index:
    """A dataset's table and what was wrong with its files.

    ``table`` has one row an image with the columns ``COLUMNS``: ``path``, ``mask`` (lesion) and
    ``organ_mask`` (lung or tissue) relative to the dataset's root, ``width`` and ``height`` in
    pixels, ``mode`` as in Pillow, and the SHA-256 of the image and of its masks (empty without
    one); ``problems`` has the columns path, problem, detail; ``classes`` are the readable names in
    label order.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame
    problems: pd.DataFrame = field(repr=False)

    @property
    def checksum(self) -> str:
        """Names the images and labels that a result rests on (12 hexadecimal digits)."""
        # masks by name alone: networks do not learn from them, and a result must not lose its name
        # over one
        rows = self.table.sort_values("path")[
            ["path", "label", "split", "mask", "organ_mask", "sha256"]
        ]
        return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:12]

    def problem_counts(self) -> pd.DataFrame:
        """Files by the kind of problem, most frequent first, with one example each (columns
        problem, files, example)."""
        grouped = self.problems.assign(
            example=self.problems["path"] + ": " + self.problems["detail"]
        ).groupby("problem")
        counts = grouped.agg(files=("path", "size"), example=("example", "first"))
        return counts.sort_values("files", ascending=False).reset_index()


def build(spec: DatasetSpec, root: Path, cache: Path | None = None) -> Index:
    """Read the tree below ``root``, or the stored index when the tree has not changed since.

    Raises ``FileNotFoundError`` when ``root`` holds no image of any class.
    """
    root = Path(root).resolve()
    found, refused = _scan(root)
    classes = spec.classes or _folder_classes(found)
    key = [
        VERSION,
        str(root),
        {name: list(spelt) for name, spelt in classes.items()},
        spec.groups,
        found,
        refused,
    ]
    store = (cache or files.cache_dir()) / "index" / f"{spec.slug}-{files.digest(key)}"
    with files.lock(store):
        if not (store / "table.csv").exists():
            table, problems = _read(
                spec, root, classes, [PurePosixPath(name) for name, _, _ in found], refused
            )
            if table.empty:
                raise FileNotFoundError(_nothing_found(spec, root, problems))
            _write_csv(store / "problems.csv", problems)
            _write_csv(
                store / "table.csv", table
            )  # last: its presence says that the index is whole
        table = pd.read_csv(
            store / "table.csv", keep_default_na=False, dtype={"patient": str, "label": str}
        )
        problems = pd.read_csv(store / "problems.csv", keep_default_na=False, dtype=str)
    present = tuple(name for name in classes if (table["label"] == name).any())
    return Index(root, present, table, problems)


def _scan(root: Path) -> tuple[list[tuple[str, int, int]], list[tuple[str, str, str]]]:
    """Every file below ``root`` with its size and time of change, and as problems what cannot be
    reached or has no readable name.

    Hidden files are none of ours.
    """
    found, refused, seen = [], [], set()

    def refuse(path, problem, detail):
        name = Path(path).relative_to(root).as_posix()
        refused.append((UNREADABLE.sub(lambda match: ascii(match[0])[1:-1], name), problem, detail))

    for folder, below, names in os.walk(
        root, followlinks=True, onerror=lambda error: refuse(error.filename, *_denied(error))
    ):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if real in seen:  # a link back up the tree
            below.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            if name.startswith(".") or name == "Thumbs.db":
                continue
            path = Path(folder, name)
            short = path.relative_to(root).as_posix()
            try:
                facts = path.stat()
                if not os.access(
                    path, os.R_OK
                ):  # in the index's key: a change of rights changes neither size nor time
                    raise PermissionError
            except OSError as error:
                refuse(path, *_denied(error))
                continue
            if UNREADABLE.search(short):
                refuse(
                    path,
                    "unreadable name",
                    "not UTF-8, or a control character: rename it (convmv does whole trees)",
                )
            else:
                found.append((short, facts.st_size, facts.st_mtime_ns))
    return found, refused


def _folder_classes(found: list[tuple[str, int, int]]) -> dict[str, tuple[str, ...]]:
    """Class names of a ``<root>/<class>/*`` or ``<root>/<split>/<class>/*`` tree: its folders,
    sorted by name."""
    names = set()
    for name, _, _ in found:
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES:
            kept = [
                part
                for part in path.parts[:-1]
                if files.simplify(part) not in SPLITS.keys() | MASKS.keys() | WRAPPERS
            ]
            names.update(kept[:1])
    return {name: (name,) for name in sorted(names)}


def _place(path: PurePosixPath, folders: dict[str, str]) -> tuple[str, str, str | None]:
    """(split, kind, label) that a file's folders tell; kind is ``image``, ``mask`` or
    ``organ_mask``."""
    parts = [files.simplify(part) for part in path.parts[:-1]]
    split = next((SPLITS[part] for part in parts if part in SPLITS), "")
    kind = next((MASKS[part] for part in reversed(parts) if part in MASKS), "image")
    label = next((folders[part] for part in reversed(parts) if part in folders), None)
    return split, kind, label


def _read(
    spec: DatasetSpec,
    root: Path,
    classes: dict,
    paths: list[PurePosixPath],
    refused: list[tuple[str, str, str]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    folders = {
        files.simplify(spelling): name
        for name, spellings in classes.items()
        for spelling in (name, *spellings)
    }
    images, masks, problems = [], {}, list(refused)
    for path in paths:
        split, kind, label = _place(path, folders)
        if label is None:
            if path.suffix.lower() in SUFFIXES:
                problems.append(
                    (
                        str(path),
                        "unknown class folder",
                        f"{path.parent} is none of: {', '.join(classes)}",
                    )
                )
        elif path.suffix.lower() not in SUFFIXES:
            problems.append((str(path), "not an image file", f"suffix {path.suffix or 'none'}"))
        elif kind == "image":
            images.append((str(path), label, split))
        else:
            masks[kind, split, label, path.stem.lower()] = str(path)
    names = [path for path, _, _ in images] + list(masks.values())
    facts = dict(
        zip(
            names,
            thread_map(
                lambda name: inspect(root / name),
                names,
                desc=f"indexing {spec.name}",
                unit="file",
                max_workers=2 * (os.cpu_count() or 1),
                leave=False,
                disable=len(names) < 500,
            ),
            strict=True,
        )
    )
    for place, name in list(masks.items()):
        if isinstance(facts[name], tuple):  # the image is used without it
            problem, detail = facts[masks.pop(place)]
            problems.append((name, f"bad mask: {problem}", detail))
    rows = []
    for name, label, split in images:
        if isinstance(facts[name], tuple):
            problems.append((name, *facts[name]))
            continue
        path = PurePosixPath(name)
        mask, organ = (
            masks.get((kind, split, label, path.stem.lower()), "")
            for kind in ("mask", "organ_mask")
        )
        rows.append(
            {
                "path": name,
                "label": label,
                "split": split,
                "patient": _patient(spec, path),
                "mask": mask,
                "organ_mask": organ,
                **facts[name],
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    table, joined = _join_trees(table, spec.trees) if spec.trees else (table, [])
    table, more = _settle_copies(table)
    for kind in ("mask", "organ_mask"):
        table[f"{kind}_sha256"] = [facts[name]["sha256"] if name else "" for name in table[kind]]
    for name in classes:
        if not (table["label"] == name).any():
            more.append((name, "class without images", "it is left out of the label set"))
    return table, pd.DataFrame(problems + joined + more, columns=["path", "problem", "detail"])


def inspect(path: Path) -> dict | tuple[str, str]:
    """Width, height, mode and SHA-256 of an image decoded to its last row, or (problem, detail)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file", "a folder, pipe, device or socket"  # reading one may never end
        data = path.read_bytes()
    except OSError as error:
        return _denied(error)
    if not data:
        return "empty file", "zero bytes"
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height, mode = *image.size, image.mode
            if (
                width * height > LARGEST
            ):  # a few kilobytes may claim gigabytes: looked at before anything is decoded
                return "too large", f"{width:,} x {height:,} pixels; the limit is {LARGEST:,}"
            image.load()
            if mode == "F" and not np.isfinite(np.asarray(image)).all():
                return "not finite", "holds NaN or infinity"
            if image.getexif().get(ORIENTATION, 1) >= 5:  # lies on its side; pixels.decode turns it
                width, height = height, width
    except Image.DecompressionBombError as error:  # larger still: Pillow does not even open it
        return "too large", str(error)
    except Image.UnidentifiedImageError:
        return "not an image", "no image format that Pillow knows"
    # a decoder may raise anything on hostile bytes: the file is named, the rest goes on
    except Exception as error:
        truncated = isinstance(error, OSError | SyntaxError | EOFError)
        return (
            "truncated or damaged" if truncated else "unreadable",
            f"{type(error).__name__}: {str(error)[:120]}",
        )
    return {
        "width": width,
        "height": height,
        "mode": mode,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _denied(error: OSError) -> tuple[str, str]:
    """(problem, detail) of a file or folder that the system does not hand out."""
    if isinstance(error, PermissionError):
        return (
            "no permission",
            "this account may not read it: chmod -R u+rX on its folder, or ask its owner",
        )
    if isinstance(error, FileNotFoundError):
        return "missing file", "nothing is there, or a link to nowhere"
    if error.errno == errno.ELOOP:
        return "missing file", "a link that leads back to itself"
    return "unreadable", f"{type(error).__name__}: {error.strerror}; copy it anew"


def _patient(spec: DatasetSpec, path: PurePosixPath) -> str:
    """The patient (or tile) a file's name tells, or nothing."""
    for pattern, name in spec.groups:
        if match := re.search(pattern, path.name, flags=re.IGNORECASE):
            return name.format(*match.groups())
    return ""


def _join_trees(
    table: pd.DataFrame, trees: tuple[str, ...]
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """One row for an image that lies in two trees (COVID-QU-Ex), with the masks of either; the
    first tree's split stands."""
    names = [files.simplify(tree) for tree in trees]

    def rank(path):
        return next(
            (
                names.index(part)
                for part in map(files.simplify, PurePosixPath(path).parts)
                if part in names
            ),
            len(names),
        )

    table = table.assign(
        rank=table["path"].map(rank),
        stem=table["path"].map(lambda path: PurePosixPath(path).stem.lower()),
    ).sort_values(["rank", "path"])
    same = table.groupby(["label", "stem", "sha256"], sort=False)
    moved = table.loc[(same["split"].transform("nunique") > 1) & (table["rank"] > 0), "path"]
    joined = (
        same.first()
        .assign(mask=same["mask"].max(), organ_mask=same["organ_mask"].max())
        .reset_index()
    )
    problems = [
        (path, "split differs between trees", f"the split of {trees[0]} stands") for path in moved
    ]
    return joined.sort_values("path")[COLUMNS].reset_index(drop=True), problems


def _settle_copies(table: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Leave out byte-identical files with two labels; name copies that stand on both sides of the
    official split."""
    problems = []
    labels = table.groupby("sha256")["label"].transform("nunique")
    for _, same in table[labels > 1].groupby("sha256"):
        others = " = ".join(f"{row.path} ({row.label})" for row in same.itertuples())
        problems += [
            (path, "label conflict", f"byte-identical: {others}; all left out")
            for path in same["path"]
        ]
    table = table[labels == 1].reset_index(drop=True)
    across = table.groupby("sha256")["split"].transform("nunique") > 1
    for _, same in table[across].groupby("sha256"):
        problems.append(
            (
                same["path"].iloc[0],
                "copy across splits",
                "byte-identical: " + " = ".join(same["path"]),
            )
        )
    return table, problems


def groups(table: pd.DataFrame) -> np.ndarray:
    """Number the rows so that one patient, or one set of byte-identical files, has one number
    (shape ``(N,)``)."""
    rows = np.arange(len(table))
    known = np.where(
        table["patient"] != "",
        "patient " + table["patient"].astype(str),
        "sha " + table["sha256"].astype(str),
    )
    keys = np.concatenate([known, ("sha " + table["sha256"].astype(str)).to_numpy()])
    codes = pd.factorize(keys)[0] + len(rows)
    size = len(rows) + codes.max(initial=0) + 1
    edges = coo_array(
        (np.ones(2 * len(rows)), (np.concatenate([rows, rows]), codes)), shape=(size, size)
    )
    return connected_components(edges, directed=False)[1][: len(rows)]


def _nothing_found(spec: DatasetSpec, root: Path, problems: pd.DataFrame) -> str:
    seen = "; ".join(f"{row.path}: {row.problem}" for row in problems.head(3).itertuples())
    return f"no usable image of {spec.name} below {root}. Expected layout:\n{spec.layout}\n" + (
        f"Found instead, for example: {seen}" if seen else "The folder holds no images."
    )


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with files.atomic(path) as temporary:
        table.to_csv(temporary, index=False)
