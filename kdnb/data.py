"""Load a dataset by name: find or fetch it, index it, split it, and hand out its pixels."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb import checks, extras, files
from kdnb.images import downloads, index, pixels, read, splits
from kdnb.images.catalogue import DATASETS, MEDMNIST, DatasetSpec
from kdnb.images.downloads import DatasetMissing as DatasetMissing
from kdnb.images.pixels import Augment, Pixels
from kdnb.images.scan import ReadingError as ReadingError
from kdnb.images.source import Source
from kdnb.leakage import detector, patients, relatives
from kdnb.leakage.relatives import Finding, Patients

MASKS = ("mask", "organ_mask")  # columns of the index that name a mask of the image
DRAWN_ALONE = "every phantom is drawn alone"
HIDDEN = ""  # the label of a training image that is used without it
SEEDS = 2**32 - 1  # the largest seed that pandas and numpy take


@dataclass(frozen=True)
class Dataset:
    """Images with labels and splits: an index table and all that follows from it.

    ``table`` has the index's columns and ``group``, the number of the images that are kept together
    with this one; ``split`` says how the parts came about, ``patients`` how patients are known.
    ``copies`` is the finding of the search for copies, None where none was made yet;
    ``labelled_from`` the checksum of the set of which these images are the labelled share, and
    ``unlabelled`` the rows of its other training images.
    """

    spec: DatasetSpec
    index: index.Index
    table: pd.DataFrame
    split: str
    patients: Patients = Patients()
    copies: detector.Leakage | None = None
    labelled_from: str = ""
    unlabelled: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Readable class names in label order."""
        return self.index.classes

    @property
    def color(self) -> str:
        """``L`` or ``RGB``: what the pixel cache stores."""
        if self.spec.color != "auto":
            return self.spec.color
        return "L" if self.table["mode"].isin(read.GREY).all() else "RGB"

    @cached_property
    def checksum(self) -> str:
        """Names images, labels and splits together (12 hexadecimal digits)."""
        return files.digest([self.index.checksum, self.table[["path", "split"]].values.tolist()])

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return int((self.table["split"] == "train").sum())

    @property
    def split_name(self) -> str:
        """``official``, ``random`` or ``group``; stands beside every number."""
        return self.split.split(":")[0].split(" ")[0]

    @cached_property
    def leakage(self) -> detector.Leakage:
        """Copies among these images, searched for once (minutes for a large set)."""
        return self.copies or detector.find(self.index, self.spec.slug)

    @property
    def searchable(self) -> bool:
        """Whether copies are searched for under every split: phantoms have none, the search of
        more than ``detector.LARGEST`` images takes long, and its packages may be missing."""
        return not (self.spec.synthetic or self.not_searched)

    @property
    def not_searched(self) -> str:
        """Why copies among these images are searched for by ``-p split group`` only, or not at
        all; empty where nothing hinders the search, or phantoms make it needless."""
        if self.spec.synthetic:
            return ""
        if len(self.index.table) > detector.LARGEST:
            return (
                f"{len(self.index.table):,} images, the limit is {detector.LARGEST:,} "
                "(-p split group searches any number)"
            )
        if not (self.copies or extras.installed("detector")):
            return f"that needs {extras.install_line('detector')}"
        return ""

    def relatives(self, search: bool = False) -> Finding:
        """How many test images have a copy or their patient in training or validation.

        Rests on what is known of copies by now; ``search`` searches for them first, where the set
        is :attr:`searchable`.
        """
        return relatives.count(
            self.table, self.leakage if search and self.searchable else self.copies
        )

    @property
    def finding(self) -> str:
        """:meth:`relatives` in one line, with what was not searched for."""
        if self.spec.synthetic:
            return f"none: {DRAWN_ALONE}"
        missing = ""
        if not self.copies:
            missing = "; copies that are not byte-identical were not searched for: " + (
                "notebook 01 does" if self.searchable else self.not_searched
            )
        return f"{self.relatives()}{missing}"

    @property
    def caveat(self) -> str:
        """How these files differ from the published set, in a few words; empty if they do not."""
        if self.spec.synthetic:
            return "synthetic"
        found, published, few = len(self.table), self.spec.total, ""
        if self.spec.classes and not set(self.classes) <= set(self.spec.classes):
            few = f", other labels ({', '.join(self.classes)})"
        elif len(self.classes) < len(self.spec.classes):
            few = f", {len(self.classes)} of {len(self.spec.classes)} classes"
        size = tuple(self.table[["width", "height"]].mode().iloc[0])
        if self.spec.native_size and size != self.spec.native_size:
            native = "×".join(map(str, self.spec.native_size))
            return (
                f"stand-in{few}: {found:,} images of {size[0]}×{size[1]} px, "
                f"published {published:,} of {native} px"
            )
        if published and abs(found - published) > 0.01 * published:
            return f"partial copy{few}: {found:,} of {published:,} published images"
        return ""

    @property
    def title(self) -> str:
        """Readable name with its caveat; what figures and pages print."""
        return f"{self.spec.title} ({self.caveat})" if self.caveat else self.spec.title

    @property
    def labels(self) -> np.ndarray:
        """Label numbers, shape ``(N,)``; −1 where :meth:`with_unlabelled` hides a label."""
        numbers = {name: i for i, name in enumerate(self.classes)} | {HIDDEN: -1}
        return self.table["label"].map(numbers).to_numpy()

    def groups(self, split: str) -> np.ndarray:
        """Group numbers of one split's images, ``(n,)`` in the order of :meth:`pixels`: intervals
        draw a group as one."""
        files.lookup(split, splits.PARTS, "split")
        return self.table.loc[self.table["split"] == split, "group"].to_numpy()

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and split (columns)."""
        table = pd.crosstab(self.table["label"], self.table["split"])
        return table.reindex(index=list(self.classes), columns=list(splits.PARTS), fill_value=0)

    def pixels(self, image_size: int, split: str | None = None, column: str = "path") -> Pixels:
        """Rows of one split (all by default) from the pixel cache; ``column`` may be ``mask`` or
        ``organ_mask``."""
        checks.within(1, math.inf, image_size=image_size)
        if split is not None:
            files.lookup(split, splits.PARTS, "split")
        mode = self.color if files.lookup(column, ("path", *MASKS), "column") == "path" else "L"
        array = pixels.cache(
            self.index.root,
            self.table,
            image_size,
            mode,
            self.spec.slug,
            column,
            self.index.rule,
        )
        rows = None if split is None else np.flatnonzero(self.table["split"] == split)
        return Pixels(array, self.labels, rows)

    def sample(self, split: str, count: int, seed: int = 0) -> np.ndarray:
        """About ``count`` rows of a split, as many of each class as there are, in label order; the
        same for a seed."""
        files.lookup(split, splits.PARTS, "split")
        checks.within(1, math.inf, count=count)
        checks.within(0, SEEDS, seed=seed)
        each = max(1, round(count / len(self.classes)))
        rows = self.table[self.table["split"] == split].groupby("label", sort=False)
        chosen = np.concatenate(
            [part.sample(min(each, len(part)), random_state=seed).index for _, part in rows]
        )
        return chosen[np.argsort(self.labels[chosen], kind="stable")]

    def masks(self, image_size: int, column: str, rows: np.ndarray) -> np.ndarray | None:
        """Boolean masks ``(n, S, S)`` of chosen rows, ``column`` ``mask`` (lesion) or
        ``organ_mask``; None if none has one."""
        checks.within(1, math.inf, image_size=image_size)
        files.lookup(column, MASKS, "column")
        checks.labels(rows, len(self.table), "rows")
        if not self.table[column].iloc[rows].ne("").any():
            return None
        return self.pixels(image_size, column=column).pictures(rows) > 127

    def shard(self, number: int, count: int) -> Dataset:
        """The same images, but only part ``number`` of ``count`` of the training images, with whole
        groups and about the same share of each class in every part.

        Validation and test images stay; training images of the other parts belong to no split.
        Raises :class:`~kdnb.images.splits.SplitError` where a class would be missing in a part.
        """
        checks.within(1, math.inf, count=count)
        checks.within(0, count - 1, number=number)
        table = splits.shard(self.table, number, count)
        used = f"{self.split}; part {number + 1} of {count} of the training groups"
        return self if count == 1 else dataclasses.replace(self, table=table, split=used)

    def labelled(self, share: float, seed: int = 0) -> Dataset:
        """The same images, but only a ``share`` (above 0, up to 1) of the training and validation
        labels, with whole groups and the same share of each class, drawn by ``seed``.

        Test images stay; images without a label belong to no split. Raises
        :class:`~kdnb.images.splits.SplitError` where a class would be missing.
        """
        checks.within(0, 1, share=share)
        checks.within(0, SEEDS, seed=seed)
        if share == 1:
            return self
        table = splits.labelled(self.table, share, seed)
        used = f"{self.split}; labels of {share:.0%} of the training and validation groups"
        left_out = (self.table["split"] == "train").to_numpy() & (table["split"] == "").to_numpy()
        return dataclasses.replace(
            self,
            table=table,
            split=used,
            labelled_from=self.checksum,
            unlabelled=tuple(np.flatnonzero(left_out).tolist()),
        )

    def with_unlabelled(self) -> Dataset:
        """The same images with those training images whose labels :meth:`labelled` left out: they
        are training images again, and their label is hidden (number −1).

        Validation images without a label stay out. The dataset itself where no label was left out.
        """
        if not self.unlabelled:
            return self
        hidden = self.table.index.isin(self.unlabelled)
        table = self.table.assign(
            split=self.table["split"].mask(hidden, "train"),
            label=self.table["label"].mask(hidden, HIDDEN),
        )
        used = f"{self.split}; {len(self.unlabelled)} training images without a label"
        return dataclasses.replace(self, table=table, split=used, unlabelled=())

    def shuffled(self, seed: int = 0) -> Dataset:
        """The same images and splits with labels permuted within each split: a control."""
        checks.within(0, SEEDS, seed=seed)
        labels = self.table.groupby("split", sort=False)["label"].transform(
            lambda part: np.random.default_rng(seed).permutation(part.to_numpy())
        )
        renamed = self.index.table.set_index("path")["label"].to_dict() | dict(
            zip(self.table["path"], labels, strict=True)
        )
        table = self.index.table.assign(label=self.index.table["path"].map(renamed))
        return dataclasses.replace(
            self,
            table=self.table.assign(label=labels),
            index=dataclasses.replace(self.index, table=table),
        )

    def augment(self) -> Augment:
        """The augmentation that keeps this modality plausible."""
        return Augment(hflip="h" in self.spec.flips, vflip="v" in self.spec.flips)

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"{self.title}: {len(self.table):,} images, {self.spec.modality}",
                f"split: {self.split}",
                f"relatives: {self.finding}",
                *self.patients.lines(),
                self.counts().to_string(),
            ]
        )


def load(
    name: str,
    data_root: str | Path | None = None,
    split: str = "auto",
    download: bool = False,
    per_class: int | None = None,
    source: Source | None = None,
    fold: tuple[int, int] | None = None,
) -> Dataset:
    """Load a dataset of the catalogue, ``medmnist:<name>``, or ``folder`` with ``data_root``.

    ``split``: ``official`` as published, ``random`` re-split by image as papers do, ``group``
    re-split with copies and patients kept together. ``auto`` is official where the catalogue knows
    nothing against it and, for one's own images, where at most 1 % of the test images have a
    relative in training or validation; else group. One's own images are searched for copies first.
    ``per_class`` keeps at most so many images of a class in each split (for trying things out).
    ``source`` says how the files are read (:class:`~kdnb.images.source.Source`). ``fold`` (k, n)
    takes part k of n parts of the groups as test set, counted from 0, whatever ``split`` is. Raises
    ``UnknownName``, ``DatasetMissing`` or ``SplitError``, each telling what to do next.
    """
    files.lookup(split, splits.MODES, "split")
    checks.within(1, math.inf, per_class=per_class)
    spec, split = describe(name), split if fold is None else "group"
    root = downloads.locate(spec, data_root, download)
    found = index.build(spec, root, source)
    copies = _copies(spec, found, split)
    table = found.table
    if copies:
        found, table = _without_conflicts(found, copies)
    table, known = _with_patients(spec, table, copies, source or Source())
    group = relatives.groups(table, copies)
    mode, reason = splits.resolve(spec, table, split, group if spec.own else None)
    kept = DRAWN_ALONE if spec.synthetic else relatives.kept_together(table, copies, known)
    if fold is None:
        table, used = splits.assign(spec, table, mode, group, kept, reason)
    else:
        table, used = splits.fold(spec, table, *fold, group, kept)
    if per_class:
        table = table.groupby(["split", "label"], sort=False).head(per_class).reset_index(drop=True)
    return Dataset(spec, found, table, used, known, copies or detector.recall(found, spec.slug))


def _copies(spec: DatasetSpec, found: index.Index, split: str) -> detector.Leakage | None:
    """Copies, where the split rests on them; every phantom is drawn alone and has none. Under a
    split that was asked for, a search that is not installed is left out."""
    if spec.synthetic or spec.patients_known:
        return None
    mode, _ = splits.resolve(spec, found.table, split)
    small = len(found.table) <= detector.LARGEST
    wanted = spec.own and small and (split == "auto" or extras.installed("detector"))
    if wanted or splits.needs_groups(found.table, mode):
        return detector.find(found, spec.slug)
    return None


def _without_conflicts(
    found: index.Index, copies: detector.Leakage
) -> tuple[index.Index, pd.DataFrame]:
    """The index with images of equal pixels and two labels as problems, and its table without them.

    They are neither learnt from nor tested on, like byte-identical files with two labels. The
    index's own table, and so its checksum, stays.
    """
    conflicts = copies.conflicts(found.table)
    table = found.table[~found.table["path"].isin(conflicts["path"])].reset_index(drop=True)
    problems = pd.concat([found.problems, conflicts], ignore_index=True)
    return dataclasses.replace(found, problems=problems), table


def _with_patients(
    spec: DatasetSpec, table: pd.DataFrame, copies: detector.Leakage | None, source: Source
) -> tuple[pd.DataFrame, Patients]:
    """The table with its patients, and how they are known: as the files state them, or, for one's
    own images, as their names suggest. A pattern that was given leaves no room for suggestions."""
    if (table["patient"] != "").any():
        return table, Patients(_stated_by(spec, source))
    if not spec.own or source.patient_pattern:
        return table, Patients()
    proposal = patients.propose(table, relatives.groups(table, copies))
    if proposal is None:
        return table, Patients()
    known = f"by {_quoted(proposal.patterns)}, proposed from file names"
    return table.assign(patient=proposal.codes), Patients(known, proposal.examples)


def _stated_by(spec: DatasetSpec, source: Source) -> str:
    """What the patients of a table were read from, in words that follow "patients"."""
    if source.pattern:
        return f"by {_quoted([source.pattern])}"
    if source.labels:
        return f"from {Path(source.labels).name}"
    if spec.own:
        return "as folders or file headers state them"
    if spec.groups_of or spec.tables:
        return f"as {spec.group_key.split(';')[0]}"
    return f"by {_quoted([pattern for pattern, _ in spec.groups])}" if spec.groups else ""


def _quoted(patterns: Sequence[str]) -> str:
    return " and ".join(f"`{pattern}`" for pattern in patterns)


def describe(name: str) -> DatasetSpec:
    """The catalogue's entry of a name; ``medmnist:<name>`` is described by the medmnist package."""
    if not name.startswith("medmnist:"):
        return DATASETS[files.lookup(name, [*DATASETS, "medmnist:<name>"], "dataset")]
    from medmnist import INFO  # imported here: it takes seconds and few runs need it

    known = {}
    for key, info in INFO.items():
        if "3d" not in key and info["task"] != "multi-label, binary-class":
            sizes = [f"_{size}" for size in (64, 128, 224) if f"url_{size}" in info]
            known |= {key + size: info for size in ("", *sizes)}
    flag = files.lookup(
        name.removeprefix("medmnist:"), sorted(known), "single-label 2-D MedMNIST set"
    )
    info = known[flag]
    titles = [_short(text) for text in info["label"].values()]
    if len(set(titles)) < len(titles):
        raise ValueError(f"{name}: two of its classes have one name")
    return DatasetSpec(
        name=name,
        title=info["python_class"],
        modality=MEDMNIST.get(flag.split("_")[0], "medical image"),
        licence=info["license"],
        classes={title: () for title in titles},
        citation="Yang et al. (2023), MedMNIST v2, Scientific Data 10:41, "
        "doi:10.1038/s41597-022-01721-8",
        source=info["url" + flag[flag.index("_") :] if "_" in flag else "url"],
        layout=f"medmnist/{flag}.npz",
        official_split="train / val / test",
        group_key="not stated",
        color="L" if info["n_channels"] == 1 else "RGB",
    )


def _short(text: str) -> str:
    """MedMNIST's class names may be long, or hold a slash that a folder may not."""
    return re.sub(r"[\\/:]+", " ", text)[:60].strip()


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download a public dataset from Kaggle with a progress bar, check the number of images, and
    return its folder.

    Raises :class:`DatasetMissing` with what to download from where when it cannot be reached.
    """
    spec = describe(name)
    if spec.name.startswith("medmnist:"):
        return downloads.locate(spec, root, download=True)
    root = downloads.fetch(spec, root)
    found = index.build(spec, root)
    if len(found.table) < 0.99 * spec.total:
        print(
            f"warning: {len(found.table):,} usable images came, {spec.total:,} are published; see "
            "the data report in 01"
        )
    return root
