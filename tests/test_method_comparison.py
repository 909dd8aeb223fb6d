"""Methods on equal terms: who takes part, what is kept, and what follows from it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kdnb import distillation, files, report
from kdnb.evaluation import predictions, ranking
from kdnb.report import methods as comparison
from kdnb.report.results import Result
from kdnb.study import Study
from kdnb.training import methods


def study(**values):
    return Study.of(methods.MethodParameters)(**{"dataset": "phantom_cxr", "methods": ""} | values)


def test_two_references_always_take_part_and_all_are_all():
    assert list(methods.contestants(study(method="dkd"))) == ["hard", "hybrid", "dkd"]
    assert list(methods.contestants(study(methods="crd+ rkd"))) == ["hard", "hybrid", "crd", "rkd"]
    assert methods.contestants(study(methods="all")).keys() == distillation.METHODS.keys()
    with pytest.raises(files.UnknownName, match="Did you mean 'crd'"):
        study(methods="dkd+crdd")


def test_options_are_those_of_the_studys_own_method_and_of_the_papers():
    found = methods.contestants(
        study(method="dkd", options={"other_weight": 1.0}, methods="kd_fmv")
    )
    assert found["dkd (other_weight 1.0)"].options["other_weight"] == 1.0
    assert (found["kd_fmv"].alpha, found["kd_fmv"].temperature) == (0.7, 10.0)
    assert found["hybrid"].options == {} and found["hybrid"].alpha == 0.5
    gentle = methods.contestants(study(alpha=0.3))
    assert {name: own.alpha for name, own in gentle.items()} == {
        "hard": 1.0,
        "hybrid": 0.5,
        "hybrid (alpha 0.3)": 0.3,
    }
    budgets = {(own.student_epochs, own.batch_size, own.seed) for own in found.values()}
    assert len(budgets) == 1


@pytest.mark.parametrize("classes", [3, 62, 70])
def test_answers_survive_as_text(classes):
    answers = np.random.default_rng(0).integers(0, classes, 200)
    assert (predictions.from_text(predictions.as_text(answers)) == answers).all()


@pytest.fixture
def trained(few_phantoms):
    """A study and its data; networks of a few steps."""
    own = study(data_root=None, teacher="resnet10t", profile="smoke", image_size=32, methods="rkd")
    return own, own.load_data()


def run_and_keep(own, data):
    rows = dict(methods.train_methods(own, data))
    return report.save_methods(own, data, methods.measured_teachers(own, data), rows)


def test_further_methods_join_those_that_were_run(trained):
    own, data = trained
    first = files.read_json(run_and_keep(own, data))["results"]
    assert list(first["methods"]) == ["hard", "hybrid", "rkd"]
    path = run_and_keep(dataclasses.replace(own, methods="dkd"), data)
    held = files.read_json(path)["results"]
    assert list(held["methods"]) == ["hard", "hybrid", "rkd", "dkd"]
    labels, images = predictions.from_text(held["labels"]), data.counts()["train"].sum()
    for row in [*held["methods"].values(), *held["teachers"].values()]:
        right = (predictions.from_text(row["predicted"]) == labels).mean()
        assert right == pytest.approx(row["accuracy"]) and row["images"] == images
    # another length is another setting: nothing of the old one stays
    other = dataclasses.replace(own, student_epochs=2, methods="")
    assert list(files.read_json(run_and_keep(other, data))["results"]["methods"]) == [
        "hard",
        "hybrid",
    ]


def test_a_method_that_cannot_be_run_is_left_out_unless_it_was_asked_for(
    trained, capsys, monkeypatch
):
    own, data = trained
    twice = dataclasses.replace(own, teacher="resnet10t+resnet10t", methods="crd+dkd")

    def refuse(study, *rest):
        if study.method == "crd":
            raise ValueError("too few images for a memory")
        return distil(study, *rest)

    distil = methods.loop.distil
    monkeypatch.setattr(methods.loop, "distil", refuse)
    assert list(dict(methods.train_methods(twice, data))) == ["hard", "hybrid", "dkd"]
    assert "crd is left out: too few images for a memory" in capsys.readouterr().out
    small = {"teacher": "resnet10t", "profile": "smoke", "image_size": 32}
    deep = study(**small, method="attention_transfer", options={"attention_layers": 9})
    with pytest.raises(ValueError, match="9 are asked for"):
        dict(methods.train_methods(deep, data))


def result(seed, right, **config):
    """A file of three methods; ``right`` is the share of 90 images that each answers correctly."""
    labels = np.arange(90) % 3
    rng = np.random.default_rng(seed)
    rows = {}
    for name, share in right.items():
        wrong = rng.permutation(90) >= round(90 * share)
        answers = np.where(wrong, (labels + 1) % 3, labels)
        rows[name] = {"predicted": predictions.as_text(answers), "balanced_accuracy": share}
    held = {"labels": predictions.as_text(labels), "groups": " ".join(map(str, range(90)))}
    data = {"title": "A set", "caveat": "", "checksum": "c", "split": "official", "classes": []}
    return Result(
        "methods",
        f"s{seed}.json",
        {
            "results": held | {"methods": rows, "teachers": {}},
            "config": study(**config).config() | {"seed": seed},
            "data": data,
        },
    )


SHARES = {"hard": 0.6, "hybrid": 0.7, "dkd": 0.9}


def test_runs_that_differ_in_seed_and_method_are_one_cell():
    found = comparison.cells(
        [
            result(1, SHARES, method="dkd"),
            result(0, SHARES),
            result(0, SHARES, image_size=32),
        ]
    )
    assert [[one.config["seed"] for one in cell] for cell in found] == [[0, 1], [0]]


def test_differences_are_paired_and_ordered():
    cell = [result(seed, SHARES) for seed in range(4)]
    table = comparison.against(cell, "hybrid")
    assert list(table["label"]) == ["dkd", "hard"] and set(table["seeds"]) == {4}
    assert list(table["difference"]) == pytest.approx([0.2, -0.1], abs=0.02)
    assert (table["low"] < table["difference"]).all() and (table["n"] == 90).all()
    assert table.set_index("label").loc["dkd", "low"] > 0


def test_a_method_of_some_seeds_only_says_of_how_many():
    cell = [result(0, SHARES | {"ssd_kd": 0.8}), result(1, SHARES)]
    rows = comparison.against(cell, "hybrid").set_index("label")
    assert set(rows.index) == {"dkd", "hard", "ssd_kd (1 of 2 seeds)"}
    assert rows.loc["ssd_kd (1 of 2 seeds)", "difference"] == pytest.approx(0.1, abs=0.02)
    assert "ssd_kd" not in comparison.scores([cell])  # ranks need every method in every run


def test_ranks_and_tests_agree_with_scipy_and_demsar():
    from scipy import stats

    cell = [result(seed, {k: v + 0.01 * seed for k, v in SHARES.items()}) for seed in range(6)]
    scores = comparison.scores([cell])
    assert scores.shape == (6, 3)
    found = comparison.decide(scores)
    assert found["mean_ranks"] == {"dkd": 1.0, "hybrid": 2.0, "hard": 3.0}
    # Demšar's table 5 (b): q for three methods is 2.343, and mean ranks differ by CD or more
    critical = 2.343 * np.sqrt(3 * 4 / (6 * 6))
    assert critical < 2 and ranking.nemenyi(scores).loc["dkd", "hard"] < 0.05
    assert critical > 1 and ranking.nemenyi(scores).loc["dkd", "hybrid"] > 0.05
    noisy = pd.DataFrame(np.random.default_rng(0).normal(size=(8, 4)))
    chi = stats.friedmanchisquare(*noisy.to_numpy().T).statistic
    assert ranking.friedman(noisy)["statistic"] == pytest.approx(7 * chi / (8 * 3 - chi))
    assert ranking.friedman(noisy * 0) == {"statistic": 0.0, "p_value": 1.0}
    with pytest.raises(ValueError, match="2 runs and 3 methods"):
        ranking.friedman(noisy.iloc[:1])


def test_phantoms_are_not_ranked_beside_real_images(home):
    for dataset in ("phantom_cxr", "brain_tumor"):
        one = result(0, SHARES, dataset=dataset)
        files.write_json(home / "outputs" / dataset / "methods-s0.json", one.stored)
    files.write_json(home / "outputs" / "benchmarks" / "methods.json", {"results": []})
    for dataset in ("phantom_cxr", "brain_tumor"):
        (cell,) = comparison.stored(study(dataset=dataset))
        assert cell[0].config["dataset"] == dataset


def test_too_few_runs_are_no_ranking(capsys):
    two = comparison.scores([[result(n, {"hard": 0.5, "hybrid": 0.6}) for n in range(3)]])
    assert comparison.decide(two) == {} and comparison.ranks(two) is None
    assert comparison.ranks(comparison.scores([[result(0, SHARES)]])) is None
    assert "-p seed" in capsys.readouterr().out
    figure = comparison.ranks(comparison.scores([[result(n, SHARES) for n in range(5)]]))
    assert {"dkd (1.0) ", " (3.0) hard"} <= {text.get_text() for text in figure.axes[0].texts}


def test_every_method_says_what_it_transfers():
    table = comparison.what_is_transferred()
    assert table[list(distillation.TRANSFERS)].any(axis=1).all() and table["labels"].all()
    for name, method in distillation.METHODS.items():
        assert set(method.transfers) <= set(distillation.TRANSFERS), name


@pytest.mark.parametrize(
    "choices", [{"teacher": "resnet10t+resnet10t"}, {"teacher": "resnet10t", "teacher_shards": 2}]
)
def test_teachers_of_equal_name_are_all_measured(few_phantoms, choices):
    own = study(profile="smoke", image_size=32, **choices)
    found = methods.measured_teachers(own, own.load_data())
    assert list(found) == ["resnet10t 1", "resnet10t 2"]
    # two copies of one network agree, networks of different patients do not
    weights = {row["weights"] for row in found.values()}
    assert len(weights) == own.teacher_shards if own.teacher_shards else len(weights) == 1
