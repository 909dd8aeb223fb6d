"""Load a dataset by name: find or fetch it, index it, split it, and hand out its pixels."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb import checks, files, index, leakage, phantoms, pixels, splits
from kdnb.catalogue import DATASETS, DatasetSpec
from kdnb.pixels import Augment, Pixels


class DatasetMissing(FileNotFoundError):
    """The images are not on this machine; the message tells what to get from where and where to put it."""


@dataclass(frozen=True)
class Dataset:
    """Images with labels and splits: an index table and what can be read off it.

    ``table`` has the index's columns and ``family``, the number of the group that an image belongs to; ``split`` says how the
    parts came about.
    """

    spec: DatasetSpec
    index: index.Index
    table: pd.DataFrame
    split: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Readable class names in label order."""
        return self.index.classes

    @property
    def color(self) -> str:
        """``L`` or ``RGB``: what the pixel cache stores."""
        if self.spec.color != "auto":
            return self.spec.color
        return "L" if self.table["mode"].isin(["L", "1", "LA", "I", "I;16", "F"]).all() else "RGB"

    @cached_property
    def checksum(self) -> str:
        """Names images, labels and splits together (12 hexadecimal digits)."""
        return files.digest([self.index.checksum, self.table[["path", "split"]].values.tolist()])

    @property
    def split_name(self) -> str:
        """``official``, ``random`` or ``group``; stands beside every number."""
        return self.split.split(":")[0].split(" ")[0]

    @cached_property
    def leakage(self) -> leakage.Leakage:
        """Copies that the detector finds among these images, looked for once (minutes for a large set)."""
        return leakage.find(self.index, self.spec.slug)

    @property
    def caveat(self) -> str:
        """What keeps these files from being the published set, in a few words; empty if nothing does."""
        if self.spec.synthetic:
            return "synthetic"
        found, published = len(self.table), self.spec.total
        size = tuple(self.table[["width", "height"]].mode().iloc[0])
        if self.spec.native_size and size != self.spec.native_size:
            native = "×".join(map(str, self.spec.native_size))
            return f"stand-in: {found:,} images of {size[0]}×{size[1]} px, published {published:,} of {native} px"
        if published and abs(found - published) > 0.01 * published:
            return f"partial copy: {found:,} of {published:,} published images"
        return ""

    @property
    def title(self) -> str:
        """Readable name with its caveat; what figures and pages print."""
        return f"{self.spec.title} ({self.caveat})" if self.caveat else self.spec.title

    @property
    def labels(self) -> np.ndarray:
        """Label numbers, shape ``(N,)``."""
        return self.table["label"].map({name: i for i, name in enumerate(self.classes)}).to_numpy()

    def families(self, split: str) -> np.ndarray:
        """Group numbers of one split's images, ``(n,)`` in the order of :meth:`pixels`: intervals draw a group as one."""
        return self.table.loc[self.table["split"] == split, "family"].to_numpy()

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and split (columns)."""
        table = pd.crosstab(self.table["label"], self.table["split"])
        return table.reindex(index=list(self.classes), columns=list(splits.PARTS), fill_value=0)

    def pixels(self, image_size: int, split: str | None = None, column: str = "path") -> Pixels:
        """Rows of one split (all by default) from the pixel cache; ``column`` may be ``mask`` or ``organ_mask``."""
        mode = self.color if column == "path" else "L"
        array = pixels.cache(self.index.root, self.table, image_size, mode, self.spec.slug, column)
        rows = None if split is None else np.flatnonzero(self.table["split"] == split)
        return Pixels(array, self.labels, rows)

    def sample(self, split: str, count: int, seed: int = 0) -> np.ndarray:
        """About ``count`` rows of a split, as many of each class as there are, in label order; the same for a seed."""
        each = max(1, round(count / len(self.classes)))
        rows = self.table[self.table["split"] == split].groupby("label", sort=False)
        chosen = np.concatenate([part.sample(min(each, len(part)), random_state=seed).index for _, part in rows])
        return chosen[np.argsort(self.labels[chosen], kind="stable")]

    def masks(self, image_size: int, column: str, rows: np.ndarray) -> np.ndarray | None:
        """Boolean masks ``(n, S, S)`` of chosen rows, ``column`` ``mask`` (lesion) or ``organ_mask``; None if none has one."""
        if not self.table[column].iloc[rows].ne("").any():
            return None
        return self.pixels(image_size, column=column).pictures(rows) > 127

    def shuffled(self, seed: int = 0) -> Dataset:
        """The same images and splits with labels out of a hat: what a network learns from these is no evidence."""
        labels = self.table.groupby("split", sort=False)["label"].transform(
            lambda part: np.random.default_rng(seed).permutation(part.to_numpy()))  # fmt: skip
        renamed = self.index.table.set_index("path")["label"].to_dict() | dict(zip(self.table["path"], labels, strict=True))
        table = self.index.table.assign(label=self.index.table["path"].map(renamed))
        return dataclasses.replace(self, table=self.table.assign(label=labels), index=dataclasses.replace(self.index, table=table))

    def augment(self) -> Augment:
        """The augmentation that keeps this modality plausible."""
        return Augment(hflip="h" in self.spec.flips, vflip="v" in self.spec.flips)

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.table):,} images, {self.spec.modality}\nsplit: {self.split}\n{self.counts().to_string()}"


def load(name: str, data_root: str | Path | None = None, split: str = "auto", download: bool = False,
         per_class: int | None = None) -> Dataset:  # fmt: skip
    """Load a dataset of the catalogue, ``medmnist:<name>``, or ``folder`` with ``data_root``.

    ``split``: ``official`` as published, ``random`` re-split by image as papers do, ``group`` re-split with copies and patients
    kept together, ``auto`` official where nothing is known against it, else group. ``per_class`` keeps at most so many images of
    a class in each split (for trying things out).
    Raises ``UnknownName``, ``DatasetMissing`` or ``SplitError``, each telling what to do next.
    """
    files.lookup(split, splits.MODES, "split")
    checks.within(1, math.inf, per_class=per_class)
    spec = describe(name)
    root = locate(spec, data_root, download)
    found = index.build(spec, root)
    mode = splits.resolve(spec, found, split)
    table, family = found.table, index.families(found.table)
    if splits.needs_groups(found, mode) and not spec.synthetic:  # every phantom is drawn alone
        seen = leakage.find(found, spec.slug)
        # same pixels, two labels: neither learnt from nor tested on, as byte-identical ones in the index
        conflicts = seen.conflicts(table)
        found = dataclasses.replace(found, problems=pd.concat([found.problems, conflicts], ignore_index=True))
        table = table[~table["path"].isin(conflicts["path"])].reset_index(drop=True)
        family = seen.groups(table)
    table, used = splits.assign(spec, table, mode, family)
    if per_class:
        table = table.groupby(["split", "label"], sort=False).head(per_class).reset_index(drop=True)
    return Dataset(spec, found, table, used)


def describe(name: str) -> DatasetSpec:
    """The catalogue's entry of a name; ``medmnist:<name>`` is described by the medmnist package."""
    if not name.startswith("medmnist:"):
        return DATASETS[files.lookup(name, [*DATASETS, "medmnist:<name>"], "dataset")]
    from medmnist import INFO  # imported here: it takes seconds and few runs need it

    known = {key: info for key, info in INFO.items() if "3d" not in key and info["task"] != "multi-label, binary-class"}
    flag = files.lookup(name.removeprefix("medmnist:"), sorted(known), "single-label 2-D MedMNIST set")
    info = known[flag]
    titles = [_short(text) for text in info["label"].values()]
    return DatasetSpec(
        name=name, title=info["python_class"], modality=info["description"].split(".")[0][:80], licence=info["license"],
        classes={title: () for title in titles},
        citation="Yang et al. (2023), MedMNIST v2, Scientific Data 10:41, doi:10.1038/s41597-022-01721-8",
        source=info["url"], layout=f"medmnist/{flag}.npz", official_split="train / val / test",
        group_key="none told", color="L" if info["n_channels"] == 1 else "RGB",
    )  # fmt: skip


def _short(text: str) -> str:
    """MedMNIST's class names may be long, or hold a slash that a folder may not."""
    return re.sub(r"[\\/:]+", " ", text)[:60].strip()


def locate(spec: DatasetSpec, data_root: str | Path | None = None, download: bool = False) -> Path:
    """The folder that holds a dataset's images; phantoms and MedMNIST sets are laid out there first."""
    if spec.synthetic:
        return phantoms.ensure(spec.name, list(spec.classes), files.cache_dir() / spec.name)
    if spec.name.startswith("medmnist:"):
        return _unpack_medmnist(spec, Path(data_root) if data_root else files.data_dir() / "medmnist", download)
    if spec.name == "folder" and not data_root:
        raise DatasetMissing("dataset 'folder' needs data_root, the folder that holds your classes: -p data_root /path/to/images\n"
                             f"Expected layout: {spec.layout}")  # fmt: skip
    root = Path(data_root).expanduser() if data_root else files.data_dir() / spec.slug
    if not root.is_absolute():
        root = next((base / root for base in (Path.cwd(), files.ROOT) if (base / root).is_dir()), root.resolve())
    if not root.is_dir():
        if download:
            return fetch(spec.name, root)
        raise DatasetMissing(_how_to_get(spec, root, f"{spec.name} is not at {root}."))
    return root


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download a public dataset from Kaggle with a progress bar, check the number of images, and return its folder.

    Raises :class:`DatasetMissing` with what to download from where when it cannot be reached.
    """
    spec = describe(name)
    if spec.name.startswith("medmnist:"):
        return locate(spec, root, download=True)
    if not spec.kaggle:
        raise ValueError(f"{name} is not a download: {spec.source}.")
    root = Path(root) if root else files.data_dir() / spec.slug
    try:
        import kagglehub

        with files.lock(root):
            kagglehub.dataset_download(spec.kaggle, output_dir=str(root))
    except FileExistsError as error:
        raise DatasetMissing(_how_to_get(spec, root, f"{root} already holds files; move them away first.")) from error
    except Exception as error:  # no network, no such host, refused, quota: kagglehub raises many kinds
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise DatasetMissing(_how_to_get(spec, root, f"{spec.name} could not be downloaded ({reason}).")) from None
    found = index.build(spec, root)
    if len(found.table) < 0.99 * spec.total:
        print(f"warning: {len(found.table):,} usable images came, {spec.total:,} are published; see the data report in 01")
    return root


def _how_to_get(spec: DatasetSpec, root: Path, reason: str) -> str:
    if not spec.kaggle:
        return f"{reason} {spec.source}; expected layout: {spec.layout}"
    return (
        f"{reason}\n  download:  {spec.source}  (about {spec.size_gb:g} GB; {spec.total:,} images; licence: {spec.licence})\n"
        f"  unpack to: {root}  (or set KDNB_DATA to the folder that holds {spec.slug}/)\n"
        f"  so that it looks like:  {spec.layout.splitlines()[0]}\n"
        "  with a network, this does it:  -p download True   or   kdnb.data.fetch"
        f'("{spec.name}")'
    )


def _unpack_medmnist(spec: DatasetSpec, folder: Path, download: bool) -> Path:
    """Lay a MedMNIST file out as the ``<split>/<class>/*.png`` tree that every dataset here is read from."""
    import medmnist
    from PIL import Image
    from tqdm.auto import tqdm

    flag = spec.name.removeprefix("medmnist:")
    root = files.cache_dir() / spec.slug
    builder = getattr(medmnist, medmnist.INFO[flag]["python_class"])
    with files.lock(root):
        if (root / "complete").exists():
            return root
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits.PARTS:
            try:
                data = builder(split=split, root=str(folder), download=download)
            except Exception as error:  # not there, or not reachable: the package raises RuntimeError for both
                raise DatasetMissing(
                    f"{spec.name} is not at {folder / (flag + '.npz')}.\n  download:  {spec.source}\n"
                    f"  put it to: {folder}\n  with a network, this does it:  -p download True"
                ) from error
            numbers = data.labels.reshape(-1).astype(int)
            checks.labels(numbers, len(spec.classes), f"labels of {flag}")
            for row, (array, label) in enumerate(zip(tqdm(data.imgs, desc=f"{flag} {split}", leave=False), numbers, strict=True)):
                path = root / split / list(spec.classes)[label] / f"{row:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
        files.write_text(root / "complete", "")
    return root
