"""The ledger: verdicts follow their rules, every number has a result file, and no synthetic image
counts."""

import html
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from kdnb import files, plots, report
from kdnb.evaluation import predictions
from kdnb.report import (
    figures,
    ledger,
    measures,
    pages,
    questions,
    readme,
    results,
    systems,
    verdicts,
)
from kdnb.report.__main__ import main
from kdnb.report.claims import CLAIMS
from kdnb.report.measures import Evidence
from kdnb.report.results import Estimate
from kdnb.report.verdicts import HOLDS, NOT, PART, UNDECIDED, UNTESTED
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
    distilled student and baseline."""
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


def measure():
    """The ledger of the result files under ``outputs/``."""
    return ledger.measure(results.load())


def flat(row):
    """A row with its parts as attributes of one object."""
    parts = vars(row.claim) | vars(row.evidence.estimate) | vars(row.evidence) | vars(row)
    return SimpleNamespace(**parts, number=row.number)


def rows_of(name):
    """The rows of a claim."""
    return [flat(row) for row in measure() if row.claim.id == name]


def row_of(name):
    (found,) = rows_of(name)
    return found


def claim_of(kind):
    return next(claim for claim in CLAIMS if claim.kind == kind)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.05, HOLDS),
        (0.0, 0.005, NOT),
        (-0.03, -0.01, NOT),
        (-0.02, 0.02, UNDECIDED),
        (0.0, 0.01, UNDECIDED),
    ],
)
def test_a_gain_is_judged_by_its_interval(low, high, verdict):
    assert verdicts.gain(Estimate((low + high) / 2, low, high))[0] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.05, HOLDS), (-0.04, -0.011, NOT), (-0.02, 0.02, UNDECIDED), (0.02, 0.03, HOLDS)],
)
def test_no_loss_allows_one_point(low, high, verdict):
    assert verdicts.no_loss(Estimate((low + high) / 2, low, high))[0] == verdict


def judged(kind, estimate, **more):
    """The verdict on the first claim of a kind, from evidence in the paper's own setting."""
    return verdicts.judge(claim_of(kind), Evidence(estimate, **{"papers_setting": True} | more))


SHARES = {"teacher": 0.92, "baseline": 0.91}
ABOVE, BELOW = Estimate(0.02, 0.01, 0.03, 100, 3), Estimate(-0.03, -0.04, -0.02, 100, 3)


def test_a_printed_accuracy_is_refuted_in_the_papers_setting_only():
    claim = next(claim for claim in CLAIMS if claim.rule == "reaches")
    below, above = Estimate(0.90, 0.88, 0.92, 9, 3), Estimate(0.98, 0.97, 0.99, 9, 3)
    for estimate, papers_setting, verdict in (
        (below, True, NOT),
        (below, False, UNTESTED),
        (above, False, HOLDS),
    ):
        found = Evidence(estimate, papers_setting=papers_setting)
        assert verdicts.judge(claim, found)[0] == verdict


def test_about_ratios_and_times():
    assert verdicts.about(Estimate(-0.05, -0.06, -0.04), -0.05)[0] == HOLDS
    assert verdicts.about(Estimate(0.01, 0.0, 0.02), -0.05)[0] == NOT
    assert verdicts.about(Estimate(-0.04, -0.09, 0.01), -0.05)[0] == UNDECIDED
    assert verdicts.fewer(Estimate(0.49), 0.5)[0] == HOLDS
    assert verdicts.fewer(Estimate(0.5), 0.5)[0] == NOT
    assert (
        verdicts.faster(Estimate(5, 4, 6), 4.0)[0] == HOLDS
        and verdicts.faster(Estimate(2, 1.5, 2.5), 4.0)[0] == PART
    )
    assert (
        verdicts.faster(Estimate(0.8, 0.7, 0.9))[0] == NOT
        and verdicts.faster(Estimate(1, 0.9, 1.1))[0] == UNDECIDED
    )


def test_the_best_cell_is_compared_with_the_best_of_the_others():
    def best(claimed, cells, n):
        estimate, note = measures.best_cell(claimed, cells, n)
        return verdicts.best(estimate)[0], note, estimate

    cells = {(0.1, 1.0): [0.90], (0.1, 5.0): [0.91], (0.7, 1.0): [0.92], (0.7, 5.0): [0.99]}
    assert best((0.7, 5.0), cells, 2000)[0] == HOLDS
    assert best((0.1, 1.0), cells, 2000)[0] == NOT
    verdict, note, estimate = best((0.7, 5.0), cells, 30)
    assert verdict == UNDECIDED and note == "rank 1 of 4 cells; best other cell: α 0.7, T 1"
    assert estimate.value == pytest.approx(0.07) and estimate.low < 0 < estimate.high
    unsteady = {(0.1, 1.0): [0.90, 0.90], (0.7, 5.0): [0.99, 0.93]}  # the spread over seeds counts
    assert best((0.7, 5.0), unsteady, 2000)[0] == UNDECIDED


def test_a_teacher_no_better_than_the_baseline_refutes_nothing():
    weak = {"teacher": 0.9, "baseline": 0.91}
    assert judged("gain", BELOW, accuracies=SHARES)[0] == NOT
    verdict, why = judged("gain", BELOW, accuracies=weak)
    assert verdict == UNTESTED and "teacher (0.900) is no better than the baseline (0.910)" in why
    verdict, why = judged("gain", ABOVE, accuracies=weak)
    assert verdict == HOLDS and "no better" in why


def test_few_runs_weaken_a_verdict():
    for runs, positive, negative in (
        (3, HOLDS, NOT),
        (2, PART, UNDECIDED),
        (1, UNDECIDED, UNDECIDED),
    ):
        above, below = (Estimate(e.value, e.low, e.high, 9, runs) for e in (ABOVE, BELOW))
        assert judged("gain", above, accuracies=SHARES)[0] == positive
        verdict, why = judged("gain", below, accuracies=SHARES)
        assert verdict == negative and (runs == 3 or f"{runs} run" in why)
    once = Estimate(5.0, None, None, None, 1)
    assert judged("explanation time", once) == (
        PART,
        "faster over the whole range, and by about the claimed factor of 4; "
        "1 run timed, 3 are needed",
    )


def test_other_images_weaken_a_verdict_and_refute_nothing():
    other = {"accuracies": SHARES, "caveat": "stand-in: other images"}
    verdict, why = judged("gain", ABOVE, **other)
    assert verdict == PART and why.endswith("; on a stand-in")
    verdict, why = judged("gain", BELOW, **other)
    assert verdict == UNTESTED and "a stand-in cannot refute it" in why


def test_a_smaller_setting_weakens_a_student_as_good_as_its_teacher():
    assert judged("fidelity", ABOVE)[0] == HOLDS
    assert judged("fidelity", ABOVE, papers_setting=False)[0] == PART
    verdict, why = judged("fidelity", BELOW, papers_setting=False)
    assert verdict == NOT and "smaller than the paper's setting" in why


def test_rules_and_claims_name_only_what_exists():
    for claim in CLAIMS:
        assert claim.kind in measures.KINDS and claim.rule in verdicts.TESTS, claim.id
        assert claim.implied == ("implied" in claim.claimed), claim.id
        assert "{" not in claim.text + claim.claimed + claim.run, claim.id
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for rule in verdicts.RULES:
        assert set(rule.kinds) <= measures.KINDS.keys() and rule.text


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
    rows = measure()
    assert [row.claim for row in rows] == list(CLAIMS)
    for row in rows:
        assert row.verdict == UNTESTED and not row.measured and row.evidence.files == ()
        assert re.search("python -m (kdnb.run|benchmarks.latency)|make study", row.why)
    assert figures.differences(rows) is None and figures.heat_maps([]) == {}
    assert figures.effects([]) is None
    assert "No distillation of real images" in ledger.refresh(
        "<!-- results -->\n\n<!-- /results -->", home
    )


def test_commands_of_untested_claims_are_commands(home):
    """A reader copies them: every parameter must be one that a study takes."""
    for claim in CLAIMS:
        _, *pairs = claim.run.split(" -p ")
        given = dict(pair.split() for pair in pairs)
        for name in ("alpha", "temperature"):
            given |= {name: float(given[name])} if name in given else {}
        assert Study(**given)


def test_three_seeds_decide_and_one_does_not(home):
    distillation(home, "runs/x/distill", seed=0)
    assert row_of("B-brain_tumor-gain").verdict == UNDECIDED
    for seed in (1, 2):
        distillation(home, f"runs/{seed}/distill", seed=seed)
    row = row_of("B-brain_tumor-gain")
    assert (
        row.verdict == HOLDS
        and row.seeds == (0, 1, 2)
        and row.n == 1000
        and row.split == "official"
    )
    assert (
        row.value == pytest.approx(0.02)
        and row.low == pytest.approx(0.01)
        and row.profile == "quick"
    )
    assert len(row.files) == 3 and (row.teacher, row.student) == ("densenet121", "kdfmv5")
    assert "kd_fmv α 0.7 T 10, 96 px" in row.setting


def test_what_speaks_against_a_claim_is_said(home):
    for seed in range(3):
        distillation(
            home,
            f"runs/{seed}/distill",
            seed=seed,
            right=(960, 930, 955),
            gain=(-0.025, -0.04, -0.01),
        )
    assert (
        row_of("B-brain_tumor-gain").verdict == NOT
        and row_of("B-brain_tumor-teacher").verdict == NOT
    )
    assert (
        row_of("B-brain_tumor-student-accuracy").verdict == UNTESTED
    )  # 96 px: not the paper's setting
    refuted = [claim.id for claim in ledger.tally(measure())[NOT]]
    assert refuted == ["B-brain_tumor-teacher", "B-brain_tumor-gain"]


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
    found = {row.split: row for row in rows_of("B-brain_tumor-gain")}
    assert found["official"].value == pytest.approx(0.02) and found["group"].value == 0
    released = row_of("B-brain_tumor-released")
    assert (
        released.high == pytest.approx(0.002)
        and released.verdict == NOT
        and "no gradient" in released.why
    )


def test_runs_of_two_training_loops_are_not_pooled_and_the_newer_speaks(home):
    for seed in range(3):  # the first loop's files do not name it
        distillation(home, f"old/distill-{seed}", seed=seed, image_size=224)
    distillation(home, "new/distill-0", seed=0, loop=2, gain=(0.1, 0.05, 0.15))
    assert sorted(pool.seeds for pool in results.pools(results.load())) == [(0,), (0, 1, 2)]
    row = row_of("B-brain_tumor-gain")
    assert row.value == pytest.approx(0.1) and row.setting.endswith(
        "batch statistics of clean images"
    )
    assert set(results.distillations(results.load())["batch statistics"]) == {
        "augmented views",
        "clean images",
    }


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
    assert all(not row.measured for row in ledger.measure(found))


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
    rows = [row for row in measure() if row.claim.id == "A-covid_qu_ex-gain"]
    (row,) = map(flat, rows)
    assert row.verdict == PART and "stand-in" in row.dataset and "stand-in" in row.why
    assert "COVID-QU-Ex (stand-in)" in " ".join(
        ledger.summary(rows)
    ) and "stand-in" in ledger.described(rows)


def test_every_accuracy_of_the_table_has_an_interval_and_stays_a_share(home):
    distillation(home, "a/distill-1", right=(999, 960, 700))
    distillation(home, "a/distill-2", seed=1, right=(920, 940, 690))
    (row,) = results.distillations(results.load()).to_dict("records")
    for role in ("teacher", "distilled", "baseline"):
        middle, low, high = map(
            float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", row[f"{role} accuracy"]).groups()
        )
        assert 0 <= low < middle < high <= 1
    assert f"<td>{row['teacher accuracy']}</td>" in ledger.page([], results.load())


def test_the_grid_needs_two_by_two_and_the_papers_cell(home):
    for alpha, temperature, right in ((0.7, 10.0, 960), (0.7, 1.0, 900), (0.1, 10.0, 890)):
        distillation(
            home,
            f"runs/{alpha}-{temperature}/distill",
            alpha=alpha,
            temperature=temperature,
            right=(950, right, 940),
        )
    rows = measure()
    row = row_of("B-brain_tumor-optimum")
    assert (
        row.verdict == UNDECIDED and row.value == pytest.approx(0.06) and "1 run trained" in row.why
    )
    assert len(row.files) == 3
    (title,) = figures.heat_maps(results.load())
    assert title == "Brain Tumor MRI, split official: distilled student, n 1,000, seeds 0"
    page = ledger.page(rows, results.load())
    assert page.count("data:image/webp") == 2 and "From 89.0 to 96.0 %" in page


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
    row = row_of("B-brain_tumor-optimum")
    assert row.value == pytest.approx(-0.06) and row.seeds == (0,) and "rank 3 of 3" in row.why
    assert len(row.files) == 3


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
    assert row_of("B-eye_disease-focus").verdict == UNDECIDED
    met = row_of("B-eye_disease-met-shap")
    assert (
        met.value == 4
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
    assert row_of("B-eye_disease-focus").verdict == HOLDS
    assert row_of("B-eye_disease-met-shap").verdict == UNDECIDED  # faster in one run of three
    explained(
        home,
        "runs/3/explain",
        {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 18},
        (2.0, 4.0),
        seed=3,
        student_epochs=50,
    )
    assert row_of("B-eye_disease-focus").seeds in ((0, 1, 2), (3,))  # never together


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
    for name in ("focus", "alike"):
        row = row_of(f"B-eye_disease-{name}")
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
    row = row_of("B-eye_disease-focus")
    assert row.verdict == HOLDS and row.seeds == (0, 2, 3)


def test_every_claim_stands_once_under_its_verdict_and_leads_to_its_row(home):
    for dataset in ("eye_disease", "brain_tumor"):
        for seed in range(3):
            for split in ("official", "group"):  # two rows a claim
                name = f"runs/{dataset}-{split}-{seed}/distill"
                distillation(home, name, dataset=dataset, seed=seed, split=split)
    rows = measure()
    reached = ledger.tally(rows)
    assert {"B-brain_tumor-gain", "B-eye_disease-gain"} <= {c.id for c in reached[HOLDS]}
    every = [claim.id for claims in reached.values() for claim in claims]
    assert sorted(every) == sorted(claim.id for claim in CLAIMS)
    page = BeautifulSoup(ledger.page(rows, results.load()), "html.parser")
    table = page.select(".tally tbody tr")
    assert [int(row.find_all("td")[1].text) for row in table] == [
        len(claims) for claims in reached.values() if claims
    ]
    for link in page.select(".tally a"):
        assert len(page.select(f'tr[id="{link["href"][1:]}"]')) == 1, link


def test_each_student_has_its_row_and_another_loss_is_not_the_papers(home):
    distillation(home, "a/distill-1")
    distillation(home, "a/distill-2", student="kdfmv8", gain=(0.05, 0.04, 0.06))
    distillation(home, "a/distill-3", method="hybrid", seed=1, split="random", gain=(0.5, 0.4, 0.6))
    rows = rows_of("B-brain_tumor-gain")
    assert sorted(row.value for row in rows) == pytest.approx([0.02, 0.05])
    assert len(rows_of("B-brain_tumor-teacher-accuracy")) == 1  # it is the same teacher
    assert "No measurement has a paper's own setting" in " ".join(ledger.summary(measure()))


def test_feature_maps_have_a_similarity_and_a_time(home):
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
    alike, met = (
        row_of("B-eye_disease-features"),
        row_of("B-eye_disease-met-average-feature-maps"),
    )
    assert (
        alike.verdict == HOLDS
        and alike.seeds == (0, 1, 2)
        and alike.n == 96
        and alike.number.endswith("in CKA")
    )
    assert met.verdict == HOLDS and met.number == "2.000 times as fast"


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
    row = row_of("A-latency")
    assert (
        row.verdict == PART
        and row.value == 3
        and "not timed: vgg19_bn, autoformerv2_tiny" in row.why
    )
    assert "onnx, one image of 96 px, 2 threads, a processor" in row.setting
    timed("b", "vgg19_bn", ("eager", 9.0))
    timed("c", "autoformerv2_tiny", ("eager", 2.0))
    rows = rows_of("A-latency")
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
    rows = {row.teacher: row for row in rows_of("A-latency")}
    assert {name: row.verdict for name, row in rows.items()} == {
        "vgg19_bn": HOLDS,
        "visformer_small": HOLDS,
        "autoformerv2_tiny": NOT,
    }
    assert (
        rows["vgg19_bn"].files == ("outputs/benchmarks/latency.json",)
        and rows["vgg19_bn"].dataset == "any"
    )
    assert "onnx, one image of 224 px" in rows["vgg19_bn"].setting


def test_counts_come_from_the_zoo_and_the_summary_counts_claims(home):
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
    rows = measure()
    layers = rows_of("B-layers")
    assert [row.verdict for row in layers] == [HOLDS] * 2
    assert layers[0].files == ("outputs/zoo.json",)
    assert [row.verdict for row in rows_of("B-macs")] == [HOLDS, NOT]
    (more,) = [row for row in rows_of("B-parameters") if row.student == "kdfmv8"]
    assert more.verdict == HOLDS and more.implied
    reached = {verdict: [c.id for c in found] for verdict, found in ledger.tally(rows).items()}
    assert reached[HOLDS] == ["B-parameters", "B-layers"] and reached[UNDECIDED] == ["B-macs"]
    assert len(reached[ledger.MISSING]) == len(CLAIMS) - 3
    first = ledger.summary(rows)[0]
    assert f"Claims of the two papers: {len(CLAIMS)}" in first and "3 were measured" in first


def test_a_row_says_when_networks_were_at_their_best(home):
    path = distillation(home, "a/distill")
    stored = files.read_json(path)
    stored["results"]["training"] = {
        "teacher densenet121": {"best_epoch": 6, "epochs_run": 6},
        "distilled kdfmv5": {"best_epoch": 14, "epochs_run": 15},
    }
    files.write_json(path, stored)
    assert row_of("B-brain_tumor-gain").setting.endswith(
        "best epochs: teacher 6 of 6, distilled 14 of 15"
    )


def test_a_student_as_good_as_a_short_teacher_holds_in_part(home):
    for seed in range(3):
        distillation(home, f"runs/{seed}/distill", seed=seed, right=(940, 960, 950))
        verdict = row_of("B-brain_tumor-teacher").verdict
        assert verdict == (UNDECIDED if seed == 0 else PART)  # one run decides nothing, here either
    row = row_of("B-brain_tumor-teacher")
    assert row.verdict == PART and "the teacher's setting, too" in row.why


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
    assert results.leaks(results.load()).empty and figures.leaks(results.load()) is None
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
    text = ledger.page(measure(), results.load())  # in the figure's text
    assert "Brain Tumor MRI +10.0 [+5.0, +15.0], where 1,050 of 1,100 test images have" in text
    assert (
        "95% of test images have a relative"
        in figures.leaks(results.load()).axes[0].get_yticklabels()[0].get_text()
    )


def test_the_csv_has_the_columns_and_the_page_escapes(home):
    evil = "<script>alert(1)</script>"
    distillation(home, "a/distill", title=evil, classes=(evil, "b"))
    rows = measure()
    csv, page, *_ = ledger.save(rows, home / "out")
    assert (home / "out" / "systems.csv").exists()
    assert csv.read_text().splitlines()[0] == (
        "id,paper,claim,claimed,claimed_source,measured,low,high,n,"
        "dataset,split,profile,seeds,verdict,result_file"
    )
    table = pd.read_csv(csv)
    assert set(table["verdict"]) <= set(verdicts.VERDICTS)
    assert (table["measured"].notna() == table["result_file"].notna()).all()
    text = page.read_text()
    assert (
        "<script" not in text and "&lt;script&gt;" in text and "http" not in text.split("<body>")[0]
    )
    assert 'alt="Differences in test accuracy' in text and "data:image/webp" in text


def test_committed_ledger_and_readme_are_those_of_the_result_files():
    """After a new result: python -m kdnb.report, then python -m kdnb.run 00 09."""
    outputs, again = files.ROOT / "outputs", "run python -m kdnb.report"
    found = results.load(outputs)
    rows = ledger.measure(found)
    assert (outputs / "claims.csv").read_bytes() == ledger.csv(rows).encode(), again
    related = systems.csv(systems.measure(found))
    assert (outputs / "systems.csv").read_bytes() == related.encode(), again
    pages = [(outputs / "claims.html").read_text(), ledger.page(rows, found)]
    assert len({re.sub(r"base64,[^\"]*", "", page) for page in pages}) == 1, again
    reported = html.unescape((outputs / "09_report.html").read_text())
    numbers = [number for row in questions.answers(found) for number in row.numbers]
    assert numbers and not [n for n in numbers if n not in reported], "run python -m kdnb.run 09"
    assert all((files.ROOT / file).exists() for row in rows for file in row.evidence.files)
    document = (files.ROOT / "README.md").read_text()
    assert ledger.refresh(document) == document, again
    with Image.open(outputs / readme.FIGURE) as image:
        assert image.text["Description"] == ledger.shown(found), again


def test_the_readme_has_five_answers_and_a_figure(home):
    for seed in range(3):
        distillation(home, f"runs/{seed}/distill", seed=seed)
    lines = ledger.refresh("<!-- results -->\n\n<!-- /results -->", home).splitlines()
    assert lines[1].startswith("![") and lines[1].endswith(f"(outputs/{readme.FIGURE})")
    asked = [line for line in lines if line.startswith("| ") and "?" in line]
    assert len(asked) == len(questions.QUESTIONS) == 5
    *_, figure = ledger.save(measure(), home / "out", results.load())
    assert (home / "out" / readme.FIGURE).read_bytes().startswith(b"\x89PNG"), figure
    first = (home / "out" / readme.FIGURE).read_bytes()
    ledger.save(measure(), home / "out", results.load())
    assert (home / "out" / readme.FIGURE).read_bytes() == first


def test_the_effect_of_distillation_has_a_row_a_setting(home):
    distillation(home, "a/distill", seed=0)
    distillation(home, "b/distill", seed=0, alpha=0.1)  # another cell of the grid
    distillation(home, "c/distill", seed=1)
    distillation(home, "d/distill", teacher="vgg19_bn+densenet121", student="kdfmv8")
    (axis,) = figures.effects(results.load()).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "official, densenet121 → kdfmv5, kd_fmv, 96 px, 2 seeds",
        "official, 2 teachers → kdfmv8, kd_fmv, 96 px, 1 seed",
    ]


def test_the_command_writes_the_ledger(home, monkeypatch, capsys):
    distillation(home, "a/distill")
    monkeypatch.setattr(files, "ROOT", home)
    files.write_text(home / "README.md", "<!-- results -->\n\n<!-- /results -->")
    assert main([]) == 0
    assert (home / "outputs" / "claims.csv").exists() and "wrote" in capsys.readouterr().out
    assert "| Does distillation help? |" in (home / "README.md").read_text()
    with pytest.raises(SystemExit):
        main(["nothing"])


def test_the_face_has_what_it_names():
    assert all(hasattr(report, name) for name in report.__all__)


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


def test_an_undecided_claim_says_how_much_would_decide():
    e = Estimate(0.0, -0.02, 0.02, 100, 3)
    verdict, why = verdicts.gain(e)
    # the half-width of 2 points must fall below 1 point: 4 times as much
    assert verdict == UNDECIDED and why.endswith(
        "about 4 times as many images and runs would decide"
    )
    border = Estimate(-verdicts.MARGIN, -0.03, 0.01, 100, 3)
    assert "no number of images and runs decides soon" in verdicts.no_loss(border)[1]


def test_estimates_are_pooled_by_random_effects():
    one = Estimate(0.02, 0.01, 0.03, 100, 3)
    assert questions.pooled([one]).estimate == one
    same = questions.pooled([one, one])
    # equal effects: half of the variance, Student's t with 1 degree of freedom
    half = 12.7062 * 0.01 / 1.96 / 2**0.5
    assert same.heterogeneity == 0 and same.estimate.value == pytest.approx(0.02)
    assert same.estimate.high - 0.02 == pytest.approx(half, rel=1e-4)
    assert (same.estimate.n, same.estimate.seeds) == (200, 6)
    # effects 0 and 0.1 with standard errors 0.01: Q = 50, τ² = 49 / 10,000, one degree of freedom
    apart = [Estimate(v, v - 0.0196, v + 0.0196, 100, 3) for v in (0.0, 0.1)]
    found = questions.pooled(apart)
    assert found.heterogeneity == pytest.approx(0.98)
    assert found.estimate.high - 0.05 == pytest.approx(12.7062 * 0.05, rel=1e-4)


def test_likeness_to_a_network_that_did_not_teach_is_no_answer(home):
    spearman = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 18}
    for method in ("attention_transfer", "crckd"):
        path = explained(home, f"runs/{method}/explain", spearman, (4, 1))
        stored = files.read_json(path)
        likeness = stored["results"]["likeness_distilled_minus_alone"]
        likeness["score_cam"] = likeness.pop("grad_cam")
        stored["config"] = Study(dataset="eye_disease", method=method).config()
        files.write_json(path, stored)
    answer = questions.looks(results.load())
    assert answer.answer == "nearer to its teacher's maps than alone in 1 of 1 settings"
    assert "attention_transfer" in answer.files[0] and len(answer.files) == 1


def test_the_five_answers_come_from_result_files(home):
    empty = questions.answers(results.load())
    assert [row.files for row in empty] == [()] * 5 and all(not row.numbers for row in empty)
    for seed in range(3):
        distillation(home, f"runs/{seed}/distill", seed=seed)
        distillation(
            home,
            f"runs/{seed}-weak/distill",
            "eye_disease",
            "Eye",
            seed=seed,
            right=(900, 960, 940),
        )
    distillation(home, "runs/one/distill", "alzheimer", "Alzheimer")
    helps, as_good, *_ = questions.answers(results.load())
    assert helps.answer.startswith("yes: ") and "+2.0 [+1.0, +3.0] points" in helps.numbers[0]
    assert "no such teacher yet: Alzheimer, Eye" in helps.basis
    assert as_good.answer.startswith("yes: the interval excludes a loss")
    for row in (helps, as_good):
        assert len(row.files) == 3 and all((home / file).exists() for file in row.files)
    lines = questions.markdown([helps])
    assert lines[-1].startswith(
        "| Does distillation help? | yes: the whole interval lies above 0 | all: +2.0 ["
    )


def test_the_plan_follows_from_the_spread_between_runs(home):
    assert questions.plan(results.load()) is None
    for seed, gain in enumerate((0.01, 0.02, 0.03)):
        distillation(home, f"{seed}/distill", seed=seed, gain=(gain, gain - 0.01, gain + 0.01))
    spread, runs = questions.plan(results.load())
    # t(6) 0.01 / √7 = 0.0092 and t(5) 0.01 / √6 = 0.0105
    assert spread == pytest.approx(0.01) and runs == 7


def test_the_committed_answers_name_files_that_exist():
    for row in questions.answers(results.load(files.ROOT / "outputs")):
        assert row.numbers and row.files, row.question
        assert all((files.ROOT / file).exists() for file in row.files)


def test_cells_of_a_grid_are_paired_where_the_answers_are_kept():
    labels, rng = np.zeros(400, int), np.random.default_rng(0)
    hard = rng.random(400) < 0.3  # both cells fail on the same images

    def pool(wrong):
        tests = []
        for _ in range(3):
            answers = np.where(hard | (rng.random(400) < wrong), 1, 0)
            text = {"distilled": predictions.as_text(answers)}
            tests.append(predictions.truth(labels, np.arange(400)) | {"predicted": text})
        return SimpleNamespace(answers=lambda: tests)

    cells = {(0.7, 5.0): pool(0.0), (0.7, 1.0): pool(0.08), (0.1, 1.0): pool(0.2)}
    paired, note = measures.paired_cell.__wrapped__((0.7, 5.0), cells)
    assert note == "rank 1 of 3 cells; best other cell: α 0.7, T 1" and paired.seeds == 3
    assert verdicts.best(paired)[0] == HOLDS
    shares = {
        cell: [float(run) for run in results.right(each.answers(), "distilled").mean(0)]
        for cell, each in cells.items()
    }
    unpaired, same = measures.best_cell((0.7, 5.0), shares, 400)
    assert same == note and paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)
    cells[0.1, 1.0] = SimpleNamespace(answers=lambda: [])
    assert measures.paired_cell.__wrapped__((0.7, 5.0), cells) is None
