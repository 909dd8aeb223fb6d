"""Datasets by name: splits, the way out of missing classes, downloads that cannot be."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import medmnist
import numpy as np
import pytest
from conftest import number_of, paint

from kdnb import data, files
from kdnb.images import downloads, index, numbering, splits, tables
from kdnb.images.catalogue import DATASETS, MEDMNIST
from kdnb.images.source import Source
from kdnb.parameters import BadParameter
from kdnb.study import Study


def test_every_entry_tells_what_a_reader_needs():
    for name, spec in DATASETS.items():
        for fact in ("title", "citation", "licence", "source", "layout", "group_key"):
            assert getattr(spec, fact), (name, fact)
        assert not spec.counts or spec.counts.keys() == spec.classes.keys()
        if spec.kaggle:
            assert spec.size_gb and spec.total


def test_a_folder_keeps_its_own_splits(folder):
    dataset = data.load("folder", folder)
    assert dataset.counts().to_numpy().tolist() == [[24, 9, 9]] * 3
    assert dataset.split.startswith("official")
    assert "dark" in repr(dataset) and dataset.classes == ("dark", "grey", "light")


def test_a_folder_without_splits_is_grouped(home):
    root = home / "flat"
    for seed in range(60):
        paint(root / ("a" if seed % 3 else "b") / f"{seed}.png", seed)
    counts = data.load("folder", root).counts()
    assert counts.loc["a"].tolist() == [28, 6, 6] and counts.loc["b"].tolist() == [14, 3, 3]


def test_validation_is_cut_from_train_and_never_from_test(folder):
    shutil.rmtree(folder / "val")
    dataset = data.load("folder", folder)
    test = dataset.table[dataset.table["split"] == "test"]
    assert len(test) == 27 and test["path"].str.startswith("test/").all()
    val = dataset.table[dataset.table["split"] == "val"]
    assert len(val) >= 9 and val["path"].str.startswith("train/").all()
    assert set(val["label"]) == {"dark", "grey", "light"}


def test_a_class_that_cannot_be_learnt_is_named_with_the_way_out(folder):
    shutil.rmtree(folder / "train" / "grey")
    shutil.rmtree(folder / "val" / "grey")
    with pytest.raises(splits.SplitError, match="'grey' has no train image.*-p split group"):
        data.load("folder", folder)
    grouped = data.load("folder", folder, split="group")
    assert (grouped.counts() > 0).all(axis=None)


def test_an_official_split_that_is_not_there_is_refused(home):
    for seed in range(20):
        paint(home / "flat" / "ab"[seed % 2] / f"{seed}.png", seed)
    with pytest.raises(splits.SplitError, match="-p split group"):
        data.load("folder", home / "flat", split="official")


def test_patients_and_copies_stay_on_one_side(home):
    root = home / "data" / "eye_disease" / "dataset"
    for number in range(40):
        label = ("cataract", "diabetic_retinopathy", "glaucoma", "normal")[number % 4]
        for side in ("left", "right"):
            paint(root / label / f"{number}_{side}.jpg", 2 * number + (side == "left"), size=64)
        shutil.copy(root / label / f"{number}_left.jpg", root / label / f"copy{number}.jpg")
    dataset = data.load("eye_disease")
    table = dataset.table.assign(group=tables.groups(dataset.table))
    assert table["group"].nunique() == 40
    assert table.groupby("group")["split"].nunique().max() == 1
    assert table["split"].nunique() == 3


def skin(root, lesions=40, tests=14):
    """Images and tables as HAM10000 has them, two images of each training lesion."""
    codes, rows, number = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), [], 0
    for name, count, each in (
        ("HAM10000_metadata", lesions, 2),
        ("ISIC2018_Task3_Test_GroundTruth", tests, 1),
    ):
        rows = []
        for lesion in range(count):
            for _ in range(each):
                number += 1
                paint(root / f"images/ISIC_{number:07}.jpg", number, size=64)
                rows.append(f"{name}{lesion},ISIC_{number:07},{codes[lesion % 7]},histo")
        text = "\n".join(["lesion_id,image_id,dx,dx_type", *rows, "L,ISIC_missing,nv,histo"])
        (root / f"{name}.csv").write_text(text)


def test_labels_splits_and_lesions_of_ham10000_come_from_its_tables(home):
    skin(home / "data" / "ham10000")
    dataset = data.load("ham10000")
    table = dataset.table
    assert set(dataset.classes) == set(DATASETS["ham10000"].classes)
    assert (table["split"] == "test").sum() == 14 and dataset.split_name == "official"
    assert table["patient"].nunique() == 54
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert "lesions" in dataset.split and "partial copy: 94 of 11,527" in dataset.title
    # without the test images, the lesions are split anew; without a table, nothing says the labels
    (home / "data/ham10000/ISIC2018_Task3_Test_GroundTruth.csv").unlink()
    assert data.load("ham10000").split_name == "group"
    (home / "data/ham10000/HAM10000_metadata.csv").unlink()
    with pytest.raises(data.ReadingError, match="no table HAM10000_metadata.*-p labels"):
        data.load("ham10000")


def test_a_copy_of_ham10000_with_other_labels_says_which(home):
    root = home / "data" / "ham10000"
    skin(root)
    names = sorted(path.stem for path in (root / "images").iterdir())
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    (root / "metadata.csv").write_text("\n".join(["isic_id,target", *rows]))
    dataset = data.load("ham10000", source=Source(labels="metadata.csv"))
    assert dataset.classes == ("0", "1") and "other labels (0, 1)" in dataset.title


def slices(root, patients=12):
    """Images, tables and lists as COVID-CT has them: two slices of each patient of a class, of
    whom the last sixth is tested and the one before validated."""
    for kind, head, sep in (
        ("COVID", "File name,Patient ID,Age", ","),
        ("NonCOVID", ",image name,patient id", ","),
    ):
        rows, lists = [head], {"train": [], "val": [], "test": []}
        for number in range(2 * patients):
            name, patient = f"{kind}-{number}%1.png", number // 2
            paint(root / f"Images-processed/CT_{kind}" / name, number_of(kind, number), mode="RGB")
            row = [name, f"Patient {patient}", "41"]
            if kind == "NonCOVID":
                row = [str(number), name, f"crawled_{patient}"]
            rows.append(sep.join(row))
            sixth = 6 * patient // patients
            lists[{5: "test", 4: "val"}.get(sixth, "train")].append(name)
        (root / f"{kind}-CT-MetaInfo.csv").write_bytes("\n".join([*rows, ""]).encode("cp1252"))
        for part, names in lists.items():
            path = root / f"Data-split/{kind}/{part}CT_{kind}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([*names, ""]))
    (root / "COVID-CT-MetaInfo.xlsx").write_bytes(b"the same table once more")


def test_patients_of_covid_ct_come_from_its_tables_and_the_split_from_its_lists(home):
    slices(root := home / "data" / "covid_ct")
    dataset = data.load("covid_ct")
    table = dataset.table
    assert dataset.classes == ("COVID-19", "non-COVID") and dataset.split_name == "official"
    assert dataset.counts().to_numpy().tolist() == [[16, 4, 4]] * 2
    assert table["patient"].nunique() == 24 and (table.groupby("patient").size() == 2).all()
    assert table.groupby("group")["split"].nunique().max() == 1
    # patients of one table are not those of the other
    assert table.groupby("patient")["label"].nunique().max() == 1
    problems = dataset.index.problems.set_index("path")["problem"]
    assert problems["COVID-CT-MetaInfo.xlsx"] == "not an image file"
    assert problems["Data-split/COVID/valCT_COVID.txt"] == "table of labels"
    # a list that contradicts another is an error, and without the lists patients are split anew
    wrong = root / "Data-split/COVID/valCT_COVID.txt"
    wrong.write_text(wrong.read_text() + "COVID-0%1.png\n")
    with pytest.raises(data.ReadingError, match="the split of .*COVID-0%1.png is train and val"):
        data.load("covid_ct")
    shutil.rmtree(root / "Data-split")
    table = data.load("covid_ct").table
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table["split"].nunique() == 3


def test_the_default_split_of_sars_cov_2_ct_says_what_it_does_not_remedy(home):
    for number in range(40):
        for label, mode in (("COVID", "RGB"), ("non-COVID", "L")):
            path = home / f"data/sars_cov_2_ct/{label}/{number}.png"
            paint(path, number_of(label, number), mode=mode)
    dataset = data.load("sars_cov_2_ct")
    assert dataset.split_name == "group" and dataset.color == "RGB"
    for words in ("no patients are published", "colour mode of the files alone", "66%"):
        assert words in dataset.split and words in DATASETS["sars_cov_2_ct"].distrust
    assert "remedy" not in data.load("sars_cov_2_ct", split="random").split
    assert any("colour mode alone" in sentence for sentence in tables.giveaways(dataset.table))


@pytest.mark.parametrize("layout", ["as published", "short names", "numbered on"])
def test_neighbouring_frames_are_on_one_side(home, layout):
    root, count = home / "data" / "wcebleedgen", 60
    names = sorted(range(1, numbering.FRAMES + 1), key=str)  # what img1, img2, … were before
    for order, label in enumerate(("bleeding", "non-bleeding")):
        for number in range(1, count + 1):
            place = order * numbering.FRAMES + names.index(number) + 1
            name = {
                "as published": f"WCEBleedGen/{label}/Images/img- ({number}).png",
                "short names": f"{label}/img{number}.png",
            }.get(layout, f"{label}/img{place}.png")
            paint(root / name, number_of(label, number), size=64, mode="RGB")
    table = data.load("wcebleedgen").table
    blocks = table.groupby("patient")
    assert blocks.ngroups == 2 * count // numbering.BLOCK
    assert set(blocks.size()) == {numbering.BLOCK}
    assert blocks["split"].nunique().max() == 1 and blocks["label"].nunique().max() == 1
    numbers = table["patient"].str.extract(r"-(\d+)$")[0].astype(int)
    assert sorted(set(numbers)) == list(range(1, count, numbering.BLOCK))
    assert set(table["split"]) == {"train", "val", "test"}


# neighbouring slices, found by their pixels, in the published copy
ALZHEIMER_PAIRS = (
    *(("26 (19)", 681), ("26 (21)", 684), ("26 (26)", 689), ("27 (14)", 704), ("27 (8)", 715)),
    *(("27 (10)", 700), ("27 (3)", 710)),
)


def _alzheimer_names(divided):
    """Paths of mild dementia: 717 training images, and test images, of slice 26 those given."""
    slices = [(number, subject) for number in range(27, 33) for subject in range(1, 29)]
    slices += [(26, subject) for subject in divided]
    tested = {f"{n} ({subject})" if subject > 1 else f"{n}": subject for n, subject in slices}
    train = [f"train/MildDemented/mildDem{number}.jpg" for number in range(717)]
    return train, {f"test/MildDemented/{name}.jpg": subject for name, subject in tested.items()}


def test_slices_of_an_alzheimer_subject_are_known_by_their_numbers():
    train, tested = _alzheimer_names([1, *range(19, 29)])
    subjects = DATASETS["alzheimer"].groups_of([*train, *tested])
    assert all(subjects[path] == f"mild-{subject}" for path, subject in tested.items())
    for name, number in ALZHEIMER_PAIRS:
        assert subjects[f"test/MildDemented/{name}.jpg"] == subjects[train[number]]
    assert set(Counter(subjects.values()).values()) == {32} and len(set(subjects.values())) == 28


def test_a_slice_of_an_incomplete_alzheimer_copy_has_no_guessed_subject():
    train, tested = _alzheimer_names([1, *range(19, 28)])  # one of slice 26 is missing
    subjects = DATASETS["alzheimer"].groups_of([*train, *tested, "test/MildDemented/scan7.jpg"])
    assert set(train[:700]) | set(tested) == set(subjects)


def test_the_split_is_the_same_every_time(home):
    for seed in range(60):
        paint(home / "flat" / "ab"[seed % 2] / f"{seed}.png", seed)
    first, second = (data.load("folder", home / "flat") for _ in range(2))
    assert first.table.equals(second.table) and first.checksum == second.checksum


def test_folds_are_test_sets_of_a_study(folder):
    wanted = {"dataset": "folder", "data_root": str(folder)}
    first = Study(**wanted, folds=3)
    assert first.fold == 0 and first.outputs().name == "fold-0-of-3"
    loaded = [Study(**wanted, folds=3, fold=number).load_data() for number in range(3)]
    paths = [set(d.table.loc[d.table["split"] == "test", "path"]) for d in loaded]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 126
    assert len({d.checksum for d in loaded}) == 3
    assert {d.split_name for d in loaded} == {"group"}
    plain = Study(**wanted)
    assert plain.load_data().checksum == data.load("folder", folder).checksum
    for bad, message in (
        ({"fold": 1}, "-p folds 5"),
        ({"folds": 3, "fold": 3}, "between 0 and 2"),
        ({"folds": 3, "split": "official"}, "-p split group"),
    ):
        with pytest.raises(BadParameter, match=message):
            Study(**wanted, **bad)


def test_per_class_keeps_a_few_of_each(folder):
    assert data.load("folder", folder, per_class=4).counts().to_numpy().tolist() == [[4, 4, 4]] * 3


def test_a_stand_in_is_called_one(home):
    for label in ("COVID-19", "Non-COVID", "Normal"):
        for number in range(9):
            split = ("Train", "Val", "Test")[number % 3]
            tree = (
                home / "data" / "covid_qu_ex" / "Lung Segmentation Data" / split / label / "images"
            )
            paint(tree / f"{number}.png", number_of(label, number))
    assert "stand-in" in data.load("covid_qu_ex").title


@pytest.mark.parametrize(
    "name", ["covid_qu_ex", "lc25000", "brain_tumor", "eye_disease", "alzheimer"]
)
def test_a_missing_dataset_says_what_to_get_from_where(home, name):
    with pytest.raises(data.DatasetMissing) as caught:
        data.load(name)
    spec, message = DATASETS[name], str(caught.value)
    assert spec.source in message and f"{spec.size_gb:g} GB" in message
    assert str(home / "data" / name) in message and "-p download True" in message


def _kaggle(folder, monkeypatch):
    """Fake mounts of Kaggle and a fake cache of kagglehub; a folder of two classes to put there."""
    monkeypatch.setattr(downloads, "KAGGLE", folder / "input")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(folder / "hub"))

    def put(place):
        for split, count in (("Training", 8), ("Testing", 4)):
            for label in ("glioma", "notumor"):
                for number in range(count):
                    value = number_of(f"{split}{label}", number)
                    paint(place / split / label / f"{number}.png", value)
        return place

    return put


@pytest.mark.parametrize("below", ["", "datasets/masoudnickparvar"])
def test_a_dataset_that_kaggle_mounts_is_found_without_an_option(
    home, tmp_path, monkeypatch, capsys, below
):
    mount = tmp_path / "input" / below / "brain-tumor-mri-dataset"
    _kaggle(tmp_path, monkeypatch)(mount)
    before = sorted(mount.rglob("*"))
    found = data.load("brain_tumor", split="random")
    assert found.index.root == mount.resolve() and len(found.table) == 24
    assert f"brain_tumor is read from {mount}" in capsys.readouterr().out
    assert sorted(mount.rglob("*")) == before, "nothing may be written into a mount"
    with pytest.raises(data.DatasetMissing, match="is not at"):
        data.load("brain_tumor", data_root=tmp_path / "elsewhere")


def test_the_newest_whole_version_in_kagglehubs_cache_is_found(home, tmp_path, monkeypatch):
    put = _kaggle(tmp_path, monkeypatch)
    versions = tmp_path / "hub/datasets/masoudnickparvar/brain-tumor-mri-dataset/versions"
    for number in (2, 10, 11):
        put(versions / str(number))
        if number != 11:  # still being unpacked
            (versions / f"{number}.complete").touch()
    assert downloads.mounted(DATASETS["brain_tumor"]) == versions / "10"
    assert downloads.mounted(DATASETS["phantom_cxr"]) is None
    own = put(home / "data" / "brain_tumor")
    assert data.load("brain_tumor", split="random").index.root == own.resolve()


def test_a_missing_dataset_names_kaggles_ways(home, tmp_path, monkeypatch):
    _kaggle(tmp_path, monkeypatch)
    with pytest.raises(data.DatasetMissing, match='"Add input", masoudnickparvar/brain-tumor'):
        data.load("brain_tumor")


def test_a_repository_for_reading_only_keeps_its_files_in_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for variable in ("KDNB_DATA", "KDNB_CACHE", "KDNB_OUTPUTS"):
        monkeypatch.delenv(variable, raising=False)
    assert files.outputs_dir() == files.ROOT / "outputs"
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != files.ROOT)
    assert files.outputs_dir() == tmp_path / "outputs"
    assert files.cache_dir() == tmp_path / "cache"


def test_fetch_without_a_network_says_the_same(home, monkeypatch):
    import kagglehub

    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    with pytest.raises(data.DatasetMissing, match="no route to host") as caught:
        data.fetch("covid_qu_ex")
    assert "kaggle.com/datasets/anasmohammedtahir/covidqu" in str(caught.value)
    assert "1.2 GB" in str(caught.value)


def test_fetch_brings_and_counts(home, monkeypatch, capsys):
    import kagglehub

    def bring(handle, output_dir):
        assert handle == DATASETS["alzheimer"].kaggle
        _bring_alzheimer(output_dir)

    monkeypatch.setattr(kagglehub, "dataset_download", bring)
    assert data.fetch("alzheimer") == home / "data" / "alzheimer"
    assert "8 usable images came, 6,400 are published" in capsys.readouterr().out


def _bring_alzheimer(folder):
    for split in ("train", "test"):
        for label in ("MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented"):
            paint(
                Path(folder) / "Alzheimer_s Dataset" / split / label / "1.jpg",
                number_of(split, label),
            )


def test_a_download_killed_half_way_is_no_dataset(home, monkeypatch):
    import kagglehub

    def dies(handle, output_dir):
        paint(Path(output_dir) / "Alzheimer_s Dataset" / "train" / "NonDemented" / "1.jpg", 0)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(kagglehub, "dataset_download", dies)
    child = os.fork()
    if not child:
        data.fetch("alzheimer")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(data.DatasetMissing, match="is not at"):
        data.load("alzheimer")

    def brings(handle, output_dir):
        assert not Path(output_dir).exists(), "kagglehub refuses a folder that holds something"
        _bring_alzheimer(output_dir)

    monkeypatch.setattr(kagglehub, "dataset_download", brings)
    assert len(index.build(DATASETS["alzheimer"], data.fetch("alzheimer")).table) == 8
    assert {path.name for path in (home / "data").iterdir()} == {"alzheimer", "alzheimer.lock"}


def test_who_waited_for_a_download_takes_what_came(home, monkeypatch):
    import kagglehub

    begun, go, calls = threading.Event(), threading.Event(), []

    def slow(handle, output_dir):
        calls.append(handle)
        begun.set()
        assert go.wait(60)
        _bring_alzheimer(output_dir)

    monkeypatch.setattr(kagglehub, "dataset_download", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(data.fetch, "alzheimer")
        assert begun.wait(60)
        second = pool.submit(data.fetch, "alzheimer")
        time.sleep(0.2)  # it waits for the lock now
        assert not second.done()
        go.set()
        assert first.result() == second.result() == home / "data" / "alzheimer"
    assert len(calls) == 1


def test_an_empty_folder_is_filled_and_a_linked_one_stays_a_link(home, monkeypatch):
    import kagglehub

    (home / "disk").mkdir()
    (home / "data" / "alzheimer").symlink_to(home / "disk")
    monkeypatch.setattr(
        kagglehub, "dataset_download", lambda handle, output_dir: _bring_alzheimer(output_dir)
    )
    assert data.fetch("alzheimer").is_symlink() and (home / "disk" / "Alzheimer_s Dataset").is_dir()


def test_only_downloads_can_be_fetched(home):
    with pytest.raises(ValueError, match="not a download"):
        data.fetch("phantom_cxr")
    with pytest.raises(data.DatasetMissing, match="-p data_root"):
        data.load("folder")


def test_every_medmnist_set_has_a_modality_of_a_few_words():
    flat = [
        k
        for k, info in medmnist.INFO.items()
        if "3d" not in k and "multi-label" not in info["task"]
    ]
    assert sorted(MEDMNIST) == sorted(flat)
    assert data.describe("medmnist:breastmnist_64").modality == "breast ultrasound"


def test_medmnist_through_its_package(home):
    (home / "data" / "medmnist").mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 8), ("test", 10)):
        arrays |= {
            f"{split}_images": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            f"{split}_labels": np.arange(count)[:, None] % 2,
        }
    np.savez(home / "data" / "medmnist" / "pneumoniamnist.npz", **arrays)
    dataset = data.load("medmnist:pneumoniamnist")
    assert dataset.counts().sum().tolist() == [30, 8, 10] and dataset.classes == (
        "normal",
        "pneumonia",
    )
    assert dataset.spec.modality == "chest radiograph"
    row = dataset.table.index[dataset.table["path"].str.startswith("train")][0]
    number = int(dataset.table.loc[row, "path"].split("/")[-1].removesuffix(".png"))
    assert (dataset.pixels(28).images[row, 0].numpy() == arrays["train_images"][number]).all()
    with pytest.raises(data.DatasetMissing, match="bloodmnist.npz"):
        data.load("medmnist:bloodmnist")


@pytest.mark.parametrize("size", [64, 128, 224])
def test_larger_medmnist_sets_are_read_at_their_size(home, size):
    (home / "data" / "medmnist").mkdir()
    rng = np.random.default_rng(size)
    arrays = {}
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        arrays |= {
            f"{split}_images": rng.integers(0, 256, (count, size, size), dtype=np.uint8),
            f"{split}_labels": np.arange(count)[:, None] % 2,
        }
    np.savez(home / "data" / "medmnist" / f"pneumoniamnist_{size}.npz", **arrays)
    dataset = data.load(f"medmnist:pneumoniamnist_{size}")
    assert dataset.counts().sum().tolist() == [8, 4, 4]
    assert set(dataset.table["width"]) == {size} and str(size) in dataset.spec.source
    with pytest.raises(data.DatasetMissing, match=f"bloodmnist_{size}.npz"):
        data.load(f"medmnist:bloodmnist_{size}")
    with pytest.raises(ValueError, match="Did you mean"):
        data.load("medmnist:pneumoniamnist_65")


def test_the_checksum_names_images_labels_and_splits(folder):
    official, grouped = data.load("folder", folder), data.load("folder", folder, split="group")
    assert (
        official.index.checksum == grouped.index.checksum and official.checksum != grouped.checksum
    )
