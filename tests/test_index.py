"""The index: trees as downloads really have them, and bad files named instead of swallowed."""

import os
import shutil

import numpy as np
import pytest
from conftest import number_of, paint
from PIL import Image

from kdnb import data, files
from kdnb.images import index, read, tables
from kdnb.images.catalogue import DATASETS


def covid_tree(root):
    """COVID-QU-Ex in small: every third image stands in the infection tree too, with its second
    mask."""
    seed = 0
    for split in ("Train", "Val", "Test"):
        for label in ("COVID-19", "Non-COVID", "Normal"):
            for number in range(6):
                seed += 1
                lung = root / "Lung Segmentation Data" / "Lung Segmentation Data" / split / label
                name = f"{label.lower()}_{seed}.png"
                paint(lung / "images" / name, seed)
                paint(lung / "lung masks" / name, 1000 + seed)
                if number % 3 == 0:
                    # the infection tree splits some images otherwise
                    other = "Val" if seed == 1 else split
                    infection = (
                        root
                        / "Infection Segmentation Data"
                        / "Infection Segmentation Data"
                        / other
                        / label
                    )
                    for kind in ("images", "lung masks"):
                        (infection / kind).mkdir(parents=True, exist_ok=True)
                        shutil.copy(lung / kind / name, infection / kind / name)
                    paint(infection / "infection masks" / name, 2000 + seed)
    return root


def test_covid_qu_ex_joins_both_trees_with_both_masks(home):
    found = index.build(DATASETS["covid_qu_ex"], covid_tree(home / "data" / "covid_qu_ex"))
    table = found.table
    assert list(table.columns) == tables.COLUMNS
    assert len(table) == 54 and table["path"].is_unique
    assert table.groupby(["split", "label"]).size().eq(6).all()
    assert table["organ_mask"].ne("").all()
    assert table["mask"].ne("").sum() == 18
    for row in table[table["mask"] != ""].itertuples():
        assert "infection masks" in row.mask and row.path.split("/")[-1] == row.mask.split("/")[-1]
        assert row.mask_sha256 == files.file_sha256(found.root / row.mask)
        assert row.organ_mask_sha256 == files.file_sha256(found.root / row.organ_mask)
    assert table.loc[table["mask"] == "", "mask_sha256"].eq("").all()
    moved = found.problems[found.problems["problem"] == "split differs between trees"]
    assert len(moved) == 1 and table.loc[
        table["path"].str.contains("covid-19_1.png"), "split"
    ].tolist() == ["train"]


@pytest.mark.parametrize("spelling", ["no_tumor", "NoTumor", "notumor", "Healthy", "no tumor"])
def test_spellings_of_public_copies_are_accepted(home, spelling):
    root = home / "data" / "brain_tumor"
    for split in ("TRAINING", "testing"):
        for number, label in enumerate((spelling, "Glioma_Tumor", "meningioma", "PITUITARY")):
            for copy, suffix in enumerate((".JPG", ".jpeg", ".png")):
                paint(
                    root / "Brain Tumor MRI" / split / label / f"{copy}{suffix}",
                    number_of(split, number, copy),
                )
    table = index.build(DATASETS["brain_tumor"], root).table
    assert len(table) == 24
    assert set(table["label"]) == {"no tumor", "glioma", "meningioma", "pituitary"}
    assert table.groupby(["split", "label"]).size().eq(3).all()


def test_bad_files_are_named_and_the_good_ones_used(folder):
    (folder / "train" / "dark" / "zero.png").touch()
    (folder / "train" / "dark" / "text.png").write_text("no image")
    whole = paint(folder / "train" / "dark" / "cut.png", 9999, size=200)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    jpeg = folder / "train" / "dark" / "cut.jpg"
    Image.open(paint(folder / "x.png", 5, size=200)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-400])
    (folder / "x.png").unlink()
    (folder / "train" / "dark" / "notes.txt").write_text("mine")
    (folder / "train" / "dark" / "gone.png").symlink_to(folder / "nowhere.png")
    first, second = folder / "train" / "grey" / "same.png", folder / "train" / "light" / "same.png"
    shutil.copy(paint(first, 777), second)
    shutil.copy(
        next((folder / "train" / "dark").glob("[0-9]*.png")),
        folder / "test" / "dark" / "copied.png",
    )
    found = index.build(DATASETS["folder"], folder)
    named = found.problems.groupby("problem")["path"].apply(sorted).to_dict()
    assert named.pop("empty file") == ["train/dark/zero.png"]
    assert named.pop("not an image") == ["train/dark/text.png"]
    assert named.pop("truncated or damaged") == ["train/dark/cut.jpg", "train/dark/cut.png"]
    assert named.pop("not an image file") == ["train/dark/notes.txt"]
    assert named.pop("missing file") == ["train/dark/gone.png"]
    assert named.pop("label conflict") == ["train/grey/same.png", "train/light/same.png"]
    assert len(named.pop("copy across splits")) == 1
    assert not named
    assert len(found.table) == 3 * 42 + 1  # the copy stays, the conflict goes
    assert found.problem_counts()["files"].sum() == len(found.problems)


def test_unknown_class_folders_are_named_for_a_known_dataset(home):
    root = home / "data" / "eye_disease" / "dataset"
    for label in ("cataract", "Diabetic_Retinopathy", "glaucoma", "normal", "myopia"):
        for number in range(3):
            paint(root / label / f"{number}.jpg", number_of(label, number))
    found = index.build(DATASETS["eye_disease"], root.parent)
    unknown = found.problems[found.problems["problem"] == "unknown class folder"]
    assert len(unknown) == 3 and unknown["path"].str.contains("myopia").all()
    assert "cataract" in unknown["detail"].iloc[0]
    assert found.classes == tuple(DATASETS["eye_disease"].classes)


def test_a_class_without_images_is_left_out_and_named(home):
    root = home / "data" / "lc25000"
    for label in ("lung_aca", "lung_n", "lung_scc"):
        for number in range(4):
            paint(root / label / f"{number}.jpeg", number_of(label, number))
    found = index.build(DATASETS["lc25000"], root)
    assert len(found.classes) == 3
    missing = found.problems[found.problems["problem"] == "class without images"]
    assert set(missing["path"]) == {"colon adenocarcinoma", "colon benign"}


def test_the_index_is_stored_and_rebuilt_when_the_tree_changes(folder, monkeypatch):
    first = index.build(DATASETS["folder"], folder)
    with monkeypatch.context() as patch:
        patch.setattr(
            read, "inspect", lambda *_, **__: pytest.fail("read an image although nothing changed")
        )
        again = index.build(DATASETS["folder"], folder)
    assert again.checksum == first.checksum and again.table.equals(first.table)
    image = next((folder / "train" / "dark").glob("*.png"))
    stat = image.stat()
    os.utime(paint(image, 4242, 10), ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = index.build(DATASETS["folder"], folder)
    assert changed.checksum != first.checksum
    paint(folder / "train" / "dark" / "new.png", 4243, 10)
    assert len(index.build(DATASETS["folder"], folder).table) == len(first.table) + 1


def test_the_checksum_of_a_tree_is_what_it_was_when_results_were_named_by_it(home):
    """Cached trainings and committed results are found by it: a change here loses them all."""
    for number, (split, label) in enumerate(
        [("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]
    ):
        path = home / "set" / split / label / "1.pgm"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"P5 2 2 255\n" + bytes([number] * 4))
    assert index.build(DATASETS["folder"], home / "set").checksum == "c1b17b5fe076"
    masks = home / "set" / "train" / "a" / "lesion masks"
    masks.mkdir()
    (masks / "1.pgm").write_bytes(b"P5 2 2 255\n\xff\xff\0\0")
    assert index.build(DATASETS["folder"], home / "set").checksum == "e40b7b536bd8"


def test_columns_tell_size_and_mode(folder):
    paint(folder / "train" / "dark" / "rgb.png", 5, size=64, mode="RGB")
    table = index.build(DATASETS["folder"], folder).table.set_index("path")
    assert table.loc["train/dark/rgb.png", ["width", "height", "mode"]].tolist() == [64, 64, "RGB"]
    assert (table["sha256"].str.len() == 64).all()


def test_an_empty_folder_says_what_was_expected(home):
    (home / "data" / "covid_qu_ex").mkdir()
    with pytest.raises(FileNotFoundError, match="Lung Segmentation Data"):
        data.load("covid_qu_ex")


def test_a_link_back_up_the_tree_does_not_loop(folder):
    (folder / "train" / "dark" / "up").symlink_to(folder)
    assert len(index.build(DATASETS["folder"], folder).table) == 3 * 42


def test_groups_hold_patients_and_copies_together():
    import pandas as pd

    table = pd.DataFrame({"patient": ["a", "a", "", "", ""], "sha256": ["1", "2", "2", "3", "4"]})
    group = tables.groups(table)
    assert group[0] == group[1] == group[2]
    assert len(np.unique(group)) == 3
