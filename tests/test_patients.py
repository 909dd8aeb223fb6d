"""Patients proposed from file names: found where names carry them, none where they do not."""

import random
import uuid

import numpy as np
import pandas as pd
import pytest

from kdnb.leakage import patients

TWO, THREE = "ab", "abc"


def propose(paths, copies=None):
    table = pd.DataFrame({"path": paths, "label": [path.split("/")[-2] for path in paths]})
    return patients.propose(table, np.arange(len(paths)) if copies is None else copies)


def cohort(template, count=40, each=3, classes=TWO):
    """Paths of ``count`` patients with ``each`` images; ``template`` takes c, p and k."""
    return [
        f"{classes[p % len(classes)]}/" + template.format(p=p, k=k, c=classes[p % len(classes)])
        for p in range(count)
        for k in range(each)
    ]


SITES = ["02", "06", "CS", "A7"]
CARRIERS = {
    "Kermany's radiographs": (cohort("person{p}_bacteria_{k}.jpeg"), r"^(person\d+)_", 40),
    "two numbers": (cohort("IM-{p:04}-{k:04}.jpeg"), r"^(IM-\d+)-", 40),
    "both eyes": ([f"a/{p}_{s}.jpg" for p in range(50) for s in ("left", "right")], r"^(\d+)_", 50),
    "barcodes": (
        [
            f"{TWO[p % 2]}/TCGA-{s}-{p:04}_{k}.tif"
            for s in SITES
            for p in range(20)
            for k in range(5)
        ],
        patients.KNOWN_CODES[0],
        80,
    ),
    "ChestX-ray14": (cohort("{p:08}_{k:03}.png"), r"^(\d+)_", 40),
    "BIDS": (
        [f"a/sub-{p:02}_ses-{s}_run-{k}.png" for p in range(12) for s in (1, 2) for k in range(5)],
        r"^(sub-\d+)_",
        12,
    ),
    "a word of the class before": (cohort("{c}_P{p}_{k}.png"), r"^([A-Za-z]+_P\d+)_", 40),
    "no signs": (cohort("p{p}s{k}.png"), r"^(p\d+)s", 40),
    "other scripts": (cohort("患者{p}_{k}.png"), r"^(患者\d+)_", 40),
    "patients with images of both classes": (
        [f"{c}/{p}_x{k}_class{c}.png" for p in range(10253, 10263) for c in "01" for k in range(5)],
        r"^(\d+)_",
        10,
    ),
}


@pytest.mark.parametrize("kind", CARRIERS)
def test_a_pattern_is_found_where_names_carry_patients(kind):
    paths, pattern, count = CARRIERS[kind]
    shuffled = random.Random(0).sample(paths, len(paths))
    found = propose(shuffled)
    assert len(set(found.codes)) == count and "" not in found.codes
    same = pd.Series(found.codes).groupby([path.split("/")[-1] for path in shuffled]).first()
    assert same.str.len().gt(0).all() and all(
        name.startswith(code) for name, code in same.items()
    ), "a code is the beginning of a name"
    assert len(found.patterns) == 1 and len(found.examples) == 3
    if kind != "a word of the class before":
        assert found.patterns == (pattern,)


RANDOM = random.Random(0)
SILENT = {
    "mere numbers in every folder": [
        f"{s}/{c}/{k}.png" for s in ("train", "test") for c in TWO for k in range(50)
    ],
    "ISIC": [f"{TWO[k % 2]}/ISIC_{k:07}.jpg" for k in range(300)],
    "ISIC, smaller copies": [f"{TWO[k % 2]}/ISIC_{k:07}_downsampled.jpg" for k in range(300)],
    "class and number": [f"{c}/{c} ({k}).png" for c in ("benign", "malignant") for k in range(50)],
    "number and class": [f"{c}/{k}_class{c}.png" for c in "01" for k in range(50)],
    "number of the class": [f"{c}/{c}_{k}.png" for c in "0123" for k in range(50)],
    "folds": [f"a/fold{f}_{k}.png" for f in range(5) for k in range(50)],
    "folds, apart": [f"a/fold_{f}_{k}.png" for f in range(5) for k in range(50)],
    "places of tiles": [f"a/x{u}_y{v}.png" for u in range(20) for v in range(20)],
    "covid-19": [f"a/covid-19_{k}.png" for k in range(100)],
    "hashes": [f"a/{RANDOM.getrandbits(64):016x}.png" for _ in range(1000)],
    "UUIDs": [f"a/{uuid.UUID(int=RANDOM.getrandbits(128))}.png" for _ in range(1000)],
    "few groups of many": [f"{TWO[k % 2]}/{k % 7} ({k}).jpg" for k in range(2000)],
    "one image": ["a/1.png"],
}


@pytest.mark.parametrize("kind", SILENT)
def test_none_is_proposed_where_names_carry_no_patients(kind):
    assert propose(SILENT[kind]) is None


def test_two_hospitals_may_name_their_files_in_two_ways():
    paths = cohort("person{p}_bacteria_{k}.jpeg") + cohort("IM-{p:04}-{k:04}.jpeg")
    lone = [f"b/{k:05}.png" for k in range(60)]
    found = propose(paths + lone)
    assert set(found.patterns) == {r"^(person\d+)_", r"^(IM-\d+)-"}
    assert len(set(found.codes)) == 81 and (found.codes[-60:] == "").all()


def test_numbers_that_start_again_in_every_folder_are_other_patients():
    paths = [
        f"{s}/{c}/{p}_{k}.png"
        for s in ("train", "test")
        for c in TWO
        for p in range(9)
        for k in range(4)
    ]
    assert len(set(propose(paths).codes)) == 4 * 9
    # where equal names are copies of one image, equal numbers are equal patients
    copies = np.tile(np.arange(len(paths) // 4), 4)
    assert len(set(propose(paths, copies).codes)) == 9


def test_a_coarser_code_that_no_split_could_divide_gives_way_to_a_finer_one():
    paths = [
        f"{c}/SOB_{c}-14-{2000 + p}-40-{k:03}.png"
        for c in ("benign", "malignant")
        for p in range(10)
        for k in range(4)
    ]
    assert len(set(propose(paths).codes)) == 20


def test_examples_show_names_that_share_a_code():
    found = propose(cohort("person{p}_virus_{k}.jpeg"))
    assert found.examples[0] == "person0: person0_virus_0.jpeg, person0_virus_1.jpeg and 1 more"
