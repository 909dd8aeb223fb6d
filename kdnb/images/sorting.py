"""The files of a dataset, sorted by name, suffix and place: images, masks of images, others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdnb.images import masks, read, scan
from kdnb.images.catalogue import DatasetSpec
from kdnb.images.scan import Note, Place, Problem, Walk
from kdnb.images.source import Source

# suffixes of files that lie beside images and are none; any other unknown one may be a format that
# is not read here
OTHERS = {
    "tables": ".csv .tsv .xlsx .xls .ods .db .sqlite",
    "texts": ".txt .md .rst .log .pdf .doc .docx .ppt .pptx .odt .rtf .tex .bib",
    "data": ".json .jsonl .xml .yaml .yml .toml .ini .cfg .conf .sha256 .md5",
    "arrays and weights": ".npy .npz .mat .h5 .hdf5 .pkl .pt .pth .onnx .ckpt",
    "code": ".py .ipynb .m .r .sh .bat",
    "web": ".html .htm .css .js .svg .url",
    "archives": ".zip .tar .gz .tgz .bz2 .7z .rar",
    "films and sounds": ".mp4 .avi .mov .mkv .wav",
    "leftovers": ".lnk .tmp .bak",
}
DOCUMENTS = frozenset(" ".join(OTHERS.values()).split())


@dataclass(frozen=True)
class Tree:
    """The files below a dataset's root and how they are to be read; ``table`` is the table of
    labels that the reader names, None without one."""

    spec: DatasetSpec
    root: Path
    how: Source
    walk: Walk
    table: Path | None

    @property
    def by_masks(self) -> bool:
        """Whether each image's lesion mask decides its class."""
        return self.spec.by_masks or (not self.spec.classes and self.how.classes_from == "masks")


@dataclass(frozen=True)
class Sorted:
    """Files by what they are.

    ``pairing`` holds the images and their masks, ``others`` the paths of all other files.
    ``unread`` are those others that may be images of a format not read here. ``refused`` has
    (problem, detail) of each image or mask that the system does not hand out.
    """

    pairing: masks.Pairing
    others: list[str]
    unread: list[Place]
    refused: dict[str, tuple[str, str]]
    notes: list[Note]


def sort(tree: Tree) -> Sorted:
    """Sort the files of a tree; raises :class:`~kdnb.images.scan.ReadingError` where the folders of
    splits contradict each other."""
    pictures, others = [], []
    for name, _, _ in tree.walk.files:
        (pictures if _is_image(tree.root / name) else others).append(name)
    refused = {
        name: (problem, detail)
        for name, problem, detail in tree.walk.refused
        if read.suffix(name) in read.suffixes() and problem != "unreadable name"
    }
    unread = {name for name in others if read.suffix(name) and read.suffix(name) not in DOCUMENTS}
    places, notes = scan.places([*pictures, *refused, *sorted(unread)]), ()
    if not tree.spec.classes:
        places, notes = scan.settle_splits(places)
    return Sorted(
        masks.pair([p for p in places if p.path not in unread], outer=not tree.spec.classes),
        others,
        [place for place in places if place.path in unread],
        refused,
        [("folds", note) for note in notes],
    )


def _is_image(path: Path) -> bool:
    last = read.suffix(path.name)
    return last in read.suffixes() or (last not in DOCUMENTS and read.is_dicom(path))


def name_others(tree: Tree, found: Sorted, tables: Sequence[Path]) -> list[Problem]:
    """Why files are not in the index that the system does not hand out or that are no images;
    ``tables`` are the tables of labels that are read."""
    return [
        *tree.walk.refused,
        *(
            (name, "table of labels", "read")
            if tree.root / name in tables
            else (name, "not an image file", f"suffix {read.suffix(name) or 'none'}")
            for name in found.others
        ),
    ]


def nothing_found(tree: Tree, problems: Sequence[Problem]) -> FileNotFoundError:
    """The error of a tree without a usable image: the layout expected, and what lies there."""
    seen = "; ".join(f"{path}: {problem}" for path, problem, _ in problems[:3])
    return FileNotFoundError(
        f"no usable image of {tree.spec.name} below {tree.root}. Expected layout:\n"
        f"{tree.spec.layout}\n"
        + (f"Found instead, for example: {seen}" if seen else "The folder holds no images.")
    )
