"""One's own images: trees of many shapes, tables of labels, masks, deep images, DICOM and NIfTI."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import number_of, paint
from PIL import Image

from kdnb import data
from kdnb.images import index, labels, masks, pixels, read, scan, tables
from kdnb.images.scan import ReadingError
from kdnb.images.source import Source
from kdnb.parameters import BadParameter

FOLDER = data.describe("folder")


def tree(root: Path, *paths: str) -> Path:
    """Small pictures of noise, each another, at the given places; ``{3}`` stands for 0, 1, 2."""
    for path in paths:
        head, _, rest = path.partition("{")
        number, _, tail = rest.partition("}")
        for k in range(int(number or 1)):
            name = f"{head}{k}{tail}" if number else path
            paint(root / name, number_of(root.name, name), size=8)
    return root


def found_in(root: Path, **how) -> index.Index:
    return index.read_tree(FOLDER, root, Source(**how))


def counts(found: index.Index) -> dict:
    return found.table["label"].value_counts().to_dict()


# --- trees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("training_set", "train"),
        ("train_images", "train"),
        ("Train Set", "train"),
        ("TrainData", "train"),
        ("trainset", "train"),
        ("train2017", "train"),
        ("imagesTr", "train"),
        ("dev", "val"),
        ("Validation-Set", "val"),
        ("valid", "val"),
        ("Test Set", "test"),
        ("testing", "test"),
    ],
)
def test_spellings_of_splits(name, split):
    assert scan.role(name).split == split


@pytest.mark.parametrize(
    "name",
    [
        "benign",
        "ER+",
        "肺炎",
        "TS",
        "contest",
        "trained_nurse",
        "with_mask",
        "no mask",
        "evaluable",
    ],
)
def test_names_that_are_neither_splits_nor_masks(name):
    assert not scan.role(name).speaks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("masks", "mask"),
        ("lung masks", "organ_mask"),
        ("lungmasks", "organ_mask"),
        ("infection_masks", "mask"),
        ("GroundTruth", "mask"),
        ("ISIC2018_Task1_Training_GroundTruth", "mask"),
        ("segmentations", "mask"),
        ("vessel_masks", "mask"),
        ("Lung Segmentation Data", ""),
    ],
)
def test_folders_of_masks(name, kind):
    assert scan.role(name).kind == kind


def test_names_of_classes_differ_by_more_than_case_and_blanks(home):
    names = ("ER+", "ER-", "<=5mm", ">5mm", "肺炎", "здоров", "سليم")
    found = found_in(tree(home / "x", *(f"{name}/{{4}}.png" for name in names)))
    assert counts(found) == dict.fromkeys(names, 4)


def test_case_and_blanks_do_not_part_a_class_across_splits(home):
    paths = ("train/Benign/{4}.png", "test/benign/{4}.png", "train/M/{4}.png", "test/M /{4}.png")
    assert counts(found_in(tree(home / "x", *paths))) == {"Benign": 8, "M": 8}


def test_class_folders_that_collide_are_an_error(home):
    root = tree(home / "x", "Benign/{4}.png", "benign/{4}.png", "malignant/{4}.png")
    with pytest.raises(ReadingError, match="'Benign' and 'benign'.*one class or two"):
        found_in(root)


def test_both_readings_are_shown_and_each_can_be_chosen(home):
    root = tree(
        home / "x", *(f"{top}/{low}/{{3}}.png" for top in ("a", "b") for low in ("x", "y", "z"))
    )
    with pytest.raises(ReadingError) as caught:
        found_in(root)
    for text in ("classes_level 1", "a 9, b 9", "classes_level 2", "x 6, y 6, z 6"):
        assert text in str(caught.value)
    assert counts(found_in(root, classes_level=1)) == {"a": 9, "b": 9}
    assert counts(found_in(root, classes_level=2)) == {"x": 6, "y": 6, "z": 6}
    assert counts(found_in(root, classes=("x", "z"))) == {"x": 6, "z": 6}
    both = found_in(root, classes_level=1, patients_level=2).table
    assert set(both["patient"]) == {"x", "y", "z"}


def test_patients_alone_are_no_classes(home):
    root = tree(home / "x", *(f"TCGA_{n}_1999/{{3}}.png" for n in range(100, 110)))
    with pytest.raises(ReadingError, match="(?s)look like patients.*-p labels.*classes_from masks"):
        found_in(root)


@pytest.mark.parametrize("order", ["{label}/{patient}/{{3}}.png", "{patient}/{label}/{{3}}.png"])
def test_patients_above_and_below_classes(home, order):
    paths = [
        order.format(label=label, patient=patient)
        for label in (0, 1)
        for patient in (10253, 10254, 10255)
    ]
    table = found_in(tree(home / "x", *paths)).table
    assert table["label"].value_counts().to_dict() == {"0": 9, "1": 9}
    assert set(table["patient"]) == {"10253", "10254", "10255"}


def test_a_pattern_finds_patients(home):
    paths = [f"{label}/person{n}_{label}_{{2}}.png" for label in ("a", "b") for n in range(3)]
    table = found_in(tree(home / "x", *paths), patient_pattern=r"^(person\d+)_").table
    assert set(table["patient"]) == {"person0", "person1", "person2"}
    with pytest.raises(ReadingError, match="fits no file name"):
        found_in(home / "x", patient_pattern=r"^(nobody\d+)")


def test_folds_are_pooled_and_nested_splits_refused(home):
    folds = tree(home / "x", *(f"fold_{n}/{label}/{{3}}.png" for n in (1, 2) for label in "ab"))
    found = found_in(folds)
    assert set(found.table["split"]) == {""} and "pooled" in found.summary()
    nested = tree(
        home / "y",
        *(
            f"fold_{n}/{part}/{c}/{{3}}.png"
            for n in (1, 2)
            for part in ("train", "test")
            for c in "ab"
        ),
    )
    with pytest.raises(ReadingError, match="read one fold"):
        found_in(nested)


def test_a_split_inside_another_is_an_error_and_a_shared_one_is_not(home):
    paths = [f"Training data/{part}/{c}/{{3}}.png" for part in ("train", "test") for c in "ab"]
    table = found_in(tree(home / "x", *paths)).table
    assert table.groupby("split").size().to_dict() == {"test": 6, "train": 6}
    tree(home / "x", "test/train/a/{3}.png")
    with pytest.raises(ReadingError, match="two splits"):
        found_in(home / "x")


def test_a_class_none_of_whose_files_can_be_read_is_an_error(home):
    root = tree(home / "x", "a/{3}.png", "b/{3}.png")
    (root / "c").mkdir()
    for k in range(3):
        (root / "c" / f"{k}.png").write_bytes(b"")
    with pytest.raises(ReadingError, match=r"class 'c'.*empty file 3"):
        found_in(root)
    for path in (root / "c").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(ReadingError, match=r"\.heic.*'c'"):
        found_in(root)


def test_a_class_in_an_outer_folder_and_beside_it_is_an_error(home):
    root = tree(
        home / "x",
        "yes/{5}.png",
        "no/{5}.png",
        "brain_tumor_dataset/yes/{3}.png",
        "brain_tumor_dataset/no/{3}.png",
    )
    with pytest.raises(ReadingError, match="-p classes"):
        found_in(root)
    assert counts(found_in(root, classes=("yes", "no"))) == {"yes": 8, "no": 8}


def test_numbers_of_files_add_up(home):
    root = tree(home / "x", "a/{4}.png", "b/{4}.png", "@eaDir/{2}.png", "loose.png", "a/9_mask.png")
    (root / "notes.txt").write_text("mine")
    (root / "a" / "scan.xyz").write_bytes(b"\0")
    (root / "b" / "bad.png").write_bytes(b"nothing")
    found = found_in(root)
    assert "13 = 8 images + 5 left out" in found.summary() and "@eaDir" in found.summary()
    named = found.problems.set_index("path")["problem"].to_dict()
    assert named == {
        "notes.txt": "not an image file",
        "a/scan.xyz": "not an image file",
        "b/bad.png": "not an image",
        "loose.png": "no class folder",
        "a/9_mask.png": "mask without an image",
    }


# --- masks ---------------------------------------------------------------------------------------


def blot(path: Path, share: float = 0.2, side: int = 8) -> None:
    values = np.zeros(side * side, np.uint8)
    values[: round(share * side * side)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.reshape(side, side)).save(path)


def test_masks_go_to_the_image_in_the_same_place(home):
    root = tree(
        home / "x", *(f"{c}/{p}/images/{{3}}.png" for c in "ab" for p in ("P1", "P2", "P3"))
    )
    for place in sorted(root.rglob("images")):
        for k in (0, 1):
            blot(place.parent / "masks" / f"{k}.png", 0.1 + 0.1 * k)
    table = found_in(root).table
    assert (table["mask"] != "").sum() == 12
    for row in table[table["mask"] != ""].itertuples():
        assert row.mask == row.path.replace("/images/", "/masks/")


def test_several_masks_of_an_image_are_joined(home):
    root = tree(home / "x", "a/{3}.png", "b/{3}.png")
    top, left = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    top[:2], left[:, :2] = 255, 1
    Image.fromarray(top).save(root / "a" / "0_mask.png")
    Image.fromarray(left).save(root / "a" / "0_mask_1.png")
    found = found_in(root)
    names = found.table.set_index("path").loc["a/0.png", "mask"]
    assert names == "a/0_mask.png|a/0_mask_1.png"
    joined = pixels.read_mask(root, names, 8)[0]
    assert (joined == 255 * ((top > 0) | (left > 0))).all()


def test_whatever_is_not_background_is_mask(tmp_path):
    shape = np.zeros((40, 40), bool)
    shape[5:20, 8:30] = True
    palette = Image.fromarray(np.uint8(shape * 3))
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 90, 0, 0, 0, 0, 200])
    ways = {
        "one.png": Image.fromarray(np.uint8(shape)),
        "white.png": Image.fromarray(np.uint8(shape * 255)),
        "labels.png": Image.fromarray(np.uint8(shape * 7)),
        "palette.png": palette,
        "colour.png": Image.fromarray(np.uint8(shape[..., None] * [0, 0, 120])),
        "white.jpg": Image.fromarray(np.uint8(shape * 255)),
        "wide.tif": Image.fromarray(np.uint16(shape * 300)),
        "bit.png": Image.fromarray(np.uint8(shape * 255)).convert("1"),
    }
    for name, image in ways.items():
        image.save(tmp_path / name)
        got = np.asarray(read.decode_mask(tmp_path / name)) > 0
        assert (got == shape).mean() > (0.99 if name.endswith("jpg") else 0.9999), name


def test_odd_masks_are_named(home):
    root = tree(home / "x", "a/{9}.png", "b/{9}.png")
    for k, share in enumerate((0.2, 0.2, 0.2, 0.2, 0.2, 0, 1, 0.8)):
        blot(root / "a" / f"{k}_mask.png", share)
    for k in range(8):
        blot(root / "b" / f"{k}_mask.png", 0)
    blot(root / "b" / "8_mask.png", 0.3, side=16)
    blot(root / "a" / "77_mask.png")
    Image.new("L", (8, 4), 255).save(root / "a" / "8_mask.png")
    found = found_in(root)
    named = found.problems.set_index("path")["problem"].to_dict()
    assert named == {
        "a/5_mask.png": "empty mask",
        "a/6_mask.png": "full mask",
        "a/7_mask.png": "more than half is lesion",
        "a/8_mask.png": "mask of another shape",
        "b/8_mask.png": "mask of another size",
        "a/77_mask.png": "mask without an image",
    }
    assert "b: 8 of 9 masks: empty mask" in found.summary()
    assert found.table.set_index("path").loc["a/8.png", "mask"] == ""


def test_a_split_folder_without_its_counterpart_is_known_from_other_folders(home):
    """Masks of one class lie in chest_train alone; the images have chest_test too."""
    root, seed = home / "x", 0
    for label in ("cyst", "none"):
        for half in ("chest_train", "chest_test"):
            for name in ("a", "b"):
                seed += 1
                paint(root / "images" / label / half / f"{half}{name}.png", seed)
                if (label, half) != ("none", "chest_test"):
                    paint(root / "masks" / label / half / f"{half}{name}.png", 50 + seed)
    table = found_in(root).table
    assert dict(table.groupby("split").size()) == {"test": 4, "train": 4}
    drawn = table["path"].str.replace("images", "masks")
    none = table["path"].str.startswith("images/none/chest_test")
    assert list(table["mask"]) == [*drawn.where(~none, "")]


def test_classes_from_masks(home):
    root = tree(home / "x", *(f"TCGA_{n}/TCGA_{n}_{{4}}.png" for n in (101, 102, 103)))
    for path in sorted(root.rglob("*.png")):
        blot(path.with_name(path.stem + "_mask.png"), 0.3 * (path.stem[-1] in "01"))
    table = found_in(root, classes_from="masks").table
    assert table["label"].value_counts().to_dict() == {"lesion": 6, "no lesion": 6}
    assert set(table["patient"]) == {"TCGA_101", "TCGA_102", "TCGA_103"}


@pytest.mark.parametrize(
    "stem", ["x_mask", "x_mask_1", "x-seg", "x_segmentation", "x (mask)", "x_gt", "x_lung_mask"]
)
def test_names_of_masks_beside_images(stem):
    match = masks.BESIDE.fullmatch(stem)
    assert match and "x" in masks._owners(match["image"])


# --- tables of labels ----------------------------------------------------------------------------


def table_of(
    root: Path, rows: list[dict], name: str = "labels.csv", newline: str = "\n", **how
) -> Path:
    table = pd.DataFrame(rows)
    if name.endswith("xlsx"):
        table.to_excel(root / name, index=False)
    else:
        delimiter = how.get("delimiter", "\t" if name.endswith("tsv") else ",")
        with open(root / name, "w", newline="", encoding=how.get("encoding", "utf-8")) as out:
            writer = csv.DictWriter(out, list(table), delimiter=delimiter, lineterminator=newline)
            writer.writeheader()
            writer.writerows(table.to_dict("records"))
    return root / name


def rows(count: int = 8, **more) -> list[dict]:
    return [
        {"image_id": f"img{k}", "diagnosis": "mn"[k % 2], "patient_id": f"P{k // 2}"} | more
        for k in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("labels.csv", {}),
        ("labels.csv", {"newline": "\r\n"}),
        ("labels.csv", {"delimiter": ";", "encoding": "utf-8-sig"}),
        ("labels.tsv", {}),
        ("labels.xlsx", {}),
    ],
)
def test_a_table_states_labels_and_patients(home, name, how):
    root = tree(home / "x", "pictures/deep/img{8}.png")
    table_of(root, rows(), name, **how)
    for found in (found_in(root), found_in(root, labels=name)):
        assert counts(found) == {"m": 4, "n": 4}
        assert found.table["patient"].nunique() == 4
        assert name in found.summary() and "9 = 8 images + 1 left out" in found.summary()


@pytest.mark.parametrize(
    "spelling",
    [
        "pictures/img{k}.png",
        "pictures\\img{k}.png",
        "C:\\study\\a\\pictures\\img{k}.png",
        "./pictures/img{k}.png",
        "/mnt/all/pictures/img{k}",
        "img{k}.png",
    ],
)
def test_paths_as_tables_write_them(home, spelling):
    root = tree(home / "x", "pictures/img{8}.png")
    table_of(root, [{"path": spelling.format(k=k), "label": "ab"[k % 2]} for k in range(8)])
    assert counts(found_in(root, labels="labels.csv")) == {"a": 4, "b": 4}


def test_one_column_a_class(home):
    root = tree(home / "x", "img{8}.png")
    table_of(
        root,
        [
            {"image": f"img{k}", "MEL": f"{k % 2}.0", "NV": f"{1 - k % 2}.0", "age": 40 + k}
            for k in range(8)
        ],
    )
    assert counts(found_in(root)) == {"MEL": 4, "NV": 4}


def test_rows_without_a_file_and_files_without_a_row_are_named(home):
    root = tree(home / "x", "img{10}.png")
    table_of(root, [*rows(), {"image_id": "gone", "diagnosis": "m", "patient_id": "P9"}])
    found = found_in(root)
    problems = found.problems.groupby("problem")["path"].apply(sorted).to_dict()
    assert problems["row without a file"] == ["gone"]
    assert problems["file without a row"] == ["img8.png", "img9.png"]


@pytest.mark.parametrize(
    ("more", "how", "words"),
    [
        ({"target": "1"}, {}, r"2 columns may be the label.*-p columns"),
        ({}, {"columns": {"label": "dx"}}, "no column 'dx'"),
        ({"fold": "A"}, {}, "write train, val or test"),
    ],
)
def test_tables_that_can_be_read_in_two_ways_are_errors(home, more, how, words):
    root = tree(home / "x", "img{8}.png")
    table_of(root, rows(**more))
    with pytest.raises(ReadingError, match=words):
        found_in(root, labels="labels.csv", **how)


def test_columns_are_chosen(home):
    root = tree(home / "x", "img{8}.png")
    table_of(root, [row | {"target": f"{k // 4}"} for k, row in enumerate(rows())])
    found = found_in(root, labels="labels.csv", columns={"label": "target"})
    assert counts(found) == {"0": 4, "1": 4}


def test_a_name_that_fits_two_files_is_an_error(home):
    root = tree(home / "x", "p1/img{4}.png", "p2/img{4}.png")
    table_of(root, rows(4))
    with pytest.raises(ReadingError, match="fits 2 files"):
        found_in(root, labels="labels.csv")


def test_rows_that_contradict_each_other_are_an_error(home):
    root = tree(home / "x", "img{8}.png")
    table_of(root, [*rows(), {"image_id": "img0", "diagnosis": "n", "patient_id": "P0"}])
    with pytest.raises(ReadingError, match="rows 2 and 10 name the same image"):
        found_in(root, labels="labels.csv")


def test_a_missing_table_is_an_error(home):
    root = tree(home / "x", "a/{3}.png", "b/{3}.png")
    with pytest.raises(ReadingError, match="no file nowhere.csv"):
        found_in(root, labels="nowhere.csv")


def test_a_table_beside_a_tree_of_classes_is_told(home):
    root = tree(home / "x", "a/{4}.png", "b/{4}.png")
    table_of(root, [{"file": f"{c}/{k}.png", "patient": f"P{k}"} for c in "ab" for k in range(4)])
    found = found_in(root)
    assert "labels.csv lies beside the images" in found.summary()
    assert set(found.table["patient"]) == {""}
    stated = found_in(root, labels="labels.csv")
    assert counts(stated) == {"a": 4, "b": 4} and stated.table["patient"].nunique() == 4


def test_the_table_that_is_written_reads_back_the_same(home):
    root = tree(
        home / "x", "train/a/{4}.png", "train/b/{4}.png", "test/a/{4}.png", "test/b/{4}.png"
    )
    for k in range(3):
        blot(root / "train" / "a" / f"{k}_mask.png", 0.2 + 0.05 * k)
    blot(root / "train" / "a" / "0_mask_1.png", 0.4)
    found = found_in(root)
    path = found.write_labels(home / "out" / "labels.csv")
    again = found_in(root, labels=str(path))
    assert again.checksum == found.checksum and again.table.equals(found.table)
    table = pd.read_csv(path, keep_default_na=False)
    table.loc[table["path"] == "train/a/0.png", "label"] = "b"
    table.to_csv(path, index=False)
    assert counts(found_in(root, labels=str(path))) == {"a": 7, "b": 9}


# --- deep images, DICOM, NIfTI -------------------------------------------------------------------


def test_a_marker_does_not_squeeze_the_anatomy(home):
    grey = np.random.default_rng(0).integers(500, 3500, (64, 64)).astype(np.uint16)
    marked = grey.copy()
    marked[2:9, 2:20] = 65535
    plain, other = read.to_uint8(grey), read.to_uint8(marked)
    assert np.abs(plain[20:].astype(int) - other[20:]).max() <= 3
    assert np.ptp(other[20:]) > 240


def test_the_rule_of_the_set_is_stored_and_used_everywhere(home):
    rng = np.random.default_rng(0)
    for label, top in (("a", 1000), ("b", 4000)):
        for k in range(4):
            path = home / "x" / label / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, top, (32, 32)).astype(np.uint16)).save(path)
    own = index.build(FOLDER, home / "x")
    whole = index.build(FOLDER, home / "x", Source(intensity="set"))
    fixed = index.build(FOLDER, home / "x", Source(window=(2000, 4000)))
    assert own.rule == read.PER_IMAGE and fixed.rule == read.Rule(0.0, 4000.0)
    assert (
        3000 < whole.rule.high < 4000 and len({own.checksum, whole.checksum, fixed.checksum}) == 3
    )
    assert fixed.rule.sentence in fixed.summary() and "4000 becomes 255" in fixed.rule.sentence
    raw = np.asarray(Image.open(home / "x" / "a" / "0.png"), float)
    cached = pixels.cache(home / "x", fixed.table, 32, "L", "x", rule=fixed.rule)
    row = fixed.table["path"].tolist().index("a/0.png")
    assert np.abs(cached[row, 0] - raw * 255 / 4000).max() <= 0.51
    assert pixels.cache(home / "x", own.table, 32, "L", "x", rule=own.rule)[row, 0].max() == 255


def test_pages_of_a_stack_are_told(home):
    root = tree(home / "x", "a/{3}.png", "b/{3}.png")
    pages = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in (10, 20, 30)]
    pages[0].save(root / "a" / "stack.tif", save_all=True, append_images=pages[1:])
    found = found_in(root)
    assert found.problems["detail"].tolist() == ["3 pages, the first is read"]
    assert len(found.table) == 7


def test_dicom_files_are_read_as_they_look(home):
    pydicom = pytest.importorskip("pydicom")
    names = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_palette.dcm")
    root = home / "x"
    for k, name in enumerate(names):
        path = pydicom.data.get_testdata_file(name, download=False)
        if path is None:
            continue
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        # files of scanners have no suffix
        shutil.copy(path, root / "ab"[k % 2] / name.removesuffix(".dcm"))
    found = found_in(root)
    assert len(found.table) >= 2 and set(found.table["label"]) == {"a", "b"}
    header = pydicom.dcmread(root / "a" / "CT_small")
    values = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
    got = np.asarray(read.decode(root / "a" / "CT_small", read.Rule(-160, 240)))
    assert np.abs(got - np.clip((values + 160) * 255 / 400, 0, 255)).max() <= 0.51


def test_monochrome1_is_turned_and_frames_are_one_patient(home):
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.data.get_testdata_file("MR_small.dcm", download=False)
    root = home / "x"
    for label in "ab":
        for k in range(2):
            header = pydicom.dcmread(source)
            values = header.pixel_array
            frames = np.stack([np.roll(values, 5 * n + 2 * k + ord(label), 0) for n in range(3)])
            frames = np.concatenate([frames, np.zeros_like(frames[:1])])
            header.NumberOfFrames, header.PixelData = 4, frames.tobytes()
            header.PatientID = f"{label}{k}"
            (root / label).mkdir(parents=True, exist_ok=True)
            header.save_as(root / label / f"{k}.dcm")
    found = found_in(root)
    assert len(found.table) == 12 and found.table["patient"].nunique() == 4
    assert found.table["path"].iloc[0] == "a/0.dcm#0" and found.table["sha256"].is_unique
    assert (found.problems["problem"] == "slices without content").sum() == 4
    assert not found.table["patient"].str.contains("a0").any()  # a number, not what was written
    plain = np.asarray(read.decode(root / "a" / "0.dcm#1"))
    header = pydicom.dcmread(root / "a" / "0.dcm")
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as(root / "a" / "1.dcm")
    assert (np.asarray(read.decode(root / "a" / "1.dcm#1")) == 255 - plain).all()


def test_nifti_volumes_are_slices_of_one_patient(home):
    nibabel = pytest.importorskip("nibabel")
    rng, root = np.random.default_rng(0), home / "x"
    for label in "ab":
        for k in range(2):
            volume = rng.normal(size=(10, 12, 5)).astype(np.float32)
            volume[..., 4] = 0
            mark = np.zeros((10, 12, 5), np.uint8)
            mark[2:4, 3:5, 1] = 1
            (root / label).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), root / label / f"s{k}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(mark, np.eye(4)), root / label / f"s{k}_seg.nii.gz")
    found = found_in(root)
    assert len(found.table) == 16 and found.table["patient"].nunique() == 4
    assert found.table["width"].eq(10).all() and found.table["height"].eq(12).all()
    assert found.table["mask"].iloc[1] == "a/s0_seg.nii.gz#1"
    volume = nibabel.load(root / "a" / "s0.nii.gz").get_fdata()[::-1, ::-1, 1].T
    assert np.array_equal(
        np.asarray(read.decode(root / "a" / "s0.nii.gz#1")), read.to_uint8(volume)
    )
    assert pixels.read_mask(root, "a/s0_seg.nii.gz#1", 12).any()
    assert not pixels.read_mask(root, "a/s0_seg.nii.gz#0", 12).any()
    by_mask = found_in(root, classes_from="masks").table
    marked = [pixels.read_mask(root, mask, 12).any() for mask in by_mask["mask"]]
    assert list(by_mask["label"] == "lesion") == marked and 0 < sum(marked) < len(marked)
    path = found.write_labels(home / "labels.csv")
    assert found_in(root, labels=str(path)).table.equals(found.table)


def test_what_tells_the_class_without_a_look_is_told():
    base = {"path": [f"{k}.png" for k in range(40)], "width": 8, "height": 8}
    output = pd.DataFrame(base | {"label": ["a", "b"] * 20, "mode": ["L", "RGBA"] * 20})
    assert "colour mode" in tables.giveaways(output)[0] and len(tables.giveaways(output)) == 1
    silent = output.assign(mode=["L"] * 20 + ["RGBA"] * 20, width=range(40))
    assert tables.giveaways(silent) == []
    # a third of one class can be told for certain; of eight images it may be chance
    third = output.assign(mode=[["L", "L", "RGB", "L", "L", "L"][k % 6] for k in range(40)])
    more = pd.concat([third] * 10, ignore_index=True)
    assert "RGB: a 70" in tables.giveaways(more)[0] and len(tables.giveaways(more)) == 1
    assert tables.giveaways(third.head(8)) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"window": [1, 0]},
        {"columns": {"x": "y"}},
        {"patient_pattern": "("},
        {"patient_pattern": "person"},
        {"classes_level": 0},
        {"intensity": "sett"},
        {"classes": ["one"]},
    ],
)
def test_sources_that_cannot_be_are_refused(bad):
    with pytest.raises((BadParameter, ValueError)):
        Source(**bad)


def test_delimiters_and_encodings_of_spreadsheets(tmp_path):
    (tmp_path / "a.csv").write_bytes("name;Größe\r\nä;1\r\n".encode("cp1252"))
    assert labels.load(tmp_path / "a.csv").to_dict("records") == [{"name": "ä", "Größe": "1"}]
