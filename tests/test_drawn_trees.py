"""Trees drawn at random from a grammar: whatever is read from one is exactly right, or it is an
error that says what to do."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb import data
from kdnb.images import index, read, scan

TREES = int(os.environ.get("KDNB_DRAWN_TREES", "120"))
OUTER = ["data", "tumor_dataset", "My Images (2)", "archive", "chest xray", "v1.2"]
SPLITS = [
    {"train": "train", "test": "test"},
    {"training_set": "train", "Test Set": "test"},
    {"train_images": "train", "val_images": "val", "test_images": "test"},
    {"Train": "train", "Dev": "val"},
    {"TRAIN": "train", "VALIDATION": "val", "TEST": "test"},
    {"chest_train": "train", "chest_test": "test"},
    {"TrainData": "train", "TestData": "test"},
    {"fold_1": "", "fold_2": "", "fold_3": ""},
]
CLASSES = [
    ["benign", "malignant", "normal"],
    ["ER+", "ER-"],
    ["<=5mm", ">5mm", "none"],
    ["肺炎", "健康", "结核"],
    ["здоров", "болен"],
    ["0", "1", "2"],
    ["No_Tumor", "glioma_tumor", "pituitary"],
    ["stage 1", "stage 2", "stage 3"],
    ["COVID-19", "non-COVID", "Normal"],
    ["with_mask", "without_mask"],
    ["Class_01", "Class_02"],
    ["A", "B", "C"],
]
PATIENTS = [
    ["10253", "10254", "10255", "10256"],
    ["P01", "P02", "P03", "P04", "P05"],
    ["patient_3", "patient_7", "patient_11"],
    ["sub-002", "sub-003", "sub-010"],
    ["TCGA_CS_4941_1996", "TCGA_CS_4942_1997", "TCGA_DU_5851_1995"],
    ["1", "2", "3", "4", "5"],
    ["anna", "bob", "cem"],
    ["left", "right"],
]
KINDS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "jfif": "JPEG", "ppm": "PPM", "tif": "TIFF"}
BESIDE = ["_mask", "_segmentation", "-seg", " (mask)", "_gt", "_lesion_mask"]


@dataclass
class Tree:
    """What was put where: truth by path."""

    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    masks: dict[str, set[str]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # must be named
    about: list[str] = field(default_factory=list)


class Painter:
    """Tiny pictures, each another noise."""

    def __init__(self, root: Path, rng: np.random.Generator):
        self.root, self.rng = root, rng

    def put(self, path: str, kind: str = "PNG", mask: bool = False) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        values = self.rng.integers(0, 256, (6, 6), dtype=np.uint8)
        if mask:
            values = np.uint8(255) * (values > 150)
            values[0, 0], values[5, 5] = 0, 255
        Image.fromarray(values).convert("RGB" if kind == "PPM" else "L").save(target, kind)


def draw(root: Path, seed: int) -> Tree:
    """One tree below ``root``, and the truth about it."""
    rng = np.random.default_rng(seed)
    tree, painter = Tree(), Painter(root, rng)

    def one_of(options):
        return options[rng.integers(len(options))]

    outer = [OUTER[n] for n in rng.choice(len(OUTER), rng.integers(0, 3), replace=False)]
    splits = one_of(SPLITS) if rng.random() < 0.6 else {}
    classes = one_of(CLASSES)
    patients = one_of(PATIENTS) if rng.random() < 0.5 else []
    order = one_of(["patient above", "patient below"])
    split_below = bool(splits) and rng.random() < 0.15
    pictures = one_of(["", "", "images below", "images on top"])
    drawn = one_of(["", "", "beside", "several beside", "folder"])
    if drawn == "folder" and not pictures:
        pictures = "images below"
    numbered = rng.random() < 0.5  # the same names in every folder
    suffix = one_of(list(KINDS))
    tree.about = [outer, splits, classes, patients, order, split_below, pictures, drawn, suffix]
    count = 0
    by_split = {}
    for number, patient in enumerate(patients):  # a patient is in one split, mostly
        by_split[patient] = list(splits)[number % len(splits)] if splits else ""
    leaky = rng.random() < 0.3
    for split in splits or [""]:
        for label in classes:
            for patient in patients or [""]:
                if patient and splits and not leaky and by_split[patient] != split:
                    continue
                levels = [label]
                if patient:
                    levels = [patient, label] if order == "patient above" else [label, patient]
                if split:
                    levels = [*levels, split] if split_below else [split, *levels]
                for k in range(rng.integers(2, 5)):
                    count += 1
                    stem = str(k + 1) if numbered else f"im{count}"
                    at = [*outer, *levels]
                    place, other = at, at
                    if pictures == "images below":
                        place, other = [*at, "images"], [*at, "masks"]
                    elif pictures == "images on top":
                        place = [*outer, "images", *levels]
                        other = [*outer, one_of(["masks"]), *levels]
                    path = "/".join([*place, f"{stem}.{suffix}"])
                    painter.put(path, KINDS[suffix])
                    tree.labels[path], tree.splits[path] = label, splits.get(split, "")
                    tree.patients[path] = patient
                    tree.masks[path] = set()
                    if drawn and rng.random() < 0.7:
                        names = [f"{stem}{one_of(BESIDE)}.png"]
                        folder = place
                        if drawn == "several beside":
                            names = [f"{stem}_mask.png", f"{stem}_mask_1.png"]
                        elif drawn == "folder":
                            names, folder = [f"{stem}.png"], other
                        for name in names:
                            mask = "/".join([*folder, name])
                            painter.put(mask, mask=True)
                            tree.masks[path].add(mask)
    _litter(tree, painter, outer, rng)
    return tree


def _litter(tree: Tree, painter: Painter, outer: list[str], rng: np.random.Generator) -> None:
    """Files that are none of the images."""
    folders = sorted({path.rsplit("/", 1)[0] for path in tree.labels})
    some = folders[rng.integers(len(folders))]
    if rng.random() < 0.3:
        path = f"{some}/notes.txt"
        (painter.root / path).write_text("label,path")
        tree.others.add(path)
    if rng.random() < 0.3:
        path = "/".join([*outer, "README"])
        (painter.root / path).write_text("read me")
        tree.others.add(path)
    if rng.random() < 0.2:
        path = f"{some}/scan.xyz"
        (painter.root / path).write_bytes(b"\0\1\2")
        tree.others.add(path)
    if rng.random() < 0.2:
        path = f"{some}/broken.png"
        (painter.root / path).write_bytes(b"\x89PNG\r\n\x1a\n123")
        tree.others.add(path)
    if rng.random() < 0.2:
        painter.put(f"{some}/nowhere_mask.png", mask=True)
        tree.others.add(f"{some}/nowhere_mask.png")
    if rng.random() < 0.2:
        painter.put("example.png")
        tree.others.add("example.png")
    for junk in ("@eaDir/x.png", "__MACOSX/benign/y.png", ".hidden/z.png", "$RECYCLE.BIN/q.png"):
        if rng.random() < 0.2:
            painter.put(junk)


def check(tree: Tree, found: index.Index) -> None:
    """Everything that was read is what was put there."""
    table = found.table
    assert dict(zip(table["path"], table["label"], strict=True)) == tree.labels
    assert dict(zip(table["path"], table["split"], strict=True)) == tree.splits
    masks = {row.path: set(row.mask.split(read.SEVERAL)) - {""} for row in table.itertuples()}
    assert masks == tree.masks
    assert (table["organ_mask"] == "").all()
    patients = dict(zip(table["path"], table["patient"], strict=True))
    if any(patients.values()):
        assert patients == tree.patients
    elif any(tree.patients.values()):  # not recognised, but told
        assert "not read" in found.reading()["what"].tolist()
    named = set(found.problems["path"])
    assert tree.others <= named
    everything = {path for path, _, _ in scan.walk(found.root).files}
    used = {*table["path"]} | {name for some in masks.values() for name in some}
    assert everything == used | (everything & named)


def test_whatever_is_read_from_a_drawn_tree_is_right_or_an_error(home):
    outcomes = Counter()
    for seed in range(TREES):
        root = home / f"tree{seed}"
        root.mkdir()
        tree = draw(root, seed)
        try:
            found = index.read_tree(data.describe("folder"), root)
        except (scan.ReadingError, FileNotFoundError) as error:
            assert "-p " in str(error), (seed, str(error))
            outcomes["error"] += 1
            continue
        try:
            check(tree, found)
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {tree.about}\n{found.summary()}\n{error}")
        outcomes["read"] += 1
    print(outcomes)
    assert outcomes["read"] >= 0.6 * TREES
