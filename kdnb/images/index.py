"""The index of a dataset: one table of images with label, split, patient and masks; every other
file is named with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kdnb import files
from kdnb.images import labelling, labels, phantoms, read, reading, scan, sorting, source
from kdnb.images.catalogue import DatasetSpec
from kdnb.images.read import Rule
from kdnb.images.sorting import Tree
from kdnb.images.source import Source
from kdnb.images.tables import COLUMNS

VERSION = 5  # part of the stored index's fingerprint: raise it when a column or a rule changes
PROBLEMS = ["path", "problem", "detail"]
# beside the images of phantoms and MedMNIST sets: the mark that they are whole, and reports
BESIDE = ("complete", phantoms.REPORTS)


@dataclass(frozen=True)
class Index:
    """A dataset's table, what was wrong with its files, and how they were read.

    ``table`` has one row an image, with the columns ``kdnb.images.tables.COLUMNS``. ``path``,
    ``mask`` (lesion) and ``organ_mask`` (lung or tissue) are relative to the dataset's root,
    ``patient`` is empty where unknown, ``width`` and ``height`` are in pixels, ``mode`` is
    Pillow's; ``report`` is what a table, or the drawing of a phantom, says of the image in words;
    the image and its masks have a SHA-256 (empty without one). A path ending in ``#3`` is a frame
    of a film or a slice of a volume.
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
    tree = _tree(spec, root, how)
    key = [
        VERSION,
        str(tree.root),
        {name: list(spelt) for name, spelt in spec.classes.items()},
        (*spec.groups, spec.group_key) if spec.groups_of else spec.groups,
        dataclasses.asdict(tree.how),
        files.file_sha256(tree.table) if tree.table else spec.tables or "",
        dataclasses.astuple(tree.walk),
    ]
    store = (cache or files.cache_dir()) / "index" / f"{spec.slug}-{files.digest(key)}"
    with files.lock(store):
        if not (store / "table.csv").exists():
            _store(_read(tree), store)
        return _stored(tree.root, store)


def read_tree(spec: DatasetSpec, root: Path, how: Source | None = None) -> Index:
    """The index of a tree as :func:`build` gives it, read anew and not stored."""
    return _read(_tree(spec, root, how))


def _tree(spec: DatasetSpec, root: Path, how: Source | None) -> Tree:
    root, how = Path(root).resolve(), how or Source()
    walk = scan.walk(root)
    if spec.synthetic or spec.name.startswith("medmnist:"):
        images = [fact for fact in walk.files if fact[0] not in BESIDE]
        walk = dataclasses.replace(walk, files=images)
    return Tree(spec, root, how, walk, labels.find(how.labels, root) if how.labels else None)


def _read(tree: Tree) -> Index:
    """All stages of reading a tree, one after the other."""
    found = sorting.sort(tree)
    labelled = labelling.label(tree, found)
    facts = reading.look(tree, found, labelled)
    labelled = reading.with_facts(labelled, facts)
    table, problems, notes = reading.tabulate(tree, labelled, facts)
    classes, missing = reading.classes_of(tree, labelled, table, problems)
    problems = problems + missing
    rule = reading.rule(tree, labelled, facts)
    if table["mode"].isin(read.DEEP).any():
        notes = [*notes, ("grey levels", rule.sentence)]
    account = reading.account(tree.walk, table, classes, problems, notes)
    return Index(tree.root, classes, table, pd.DataFrame(problems, columns=PROBLEMS), rule, account)


# --- the stored index ----------------------------------------------------------------------------


def _store(found: Index, store: Path) -> None:
    facts = {
        "classes": found.classes,
        "rule": dataclasses.asdict(found.rule),
        "found": found.found,
    }
    _write_csv(store / "problems.csv", found.problems)
    files.write_json(store / "facts.json", facts)
    # last: its presence says that the index is whole
    _write_csv(store / "table.csv", found.table)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with files.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


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
