"""Features and classical learners: closed forms, no leakage, kept features, ensembles."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pywt
import torch
from conftest import paint
from joblib import Memory
from safetensors.torch import load_file, save_file
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from sklearn.base import clone
from sklearn.inspection import permutation_importance

from kdnb import classical, files, parameters
from kdnb.classical import Block, comparison, handcrafted, pipelines, settings
from kdnb.classical import blocks as sources
from kdnb.evaluation import ensembles
from kdnb.explanations import registry
from kdnb.explanations.attributions import occlusion_stride, occlusion_window
from kdnb.explanations.base import Job
from kdnb.models import zoo
from kdnb.models.predict import penultimate, predict
from kdnb.study import Study
from kdnb.training import loop
from kdnb.training.checkpoints import Run
from kdnb.training.teachers import GivenLogits

BOARD = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None]
CONSTANT = np.full((1, 32, 32), 100, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)


def wave(cycles):
    line = np.rint(128 + 100 * np.cos(2 * np.pi * cycles * np.arange(32) / 32))
    return np.tile(line, (32, 1)).astype(np.uint8)[None]


def named(family, image):
    found = handcrafted.FAMILIES[family]
    return dict(zip(found.names, found.compute(image)[0], strict=True))


@pytest.mark.parametrize("family", handcrafted.FAMILIES)
def test_a_family_gives_one_finite_value_a_name(family):
    found = handcrafted.FAMILIES[family]
    for images in (NOISE, CONSTANT, BOARD, NOISE[:, :30, :30]):
        values = found.compute(images)
        assert values.shape == (len(images), len(found.names)) and np.isfinite(values).all()
    assert len(set(found.names)) == len(found.names)
    with pytest.raises(ValueError, match="images must be"):
        found.compute(NOISE[0])


def test_co_occurrence_of_a_chessboard_and_of_a_constant_image():
    found = named("glcm", BOARD)
    # at 1 px: opposite along two directions, equal along the diagonals; at 2 px: equal throughout
    assert found["contrast at 1 px"] == pytest.approx(31**2 / 2)
    assert found["correlation at 1 px"] == pytest.approx(0, abs=1e-3)
    assert found["contrast at 2 px"] == 0 and found["correlation at 2 px"] == pytest.approx(1)
    assert found["entropy at 2 px"] == pytest.approx(np.log(2), abs=1e-3)
    flat = named("glcm", CONSTANT)
    assert flat["contrast at 1 px"] == flat["entropy at 4 px"] == 0
    assert flat["energy at 1 px"] == flat["correlation at 4 px"] == 1


def test_texture_is_that_of_scikit_image():
    matrix = graycomatrix(NOISE[1] // 8, [2], handcrafted.ANGLES, 32, symmetric=True, normed=True)
    found = classical.glcm(NOISE)[1]
    for place, name in enumerate(handcrafted.PROPERTIES):
        assert found[5 + place] == pytest.approx(graycoprops(matrix, name).mean())
    codes = local_binary_pattern(NOISE[2], 8, 1, "uniform")[1:-1, 1:-1]
    counts = [(codes == number).mean() for number in range(10)]
    assert classical.lbp(NOISE)[2, :10] == pytest.approx(counts)


def test_binary_patterns_of_a_constant_image_and_of_a_chessboard():
    found = named("lbp", CONSTANT)
    # no neighbour is darker than its centre: all ones, the pattern number 8 of 8 points
    assert found["8 points, bin 8"] == found["16 points, bin 16"] == 1
    board = named("lbp", BOARD)
    assert board["8 points, bin 8"] == pytest.approx(0.5)  # black centres
    assert sum(classical.lbp(BOARD)[0, :10]) == pytest.approx(1)


@pytest.mark.parametrize(("cycles", "ring"), [(1, 1), (4, 3), (7, 4), (15, 8)])
def test_a_wave_lies_in_the_ring_of_its_frequency(cycles, ring):
    found = named("fft", wave(cycles))
    assert found[f"ring {ring}"] == pytest.approx(1, abs=1e-3)
    assert found["power"] == pytest.approx(np.log1p(wave(cycles).astype(float).var()))


def test_the_spectrum_of_a_constant_image_is_zero():
    assert not classical.fft(CONSTANT).any()


def test_wavelets_are_those_of_pywavelets_and_a_chessboard_is_diagonal():
    found = named("wavelets", BOARD)
    # a Haar transform of ±127.5: 255 in every diagonal detail of the finest scale
    assert found["scale 1 diagonal"] == pytest.approx(np.log1p(255.0**2))
    assert sum(found.values()) == pytest.approx(found["scale 1 diagonal"])
    _, *details = pywt.wavedec2(NOISE[0].astype(float), "haar", mode="periodization", level=3)
    energies = [np.log1p((part**2).mean()) for scale in details[::-1] for part in scale]
    assert classical.wavelets(NOISE)[0] == pytest.approx(energies)
    assert not classical.wavelets(CONSTANT).any()


def test_names_are_joined_and_a_wrong_one_is_answered_with_the_nearest():
    assert settings.named("teacher + handcrafted+glcm") == ("teacher", *handcrafted.FAMILIES)
    assert settings.named("fft+resnet18") == ("fft", "resnet18")
    for wrong, near in (
        ("handcraftd", "handcrafted"),
        ("wavelet", "wavelets"),
        ("tacher", "teach"),
    ):
        with pytest.raises(files.UnknownName, match=f"Did you mean '{near}"):
            settings.named(wrong)
    with pytest.raises(files.UnknownName, match="Did you mean 'densenet121'"):
        settings.named("glcm+densenet12")
    with pytest.raises(parameters.BadParameter, match="-p features teacher"):
        settings.named("kdfmv5")
    with pytest.raises(parameters.BadParameter, match="one part or more"):
        settings.named(" + ")


def study(folder, **values):
    given = {
        "dataset": "folder",
        "data_root": str(folder),
        "teacher": "resnet10t",
        "student": "resnet10t",
        "teacher_epochs": 2,
        "student_epochs": 1,
        "image_size": 32,
        "features": "handcrafted",
    }
    return Study.of(classical.FeatureParameters)(**given | values)


@pytest.fixture
def own(folder):
    """A study of images whose classes differ in grey level, with its data."""
    chosen = study(folder)
    return chosen, chosen.load_data()


def test_the_penultimate_layer_gives_the_logits():
    model = zoo.create("resnet10t", 3, 32).eval()
    pixels = sources.Pixels(NOISE[:, None], [0, 1, 2])
    found = torch.from_numpy(penultimate(model, pixels))
    assert found.shape == (3, 512) and not model.network.fc._forward_pre_hooks
    expected = predict(model, pixels)
    np.testing.assert_allclose(model.network.fc(found).detach(), expected, rtol=0.05, atol=0.05)
    model.network.fc = torch.nn.Identity()
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        penultimate(model, pixels)


@pytest.mark.parametrize("name", ["kdfmv5", "ofa595", "densenet121", "autoformerv2_tiny"])
def test_networks_of_every_kind_have_features(name):
    model = zoo.create(name, 3, 64).eval()
    pixels = sources.Pixels(np.zeros((2, 1, 64, 64), np.uint8), [0, 1])
    assert penultimate(model, pixels).ndim == 2


def test_features_are_kept_and_damaged_ones_are_made_again(own, monkeypatch):
    chosen, mine = own
    first = classical.load(chosen, mine)
    assert classical.table(first)["images timed"].eq(len(mine.table)).all()
    paths = sorted((files.cache_dir() / "features").glob("*.safetensors"))
    assert len(paths) == 4

    def refuse(images):
        raise AssertionError("computed again")

    broken = {n: dataclasses.replace(f, compute=refuse) for n, f in handcrafted.FAMILIES.items()}
    with monkeypatch.context() as patch:
        patch.setattr(sources, "FAMILIES", broken)
        again = classical.load(chosen, mine)
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one.values, other.values) and one.seconds == other.seconds
        # another size, another view, other images are other features
        for changed in (
            lambda: classical.load(dataclasses.replace(chosen, image_size=40), mine),
            lambda: classical.load(chosen, mine, view="border only"),
            lambda: classical.load(
                chosen, dataclasses.replace(mine, table=mine.table[::-1].reset_index(drop=True))
            ),
        ):
            with pytest.raises(AssertionError, match="computed again"):
                changed()
    paths[0].write_bytes(paths[0].read_bytes()[:-40])  # half written
    held = load_file(paths[1])
    save_file({name: value + 1 for name, value in held.items()}, paths[1])  # without its key
    whole = classical.load(chosen, mine)
    for one, other in zip(first, whole, strict=True):
        assert np.array_equal(one.values, other.values)


def test_a_networks_features_follow_its_weights(own):
    chosen, mine = own
    chosen = dataclasses.replace(chosen, features="teacher")
    one, other = (
        classical.load(chosen, mine, loop.train_teachers(each, mine))[0]
        for each in (chosen, dataclasses.replace(chosen, seed=1))
    )
    assert one.name == "teacher resnet10t" and one.learnt
    assert one.values.shape == (len(mine.table), 512)
    assert not np.allclose(one.values, other.values)


def test_a_feature_that_is_no_number_names_image_and_feature(own, monkeypatch):
    chosen, mine = own

    def wrong(images):
        values = handcrafted.fft(images)
        values[5, 2] = np.nan
        return values

    family = dataclasses.replace(handcrafted.FAMILIES["fft"], compute=wrong)
    monkeypatch.setattr(sources, "FAMILIES", handcrafted.FAMILIES | {"fft": family})
    with pytest.raises(classical.BadFeature, match="'ring 3' of fft is nan") as caught:
        classical.load(chosen, mine)
    assert mine.table["path"].iloc[5] in str(caught.value)


def drawn(rows=120, classes=3, features=6, seed=0, learnt=False, name="block"):
    """A block whose classes have different means, with labels and groups of two images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) // 2 % classes
    values = rng.normal(size=(rows, features)) + labels[:, None]
    names = tuple(map(str, range(features)))
    return classical.Block(name, values.astype(np.float32), names, learnt), labels


@pytest.mark.parametrize("learnt", [True, False])
def test_images_outside_training_change_nothing_that_is_fitted(learnt):
    block, labels = drawn(learnt=learnt)
    train, groups = np.arange(80), np.arange(120) // 2
    other = dataclasses.replace(block, values=block.values.copy())
    other.values[80:] *= 100
    changed = np.where(np.arange(120) < 80, labels, 0)
    one = pipelines.fit([block], labels, train, groups, 3)
    two = pipelines.fit([other], changed, train, np.where(groups < 40, groups, 0), 3)
    assert (one.cost, one.temperature, one.validated) == (two.cost, two.temperature, two.validated)
    assert np.array_equal(one.logits[:80], two.logits[:80])
    assert not np.allclose(one.logits[80:], two.logits[80:])
    for a, b in zip(fitted_numbers(one), fitted_numbers(two), strict=True):
        assert np.array_equal(a, b)


def fitted_numbers(fitted):
    """Means, components and support vectors of a pipeline."""
    joined, machine = fitted.estimator["features"], fitted.estimator["svc"]
    for step in joined.named_transformers_.values():
        own = getattr(step, "named_steps", {"scaler": step})
        for part in (own[name] for name in own if name != "out"):
            yield from (part.mean_, getattr(part, "components_", part.mean_))
    yield from (machine.support_, machine.dual_coef_, machine.intercept_)


def test_training_images_are_answered_by_folds_that_did_not_see_them():
    """Labels without any relation to the features: only an image's own label would help."""
    block, _ = drawn(rows=200, features=40)
    labels = np.random.default_rng(1).integers(0, 2, 200)
    found = pipelines.fit([block], labels, np.arange(200), np.arange(200), 2)
    assert (found.logits.argmax(1) == labels).mean() < 0.65
    seen = pipelines.decisions(
        found.estimator.set_params(svc__C=100.0).fit(pipelines.join([block]), labels),
        pipelines.join([block]),
        2,
    )
    assert (seen.argmax(1) == labels).mean() > 0.95


def test_folds_keep_groups_and_classes():
    labels = np.arange(120) % 3
    groups = np.random.default_rng(0).integers(0, 20, 120)
    found = pipelines.folds(labels, groups)
    assert sorted(np.concatenate([out for _, out in found])) == list(range(120))
    for fitted, out in found:
        assert not set(groups[fitted]) & set(groups[out])
        assert set(labels[fitted]) == {0, 1, 2}
    with pytest.raises(classical.TooFewGroups, match="class 1 has 1 group"):
        pipelines.folds(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3]))
    with pytest.raises(classical.TooFewGroups, match="two classes"):
        pipelines.folds(np.zeros(4, int), np.arange(4))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("learnt", [True, False])
def test_two_classes_one_feature_and_the_same_result_twice(classes, features, learnt):
    block, labels = drawn(classes=classes, features=features, learnt=learnt)
    arguments = [block], labels, np.arange(80), np.arange(120) // 2, classes
    one, two = pipelines.fit(*arguments), pipelines.fit(*arguments)
    assert one.logits.shape == (120, classes) and np.array_equal(one.logits, two.logits)
    assert (one.logits[80:].argmax(1) == labels[80:]).mean() > 0.45
    predicted = one.estimator.predict(pipelines.join([block])[80:])
    assert (one.logits[80:].argmax(1) == predicted).mean() > 0.9
    assert np.allclose(one.answer(pipelines.join([block])[80:]), one.logits[80:])


def test_each_source_has_the_same_weight_in_the_kernel():
    wide, labels = drawn(features=50, name="wide", learnt=True)
    narrow, _ = drawn(features=4, seed=1, name="narrow")
    found = pipelines.fit([wide, narrow], labels, np.arange(120), np.arange(120) // 2, 3)
    assert found.names == ("wide", "narrow") and set(found.components) == {"wide"}
    values = found.estimator["features"].transform(pipelines.join([wide, narrow]))
    assert values[:, :-4].var(0).sum() == pytest.approx(1, abs=0.06)  # 95 % of it
    assert values[:, -4:].var(0).sum() == pytest.approx(1)


def test_importance_is_that_of_scikit_learn_for_single_features():
    useful, labels = drawn(features=1, name="useful")
    useless = classical.Block("useless", drawn(seed=3, classes=1)[0].values[:, :1], ("x",))
    rows, groups = np.arange(60, 120), np.arange(120) // 2
    found = pipelines.fit([useful, useless], labels, np.arange(60), groups, 3)
    table = pipelines.importance(found, [useful, useless], rows, labels, groups, repeats=40)
    values = table.set_index("label")
    expected = permutation_importance(
        found.estimator,
        pipelines.join([useful, useless])[rows],
        labels[rows],
        scoring="balanced_accuracy",
        n_repeats=40,
        random_state=0,
    ).importances_mean
    assert -values["difference"].to_numpy() == pytest.approx(expected, abs=0.05)
    assert values.loc["useful", "high"] < 0 < -values.loc["useful", "low"]
    assert values.loc["useful", "difference"] < values.loc["useless", "difference"]


def test_parts_are_each_alone_and_left_out_and_none_twice():
    one, two = (drawn(name=name, learnt=True)[0] for name in "ab")
    texture, waves = (drawn(name=name)[0] for name in ("glcm", "fft"))
    found = comparison.subsets([one, two, texture, waves])
    names = {key: [block.name for block in members] for key, members in found.items()}
    assert next(iter(names)) == ("all parts", "alone") and len(names) == 11
    assert names["all networks", "alone"] == ["a", "b"]
    assert names["handcrafted", "alone"] == ["glcm", "fft"]
    assert names["b", "left out"] == ["a", "glcm", "fft"]
    assert len({tuple(each) for each in names.values()}) == len(names)
    assert list(comparison.subsets([one])) == [("all parts", "alone")]


def test_a_shortcut_of_the_files_is_found(home):
    """Classes of equal noise that differ in the colour mode of the files alone."""
    seed = 0
    for split, count in (("train", 12), ("val", 4), ("test", 8)):
        for label, mode in (("a", "L"), ("b", "RGB")):
            for _ in range(count):
                seed += 1
                paint(home / "mine" / split / label / f"{seed}.png", seed, 60, mode=mode)
    chosen = study(home / "mine", features="fft")
    mine = chosen.load_data()
    found = classical.fit_shortcuts(chosen, mine)
    scores = classical.scores({k: classical.on_test(f, mine) for k, f in found.items()}, mine)
    assert list(scores) == ["border only", "statistics only", "colour mode only"]
    assert scores["colour mode only"]["accuracy"] == 1
    assert classical.by_view(scores)["view"].tolist() == list(scores)


def test_a_pipeline_teaches_on_fixed_views_and_refuses_what_it_cannot(own):
    chosen, mine = own
    chosen = dataclasses.replace(chosen, features="teacher")
    blocks = classical.load(chosen, mine, loop.train_teachers(chosen, mine))
    fitted = comparison.fit(blocks, chosen, mine)
    assert classical.scores({"p": classical.on_test(fitted, mine)}, mine)["p"]["accuracy"] > 0.9
    runs = classical.teach(chosen, mine, fitted)
    assert list(runs) == ["taught by the pipeline", "no teacher, same views"]
    taught = runs["taught by the pipeline"]
    told = GivenLogits("pipeline", torch.from_numpy(fitted.logits.astype(np.float32)))
    assert taught.record["key"]["teachers"] == [told.checksum]
    assert "kd_loss" in taught.history or "soft_loss" in taught.history
    method = chosen.make_method()
    with pytest.raises(ValueError, match="-p augment False"):
        loop.fit(chosen, mine, "resnet10t", method, 1, [told])
    with pytest.raises(ValueError, match="more of its teacher"):
        classical.teach(
            dataclasses.replace(
                chosen, method="attention_transfer", alpha=None, temperature=None, options={}
            ),
            mine,
            fitted,
        )


def test_an_ensemble_teaches_the_student_too(own):
    chosen, mine = own
    pair = loop.train_teachers(dataclasses.replace(chosen, teacher="resnet10t+kdfmv5"), mine)
    blocks = classical.load(dataclasses.replace(chosen, features="glcm"), mine, pair)
    runs = classical.teach(chosen, mine, comparison.fit(blocks, chosen, mine), pair)
    taught = runs["taught by the ensemble"].record["key"]
    assert taught["teachers"] == [run.checksum for run in pair]
    assert taught["settings"] == runs["no teacher, same views"].record["key"]["settings"]


def test_ties_of_votes_go_to_the_higher_mean_probability():
    one, two = np.log([[0.6, 0.3, 0.1]]), np.log([[0.1, 0.8, 0.1]])
    assert ensembles.majority({"a": one, "b": two}).argmax() == 1
    three = {"a": one, "b": one, "c": np.log([[0.001, 0.998, 0.001]])}
    assert ensembles.majority(three).argmax() == 0 and ensembles.mean(three).argmax() == 1
    assert np.exp(ensembles.mean({"a": one, "b": two})) == pytest.approx(
        np.array([[0.35, 0.55, 0.1]])
    )
    assert np.exp(ensembles.majority(three)).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="needs a member"):
        ensembles.mean({})


def test_agreement_of_two_members():
    a, b, labels = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array([0, 0, 1, 0])
    (row,) = ensembles.agreement({"a": a, "b": b}, labels).to_dict("records")
    assert row == {
        "one": "a",
        "other": "b",
        "kappa": pytest.approx(0.5),
        "disagreement": 0.25,
        "one_right": 0.25,
        "other_right": 0.0,
        "both_wrong": 0.25,
    }
    same = ensembles.agreement({"a": a * 0, "b": a * 0}, labels)
    assert same["kappa"].item() == 1


def test_the_occluded_window_may_be_given_in_pixels():
    model = zoo.create("resnet10t", 2, 64).eval()
    options = registry.METHODS["occlusion"].options
    job = Job(model, torch.zeros(1, 3, 64, 64), torch.zeros(1).long(), "", None, options)
    assert occlusion_window(job) == (3, 8, 8) and occlusion_stride(job) == (3, 4, 4)
    given = dataclasses.replace(job, options=options | classical.ATTRIBUTIONS["occlusion"])
    assert occlusion_window(given) == (3, 15, 15) and occlusion_stride(given) == (3, 8, 8)
    assert classical.ATTRIBUTIONS.keys() <= registry.METHODS.keys()


def test_networks_of_equal_name_are_numbered():
    run = Run(zoo.create("resnet10t", 2, 32), pd.DataFrame(), {}, Path())
    found = comparison.members([run, run], run)
    assert list(found) == ["teacher resnet10t 1", "teacher resnet10t 2", "student resnet10t"]


def test_files_have_blocks_without_shapes(own):
    _, mine = own
    found = sources.of_files(mine)
    assert found["statistics only"].values.shape == (len(mine.table), 12)
    assert len(found["statistics only"].names) == 12
    assert found["colour mode only"].names == ("L",)


def test_held_out_answers_are_those_of_plain_pipelines_and_a_memory_changes_none(tmp_path):
    rng = np.random.default_rng(0)
    labels, groups = np.arange(60) % 2, np.arange(60) // 2
    shift = labels[:, None] * 0.8
    blocks = [
        Block(name, (rng.normal(size=(60, width)) + shift).astype(np.float32), names, learnt)
        for name, width, learnt in (("net", 12, True), ("glcm", 4, False))
        for names in [tuple(map(str, range(width)))]
    ]
    plain = pipelines.fit(blocks, labels, np.arange(60), groups, 2)
    memory = Memory(tmp_path, verbose=0)
    for _ in range(2):  # the second time from the memory
        kept = pipelines.fit(blocks, labels, np.arange(60), groups, 2, memory=memory)
        assert np.array_equal(kept.logits, plain.logits) and kept.components == plain.components
    values = pipelines.join(blocks)
    for fitted, out in pipelines.folds(labels, groups):
        own = clone(plain.estimator).fit(values[fitted], labels[fitted])
        decided = own.decision_function(values[out]) / plain.temperature
        assert np.allclose(plain.logits[out, 1] - plain.logits[out, 0], decided, atol=1e-6)
