"""The index: one table of images with label, split, patient and masks; every other file is named
with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.contrib.concurrent import thread_map

from kdnb import files
from kdnb.images import labels, masks, read, scan, source
from kdnb.images.catalogue import PARTS, DatasetSpec
from kdnb.images.read import Rule
from kdnb.images.scan import Place, ReadingError, Walk
from kdnb.images.source import Source

VERSION = 4  # part of the stored index's fingerprint: raise it when a column or a rule changes
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
PROBLEMS = ["path", "problem", "detail"]
MARK = "complete"  # of phantoms and MedMNIST sets that were laid out whole
BY_MASK = ("lesion", "no lesion")  # the classes of -p classes_from masks
# files that lie beside images and are none; any other unknown suffix may be a format not read here
DOCUMENTS = set(
    [
        ".txt",
        ".csv",
        ".tsv",
        ".xlsx",
        ".xls",
        ".ods",
        ".json",
        ".jsonl",
        ".xml",
        ".yaml",
        ".yml",
        ".md",
        ".rst",
        ".html",
        ".htm",
        ".pdf",
        ".doc",
        ".docx",
        ".ppt",
        ".pptx",
        ".odt",
        ".rtf",
        ".py",
        ".ipynb",
        ".m",
        ".r",
        ".sh",
        ".bat",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".7z",
        ".rar",
        ".log",
        ".ini",
        ".cfg",
        ".conf",
        ".toml",
        ".db",
        ".sqlite",
        ".pkl",
        ".npy",
        ".npz",
        ".mat",
        ".h5",
        ".hdf5",
        ".pt",
        ".pth",
        ".onnx",
        ".ckpt",
        ".lnk",
        ".url",
        ".tmp",
        ".bak",
        ".svg",
        ".mp4",
        ".avi",
        ".mov",
        ".mkv",
        ".wav",
        ".bib",
        ".tex",
        ".css",
        ".js",
        ".sha256",
        ".md5",
    ]
)


@dataclass(frozen=True)
class Index:
    """A dataset's table, what was wrong with its files, and how they were read.

    ``table`` has one row an image with the columns ``COLUMNS``. ``path``, ``mask`` (lesion) and
    ``organ_mask`` (lung or tissue) are relative to the dataset's root, ``patient`` is empty where
    unknown, ``width`` and ``height`` are in pixels, ``mode`` is Pillow's; the image and its masks
    have a SHA-256 (empty without one). A path ending in ``#3`` is a frame of a film or a slice of a
    volume.
    ``problems`` has the columns path, problem, detail; ``classes`` are the readable names in label
    order; ``rule`` makes 8 bits of deeper images; ``found`` are pairs of what was inferred and a
    sentence on it.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame
    problems: pd.DataFrame = field(repr=False)
    rule: Rule = Rule()
    found: tuple[tuple[str, str], ...] = ()

    @property
    def checksum(self) -> str:
        """Names the images and labels that a result rests on (12 hexadecimal digits)."""
        # masks by name alone: networks do not learn from them, and a result must not lose its name
        # over one
        rows = self.table.sort_values("path")[
            ["path", "label", "split", "mask", "organ_mask", "sha256"]
        ]
        deep = self.table["mode"].isin(read.DEEP).any()
        text = rows.to_csv(index=False) + (self.rule.sentence if deep else "")
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def problem_counts(self) -> pd.DataFrame:
        """Files by the kind of problem, most frequent first, with one example each (columns
        problem, files, example)."""
        grouped = self.problems.assign(
            example=self.problems["path"] + ": " + self.problems["detail"]
        ).groupby("problem")
        counts = grouped.agg(files=("path", "size"), example=("example", "first"))
        return counts.sort_values("files", ascending=False).reset_index()

    def reading(self) -> pd.DataFrame:
        """What was inferred from the files, a row each (columns what, found); the numbers of files
        add up."""
        return pd.DataFrame(list(self.found), columns=["what", "found"])

    def summary(self) -> str:
        """:meth:`reading` as lines of text."""
        return "\n".join(f"{what:14} {text}" for what, text in self.found)

    def write_labels(self, path: Path) -> Path:
        """Write the table as a CSV that can be corrected and given back by ``-p labels``."""
        with files.atomic(path) as temporary:
            self.table[list(source.COLUMNS)].to_csv(temporary, index=False)
        return Path(path)


def build(
    spec: DatasetSpec, root: Path, how: Source | None = None, cache: Path | None = None
) -> Index:
    """Read the tree below ``root``, or the stored index when the tree has not changed since.

    Raises ``FileNotFoundError`` when ``root`` holds no image of any class, and ``ReadingError``
    where the files can be read in several ways; the message shows them and the option that chooses.
    """
    root, how = Path(root).resolve(), how or Source()
    walk = _walk(spec, root)
    stated = labels.find(how.labels, root) if how.labels else None
    key = [
        VERSION,
        str(root),
        {name: list(spelt) for name, spelt in spec.classes.items()},
        spec.groups,
        dataclasses.asdict(how),
        files.file_sha256(stated) if stated else "",
        dataclasses.astuple(walk),
    ]
    store = (cache or files.cache_dir()) / "index" / f"{spec.slug}-{files.digest(key)}"
    with files.lock(store):
        if not (store / "table.csv").exists():
            found = read_tree(spec, root, how)
            _write_csv(store / "problems.csv", found.problems)
            facts = {
                "classes": found.classes,
                "rule": dataclasses.asdict(found.rule),
                "found": found.found,
            }
            files.write_json(store / "facts.json", facts)
            # last: its presence says that the index is whole
            _write_csv(store / "table.csv", found.table)
        return _stored(root, store)


def read_tree(spec: DatasetSpec, root: Path, how: Source | None = None) -> Index:
    """The index of a tree as :func:`build` gives it, read anew and not stored."""
    root, how = Path(root).resolve(), how or Source()
    stated = labels.find(how.labels, root) if how.labels else None
    return _Reader(spec, root, how, _walk(spec, root), stated).index()


def _walk(spec: DatasetSpec, root: Path) -> Walk:
    """The files below a root, without the mark that this package leaves in trees of its own."""
    walk = scan.walk(root)
    if not (spec.synthetic or spec.name.startswith("medmnist:")):
        return walk
    return dataclasses.replace(walk, files=[fact for fact in walk.files if fact[0] != MARK])


def _stored(root: Path, store: Path) -> Index:
    numbers = {"width": int, "height": int}
    kinds = {name: numbers.get(name, str) for name in COLUMNS}
    facts = files.read_json(store / "facts.json")
    return Index(
        root,
        tuple(facts["classes"]),
        pd.read_csv(store / "table.csv", keep_default_na=False, dtype=kinds),
        pd.read_csv(store / "problems.csv", keep_default_na=False, dtype=str),
        Rule(**facts["rule"]),
        tuple((what, text) for what, text in facts["found"]),
    )


class _Reader:
    """One reading of a tree, step by step: which files are images and masks, what states their
    labels, what is in them."""

    def __init__(self, spec: DatasetSpec, root: Path, how: Source, walk: Walk, stated: Path | None):
        self.spec, self.root, self.how, self.walk = spec, root, how, walk
        self.table_of_labels = stated
        self.problems: list[tuple[str, str, str]] = list(walk.refused)
        self.found: list[tuple[str, str]] = []
        self.facts: dict[str, dict | tuple[str, str]] = {}

    def index(self) -> Index:
        """The index of the tree."""
        pairing = self._images_and_masks()
        places = {place.path: place for place in pairing.images}
        self._label(pairing)
        self._look(places, pairing)
        drawn, more = masks.usable(pairing.masks, self.facts)
        self.problems += [*pairing.problems, *more]
        table = self._rows(places, drawn)
        if self.spec.trees:
            table, more = _join_trees(table, self.spec.trees)
            self.problems += more
        table, more = _settle_copies(table)
        self.problems += more
        for kind in masks.KINDS:
            table[f"{kind}_sha256"] = [self._sha(names) for names in table[kind]]
        self._odd_masks(table)
        self._masks_left(table, drawn)
        classes = self._classes(table)
        samples = [
            fact["sample"]
            for name, fact in self.facts.items()
            if name in places and isinstance(fact, dict) and fact["sample"] is not None
        ]
        rule = read.rule_of(self.how, samples)
        if table["mode"].isin(read.DEEP).any():
            self.found.append(("grey levels", rule.sentence))
        problems = pd.DataFrame(self.problems, columns=PROBLEMS)
        return Index(self.root, classes, table, problems, rule, self._account(table, classes))

    # --- which files are which -------------------------------------------------------------------

    def _images_and_masks(self) -> masks.Pairing:
        """Images and masks by name, suffix and place."""
        names = []
        unknown = set()  # of a suffix that may be an image format
        for name, _, _ in self.walk.files:
            last = read.suffix(name)
            if last in read.suffixes() or (
                last not in DOCUMENTS and read.is_dicom(self.root / name)
            ):
                names.append(name)
                continue
            read_here = self.table_of_labels == self.root / name
            self.problems.append(
                (name, "table of labels", "read")
                if read_here
                else (name, "not an image file", f"suffix {last or 'none'}")
            )
            if last and last not in DOCUMENTS:
                unknown.add(name)
        for name, *problem in self.walk.refused:
            if read.suffix(name) in read.suffixes() and problem[0] != "unreadable name":
                self.facts[name] = (problem[0], problem[1])
                names.append(name)
        places = scan.places([*names, *sorted(unknown)])
        if not self.spec.classes:
            places, notes = scan.settle_splits(places)
            self.found += [("folds", note) for note in notes]
        self.unknown = [place for place in places if place.path in unknown]
        places = [place for place in places if place.path not in unknown]
        return masks.pair(places, outer=not self.spec.classes)

    # --- what states the labels ------------------------------------------------------------------

    def _label(self, pairing: masks.Pairing) -> None:
        """Label, split and patient of each image, from a table, the catalogue or the tree."""
        images = pairing.images
        names = [place.path for place in images]
        drawn = [name for by in pairing.masks.values() for some in by.values() for name in some]
        drawn += [name for name, problem, _ in pairing.problems if problem.startswith("mask")]
        self.splits = {place.path: place.split for place in images}
        stated = None
        if self.table_of_labels:
            table = labels.load(self.table_of_labels)
            name = self.table_of_labels.name
            stated = labels.state(table, names, drawn, self.how.columns, name)
        elif not self.spec.classes:
            stated = self._beside(images, names, drawn)
        self.frames: dict[str, str] | None = None  # labels by path, where a table states them
        if stated and stated.label is not None:
            self._by_table(stated, names)
            self.patients = scan.patients_only(images, self.how)
        elif self.spec.classes:
            self._by_catalogue(images)
        elif self.how.classes_from == "masks":
            self.labels = dict.fromkeys(names, "")
            self.patients = scan.patients_only(images, self.how)
            self.found.append(("classes", f"{BY_MASK[0]} or {BY_MASK[1]}, by the lesion masks"))
        else:
            self._by_tree(images)
        self.found += [] if self.spec.classes else self.patients.found
        self.patient_of = {} if self.spec.classes else dict(self.patients.patients)
        if stated:
            self._take(stated, pairing)

    def _beside(
        self, images: Sequence[Place], names: list[str], drawn: list[str]
    ) -> labels.Stated | None:
        """A table that lies in the tree: read where no folder tells the classes, else named."""
        paths = [name for name, _, _ in self.walk.files]
        tables = labels.beside(self.root, paths, names, drawn)
        if not tables:
            return None
        stated_by_reader = (
            self.how.classes_level or self.how.classes or self.how.classes_from == "masks"
        )
        stating = [path for path, stated in tables.items() if stated.label]
        folders = scan.without_outer(images)[1]
        if (
            not stated_by_reader
            and len(stating) == 1
            and len({place.levels for place in folders}) < 2
        ):
            self.table_of_labels = self.root / stating[0]
            self.problems = [
                (name, "table of labels", "read") if name == stating[0] else (name, problem, detail)
                for name, problem, detail in self.problems
            ]
            return tables[stating[0]]
        for path, stated in tables.items():
            what = ", ".join(f"{key} in {name!r}" for key, name in stated.columns.items())
            self.found.append(
                ("not read", f"{path} lies beside the images ({what}): -p labels {path} reads it")
            )
        return None

    def _by_table(self, stated: labels.Stated, names: list[str]) -> None:
        found = stated.label or {}
        spelt = scan.settled([text for text in found.values() if text])
        self.labels, self.frames = {}, {}
        for path, text in found.items():
            if text:
                self.frames[path] = spelt[scan.same_name(text)]
                self.labels[read.frame_of(path)[0]] = self.frames[path]
        missing = [name for name in names if name not in {read.frame_of(p)[0] for p in found}]
        name = self.table_of_labels.name if self.table_of_labels else "the table"
        self.problems += [(path, "file without a row", f"not in {name}") for path in missing]
        kinds = Counter(problem for _, problem, _ in stated.problems)
        counted = "".join(f", {count:,} {problem}" for problem, count in kinds.items())
        counted += f", {len(missing):,} file without a row" if missing else ""
        columns = ", ".join(f"{key} in {name!r}" for key, name in stated.columns.items())
        self.found.append(("labels", f"{name}, {stated.rows:,} rows ({columns}){counted}"))

    def _take(self, stated: labels.Stated, pairing: masks.Pairing) -> None:
        """Split, patient and masks where a table states them."""
        self.problems += stated.problems
        self.found += [("folds", note) for note in stated.notes]
        if stated.label is None:
            self.found.append(("labels", f"none in {self.table_of_labels}: from the folders"))
        if stated.split is not None:
            self.splits |= stated.split
        if stated.patient is not None:
            self.patient_of |= {path: name for path, name in stated.patient.items() if name}
        if stated.masks is not None:
            for kind, by in stated.masks.items():
                pairing.masks[kind].clear()
                for path, some in by.items():
                    file = read.frame_of(path)[0]
                    parts = [read.frame_of(name)[0] for name in some.split(read.SEVERAL)]
                    pairing.masks[kind][file] = parts
            used = {n for by in pairing.masks.values() for some in by.values() for n in some}
            left = {name for name, problem, _ in pairing.problems}
            pairing.problems[:] = [row for row in pairing.problems if row[0] not in used]
            pairing.problems.extend(
                (name, "mask without an image", "the table names it for none")
                for name in sorted({*stated.all_masks} - used - left)
            )

    def _by_catalogue(self, images: Sequence[Place]) -> None:
        """Labels by the known spellings of a published set, the deepest folder first."""
        folders = {
            files.simplify(spelling): name
            for name, spellings in self.spec.classes.items()
            for spelling in (name, *spellings)
        }
        exact = {scan.same_name(name): name for name in self.spec.classes}
        self.labels = {}
        for place in images:
            for part in reversed(place.parts):
                name = exact.get(scan.same_name(part)) or folders.get(files.simplify(part) or None)
                if name:
                    self.labels[place.path] = name
                    break
            else:
                self.problems.append(
                    (
                        place.path,
                        "unknown class folder",
                        f"{PurePosixPath(place.path).parent} is none of: "
                        f"{', '.join(self.spec.classes)}",
                    )
                )
        self.patients = scan.Reading({}, {}, ())

    def _by_tree(self, images: Sequence[Place]) -> None:
        if not images:
            raise FileNotFoundError(_nothing_found(self.spec, self.root, self.problems))
        try:
            self.patients = reading = scan.propose(images, self.how)
        except ReadingError as error:
            tables = "".join(f"\n{text}" for what, text in self.found if what == "not read")
            raise ReadingError(f"{error}{tables}") from None
        self.labels = reading.labels
        self.problems += [
            (place.path, "no class folder", "lies above or beside the folders of the classes")
            for place in images
            if place.path not in reading.labels
        ]
        if reading.level is None:
            return
        known = {scan.same_name(label) for label in reading.labels.values()}
        for place in self.unknown:  # a class of nothing but files that are not read
            folders = place.levels[len(reading.outer) :]
            if len(folders) > reading.level and place.kind == "image":
                name = folders[reading.level]
                if scan.same_name(name) not in known:
                    raise ReadingError(
                        f"none of the files in {'/'.join(place.parts)} can be read as images "
                        f"({read.suffix(place.path)}): convert them, or move the folder {name!r} "
                        "away"
                    )

    # --- what is in the files --------------------------------------------------------------------

    def _look(self, places: dict[str, Place], pairing: masks.Pairing) -> None:
        """Decode every labelled image and its masks once."""
        wanted = [name for name in places if name in self.labels and name not in self.facts]
        drawn = [name for by in pairing.masks.values() for some in by.values() for name in some]
        jobs = [(name, False) for name in wanted] + [
            (name, True) for name in drawn if name not in self.facts
        ]
        self.facts |= dict(
            zip(
                [name for name, _ in jobs],
                thread_map(
                    lambda job: read.inspect(self.root / job[0], mask=job[1]),
                    jobs,
                    desc=f"indexing {self.spec.name}",
                    unit="file",
                    max_workers=2 * (os.cpu_count() or 1),
                    leave=False,
                    disable=len(jobs) < 500,
                ),
                strict=True,
            )
        )

    def _rows(self, places: dict[str, Place], drawn: dict) -> pd.DataFrame:
        """One row an image, or a frame of one."""
        refused = {name for name, _, _ in self.walk.refused}
        patient_of = self._patients(places)
        rows = []
        for name in places:
            fact = self.facts.get(name)
            if name not in self.labels or fact is None:
                continue
            if isinstance(fact, tuple):
                if name not in refused:
                    self.problems.append((name, *fact))
                continue
            if fact["pages"] > 1:
                text = f"{fact['pages']} pages, the first is read"
                self.problems.append((name, "several pages", text))
            if fact["blank"]:
                text = f"{len(fact['blank'])} of {fact['frames']} slices have one value: left out"
                self.problems.append((name, "slices without content", text))
            frames = [None] if fact["frames"] is None else range(fact["frames"])
            for frame in frames:
                if frame is None or frame not in fact["blank"]:
                    rows.append(self._row(name, frame, fact, drawn, patient_of))
        table = pd.DataFrame([row for row in rows if row], columns=COLUMNS)
        if table.empty:
            raise FileNotFoundError(_nothing_found(self.spec, self.root, self.problems))
        return table

    def _row(
        self, name: str, frame: int | None, fact: dict, drawn: dict, patient_of: dict[str, str]
    ) -> dict | None:
        end = "" if frame is None else f"#{frame}"
        label = self.labels[name]
        if self.frames is not None:  # other slices of the volume may have rows of their own
            label = self.frames.get(name + end) or self.frames.get(name)
            if label is None:
                return None
        parts = {kind: drawn[kind].get(name, []) for kind in masks.KINDS}
        row = {
            "path": name + end,
            "label": label,
            "split": self.splits.get(name + end, self.splits.get(name, "")),
            "patient": patient_of.get(name + end) or patient_of.get(name, ""),
            **{
                kind: read.SEVERAL.join(part + end for part in some) for kind, some in parts.items()
            },
            **{key: fact[key] for key in ("width", "height", "mode")},
            "sha256": _frame_sha(fact["sha256"], end),
        }
        if self.how.classes_from == "masks" and not row["label"]:
            if not row["mask"]:
                if not frame:
                    self.problems.append((name, "no mask", "its class is unknown: left out"))
                return None
            row["label"] = BY_MASK[0] if self._share(row["mask"]) > 0 else BY_MASK[1]
        return row

    def _patients(self, places: dict[str, Place]) -> dict[str, str]:
        """Patients by path: of a table, a pattern or a folder; else what the file itself tells."""
        patient_of = dict(self.patient_of)
        for name in places if self.spec.groups else ():
            last = PurePosixPath(name).name
            for pattern, text in self.spec.groups:
                if match := re.search(pattern, last, flags=re.IGNORECASE):
                    patient_of.setdefault(name, text.format(*match.groups()))
                    break
        if self.spec.classes and self.how.pattern:
            patient_of |= scan.by_pattern(places, self.how.pattern)
        good = {name: fact for name, fact in self.facts.items() if isinstance(fact, dict)}
        known = {name: good[name]["patient"] for name in places if name in good}
        if len({*known.values()} - {""}) > 1:
            more = {name: f"dicom-{number}" for name, number in known.items() if number}
            if more := {name: patient for name, patient in more.items() if name not in patient_of}:
                self.found.append(
                    ("patients", f"{len({*more.values()}):,} by the number in DICOM's PatientID")
                )
            patient_of = more | patient_of
        volumes = [name for name in known if good[name]["frames"] and name not in patient_of]
        if volumes:
            text = f"{len(volumes):,} volumes or films; all slices of one are one patient"
            self.found.append(("volumes", text))
        return {name: name for name in volumes} | patient_of

    def _share(self, names: str) -> float:
        """The share of the foreground in the masks of one row."""
        shares = []
        for name in names.split(read.SEVERAL):
            file, frame = read.frame_of(name)
            covered = self.facts[file]["covered"]
            shares.append(covered if frame is None else covered[frame])
        return max(shares)

    def _sha(self, names: str) -> str:
        parts = []
        for name in names.split(read.SEVERAL) if names else ():
            file, frame = read.frame_of(name)
            parts.append(
                _frame_sha(self.facts[file]["sha256"], "" if frame is None else f"#{frame}")
            )
        if len(parts) < 2:
            return "".join(parts)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def _masks_left(self, table: pd.DataFrame, drawn: dict) -> None:
        """Name the masks whose images are not in the table."""
        named = {name for name, _, _ in self.problems}
        used = {read.frame_of(path)[0] for path in table["path"]}
        self.problems += [
            (name, "mask of an image left out", image)
            for by in drawn.values()
            for image, some in by.items()
            for name in some
            if image not in used and name not in named
        ]

    def _odd_masks(self, table: pd.DataFrame) -> None:
        if self.spec.synthetic or self.how.classes_from == "masks":
            return
        single = table[~table["path"].map(lambda path: read.frame_of(path)[1] is not None)]
        problems, notes = masks.odd(
            single, {names: self._share(names) for names in single["mask"] if names}
        )
        self.problems += problems
        self.found += [("masks", note) for note in notes]

    # --- what it adds up to ----------------------------------------------------------------------

    def _classes(self, table: pd.DataFrame) -> tuple[str, ...]:
        """Classes with images, in label order; one of whose files none can be used is an error."""
        had = Counter(self.labels.values())
        here = set(table["label"])
        wanted = self.spec.classes or sorted({*self.labels.values(), *here} - {""})
        if self.spec.classes and not here <= set(wanted):
            wanted = sorted(here)  # a table of labels with classes of its own
        for name in wanted:
            if name in here:
                continue
            if had[name]:
                why = Counter(row[1] for row in self.problems if self.labels.get(row[0]) == name)
                counted = ", ".join(f"{problem} {count:,}" for problem, count in why.most_common(4))
                raise ReadingError(
                    f"class {name!r}: none of its {had[name]:,} images can be used ({counted}); "
                    "mend or remove them"
                )
            self.problems.append((name, "class without images", "it is left out of the label set"))
        if len(here) < 2 and not self.spec.classes:
            raise ReadingError(
                f"all {len(table):,} images are of one class, {min(here)!r}; a network learns from "
                "two or more. State the labels in a table (-p labels), or choose -p classes_level"
            )
        return tuple(name for name in wanted if name in here)

    def _account(self, table: pd.DataFrame, classes: tuple[str, ...]) -> tuple:
        """What was inferred, with numbers of files that add up to all files below the root."""
        used = {
            kind: {
                read.frame_of(name)[0]
                for names in table[kind]
                for name in names.split(read.SEVERAL)
                if name
            }
            for kind in ("path", *masks.KINDS)
        }
        everything = {name for name, _, _ in self.walk.files}
        everything |= {name for name, _, _ in self.walk.refused}
        left = everything - set().union(*used.values())
        reasons = {}
        for path, problem, _ in self.problems:
            reasons.setdefault(path, problem)
        if unnamed := sorted(left - reasons.keys()):
            raise RuntimeError(f"{len(unnamed)} files would vanish, {unnamed[0]} for example")
        counts = Counter(reasons[name] for name in left)
        counted = ", ".join(f"{problem} {count:,}" for problem, count in counts.most_common())
        numbers = f"{len(everything):,} = {len(used['path']):,} images"
        numbers += "".join(
            f" + {len(used[kind]):,} {text}"
            for kind, text in (("mask", "lesion masks"), ("organ_mask", "organ masks"))
            if used[kind]
        )
        numbers += f" + {len(left):,} left out" + (f" ({counted})" if counted else "")
        by_class = table["label"].value_counts()
        sizes = ", ".join(f"{name} {by_class[name]:,}" for name in classes)
        rows = [("files", numbers), ("images", f"{len(table):,}: {sizes}"), *self.found]
        rows.append(("splits", _told_splits(table)))
        if self.walk.passed:
            some = ", ".join(self.walk.passed[:5])
            rows.append(
                ("passed over", f"{len(self.walk.passed):,} hidden or system folders: {some}")
            )
        return tuple(rows)


def _told_splits(table: pd.DataFrame) -> str:
    """The official split in words, the folders that name it, and what is missing in it."""
    counts = table["split"].value_counts()
    if not (table["split"] != "").any():
        return "none given: all images are split anew"
    text = ", ".join(f"{part} {counts[part]:,}" for part in PARTS if part in counts)
    if "" in counts:
        text += f"; {counts['']:,} images in none, which count as training images"
    if missing := [part for part in ("train", "test") if part not in counts]:
        text += f"; no {' and no '.join(missing)}: no official split, all images are split anew"
    elif "val" not in counts:
        text += "; validation is cut from train"
    return text


def _frame_sha(sha256: str, end: str) -> str:
    return hashlib.sha256((sha256 + end).encode()).hexdigest() if end else sha256


def giveaways(table: pd.DataFrame) -> list[str]:
    """Sentences on what tells the class of an image without a look at it: mode, size or suffix.

    The class is guessed as that of most other images with the same mode (size, suffix). A balanced
    accuracy of such guesses half way from chance to 1 or above is reported.
    """
    chance, sentences = 1 / table["label"].nunique(), []
    facts = {
        "colour mode": table["mode"],
        "size": table["width"].astype(str) + "×" + table["height"].astype(str),
        "file type": table["path"].map(lambda path: read.suffix(read.frame_of(path)[0])),
    }
    weight = 1 / table["label"].map(table["label"].value_counts())
    for what, values in facts.items():
        counts = pd.crosstab(values, table["label"])
        rows = counts.loc[values].to_numpy(dtype=float).copy()
        own = counts.columns.get_indexer(table["label"])
        rows[np.arange(len(rows)), own] -= 1  # an image does not vote for itself
        per_class = rows / counts.sum().to_numpy()
        right = (per_class.argmax(1) == own) & (rows.sum(1) > 0)
        score = float((right * weight).sum() * chance)
        if score >= (1 + chance) / 2:
            best = counts.loc[counts.sum(axis=1).nlargest(3).index]
            shown = "; ".join(
                f"{value}: {', '.join(f'{name} {n:,}' for name, n in row.items() if n)}"
                for value, row in best.iterrows()
            )
            sentences.append(
                f"the {what} alone tells the class in {score:.0%} of the cases (chance "
                f"{chance:.0%}): {shown}"
            )
    return sentences


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
    used = {*joined["path"], *joined["mask"], *joined["organ_mask"]}
    problems += [
        (path, "copy in another tree", "the same image, or its mask, is read from the first tree")
        for kind in ("path", "mask", "organ_mask")
        for path in dict.fromkeys(table[kind])
        if path and path not in used and path not in set(moved)
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


def _nothing_found(spec: DatasetSpec, root: Path, problems: Iterable[tuple[str, str, str]]) -> str:
    seen = "; ".join(f"{path}: {problem}" for path, problem, _ in [*problems][:3])
    return f"no usable image of {spec.name} below {root}. Expected layout:\n{spec.layout}\n" + (
        f"Found instead, for example: {seen}" if seen else "The folder holds no images."
    )


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with files.atomic(path) as temporary:
        table.to_csv(temporary, index=False)
