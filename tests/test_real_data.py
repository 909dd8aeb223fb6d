"""Public datasets as downloaded; skipped where KDNB_DATA is not set."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kdnb import data
from kdnb.distillation import create
from kdnb.images import numbering, pixels, splits, tables
from kdnb.leakage import synthetic_duplicates
from kdnb.study import Study
from kdnb.training import loop

KNOWN = {
    # usable images, classes, problems of the public files themselves
    "brain_tumor": (7_019, 4, {"copy across splits"}),
    "eye_disease": (4_213, 4, {"label conflict"}),
    "covid_qu_ex": (3_000, 3, {"copy across splits"}),
    "lc25000": (5_505, 3, {"class without images"}),
    "ham10000": (7_496, 7, {"row without a file", "table of labels"}),
    "wcebleedgen": (2_618, 2, set()),
    "covid_ct": (746, 2, {"table of labels"}),
    "sars_cov_2_ct": (2_481, 2, set()),
    "lgg_mri": (3_929, 2, {"not an image file"}),
    "kvasir_seg": (1_000, 1, {"not an image file"}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_public_dataset_is_read_completely(real, name):
    images, classes, problems = KNOWN[name]
    if not (real / name).is_dir():
        pytest.skip(f"{name} is not in KDNB_DATA")
    dataset = data.load(name)
    if abs(len(dataset.table) - images) > 0.3 * images:
        pytest.skip(f"another copy of {name}: {len(dataset.table)} images")
    assert len(dataset.table) == images and len(dataset.classes) == classes
    assert problems <= set(dataset.index.problems["problem"])
    assert (dataset.counts() > 0).all(axis=None)


def test_alzheimer_without_a_training_class_is_refused_but_pools_for_a_group_split(real):
    if not (real / "alzheimer").is_dir():
        pytest.skip("alzheimer is not in KDNB_DATA")
    grouped = data.load("alzheimer", split="group")
    counts = grouped.counts()
    assert counts.loc["moderate dementia"].gt(0).tolist() == [True, False, True]
    assert (counts.drop(index="moderate dementia") > 0).all(axis=None)
    if len(grouped.table) < 4000:  # the incomplete copy
        with pytest.raises(
            splits.SplitError, match="'very mild dementia' has no train image.*-p split group"
        ):
            data.load("alzheimer", split="official")


def test_the_most_similar_image_of_an_alzheimer_slice_is_of_its_subject(real):
    if not (real / "alzheimer").is_dir():
        pytest.skip("alzheimer is not in KDNB_DATA")
    table = data.load("alzheimer", split="group").table
    if len(table) < 6_400:
        pytest.skip("the copy of alzheimer is incomplete")
    assert set(table["patient"].value_counts()) == {32} and table["patient"].nunique() == 200
    images = [pixels.read_image(real / "alzheimer" / path, 88, "L")[0] for path in table["path"]]
    detail = [image - gaussian_filter(image, 2) for image in np.asarray(images, np.float32)]
    alike = np.corrcoef(np.reshape(detail, (len(table), -1)))
    np.fill_diagonal(alike, -1)
    patient = table["patient"].to_numpy()
    assert (patient[alike.argmax(axis=1)] == patient).all()


def test_both_eyes_of_a_patient_stay_together(real):
    if not (real / "eye_disease").is_dir():
        pytest.skip("eye_disease is not in KDNB_DATA")
    table = data.load("eye_disease").table
    known = table[table["patient"] != ""]
    assert len(known) > 1000 and known.groupby("patient")["split"].nunique().max() == 1


def test_the_test_images_of_ham10000_are_those_of_isic_2018(real):
    if not (real / "ham10000").is_dir():
        pytest.skip("ham10000 is not in KDNB_DATA")
    dataset = data.load("ham10000")
    assert dataset.counts().sum()["test"] == 1_512 and dataset.split_name == "official"
    assert "partial copy: 7,496 of 11,527" in dataset.title
    melanoma = (dataset.table["label"] == "melanoma").sum()
    assert melanoma == 662 and dataset.table["patient"].nunique() == 7_207


def test_neighbouring_frames_of_wcebleedgen_stay_together(real):
    if not (real / "wcebleedgen").is_dir():
        pytest.skip("wcebleedgen is not in KDNB_DATA")
    table = data.load("wcebleedgen").table
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table.groupby("patient")["path"].size().max() <= numbering.BLOCK
    assert table.groupby("patient")["label"].nunique().max() == 1


def test_patients_of_covid_ct_stand_on_one_side_of_its_official_split(real):
    if not (real / "covid_ct").is_dir():
        pytest.skip("covid_ct is not in KDNB_DATA")
    dataset = data.load("covid_ct")
    table = dataset.table
    assert dataset.split_name == "official"
    assert dataset.counts().to_numpy().tolist() == [[191, 60, 98], [234, 58, 105]]
    assert (table["patient"] != "").all() and table["patient"].nunique() == 384
    assert table.groupby("patient")["split"].nunique().max() == 1


def test_the_colour_mode_tells_the_class_of_sars_cov_2_ct(real):
    if not (real / "sars_cov_2_ct").is_dir():
        pytest.skip("sars_cov_2_ct is not in KDNB_DATA")
    table = data.load("sars_cov_2_ct", split="random").table
    assert (table.loc[table["mode"] == "RGB", "label"] == "COVID-19").all()
    assert (table["mode"] == "RGB").sum() == 413
    (sentence,) = [each for each in tables.giveaways(table) if "colour mode" in each]
    assert "in 66% of the cases" in sentence


def test_detected_groups_of_lc25000_agree_with_the_published_ones(real):
    """LC25000-clean publishes the groups; the detector does not read them."""
    if not (real / "lc25000" / "groups.csv").exists():
        pytest.skip("lc25000 with its groups.csv is not in KDNB_DATA")
    dataset = data.load("lc25000")
    origin = synthetic_duplicates.published(dataset.index.root, dataset.table)
    score = synthetic_duplicates.score(
        origin, dataset.table["group"].to_numpy(), dataset.table["label"]
    )
    assert (
        score["adjusted_rand"] >= 0.95 and min(score["adjusted_rand_by_class"].values()) >= 0.95
    ), score
    assert (
        len(splits.leaking(dataset.table, origin))
        <= 0.01 * (dataset.table["split"] == "test").sum()
    )


def test_a_student_learns_from_real_images(real):
    if not (real / "brain_tumor").is_dir():
        pytest.skip("brain_tumor is not in KDNB_DATA")
    study = Study(dataset="brain_tumor", image_size=32, batch_size=32)
    dataset = data.load("brain_tumor", per_class=150)
    run = loop.fit(study, dataset, "kdfmv5", create("hard"), 6)
    assert run.record["best_val_balanced_accuracy"] > 0.5  # chance is 0.25
