"""The ledger: verdicts follow their rules, every number has a file behind it, and nothing synthetic
gets in."""

import html
import io
import json
import re

import pandas as pd
import pytest

from kdnb import files, plots
from kdnb.report import claims, ledger, pages, readme, results, verdicts
from kdnb.report.results import Estimate
from kdnb.report.verdicts import HOLDS, NOT, PART, UNTESTED
from kdnb.study import Study


def distillation(
    home,
    name,
    dataset="brain_tumor",
    title="Brain Tumor MRI",
    caveat="",
    split="official (Training / Testing)",
    right=(950, 960, 940),
    gain=(0.02, 0.01, 0.03),
    n=1000,
    classes=("a", "b"),
    loop=None,
    **choices,
):
    """A result file as notebook 03 writes it; ``right`` are the correct answers of teacher,
    distilled and lone student."""
    given = {"dataset": dataset, "method": "kd_fmv", "student": "kdfmv5"} | choices
    shares = {
        role: hits / n for role, hits in zip(("teacher", "distilled", "alone"), right, strict=True)
    }
    scores = {
        role: {"n": n, "accuracy": share, "intervals": {"accuracy": [share] * 2}}
        for role, share in shares.items()
    }
    against = {
        "difference": (right[1] - right[0]) / n,
        "low": (right[1] - right[0]) / n - 0.008,
        "high": (right[1] - right[0]) / n + 0.008,
        "n": n,
    }
    return files.write_json(
        home / "outputs" / f"{name}.json",
        {
            "results": scores
            | {
                "distilled_minus_alone": dict(zip(("difference", "low", "high"), gain, strict=True))
                | {"n": n},
                "distilled_minus_teacher": against,
            },
            "config": Study(**given).config(),
            "data": {
                "title": title,
                "caveat": caveat,
                "split": split,
                "checksum": files.digest([dataset, split]),
                "classes": list(classes),
            },
        }
        | ({"training": loop} if loop else {}),
    )


def row_of(rows, name):
    (found,) = [row for row in rows if row.id == name]
    return found


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.05, HOLDS),
        (0.0, 0.005, NOT),
        (-0.03, -0.01, NOT),
        (-0.02, 0.02, UNTESTED),
        (0.0, 0.01, UNTESTED),
    ],
)
def test_a_gain_is_judged_by_its_interval(low, high, verdict):
    assert verdicts.gain(Estimate((low + high) / 2, low, high))[0] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.05, HOLDS), (-0.04, -0.011, NOT), (-0.02, 0.02, UNTESTED), (0.02, 0.03, HOLDS)],
)
def test_no_loss_allows_one_point(low, high, verdict):
    assert verdicts.no_loss(Estimate((low + high) / 2, low, high))[0] == verdict


def test_a_printed_accuracy_is_refuted_in_the_papers_setting_only():
    below, above = Estimate(0.90, 0.88, 0.92), Estimate(0.97, 0.965, 0.975)
    assert verdicts.reaches(below, 0.97, papers_setting=True)[0] == NOT
    assert verdicts.reaches(below, 0.97, papers_setting=False)[0] == UNTESTED
    assert verdicts.reaches(above, 0.97, papers_setting=False)[0] == HOLDS


def test_about_ratios_and_times():
    assert verdicts.about(Estimate(-0.05, -0.06, -0.04), -0.05)[0] == HOLDS
    assert verdicts.about(Estimate(0.01, 0.0, 0.02), -0.05)[0] == NOT
    assert verdicts.about(Estimate(-0.04, -0.09, 0.01), -0.05)[0] == UNTESTED
    assert verdicts.fewer(0.49, 0.5)[0] == HOLDS and verdicts.fewer(0.5, 0.5)[0] == NOT
    assert (
        verdicts.faster(Estimate(5, 4, 6), 4.0)[0] == HOLDS
        and verdicts.faster(Estimate(2, 1.5, 2.5), 4.0)[0] == PART
    )
    assert (
        verdicts.faster(Estimate(0.8, 0.7, 0.9))[0] == NOT
        and verdicts.faster(Estimate(1, 0.9, 1.1))[0] == UNTESTED
    )


def test_the_best_cell_counts_its_rivals():
    cells = {(0.1, 1.0): [0.90], (0.1, 5.0): [0.91], (0.7, 1.0): [0.92], (0.7, 5.0): [0.99]}
    assert verdicts.best_cell((0.7, 5.0), cells, 2000)[1][0] == HOLDS
    assert verdicts.best_cell((0.1, 1.0), cells, 2000)[1][0] == NOT
    estimate, (verdict, why) = verdicts.best_cell((0.7, 5.0), cells, 30)
    assert verdict == UNTESTED and "number 1 of 4 cells" in why and "α 0.7, T 1" in why
    assert estimate.value == pytest.approx(0.07) and estimate.low < 0 < estimate.high
    unsteady = {(0.1, 1.0): [0.90, 0.90], (0.7, 5.0): [0.99, 0.93]}  # training's chance counts too
    assert verdicts.best_cell((0.7, 5.0), unsteady, 2000)[1][0] == UNTESTED


def test_a_teacher_with_nothing_to_hand_on_refutes_nothing():
    assert verdicts.taught((NOT, "w"), 0.9, 0.91)[0] == UNTESTED and verdicts.taught(
        (NOT, "w"), 0.92, 0.91
    ) == (NOT, "w")
    assert (
        verdicts.taught((HOLDS, "w"), 0.9, 0.91)[0] == HOLDS
        and "no better" in verdicts.taught((HOLDS, "w"), 0.9, 0.91)[1]
    )


def test_few_seeds_and_other_images_soften_a_verdict():
    assert verdicts.settle((HOLDS, "w"), 3)[0] == HOLDS and verdicts.settle((NOT, "w"), 3)[0] == NOT
    assert (
        verdicts.settle((HOLDS, "w"), 2)[0] == PART
        and verdicts.settle((NOT, "w"), 2)[0] == UNTESTED
    )
    for verdict, word in (
        (HOLDS, "for"),
        (NOT, "against"),
    ):  # one run knows nothing of the chance of training
        assert verdicts.settle((verdict, "w"), 1) == (
            UNTESTED,
            f"speaks {word} it: w; 1 run trained, 3 are needed",
        )
    assert verdicts.settle((HOLDS, "w"), 1, clock=True) == (PART, "w; 1 run timed, 3 are needed")
    assert (
        verdicts.undertrained((HOLDS, "w"), False)[0] == PART
        and verdicts.undertrained((HOLDS, "w"), True)[0] == HOLDS
    )
    assert verdicts.undertrained((NOT, "w"), False) == (NOT, "w")
    assert verdicts.settle((HOLDS, "w"), 3, "stand-in: other images") == (PART, "w; stand-in")
    assert verdicts.settle((NOT, "w"), 3, "stand-in: other images") == (
        UNTESTED,
        "speaks against it: w; stand-in, which refutes nothing",
    )


def test_an_accuracy_is_no_surer_than_its_groups_and_its_images():
    score = {"n": 100, "accuracy": 1.0, "intervals": {"accuracy": [1.0, 1.0]}}
    assert results._share(score).low == pytest.approx(
        0.963, abs=1e-3
    )  # Wilson: 100 of 100 is not certain
    assert results._share(score | {"intervals": {"accuracy": [0.9, 1.0]}}).low == 0.9


def test_seeds_add_to_the_interval_what_training_adds():
    one = Estimate(0.02, 0.01, 0.04, 100, 1)
    assert results.combine([one]) == one
    same = results.combine([one] * 3)
    assert (same.low, same.high, same.seeds) == (pytest.approx(0.01), pytest.approx(0.04), 3)
    spread = results.combine([Estimate(v, v - 0.01, v + 0.01, 100, 1) for v in (0.01, 0.02, 0.03)])
    # t(2, 0.975) = 4.3027, sd = 0.01: hypot(0.01, 4.3027 * 0.01 / sqrt(3)) = 0.026779
    assert spread.value == pytest.approx(0.02) and spread.high - spread.value == pytest.approx(
        0.026779, abs=1e-6
    )


def test_without_any_result_every_claim_says_what_would_test_it(home):
    rows = claims.ledger(results.load())
    assert {row.id for row in rows} == {claim.id for claim in claims.CLAIMS} and len(rows) == len(
        claims.CLAIMS
    )
    for row in rows:
        assert row.verdict == UNTESTED and row.measured is None and row.result_file == ""
        assert re.search("python -m (kdnb.run|benchmarks.latency)|make study", row.why)
    assert ledger.differences(rows) is None and ledger.heat_maps([]) == {}
    assert "No distillation of real images" in ledger.refresh(
        "<!-- results -->\n\n<!-- /results -->", home
    )


def test_commands_of_untested_claims_are_commands(home):
    """A reader copies them: every parameter must be one that a study takes."""
    for claim in claims.CLAIMS:
        _, *pairs = claim.run.split(" -p ")
        given = dict(pair.split() for pair in pairs)
        for name in ("alpha", "temperature"):
            given |= {name: float(given[name])} if name in given else {}
        assert Study(**given)


def test_three_seeds_decide_and_one_does_not(home):
    distillation(home, "runs/x/distill", seed=0)
    assert row_of(claims.ledger(results.load()), "B-brain_tumor-gain").verdict == UNTESTED
    for seed in (1, 2):
        distillation(home, f"runs/{seed}/distill", seed=seed)
    row = row_of(claims.ledger(results.load()), "B-brain_tumor-gain")
    assert (
        row.verdict == HOLDS and row.seeds == "0 1 2" and row.n == 1000 and row.split == "official"
    )
    assert (
        row.measured == pytest.approx(0.02)
        and row.low == pytest.approx(0.01)
        and row.profile == "quick"
    )
    assert len(row.result_file.split()) == 3 and "kd_fmv α 0.7 T 10, 96 px" in row.setting


def test_what_speaks_against_a_claim_is_said(home):
    for seed in range(3):
        distillation(
            home,
            f"runs/{seed}/distill",
            seed=seed,
            right=(960, 930, 955),
            gain=(-0.025, -0.04, -0.01),
        )
    rows = claims.ledger(results.load())
    assert (
        row_of(rows, "B-brain_tumor-gain").verdict == NOT
        and row_of(rows, "B-brain_tumor-teacher").verdict == NOT
    )
    assert (
        row_of(rows, "B-brain_tumor-student-accuracy").verdict == UNTESTED
    )  # 96 px: not the paper's setting
    assert "below zero in 1" in " ".join(ledger.summary(rows))


def test_each_split_and_teacher_has_its_row_and_the_papers_choices_come_first(home):
    distillation(home, "a/distill-1")
    distillation(
        home, "a/distill-2", method="hybrid", image_size=224, gain=(0.5, 0.4, 0.6)
    )  # better, but not the paper's method
    distillation(
        home, "a/distill-3", split="group (duplicates together)", gain=(0.0, -0.005, 0.005)
    )
    distillation(home, "a/distill-4", method="kd_fmv_as_released", gain=(0.0, -0.002, 0.002))
    distillation(home, "a/distill-5", student="ofa595", gain=(0.3, 0.2, 0.4))  # paper A's student
    rows = claims.ledger(results.load())
    found = {row.split: row for row in rows if row.id == "B-brain_tumor-gain"}
    assert found["official"].measured == pytest.approx(0.02) and found["group"].measured == 0
    released = row_of(rows, "B-brain_tumor-released")
    assert (
        released.high == pytest.approx(0.002)
        and released.verdict == NOT
        and "no gradient" in released.why
    )


def test_runs_of_two_training_loops_are_not_pooled_and_the_newer_speaks(home):
    for seed in range(3):  # the first loop's files do not tell of it
        distillation(home, f"old/distill-{seed}", seed=seed, image_size=224)
    distillation(home, "new/distill-0", seed=0, loop=2, gain=(0.1, 0.05, 0.15))
    assert sorted(pool.seeds for pool in results.pools(results.load())) == ["0", "0 1 2"]
    row = row_of(claims.ledger(results.load()), "B-brain_tumor-gain")
    assert row.measured == pytest.approx(0.1) and row.setting.endswith(
        "batch statistics of clean images"
    )
    assert set(results.distillations(results.load())["batch statistics"]) == {
        "augmented views",
        "clean images",
    }
    told = ledger.refresh("<!-- results -->\n\n<!-- /results -->", home)
    assert (
        "- 1 of all 2 settings (†) are of an earlier training loop" in told and told.count("†") == 2
    )


def test_the_same_run_stored_twice_counts_once_and_smoke_counts_nothing(home):
    distillation(home, "brain_tumor/distill-a")
    distillation(home, "runs/cell/distill")
    distillation(home, "brain_tumor/distill-b", profile="smoke", seed=1)
    (found,) = results.load()
    assert found.file == "outputs/brain_tumor/distill-a.json"


def test_nothing_synthetic_stands_in_the_ledger(home):
    distillation(
        home,
        "phantom_brain/distill",
        dataset="phantom_brain",
        title="Brain phantom (synthetic)",
        caveat="synthetic",
    )
    distillation(home, "folder/distill", dataset="folder", title="Your own images")
    found = results.load()
    assert len(found) == 2 and results.pools(found) == [] and results.distillations(found).empty
    assert all(row.measured is None for row in claims.ledger(found))


def test_a_stand_in_is_called_one(home):
    for seed in range(3):
        distillation(
            home,
            f"runs/{seed}/distill",
            dataset="covid_qu_ex",
            title="COVID-QU-Ex (stand-in: 3,000 images)",
            seed=seed,
            caveat="stand-in: 3,000 images",
            teacher="visformer_small",
            student="ofa595",
            method="hybrid",
            classes=("a", "b", "c"),
        )
    row = row_of(claims.ledger(results.load()), "A-covid_qu_ex-gain")
    assert row.verdict == PART and "stand-in" in row.dataset and "stand-in" in row.why
    assert "COVID-QU-Ex (stand-in)" in " ".join(
        ledger.summary([row])
    ) and "stand-in" in ledger.described([row])


def test_every_accuracy_of_the_table_has_an_interval_and_stays_a_share(home):
    distillation(home, "a/distill-1", right=(999, 960, 700))
    distillation(home, "a/distill-2", seed=1, right=(920, 940, 690))
    (row,) = results.distillations(results.load()).to_dict("records")
    for role in ("teacher", "distilled", "alone"):
        middle, low, high = map(
            float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", row[f"{role} accuracy"]).groups()
        )
        assert 0 <= low < middle < high <= 1
    assert f"| {row['teacher accuracy']} |" in ledger.refresh(
        "<!-- results -->\n\n<!-- /results -->", home
    )


def test_the_grid_needs_two_by_two_and_the_papers_cell(home):
    for alpha, temperature, right in ((0.7, 10.0, 960), (0.7, 1.0, 900), (0.1, 10.0, 890)):
        distillation(
            home,
            f"runs/{alpha}-{temperature}/distill",
            alpha=alpha,
            temperature=temperature,
            right=(950, right, 940),
        )
    rows = claims.ledger(results.load())
    row = row_of(rows, "B-brain_tumor-optimum")
    assert (
        row.verdict == UNTESTED
        and row.measured == pytest.approx(0.06)
        and "1 run trained" in row.why
    )
    assert len(row.result_file.split()) == 3
    (title,) = ledger.heat_maps(results.load())
    assert title == "Brain Tumor MRI, split official: distilled student, n 1,000, seeds 0"
    page = ledger.page(rows, results.load())
    assert page.count("data:image/png") == 2 and "From 89.0 to 96.0 %" in page


def test_the_grid_compares_the_seeds_that_all_cells_have(home):
    for seed, right in (
        (0, 900),
        (1, 990),
        (2, 990),
    ):  # the paper's cell alone was run three times, and was lucky twice
        distillation(home, f"runs/ours-{seed}/distill", seed=seed, right=(950, right, 940))
    for alpha, temperature in ((0.7, 1.0), (0.1, 10.0)):
        distillation(
            home,
            f"runs/{alpha}-{temperature}/distill",
            alpha=alpha,
            temperature=temperature,
            right=(950, 960, 940),
        )
    row = row_of(claims.ledger(results.load()), "B-brain_tumor-optimum")
    assert row.measured == pytest.approx(-0.06) and row.seeds == "0" and "number 3 of 3" in row.why
    assert len(row.result_file.split()) == 3


def test_files_of_other_kinds_are_passed_over(home):
    files.write_json(home / "outputs" / "benchmarks" / "data.json", {"results": {"x": 1}})
    files.write_text(home / "outputs" / "x" / "list.json", "[1, 2]")
    assert results.load() == []


def explained(home, name, spearman, seconds, method="SHAP", **choices):
    return files.write_json(
        home / "outputs" / f"{name}.json",
        {
            "results": {
                "images": 18,
                "likeness_distilled_minus_alone": {"grad_cam": {"spearman": spearman}},
                "met_seconds": [
                    {"method": method, "model": "teacher densenet121", "seconds": seconds[0]},
                    {"method": method, "model": "distilled kdfmv5", "seconds": seconds[1]},
                ],
            },
            "config": Study(dataset="eye_disease", method="kd_fmv", **choices).config(),
            "data": {
                "title": "Eye Diseases",
                "caveat": "",
                "split": "pooled: all images",
                "checksum": "c",
            },
        },
    )


def test_focus_and_times_of_explanations(home):
    explained(
        home,
        "eye_disease/explain-a",
        {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 18},
        (8.0, 2.0),
        "SHAP ⚠",
    )
    rows = claims.ledger(results.load())
    assert row_of(rows, "B-eye_disease-focus").verdict == UNTESTED
    met = row_of(rows, "B-eye_disease-met-shap")
    assert (
        met.measured == 4
        and met.verdict == PART
        and met.n is None
        and met.split == "pooled"
        and met.low is None
    )
    assert (
        "random initial weights" in met.setting
        and "8 + 12 epochs" not in met.setting
        and "epochs" in met.setting
    )
    for seed in (1, 2):
        explained(
            home,
            f"runs/{seed}/explain",
            {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 18},
            (2.0, 4.0),
            seed=seed,
        )
    rows = claims.ledger(results.load())
    assert row_of(rows, "B-eye_disease-focus").verdict == HOLDS
    assert row_of(rows, "B-eye_disease-met-shap").verdict == UNTESTED  # faster in one run of three
    explained(
        home,
        "runs/3/explain",
        {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 18},
        (2.0, 4.0),
        seed=3,
        student_epochs=50,
    )
    assert row_of(claims.ledger(results.load()), "B-eye_disease-focus").seeds in (
        "0 1 2",
        "3",
    )  # never together


def test_maps_that_stay_without_weights_decide_nothing(home):
    for seed in range(3):
        path = explained(
            home,
            f"runs/{seed}/explain",
            {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 18},
            (2.0, 1.0),
            seed=seed,
        )
        stored = files.read_json(path)
        stored["results"] |= {
            "not_moved_by_new_weights": ["grad_cam"] if seed else [],
            "map_cells": [8, 8],
        }
        stored["results"]["likeness_distilled_minus_other_image"] = stored["results"][
            "likeness_distilled_minus_alone"
        ]
        files.write_json(path, stored)
    rows = claims.ledger(results.load())
    for name in ("focus", "alike"):
        row = row_of(rows, f"B-eye_disease-{name}")
        assert (
            row.verdict == UNTESTED
            and "in 2 of 3 runs" in row.why
            and row.setting.endswith("maps of 8×8 cells")
        )


def test_runs_whose_maps_are_all_empty_leave_the_others_alone(home):
    for seed in range(4):
        gap = (
            {"mean": None, "low": None, "high": None, "n": 0}
            if seed == 1
            else {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 18}
        )
        explained(home, f"runs/{seed}/explain", gap, (2.0, 1.0), seed=seed)
    row = row_of(claims.ledger(results.load()), "B-eye_disease-focus")
    assert row.verdict == HOLDS and row.seeds == "0 2 3"


def test_a_claim_of_several_datasets_is_told_once(home):
    for dataset in ("eye_disease", "brain_tumor"):
        for seed in range(3):
            distillation(home, f"runs/{dataset}-{seed}/distill", dataset=dataset, seed=seed)
    told = " ".join(ledger.summary(claims.ledger(results.load())))
    assert (
        "Distillation makes the student better than training alone does on Brain Tumor MRI, Eye Diseases"
        in told
    )


def test_each_student_has_its_row_and_another_loss_is_not_the_papers(home):
    distillation(home, "a/distill-1")
    distillation(home, "a/distill-2", student="kdfmv8", gain=(0.05, 0.04, 0.06))
    distillation(home, "a/distill-3", method="hybrid", seed=1, split="random", gain=(0.5, 0.4, 0.6))
    rows = [row for row in claims.ledger(results.load()) if row.id == "B-brain_tumor-gain"]
    assert sorted(row.measured for row in rows) == pytest.approx([0.02, 0.05])
    teachers = [
        row for row in claims.ledger(results.load()) if row.id == "B-brain_tumor-teacher-accuracy"
    ]
    assert len(teachers) == 1  # it is the same teacher
    told = " ".join(ledger.summary(rows))
    assert (
        "has 2 rows" in told
        and "above zero in 2" in told
        and "No row is of a paper's own setting" in told
    )


def test_feature_maps_have_their_likeness_and_their_time(home):
    for seed in range(3):
        files.write_json(
            home / "outputs" / "runs" / str(seed) / "layers.json",
            {
                "results": {
                    "cka_distilled_minus_alone": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 96},
                    "images": {"cka": 96},
                    "met_seconds": [
                        {
                            "method": "Average feature maps",
                            "model": "teacher densenet121",
                            "seconds": 0.02,
                        },
                        {
                            "method": "Average feature maps",
                            "model": "distilled kdfmv5",
                            "seconds": 0.01,
                        },
                    ],
                },
                "config": Study(
                    dataset="eye_disease", student="kdfmv5", method="kd_fmv", seed=seed
                ).config(),
                "data": {
                    "title": "Eye Diseases",
                    "caveat": "",
                    "split": "pooled: all images",
                    "checksum": "c",
                },
            },
        )
    rows = claims.ledger(results.load())
    alike, met = (
        row_of(rows, "B-eye_disease-features"),
        row_of(rows, "B-eye_disease-met-average-feature-maps"),
    )
    assert (
        alike.verdict == HOLDS
        and alike.seeds == "0 1 2"
        and alike.n == 96
        and alike.unit == "in CKA"
    )
    assert met.verdict == HOLDS and met.measured == 2 and met.unit == "times as fast"


def test_latency_comes_from_the_efficiency_file(home):
    def timed(name, teacher, *runtimes):
        entries = [
            {
                "teacher": teacher,
                "student": "ofa595",
                "runtime": runtime,
                "times_as_fast": fast,
                "low": fast - 0.5,
                "high": fast + 0.5,
            }
            for runtime, fast in runtimes
        ]
        files.write_json(
            home / "outputs" / name / "efficiency.json",
            {
                "results": {
                    "speedups": entries,
                    "hardware": {"cpu": "a processor", "torch_threads": 2},
                },
                "config": Study(dataset="covid_qu_ex", student="ofa595", teacher=teacher).config(),
                "data": {
                    "title": "COVID-QU-Ex (stand-in)",
                    "caveat": "stand-in",
                    "split": "official",
                    "checksum": "c",
                },
            },
        )

    timed("a", "visformer_small", ("eager", 5.0), ("onnx", 3.0))
    row = row_of(claims.ledger(results.load()), "A-latency")
    assert (
        row.verdict == PART
        and row.measured == 3
        and "not timed: vgg19_bn, autoformerv2_tiny" in row.why
    )
    assert "onnx, one image of 96 px, 2 threads, a processor" in row.setting
    timed("b", "vgg19_bn", ("eager", 9.0))
    timed("c", "autoformerv2_tiny", ("eager", 2.0))
    rows = [row for row in claims.ledger(results.load()) if row.id == "A-latency"]
    assert [row.verdict for row in rows] == [HOLDS] * 3  # a clock does not mind a stand-in


def test_times_of_networks_without_data_fill_what_was_not_trained(home):
    entries = [
        {
            "teacher": teacher,
            "student": "ofa595",
            "runtime": "onnx",
            "times_as_fast": fast,
            "low": fast - 0.5,
            "high": fast + 0.5,
        }
        for teacher, fast in (
            ("vgg19_bn", 9.0),
            ("visformer_small", 3.0),
            ("autoformerv2_tiny", 0.4),
        )
    ]
    files.write_json(
        home / "outputs" / "benchmarks" / "latency.json",
        {"results": {"speedups": entries, "image_size": 224, "hardware": {"cpu": "a processor"}}},
    )
    rows = {
        row.setting.split()[0]: row
        for row in claims.ledger(results.load())
        if row.id == "A-latency"
    }
    assert {name: row.verdict for name, row in rows.items()} == {
        "vgg19_bn": HOLDS,
        "visformer_small": HOLDS,
        "autoformerv2_tiny": NOT,
    }
    assert (
        rows["vgg19_bn"].result_file == "outputs/benchmarks/latency.json"
        and rows["vgg19_bn"].dataset == "any"
    )
    assert "onnx, one image of 224 px" in rows["vgg19_bn"].setting


def test_counts_come_from_the_zoo_and_the_ledger_is_told_by_claim(home):
    counts = {"densenet121": (121, 2800), "kdfmv5": (7, 900), "kdfmv8": (10, 1800)}
    files.write_json(
        home / "outputs" / "zoo.json",
        {
            "results": {
                name: {"layers": layers, "macs": macs, "parameters": macs}
                for name, (layers, macs) in counts.items()
            }
        },
    )
    rows = claims.ledger(results.load())
    layers = [row for row in rows if row.id == "B-layers"]
    assert [row.verdict for row in layers] == [HOLDS] * 2 and layers[
        0
    ].result_file == "outputs/zoo.json"
    assert [row.verdict for row in rows if row.id == "B-macs"] == [HOLDS, NOT]
    more = next(row for row in rows if row.id == "B-parameters" and "kdfmv8" in row.setting)
    assert more.verdict == HOLDS and "implied" in more.claimed
    told = " ".join(ledger.summary(rows))
    assert "holds: 2; holds in part: 0; does not hold: 0; not testable here: 1." in told
    assert (
        "What holds: The student has fewer parameters than its teacher; The student has fewer layers than its teacher."
        in told
    )


def test_a_row_says_when_networks_were_at_their_best(home):
    path = distillation(home, "a/distill")
    stored = files.read_json(path)
    stored["results"]["training"] = {
        "teacher densenet121": {"best_epoch": 6, "epochs_run": 6},
        "distilled kdfmv5": {"best_epoch": 14, "epochs_run": 15},
    }
    files.write_json(path, stored)
    assert row_of(claims.ledger(results.load()), "B-brain_tumor-gain").setting.endswith(
        "best epochs: teacher 6 of 6, distilled 14 of 15"
    )


def test_a_student_as_good_as_a_short_teacher_holds_in_part(home):
    for seed in range(3):
        distillation(home, f"runs/{seed}/distill", seed=seed, right=(940, 960, 950))
        verdict = row_of(claims.ledger(results.load()), "B-brain_tumor-teacher").verdict
        assert verdict == (UNTESTED if seed == 0 else PART)  # one run decides nothing, here either
    row = row_of(claims.ledger(results.load()), "B-brain_tumor-teacher")
    assert row.verdict == PART and "the teacher, too" in row.why


def test_missing_classes_stand_in_the_name(home):
    distillation(
        home,
        "a/distill",
        dataset="lc25000",
        title="LC25000 (stand-in: 5,505 images)",
        caveat="stand-in: 5,505 images",
        classes=("a", "b", "c"),
        teacher="visformer_small",
        student="ofa595",
        method="hybrid",
    )
    (pool,) = results.pools(results.load())
    assert pool.first.title == "LC25000 (stand-in, 3 of 5 classes: 5,505 images)"
    assert pages.short(pool.first.title) == "LC25000 (stand-in, 3 of 5 classes)"


def test_the_papers_split_is_compared_with_the_one_that_keeps_copies_together(home):
    assert results.leaks(results.load()).empty and ledger.leaks(results.load()) is None
    headline = [
        {
            "split": split,
            "seed": seed,
            "balanced_accuracy": value,
            "low": value - 0.03,
            "high": value + 0.04,
            "n": 100,
        }
        for split, value in (("official", 0.9), ("group", 0.8))
        for seed in (0, 1)
    ]
    copies = [
        {"split": "official", "test images": 1100, "with a relative in training": 1050},
        {"split": "group", "test images": 1000, "with a relative in training": 0},
    ]
    audit = {"headline": headline, "leaks": copies}
    for dataset, title in (
        ("brain_tumor", "Brain Tumor MRI"),
        ("phantom_cxr", "Chest phantom (synthetic)"),
    ):
        files.write_json(
            home / "outputs" / dataset / "integrity-a.json",
            {
                "results": audit,
                "config": Study(dataset=dataset).config(),
                "data": {
                    "title": title,
                    "caveat": "",
                    "split": "official (as published)",
                    "checksum": "1",
                },
            },
        )
    (row,) = results.leaks(results.load()).to_dict("records")
    assert (row["dataset"], row["split"], row["seeds"], row["copies"], row["n"]) == (
        "Brain Tumor MRI",
        "official",
        2,
        1050,
        1100,
    )
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (0.1, 0.05, 0.15)
    )  # 3 and 4 points in quadrature: 5
    told = ledger.summary(claims.ledger(results.load()), results.load())[-1]
    assert (
        "Brain Tumor MRI +10.0 [+5.0, +15.0], where 1,050 of 1,100 test images have a relative in training"
        in told
    )
    assert (
        "95% have a relative"
        in ledger.leaks(results.load()).axes[0].get_yticklabels()[0].get_text()
    )


def test_the_csv_has_the_columns_and_the_page_escapes(home):
    evil = "<script>alert(1)</script>"
    distillation(home, "a/distill", title=evil, classes=(evil, "b"))
    rows = claims.ledger(results.load())
    csv, page, *_ = ledger.save(rows, home / "out")
    assert csv.read_text().splitlines()[0] == (
        "id,paper,claim,claimed,claimed_source,measured,low,high,n,dataset,split,profile,seeds,verdict,result_file"
    )
    table = pd.read_csv(csv)
    assert set(table["verdict"]) <= set(verdicts.VERDICTS)
    assert (table["measured"].notna() == table["result_file"].notna()).all()
    text = page.read_text()
    assert (
        "<script" not in text and "&lt;script&gt;" in text and "http" not in text.split("<body>")[0]
    )
    assert 'alt="Differences in test accuracy' in text and "data:image/png" in text


def test_committed_ledger_and_readme_are_those_of_the_result_files():
    """After a new result: python -m kdnb.report.ledger."""
    found = results.load(files.ROOT / "outputs")
    written = pd.read_csv(files.ROOT / "outputs" / "claims.csv", dtype=str)
    rows = claims.ledger(found)
    assert written.fillna("").equals(
        pd.read_csv(io.StringIO(ledger.csv(rows)), dtype=str).fillna("")
    ), "run python -m kdnb.report.ledger"
    pages = [(files.ROOT / "outputs" / "claims.html").read_text(), ledger.page(rows, found)]
    assert len({re.sub(r"base64,[^\"]*", "", page) for page in pages}) == 1, (
        "run python -m kdnb.report.ledger"
    )
    reported = html.unescape((files.ROOT / "outputs" / "09_report.html").read_text())
    assert all(told in reported for told in ledger.summary(rows, found)), (
        "run python -m kdnb.run 09"
    )
    for file in {name for names in written["result_file"].dropna() for name in names.split()}:
        assert (files.ROOT / file).exists(), file
    document = (files.ROOT / "README.md").read_text()
    assert ledger.refresh(document) == document, "run python -m kdnb.report.ledger"


def test_no_number_stands_alone_in_readme_or_report():
    document = (files.ROOT / "README.md").read_text()
    assert "<!-- results -->" in document and readme.stray(document) == []
    notebook = json.loads((files.ROOT / "notebooks" / "09_report.ipynb").read_text())
    prose = "\n".join(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    )
    assert readme.stray(prose) == []


@pytest.mark.parametrize(
    "line",
    [
        "it rose to 0.973",
        "42 % of them",
        "a gain of +1.3 points",
        "4 times as fast",
        "3× faster",
        "accuracy 97.3",
        "2.5 times torchdistill",
        "it takes 30 ms",
        "fell to 0.9",
        "1.3 points less",
    ],
)
def test_a_stray_number_is_found(line):
    assert readme.stray(f"text\n{line}\n`0.973`") == [line]


def test_numbers_in_sentences_follow_their_file(home):
    files.write_json(home / "outputs" / "x.json", {"results": {"list": [{"ms": 12.34}]}})
    text = "It takes <!-- outputs/x.json results.list.0.ms .1f -->99<!-- / --> ms."
    fresh = ledger.refresh(text, home)
    assert fresh == "It takes <!-- outputs/x.json results.list.0.ms .1f -->12.3<!-- / --> ms."
    assert ledger.refresh(fresh, home) == fresh and readme.stray(fresh) == []


def test_figures_of_the_report(recwarn):
    frame = pd.DataFrame(
        {
            "group": ["A", "A", "B"],
            "label": ["x", "y", "z"],
            "difference": [0.01, -0.02, 0.0],
            "low": [0.0, -0.03, -0.1],
            "high": [0.02, 0.0, 0.1],
        }
    )
    assert len(plots.forest(frame, "t").axes) == 2
    table = pd.DataFrame({1.0: [0.9, None], 10.0: [0.95, 0.93]}, index=pd.Index([0.1, 0.7]))
    framed = plots.accuracy_grid(table, (0.7, 10.0)).axes[0]
    assert any(p.get_xy() == (1, 1) for p in framed.patches)
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []
