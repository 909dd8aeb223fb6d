"""Which results are runs of one experiment: those whose settings differ in nothing but the seed."""

import numpy as np
import pytest
from test_claims import distillation

from kdnb import files
from kdnb.evaluation import predictions
from kdnb.report import ledger, results, shares

OPTIONS = {"first_lambda": 4.0, "last_lambda": 1.0, "hint_share": 0.5, "hint_layer": 2}


def stored(home, name, remove=(), study=None, **config):
    """A result file, with choices added to its configuration or taken from it."""
    path = distillation(home, name, **(study or {}))
    content = files.read_json(path)
    kept = {key: value for key, value in content["config"].items() if key not in remove}
    files.write_json(path, content | {"config": kept | config})


def seeds():
    return sorted(" ".join(map(str, pool.seeds)) for pool in results.pools(results.load()))


def test_an_option_that_nobody_has_heard_of_makes_two_pools(home):
    stored(home, "a/distill", seed=0)
    stored(home, "b/distill", seed=1)
    assert seeds() == ["0 1"]
    stored(home, "c/distill", seed=0, label_smoothing=0.1)
    stored(home, "d/distill", seed=1, label_smoothing=0.1)
    stored(home, "e/distill", seed=0, label_smoothing=0.2)
    assert seeds() == ["0", "0 1", "0 1"]


@pytest.mark.parametrize(
    "choice",
    [
        {"alpha": 0.2},
        {"batch_size": 8},
        {"augment": False},
        {"teacher_weights": [1.0, 2.0]},
        {"options": {"beta": 2.0}},
        {"window": [0.0, 100.0]},
    ],
)
def test_whatever_changes_a_training_makes_two_pools(home, choice):
    stored(home, "a/distill", seed=0)
    stored(home, "b/distill", seed=1, **choice)
    assert seeds() == ["0", "1"]


@pytest.mark.parametrize(
    "choice", [{"explained": 7}, {"channels": 3}, {"generations": 9}, {"data_root": "elsewhere"}]
)
def test_what_is_done_with_trained_networks_does_not(home, choice):
    stored(home, "a/distill", seed=0)
    stored(home, "b/distill", seed=1, **choice)
    assert seeds() == ["0 1"]


def test_an_older_file_had_the_defaults_of_choices_it_does_not_know(home):
    stored(home, "a/distill", seed=0, remove=("options", "teacher_weights", "augment"))
    stored(home, "b/distill", seed=1)
    assert seeds() == ["0 1"]
    fitnet = {"method": "fitnet"}
    fewer = {name: value for name, value in OPTIONS.items() if name != "hint_layer"}
    stored(home, "c/distill", seed=0, study=fitnet, options=fewer)
    stored(home, "d/distill", seed=1, study=fitnet, options=OPTIONS)
    stored(home, "e/distill", seed=2, study=fitnet, options=OPTIONS | {"hint_layer": 1})
    assert seeds() == ["0 1", "0 1", "2"]


def test_a_setting_in_words_names_the_options(home):
    distillation(home, "a/distill", method="fitnet", options={"hint_layer": 1})
    (pool,) = results.pools(results.load())
    assert "fitnet T 3 first_lambda 4 last_lambda 1 hint_share 0.5 hint_layer 1, " in pool.setting
    assert "α" not in pool.setting


def test_a_grid_holds_its_other_options_fixed(home):
    for number, alpha in enumerate((0.2, 0.4, 0.6)):
        stored(home, f"{number}/distill", study={"alpha": alpha})
    stored(home, "other/distill", study={"alpha": 0.8}, label_smoothing=0.1)
    cells = results.grid(results.load(), "brain_tumor", "official")
    assert sorted(alpha for alpha, _ in cells) == [0.2, 0.4, 0.6]


def with_answers(home, name, seed, share=1.0, epochs=15):
    """A result file in which the student is right where the baseline is wrong for 10 of 60."""
    path = distillation(home, name)
    content = files.read_json(path)
    labels = np.arange(60) % 3
    order = np.random.default_rng(seed).permutation(60)
    alone = np.where(np.isin(np.arange(60), order[:20]), (labels + 1) % 3, labels)
    distilled = np.where(np.isin(np.arange(60), order[:10]), alone, labels)
    held = predictions.truth(labels, np.arange(60) // 2)
    answers = {"teacher": labels, "distilled": distilled, "alone": alone}
    held["predicted"] = {role: predictions.as_text(each) for role, each in answers.items()}
    content["results"]["test"] = held
    content["config"] |= {"seed": seed, "label_share": share, "student_epochs": epochs}
    if share < 1:  # each seed draws its own images
        whole = content["data"]["checksum"]
        content["data"] |= {"labelled_from": whole, "checksum": files.digest([share, seed])}
    files.write_json(path, content)


def test_runs_that_keep_their_answers_are_compared_image_by_image(home):
    for seed in range(3):
        with_answers(home, f"{seed}/distill", seed)
    (pool,) = results.pools(results.load())
    gain, loss = pool.difference("baseline"), pool.difference("teacher")
    assert (gain.value, gain.n, gain.seeds) == (pytest.approx(10 / 60), 60, 3)
    assert loss.value == pytest.approx(-10 / 60) and loss.high < 0 < gain.low
    # one run: the bootstrap that its file holds
    one = results.Pool(pool.members[:1])
    stored = pool.first.stored["results"]["distilled_minus_alone"]
    assert (one.difference("baseline").low, one.difference("baseline").high) == (
        stored["low"],
        stored["high"],
    )


def test_a_curve_over_label_shares_joins_shares_of_other_lengths(home):
    assert shares.curves(results.load()) == []
    for seed in range(3):
        with_answers(home, f"whole-{seed}/distill", seed)
        with_answers(home, f"tenth-{seed}/distill", seed, 0.1, epochs=50)
    with_answers(home, "longer/distill", 0, 0.1, epochs=90)  # one run is no point of a curve
    (curve,) = shares.curves(results.load())
    table = shares.table(curve)
    assert table["share"].tolist() == [0.1, 1.0] and table["seeds"].tolist() == [3, 3]
    assert table["epochs"].str.endswith(" + 50").tolist() == [True, False]
    assert table["difference"].tolist() == pytest.approx([10 / 60] * 2)
    assert (table["teacher"] == 1).all()
    middle = table["distilled"] - table["baseline"]
    assert middle.tolist() == pytest.approx(table["difference"].tolist())
    assert (table["difference low"] < table["difference"]).all()
    # the share of the labels is no evidence about a claim
    assert len(results.pools(results.load())) == 1
    assert shares.title(curve).startswith("Brain Tumor MRI: densenet121 → kdfmv5, kd_fmv")
    ticks = shares.figure(curve).axes[0].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["10 %", "100 %"]
    assert "10% of the labels +16.7 [" in shares.described(curve)
    captions = [each.caption for each in ledger.pictures([], results.load())]
    assert any("share of the training labels" in caption for caption in captions)


def test_runs_on_other_images_are_no_part_of_a_curve(home):
    with_answers(home, "a/distill", 0)
    with_answers(home, "b/distill", 1)
    for seed in range(2):
        path = f"{seed}/distill"
        with_answers(home, path, seed, 0.1)
        file = home / "outputs" / f"{path}.json"
        content = files.read_json(file)
        content["data"]["labelled_from"] = "other"
        files.write_json(file, content)
    assert shares.curves(results.load()) == []
