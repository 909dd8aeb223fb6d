"""Label, split, patient and masks of each image: stated by a table, known from the catalogue, or
suggested by the tree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kdnb import files
from kdnb.images import labels, masks, phantoms, read, scan, sorting
from kdnb.images.labels import Stated
from kdnb.images.masks import Masks
from kdnb.images.scan import Note, Problem, ReadingError
from kdnb.images.sorting import Sorted, Tree

BY_MASK = ("lesion", "no lesion")  # the classes of -p classes_from masks


@dataclass(frozen=True)
class Labelling:
    """What is known of the images before any is opened.

    ``labels``, ``splits``, ``patients`` and ``reports`` (texts) are by path of a file or a frame,
    see :func:`entry`; a label is empty where the mask decides. ``images`` are the labelled files in
    the tree's order.
    ``problems`` and ``notes`` are those of the whole tree so far.
    """

    labels: dict[str, str]
    patients: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    splits: dict[str, str] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    reports: dict[str, str] = field(default_factory=dict)


def entry(by_path: dict[str, str], path: str) -> str | None:
    """The entry of a path; a frame (``file#3``) without one has that of its file."""
    return by_path.get(path, by_path.get(read.frame_of(path)[0]))


def by_file(by_path: dict[str, str]) -> dict[str, str]:
    """Entries of files; of frames of one file, the last one's."""
    return {read.frame_of(path)[0]: text for path, text in by_path.items()}


def label(tree: Tree, found: Sorted) -> Labelling:
    """Label the images of a tree.

    Raises :class:`~kdnb.images.scan.ReadingError` where the folders or a table can be read in
    several ways, and ``FileNotFoundError`` where the folders are those of no image.
    """
    tables, stated, notes = _tables(tree, found)
    if tables and stated.label is not None:
        own = from_table(tree, found, tables, stated)
    elif tree.by_masks:
        own = from_masks(tree, found)
    elif tree.spec.classes:
        own = from_catalogue(tree, found)
    else:
        own = from_tree(tree, found, notes)
    notes = [*found.notes, *notes, *own.notes, *(("folds", note) for note in stated.notes)]
    if tables and stated.label is None:
        notes.append(("labels", f"none in {_names(tables)}: from the folders"))
    pairing, places = found.pairing, found.pairing.images
    if stated.masks is not None:
        pairing = masks.as_stated(pairing, stated.masks)
    patients = own.patients | {p: name for p, name in (stated.patient or {}).items() if name}
    labelled = by_file(own.labels)
    drawn = phantoms.reports(tree.root) if tree.spec.synthetic else {}
    return Labelling(
        labels=own.labels,
        patients=_known_patients(tree, [place.path for place in places], patients),
        splits={place.path: place.split for place in places} | (stated.split or {}),
        masks=pairing.masks,
        images=[place.path for place in places if place.path in labelled],
        reports=stated.report or drawn,
        problems=[
            *sorting.name_others(tree, found, tables),
            *own.problems,
            *stated.problems,
            *pairing.problems,
        ],
        notes=notes,
    )


# --- a table -------------------------------------------------------------------------------------


def _tables(tree: Tree, found: Sorted) -> tuple[list[Path], Stated, list[Note]]:
    """The tables of labels that are read and their statements; notes on tables that are not read.

    A table that lies in the tree is read where no folder tells the classes.
    """
    images, how = found.pairing.images, tree.how
    names, drawn = [place.path for place in images], found.pairing.all_masks
    if tree.table:
        table = labels.load(tree.table)
        return [tree.table], labels.state(table, names, drawn, how.columns, tree.table.name), []
    if tree.spec.tables:
        return *_published(tree, names), []
    if tree.spec.classes:
        return [], Stated(), []
    tables = labels.beside(tree.root, [name for name, _, _ in tree.walk.files], names, drawn)
    stating = [path for path, stated in tables.items() if stated.label]
    chosen = how.classes_level or how.classes or how.classes_from == "masks"
    no_folders = len({place.levels for place in scan.without_outer(images)[1]}) < 2
    if len(stating) == 1 and no_folders and not chosen:
        return [tree.root / stating[0]], tables[stating[0]], []
    notes = [
        (
            "not read",
            f"{path} lies beside the images ({_columns(stated)}): -p labels {path} reads it",
        )
        for path, stated in tables.items()
    ]
    return [], Stated(), notes


def _published(tree: Tree, images: Sequence[str]) -> tuple[list[Path], Stated]:
    """The tables that the catalogue names, as one, with their statements on ``images``.

    Raises :class:`~kdnb.images.scan.ReadingError` where none of them is there, or one twice.
    """
    found, parts = [], []
    for name, split in tree.spec.tables:
        here = _tables_of_name([path for path, _, _ in tree.walk.files], name)
        if len(here) > 1:
            raise ReadingError(f"{name} is there {len(here)} times: keep one of {', '.join(here)}")
        for path in here:
            found.append(tree.root / path)
            table = labels.load(found[-1], lists=True).assign(split=split)
            parts.append(labels.state(table, images, name=found[-1].name))
    if not found:
        wanted = " or ".join(name for name, _ in tree.spec.tables)
        raise ReadingError(
            f"{tree.spec.name}: no table {wanted} below {tree.root}, which state labels, splits or "
            f"patients; get them from {tree.spec.source}, or state your own: -p labels labels.csv"
        )
    return found, labels.joined(parts, _names(found))


def _tables_of_name(paths: Sequence[str], name: str) -> list[str]:
    """Tables, or lists, of this name; of one that is there in several formats, the first of
    ``labels.SUFFIXES``."""
    order = (*labels.SUFFIXES, labels.LIST)
    files_of = [(PurePosixPath(path.lower()), path) for path in paths]
    fits = [
        (order.index(file.suffix), file, path)
        for file, path in files_of
        if file.stem == name.lower() and file.suffix in order
    ]
    by_place: dict[PurePosixPath, str] = {}
    for _, file, path in sorted(fits):
        by_place.setdefault(file.with_suffix(""), path)
    return list(by_place.values())


def _names(tables: Sequence[Path]) -> str:
    return " and ".join(path.name for path in tables)


def _columns(stated: Stated) -> str:
    return ", ".join(f"{key} in {name!r}" for key, name in stated.columns.items())


def from_table(tree: Tree, found: Sorted, tables: Sequence[Path], stated: Stated) -> Labelling:
    """Labels that tables state; those of the catalogue's tables by its names of the classes."""
    given = stated.label or {}
    spelt = scan.settled(text for text in given.values() if text)
    if not tree.table:
        known = _spellings(tree.spec.classes)
        spelt = {same: known.get(files.simplify(text), text) for same, text in spelt.items()}
    rows, name = by_file(given), _names(tables)
    missing = [place.path for place in found.pairing.images if place.path not in rows]
    patients, notes = scan.propose_patients(found.pairing.images, tree.how)
    if tree.spec.classes:  # the catalogue knows where patients are named
        patients, notes = {}, []
    kinds = Counter(problem for _, problem, _ in stated.problems)
    counted = "".join(f", {count:,} {problem}" for problem, count in kinds.items())
    counted += f", {len(missing):,} file without a row" if missing else ""
    note = f"{name}, {stated.rows:,} rows ({_columns(stated)}){counted}"
    return Labelling(
        {path: spelt[scan.same_name(text)] for path, text in given.items() if text},
        patients,
        [(path, "file without a row", f"not in {name}") for path in missing],
        [("labels", note), *notes],
    )


# --- the catalogue -------------------------------------------------------------------------------


def from_catalogue(tree: Tree, found: Sorted) -> Labelling:
    """Labels by the known spellings of a published set's folders, the deepest folder first."""
    classes = tree.spec.classes
    spelt = _spellings(classes)
    exact = {scan.same_name(name): name for name in classes}
    known, problems = {}, []
    for place in found.pairing.images:
        names = (
            exact.get(scan.same_name(part)) or spelt.get(files.simplify(part) or None)
            for part in reversed(place.parts)
        )
        if name := next(filter(None, names), None):
            known[place.path] = name
        else:
            folder = PurePosixPath(place.path).parent
            detail = f"{folder} is none of: {', '.join(classes)}"
            problems.append((place.path, "unknown class folder", detail))
    return Labelling(known, problems=problems)


def _spellings(classes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The name of a class by each of its spellings, simplified."""
    return {
        files.simplify(spelling): name
        for name, spellings in classes.items()
        for spelling in (name, *spellings)
    }


def _known_patients(tree: Tree, names: Sequence[str], patients: dict[str, str]) -> dict[str, str]:
    """Patients that a table states or the tree suggests, then those by the catalogue's patterns of
    file names or its function; for a published set, the reader's own pattern goes before both."""
    patients = dict(patients)
    if tree.spec.groups_of:
        patients = tree.spec.groups_of(names) | patients
    for name in names:
        for pattern, text in tree.spec.groups:
            if match := re.search(pattern, PurePosixPath(name).name, flags=re.IGNORECASE):
                patients.setdefault(name, text.format(*match.groups()))
                break
    if tree.spec.classes and tree.how.pattern:
        patients |= scan.by_pattern(names, tree.how.pattern)
    return patients


# --- masks and folders ---------------------------------------------------------------------------


def from_masks(tree: Tree, found: Sorted) -> Labelling:
    """Empty labels, to be filled when the masks are opened."""
    patients, notes = scan.propose_patients(found.pairing.images, tree.how)
    if tree.spec.classes:  # the catalogue knows where patients are named
        patients, notes = {}, []
    note = ("classes", f"{BY_MASK[0]} or {BY_MASK[1]}, by the lesion masks")
    blank = {place.path: "" for place in found.pairing.images}
    return Labelling(blank, patients, notes=[note, *notes])


def from_tree(tree: Tree, found: Sorted, tables: Sequence[Note]) -> Labelling:
    """Labels by the folders; an error names the tables in the tree that are not read."""
    images = found.pairing.images
    if not images:
        read_here = [tree.table] if tree.table else []
        raise sorting.nothing_found(tree, sorting.name_others(tree, found, read_here))
    try:
        reading = scan.propose(images, tree.how)
    except ReadingError as error:
        more = "".join(f"\n{text}" for _, text in tables)
        raise ReadingError(f"{error}{more}") from None
    _refuse_unread_class(found, reading)
    problems = [
        (place.path, "no class folder", "lies above or beside the folders of the classes")
        for place in images
        if place.path not in reading.labels
    ]
    return Labelling(reading.labels, reading.patients, problems, list(reading.found))


def _refuse_unread_class(found: Sorted, reading: scan.Reading) -> None:
    """Raise where a folder beside those of the classes holds nothing but files that are not read;
    it would be a class that is missing."""
    if reading.level is None:
        return
    known = {scan.same_name(label) for label in reading.labels.values()}
    for place in found.unread:
        folders = place.levels[len(reading.outer) :]
        if len(folders) <= reading.level or place.kind != "image":
            continue
        name = folders[reading.level]
        if scan.same_name(name) not in known:
            raise ReadingError(
                f"none of the files in {'/'.join(place.parts)} can be read as images "
                f"({read.suffix(place.path)}): convert them, or move the folder {name!r} away"
            )
