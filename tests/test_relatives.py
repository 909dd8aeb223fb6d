"""Copies and patients of one's own images: what the split does about them and says of them."""

import random
import re

import numpy as np
import pandas as pd
import pytest
from conftest import paint
from PIL import Image

from kdnb import data
from kdnb.images import phantoms, splits
from kdnb.images.source import Source
from kdnb.leakage import detector, relatives
from kdnb.leakage.synthetic_duplicates import WAYS

LABELS = ("COVID-like", "Normal-like")


def chest(label: str, number: int) -> Image.Image:
    drawn = phantoms.draw("phantom_cxr", label, 30_000 + number, size=96).image
    return Image.fromarray(np.uint8(np.clip(drawn, 0, 1) * 255))


def rescaled(image: Image.Image) -> Image.Image:
    return image.resize((80, 80), Image.Resampling.BICUBIC)


CHANGES = (rescaled, WAYS["cropped"], WAYS["turned-90"], WAYS["mirrored"], WAYS["recoded"])


def save(image: Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Two classes; half of the test images are changed copies of training images."""
    root, number = tmp_path_factory.mktemp("copied"), 0
    names = random.Random(0).sample(range(10_000), 200)
    for label in LABELS:
        for k in range(12):
            number += 1
            original = chest(label, number)
            save(original, root / "train" / label / f"{names.pop():05}.png")
            if k < 5:
                save(CHANGES[k](original), root / "test" / label / f"{names.pop():05}.png")
        for _ in range(5):
            number += 1
            save(chest(label, number), root / "test" / label / f"{names.pop():05}.png")
    return root


def load(root, split="auto", **options):
    return data.load("folder", root, split, **options)


def finding(dataset):
    return re.search("relatives: (.*)", repr(dataset))[1]


def test_copies_in_test_are_found_and_the_official_split_is_left(copied, home):
    dataset = load(copied)
    assert dataset.split_name == "group"
    assert (
        "because 10 of 20 test images (50.0%) of the official split have a relative"
        in dataset.split
    )
    assert dataset.split.endswith("kept together: copies; patients not known")
    assert splits.leaking(dataset.table, dataset.copies.groups(dataset.table)).empty
    assert dataset.relatives().related == 0 and finding(dataset).startswith("0 of ")


def test_an_official_split_that_is_asked_for_says_what_it_is_worth(copied, home):
    dataset = load(copied, "official")
    assert dataset.split_name == "official" and dataset.split.endswith("patients not known")
    assert finding(dataset) == (
        "10 of 20 test images (50.0%) have a relative in training or validation (copies: 10)"
    )
    random_ = load(copied, "random")
    found = random_.relatives()
    assert found.kinds == "copies" and finding(random_).startswith(
        f"{found.related} of {found.test} "
    )


def test_the_search_is_made_once_for_all_splits_and_not_for_phantoms(
    copied, few_phantoms, monkeypatch
):
    calls, detect = [], detector.detect
    monkeypatch.setattr(detector, "detect", lambda *given: calls.append(given[2]) or detect(*given))
    for split in splits.MODES:
        load(copied, split).relatives(search=True)
    assert calls == ["folder"]
    for split in ("auto", "group"):
        dataset = data.load("phantom_cxr", split=split)
        assert dataset.relatives(search=True).related == 0
        assert finding(dataset) == "none: every phantom is drawn alone"
        assert "patients" not in dataset.split.replace("not kept", "")
    assert calls == ["folder"]


def people(root, test_patients, own=(30, 12)):
    """``train`` with patients 0 to 29, ``test`` with some of these and with patients of its own."""
    seed = 0
    for part, who in (
        ("train", range(own[0])),
        ("test", [*range(100, 100 + own[1]), *test_patients]),
    ):
        for person in who:
            for image in (0, 1, 2):
                seed += 1
                name = f"person{person}_virus_{image + 3 * (part == 'test')}.png"
                paint(root / part / "ab"[person % 2] / name, seed)
    return root


def test_patients_in_file_names_are_kept_together_and_said_to_be_proposed(home):
    dataset = load(people(home / "mine", test_patients=(3, 4)))
    assert dataset.split_name == "group"
    assert "because 6 of 42 test images (14.3%)" in dataset.split
    assert dataset.split.endswith(
        r"kept together: copies; patients by `^(person\d+)_`, proposed from file names: 42"
    )
    assert dataset.table.groupby("patient")["split"].nunique().max() == 1
    assert dataset.table["patient"].nunique() == 42
    assert "  patient person100: person100_virus_3.png, person100_virus_4.png and 1" in repr(
        dataset
    )
    official = load(home / "mine", "official")
    assert finding(official).endswith("(copies: 0, patients: 6)")
    assert official.relatives().share == pytest.approx(6 / 42)


@pytest.mark.parametrize(("own", "mode"), [(99, "official"), (98, "group")])
def test_one_relative_in_a_hundred_is_where_an_official_split_ends(own, mode):
    """Official where at most 1 % of the test images have a relative in training or validation."""
    group = np.arange(20 + own + 1)
    group[-1] = 0
    table = pd.DataFrame({"split": ["train"] * 20 + ["test"] * (own + 1)})
    spec = data.describe("folder")
    assert splits.resolve(spec, table, "auto", group)[0] == mode
    assert splits.resolve(spec, table, "official", group) == ("official", "")
    assert splits.resolve(data.describe("covid_qu_ex"), table, "auto")[0] == "official"
    assert splits.resolve(data.describe("brain_tumor"), table, "auto") == ("group", "")


def test_patients_of_a_clean_official_split_change_nothing(home):
    dataset = load(people(home / "mine", test_patients=()))
    assert dataset.split_name == "official"
    assert finding(dataset) == (
        "0 of 36 test images (0.0%) have a relative in training or validation "
        "(copies: 0, patients: 0)"
    )


def test_a_catalogued_set_says_what_was_not_searched_for_until_it_was(home):
    root = home / "data" / "covid_qu_ex" / "Lung Segmentation Data"
    for number in range(45):
        label, part = ("COVID-19", "Non-COVID", "Normal")[number % 3], ["Train", "Val", "Test"]
        paint(root / part[number // 15] / label / "images" / f"{number}.png", number)
    dataset = data.load("covid_qu_ex")
    assert "byte-identical copies: 0" in finding(dataset) and "notebook 01" in finding(dataset)
    assert dataset.relatives().kinds == "byte-identical copies"
    assert dataset.relatives(search=True).kinds == "copies"
    again = data.load("covid_qu_ex")
    assert again.relatives().kinds == "copies" and "notebook 01" not in finding(again)
    assert again.checksum == dataset.checksum
    assert again.table["group"].tolist() == dataset.table["group"].tolist(), (
        "intervals of a run must not hang on what was searched before"
    )


def test_above_the_limit_only_a_split_by_group_searches(folder, home, monkeypatch):
    paint(folder / "train" / "dark" / "more.png", 5000, 10)  # a tree not searched before
    monkeypatch.setattr(detector, "LARGEST", 100)
    with monkeypatch.context() as patch:
        patch.setattr(detector, "detect", lambda *given: pytest.fail("searched"))
        dataset = load(folder)
        assert dataset.split_name == "official"
        assert "127 images, the limit is 100 (-p split group searches any number)" in repr(dataset)
        assert dataset.relatives(search=True).kinds == "byte-identical copies"
    assert load(folder, "group").relatives().kinds == "copies"


def test_stated_patients_leave_no_room_for_a_proposal(home):
    table = pd.DataFrame(
        {
            "path": [f"a/p{p}_{k}.png" for p in range(9) for k in range(3)],
            "label": "a",
            "patient": ["x"] * 3 + [""] * 24,
        }
    )
    kept, known = data._with_patients(data.describe("folder"), table, None, Source())
    assert kept["patient"].tolist() == table["patient"].tolist()
    stated = "patients as folders or file headers state them: 1 (3 of 27 images)"
    assert relatives.kept_together(kept, None, known) == f"byte-identical copies; {stated}"


def test_a_reader_can_refuse_the_proposal_or_give_a_pattern(home):
    table = pd.DataFrame(
        {"path": [f"a/p{p}_{k}.png" for p in range(9) for k in range(3)], "label": "a"}
    ).assign(patient="", sha256=[str(row) for row in range(27)])
    spec = data.describe("folder")
    assert data._with_patients(spec, table, None, Source())[0]["patient"].nunique() == 9
    kept, known = data._with_patients(spec, table, None, Source(patient_pattern="none"))
    assert kept["patient"].eq("").all() and known.sentence(kept) == "patients not known"
    stated = table.assign(patient="p")
    _, known = data._with_patients(spec, stated, None, Source(patient_pattern="^(p)"))
    assert known.sentence(stated) == "patients by `^(p)`: 1" and not known.lines()
    _, known = data._with_patients(spec, stated, None, Source(labels="tables/labels.csv"))
    assert known.sentence(stated) == "patients from labels.csv: 1"
