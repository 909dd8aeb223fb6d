"""Tables of labels: a CSV, TSV or XLSX file that states label, split, patient and masks of each
image."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from kdnb import files
from kdnb.images import read, scan
from kdnb.images.scan import Problem, ReadingError

SUFFIXES = (".csv", ".tsv", ".xlsx", ".xls")
LIST = ".txt"  # of a published set: the images of one part, a line each
USUAL = {
    "path": "path image file filename image_path file_path filepath image_file image_name img "
    "image_id img_id isic_id image_index file_name",
    "label": "label class diagnosis target finding dx labels class_name category disease "
    "diagnostic finding_labels ground_truth",
    "split": "split fold set subset partition dataset_split part",
    "patient": "patient patient_id patientid subject subject_id lesion_id case_id participant_id",
    "mask": "mask lesion_mask mask_path",
    "organ_mask": "organ_mask lung_mask",
    "report": "report reports caption captions",
}
LARGEST = 500_000_000  # bytes of a table
FOUND = 0.5  # a table beside a tree is of these images when half of its rows name one


@dataclass(frozen=True)
class Stated:
    """What a table states of the images, each as a dictionary by path (of a file, or ``file#3`` for
    a frame); a column that the table lacks is None. ``columns`` are the names that were used."""

    label: dict[str, str] | None = None
    split: dict[str, str] | None = None
    patient: dict[str, str] | None = None
    masks: dict[str, dict[str, str]] | None = None
    report: dict[str, str] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(path: str, root: Path) -> Path:
    """The file that ``-p labels`` names, from the working directory, the project or the dataset's
    root on; raises :class:`ReadingError`."""
    wanted = Path(path.replace("\\", "/")).expanduser() if "\\" in path else Path(path).expanduser()
    for base in (Path.cwd(), files.ROOT, root):
        if (base / wanted).is_file():
            return base / wanted
    raise ReadingError(f"labels: no file {path} here, in the project or in {root}")


def load(path: Path, lists: bool = False) -> pd.DataFrame:
    """A table with all cells as text, stripped of blanks; with ``lists`` also a text file that
    names an image a line, as column ``path``. Raises :class:`ReadingError`."""
    if lists and path.suffix.lower() == LIST:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return pd.DataFrame({"path": [line.strip() for line in lines if line.strip()]}, dtype=str)
    if path.suffix.lower() not in SUFFIXES:
        raise ReadingError(f"labels: {path.name} is none of {', '.join(SUFFIXES)}")
    if path.stat().st_size > LARGEST:
        raise ReadingError(f"labels: {path.name} holds {path.stat().st_size:,} bytes")
    try:
        if path.suffix.lower().startswith(".xls"):
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            table = _text(path)
    # parsers of spreadsheets raise many kinds
    except Exception as error:
        raise ReadingError(f"labels: {path.name} cannot be read ({str(error)[:160]})") from None
    table.columns = [str(name).strip() for name in table.columns]
    return table.map(lambda cell: str(cell).strip())


def _text(path: Path) -> pd.DataFrame:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252")
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)  # German spreadsheets write semicolons
    return pd.read_csv(
        io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, skipinitialspace=True
    )


# --- columns -------------------------------------------------------------------------------------


def columns(table: pd.DataFrame, given: dict[str, str] | None = None) -> dict[str, str]:
    """Which column of a table is which, by the usual names or as given.

    Raises :class:`ReadingError` where two columns fit, where a given one is missing, or where none
    names the image.
    """
    found = {}
    simple = {name: re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in table.columns}
    for column, usual in USUAL.items():
        if given and column in given:
            if given[column] not in table.columns:
                raise ReadingError(
                    f"columns: no column {given[column]!r}; there are {', '.join(table.columns)}"
                )
            found[column] = given[column]
            continue
        fits = [name for name in table.columns if simple[name] in usual.split()]
        exact = [name for name in fits if simple[name] == column]
        # a table of our own has the very names; others may name an image twice over
        if len(fits) > 1 and len(exact) != 1 and not _alike(table, fits):
            values = "; ".join(f"{name}: {_counted(table[name])}" for name in fits)
            raise ReadingError(
                f"labels: {len(fits)} columns may be the {column} ({values}); choose: "
                f'-p columns \'{{"{column}": "{fits[0]}"}}\''
            )
        if fits:
            found[column] = (exact or fits)[0]
    if "path" not in found:
        raise ReadingError(
            f"labels: no column names the images among {', '.join(table.columns)}; choose: "
            '-p columns \'{"path": "…", "label": "…"}\''
        )
    return found


def _alike(table: pd.DataFrame, names: Sequence[str]) -> bool:
    """Whether columns say the same, one name for another."""
    first = table[names[0]]
    return all((table[name] == first).all() for name in names[1:])


def _counted(values: pd.Series) -> str:
    counts = values.value_counts()
    shown = ", ".join(f"{name or 'blank'} {count:,}" for name, count in counts.head(4).items())
    return shown + (f" and {len(counts) - 4:,} more" if len(counts) > 4 else "")


def _one_hot(table: pd.DataFrame, used: Iterable[str]) -> pd.Series | None:
    """The class of each row where the other columns are 0 or 1; blank unless exactly one is 1."""
    others = table.drop(columns=list(used))
    numbers = {
        name: pd.to_numeric(others[name], errors="coerce")
        for name in others
        if others[name].isin(["0", "1", "0.0", "1.0"]).all()
    }
    if len(numbers) < 2:
        return None
    flags = pd.DataFrame(numbers)
    if flags.sum(axis=1).eq(1).mean() < 0.9:
        return None
    return flags.idxmax(axis=1).where(flags.sum(axis=1) == 1, "")


# --- rows ----------------------------------------------------------------------------------------


def state(
    table: pd.DataFrame,
    images: Sequence[str],
    others: Sequence[str] = (),
    given: dict[str, str] | None = None,
    name: str = "labels",
) -> Stated:
    """What a table states of images (paths below the root); ``others`` are masks it may name.

    Raises :class:`ReadingError` where a row fits several files, or a label is missing for most.
    """
    used = columns(table, given)
    hot = None if "label" in used else _one_hot(table, used.values())
    labels = table[used["label"]] if "label" in used else hot
    rows, lost = _files_of(table[used["path"]], images, f"column {used['path']} of {name}")
    problems = [(cell, "row without a file", f"in {name}") for cell in lost]
    kept: dict[str, int] = {}
    for row, path in rows.items():
        if path in kept and (table.iloc[row] != table.iloc[kept[path]]).any():
            _same_or_raise(table, labels, used, kept[path], row, name)
        kept.setdefault(path, row)
    label = None if labels is None else {path: labels.iloc[row] for path, row in kept.items()}
    problems += [
        (path, "row without a label", f"in {name}" + ("" if hot is None else ": not exactly one 1"))
        for path, text in (label or {}).items()
        if not text
    ]
    stated = {
        column: {path: table[used[column]].iloc[row] for path, row in kept.items()}
        if column in used
        else None
        for column in ("split", "patient", "mask", "organ_mask", "report")
    }
    split, notes = _splits(stated["split"], used.get("split", ""), name)
    masks = None
    if stated["mask"] is not None or stated["organ_mask"] is not None:
        masks = {kind: _masks(stated[kind] or {}, others) for kind in ("mask", "organ_mask")}
    if hot is not None:
        used |= {"label": "one column a class: " + ", ".join(sorted(set(hot) - {""}))}
    told = stated["patient"], masks, stated["report"]
    return Stated(label, split, *told, used, len(table), problems, notes)


def joined(parts: Sequence[Stated], name: str) -> Stated:
    """The statements of several tables on the same images as one; ``name`` is of all of them.

    Masks of tables are not joined. Raises :class:`ReadingError` where two tables state different
    things of an image.
    """
    whole: dict[str, dict[str, str] | None] = {}
    for kind in ("label", "split", "patient", "report"):
        known: dict[str, str] = {}
        for path, text in (pair for each in parts for pair in (getattr(each, kind) or {}).items()):
            before = known.get(path, "")
            if before and text and before != text:
                raise ReadingError(f"{name}: the {kind} of {path} is {before} and {text}")
            known[path] = text or before
        whole[kind] = known or None
    return Stated(
        **whole,
        columns={key: column for each in parts for key, column in each.columns.items()},
        rows=sum(each.rows for each in parts),
        problems=[problem for each in parts for problem in each.problems],
        notes=[note for each in parts for note in each.notes],
    )


def _same_or_raise(table, labels, used, first: int, second: int, name: str) -> None:
    """Two rows of one image must agree in all that is read."""
    names = [column for key, column in used.items() if key != "path"]
    differ = [column for column in names if table[column].iloc[first] != table[column].iloc[second]]
    if labels is not None and labels.iloc[first] != labels.iloc[second]:
        differ.append("label")
    if differ:
        raise ReadingError(
            f"{name}: rows {first + 2} and {second + 2} name the same image "
            f"({table[used['path']].iloc[first]}) and differ in {', '.join(dict.fromkeys(differ))}"
        )


def _parts(cell: str) -> tuple[str, ...]:
    """The parts of a path as tables write it: with slashes of either kind, a drive, or ``./``."""
    text = re.sub(r"^[A-Za-z]:", "", cell.strip().replace("\\", "/"))
    return tuple(part for part in PurePosixPath(text).parts if part not in ("/", "."))


def _files_of(
    cells: pd.Series, images: Sequence[str], where: str
) -> tuple[dict[int, str], list[str]]:
    """The image that each row names, by row number, and the cells that name none."""
    ends: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in images:
        parts = PurePosixPath(path).parts
        for start in range(len(parts)):
            ends[parts[start:]].add(path)
            bare = (*parts[start:-1], read.stem(path))
            if bare != parts[start:]:
                ends[bare].add(path)
    wanted = {row: _parts(cell) for row, cell in enumerate(cells)}
    depth = _shared([parts for parts in wanted.values() if parts])
    whole = set(images)

    def hits(skip):
        found = {}
        for row, parts in wanted.items():
            file, frame = read.frame_of("/".join(parts[skip:]))
            fits = {file} if file in whole else ends.get(tuple(file.split("/")), set())
            if fits:
                found[row] = fits, "" if frame is None else f"#{frame}"
        return found

    # folders that all rows share may not be here: C:\data\study\…
    best = max((hits(skip) for skip in range(depth + 1)), key=len, default={})
    rows = {}
    for row, (fits, frame) in best.items():
        if len(fits) > 1:
            raise ReadingError(
                f"{where}: {cells.iloc[row]!r} fits {len(fits)} files, "
                f"{' and '.join(sorted(fits)[:2])} for example: write the path below the root there"
            )
        rows[row] = next(iter(fits)) + frame
    return rows, [cells.iloc[row] for row in wanted if row not in rows]


def _shared(paths: list[tuple[str, ...]]) -> int:
    """How many folders all paths start with."""
    count = 0
    while paths and all(len(parts) > count + 1 for parts in paths):
        if len({parts[count] for parts in paths}) > 1:
            break
        count += 1
    return count


def _splits(
    cells: dict[str, str] | None, column: str, name: str
) -> tuple[dict[str, str] | None, list[str]]:
    """Splits as train, val and test; numbers are folds of a cross-validation and pooled."""
    if cells is None:
        return None, []
    known = {text: scan.role(text).split if text else "" for text in set(cells.values())}
    unknown = [text for text, split in known.items() if text and not split]
    if not unknown:
        return {path: known[text] for path, text in cells.items()}, []
    folds = [text for text in unknown if re.fullmatch(r"\d+(\.0)?", text) or scan.role(text).fold]
    if len(folds) == len({*known} - {""}):
        return None, [f"column {column} of {name} holds {len(unknown)} folds: pooled"]
    raise ReadingError(
        f"column {column} of {name} holds {', '.join(sorted(unknown)[:5])}: write train, val or "
        "test, or nothing"
    )


def _masks(cells: dict[str, str], others: Sequence[str]) -> dict[str, str]:
    """Mask files by image; several in one cell are separated by ``|``."""
    found = {}
    for path, cell in cells.items():
        names = [name for name in cell.split(read.SEVERAL) if name.strip()]
        if not names:
            continue
        rows, lost = _files_of(pd.Series(names), others, "column mask")
        if lost:
            raise ReadingError(f"labels: the mask {lost[0]} of {path} is not among the files")
        found[path] = read.SEVERAL.join(rows[row] for row in sorted(rows))
    return found


def beside(
    root: Path, paths: Sequence[str], images: Sequence[str], others: Sequence[str]
) -> dict[str, Stated]:
    """Tables in the tree that state labels, splits or patients of its images, by path."""
    found = {}
    for path in paths:
        if not path.lower().endswith(SUFFIXES):
            continue
        try:
            stated = state(load(root / path), images, others, name=path)
        except ReadingError:
            continue
        named = len(set(stated.label or stated.split or stated.patient or {}))
        if stated.rows and named >= FOUND * min(stated.rows, len(images)):
            found[path] = stated
    return found
