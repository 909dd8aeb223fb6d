"""The committed results of ``make bench`` meet their stated goals; no test measures time itself."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    browsing,
    distillation,
    gpu,
    growth,
    latency,
    methods,
    score_cam,
    selection,
    shap_values,
    shared_cores,
    slices,
)
from kdnb import files
from kdnb.training import answers, curation

FOLDER = files.ROOT / "outputs" / "benchmarks"


def test_time_grows_as_n_log_n_and_memory_stays_bounded():
    stored = files.read_json(FOLDER / "growth.json")
    rows = stored["results"]
    assert [row["images"] for row in rows] == list(growth.SIZES) and stored["goals"] == growth.GOALS
    for row in rows:
        assert max(row[f"{step}_of_n_log_n"] for step in growth.STEPS) <= 1, row["images"]
        assert row["own_memory_mb"] < growth.GOALS["own_memory_mb"]
    assert (
        next(row for row in rows if row["images"] == 34_000)["copies_s"]
        < growth.GOALS["copies_of_34000_s"]
    )


def test_slices_of_one_scan_are_found_without_patients_names():
    rows = {row["dataset"]: row for row in files.read_json(FOLDER / "slices.json")["results"]}
    assert set(rows) == set(slices.SETS)
    assert rows["alzheimer"]["recall"] > 0.99
    assert rows["alzheimer"]["test_images_with_their_patient_in_training"] == 0
    # labels tell nothing there: one patient has both; numbers do
    assert rows["lgg_mri"]["precision"] > 0.99 and rows["lgg_mri"]["recall"] > 0.7


def test_growth_is_relative_to_the_first_and_the_previous_size():
    rows = [
        {"images": count} | {f"{step}_s": seconds for step in growth.STEPS}
        for count, seconds in ((10, 1), (100, 20), (1000, 90))
    ]
    last = growth.compared(rows)[-1]
    assert last["copies_of_n_log_n"] == pytest.approx(90 / 300)
    assert last["copies_of_n_log_n_since_the_size_before"] == pytest.approx(90 / 20 / 15)


def test_distillation_reaches_its_speed_goals():
    rows = {row["what"]: row for row in files.read_json(FOLDER / "distillation.json")["results"]}
    assert (
        rows["kdnb, teacher in the loop"]["teacher"],
        rows["kdnb, teacher in the loop"]["image_size"],
    ) == (distillation.TEACHER, distillation.SIZE)
    assert rows["kdnb, teacher in the loop"]["times_torchdistill"] >= 2
    assert rows["kdnb, cached soft targets"]["times_torchdistill"] >= 4
    assert rows["kdnb, cached soft targets"]["share_of_bare_step"] >= 0.85


def test_shap_needs_less_than_half_of_the_time_for_the_same_error():
    """The goal, a third, is met by kdfmv5 and missed by ofa595; the others were not measured."""
    stored = files.read_json(FOLDER / "shap.json")
    shares = {r["model"]: r["share_of_library_for_same_error"] for r in stored["results"]}
    assert {"kdfmv5", "ofa595"} <= shares.keys() and max(shares.values()) < 0.5
    assert shares["kdfmv5"] <= stored["goal"] == shap_values.GOAL
    assert min(row["times_library_same_samples"] for row in stored["results"]) >= 1
    assert max(row["max_diff_of_scale"] for row in stored["curve"]) < 1e-5


@pytest.mark.parametrize(
    ("error", "seconds"), [(0.1, 10), (0.4, 2.5), (0.05, 20), (0.9, 2), (0.02, np.nan)]
)
def test_the_time_for_an_error_lies_on_the_curve(error, seconds):
    curve = pd.DataFrame({"error": [0.5, 0.1, 0.05], "seconds": [2.0, 10.0, 20.0]})
    assert shap_values.time_for(curve, error) == pytest.approx(seconds, nan_ok=True)


def test_the_data_path_is_five_times_as_fast_as_image_folder():
    ways = files.read_json(FOLDER / "data_path.json")["results"]
    ours = {
        row["views"]: row["times_image_folder"] for row in ways if row["way"].startswith("kdnb")
    }
    assert ours.keys() == {"plain", "augmented"} and min(ours.values()) >= 5


def test_latency_compares_each_student_with_its_own_teachers():
    table = latency.timings(["kdfmv5", "resnet10t"], image_size=32, seconds=0.01, rounds=2)
    assert len(table) == 2 * 2 * 2 and (table["latency_ms"] > 0).all()
    rows = latency.speedups(table, {"kdfmv5": ("resnet10t",)})
    assert [(row["teacher"], row["student"], row["runtime"]) for row in rows] == [
        ("resnet10t", "kdfmv5", "onnx"),
        ("resnet10t", "kdfmv5", "eager"),
    ]
    assert all(row["low"] <= row["times_as_fast"] <= row["high"] for row in rows)
    first = table[table["round"] == 0].set_index(["model", "runtime"])["latency_ms"]
    assert rows[0]["low"] <= first["resnet10t", "onnx"] / first["kdfmv5", "onnx"] <= rows[0]["high"]


def test_a_short_spin_gains_more_on_shared_cores_than_it_costs_on_idle_ones():
    rows = files.read_json(FOLDER / "shared_cores.json")["results"]["compared"]
    alone = {row["network"]: row["times_as_fast"] for row in rows if not row["beside"]}
    beside = {row["network"]: row["times_as_fast"] for row in rows if row["beside"]}
    assert set(alone) == set(beside) == set(shared_cores.NETWORKS)
    assert all(alone[name] > 0.85 and beside[name] * alone[name] > 1 for name in alone), (
        alone,
        beside,
    )


def test_spins_are_compared_within_each_round():
    took = {(0, "kdnb"): 10.0, (0, "library"): 9.0, (2, "kdnb"): 20.0, (2, "library"): 80.0}
    table = pd.DataFrame(
        [
            {"round": 0, "beside": beside, "setting": setting}
            | dict.fromkeys(shared_cores.NETWORKS, milliseconds)
            for (beside, setting), milliseconds in took.items()
        ]
    )
    assert [(row["beside"], row["times_as_fast"]) for row in shared_cores.compared(table)[:2]] == [
        (0, 0.9),
        (2, 4.0),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses libgomp only on Linux")
def test_torch_is_imported_with_the_short_spin():
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    bare = {key: value for key, value in os.environ.items() if key not in chosen} | {
        "OMP_DISPLAY_ENV": "VERBOSE"
    }
    output = subprocess.run(
        [sys.executable, "-c", "import kdnb, torch"],
        env=bare,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{shared_cores.SPINS['kdnb']}'" in output


def test_the_cost_of_a_method_is_the_least_of_repeats_that_take_turns():
    turns, values = [], {"reference": iter([2.0, 5.0, 3.0]), "own": iter([9.0, 4.0, 6.0])}

    def measure(name):
        turns.append(name)
        return next(values[name])

    measures = {name: lambda name=name: measure(name) for name in values}
    assert methods.least(3, measures) == {"reference": 2.0, "own": 4.0}
    assert turns == ["reference", "own"] * 3


def test_the_costs_of_methods_are_kept_row_by_row(home, few_phantoms, monkeypatch):
    path = methods.main(["--toy", "--methods", "dkd+attention_transfer", "--repeats", "1"])
    assert path.is_relative_to(home / "cache"), "a toy's rows are no results"
    monkeypatch.setattr(methods, "draw", lambda *given: None)
    monkeypatch.setattr(methods, "seconds", lambda *given: 2.0)
    methods.main(["--toy", "--methods", "dkd"])
    rows = {row["method"]: row for row in files.read_json(path)["results"]}
    assert [*rows] == ["attention_transfer", "dkd"]
    assert [row["repeats"] for row in rows.values()] == [1, methods.TOY.repeats]
    assert rows["dkd"]["times_soft_targets"] == 1, "the row of the second run"
    assert "times_soft_targets_with_kept_answers" in rows["dkd"]
    for row in rows.values():
        spent = row["cpu_seconds"]
        assert row["times_soft_targets"] == pytest.approx(spent["own"] / spent["reference"])
    assert path.with_suffix(".png").exists() and os.environ["KDNB_CACHE"] == str(home / "cache")
    with pytest.raises(SystemExit):
        methods.main(["--methods", "dkdd"])


def test_a_teacher_is_asked_where_its_answers_are_kept_already(home, monkeypatch):
    monkeypatch.setenv(answers.LIMIT, "1")  # restored after what follows
    kept = files.write_text(answers.folder() / "one.safetensors", "kept")
    with methods.answers_within("0"):
        assert not kept.exists() and answers.limit() == 0
        files.write_text(kept, "of this run")
    assert kept.read_text() == "kept" and [*home.glob("cache/*aside*")] == []
    with methods.answers_within("4"):
        assert kept.exists()


def test_score_cam_is_measured_row_by_row(home, few_phantoms):
    path = score_cam.main(["--toy", "--models", "kdfmv5"])
    assert path.is_relative_to(home / "cache"), "a toy's rows are no results"
    score_cam.main(["--toy", "--models", "resnet10t"])
    rows = {row["model"]: row for row in files.read_json(path)["results"]}
    assert [*rows] == ["kdfmv5", "resnet10t"] and path.with_suffix(".png").exists()
    for row in rows.values():
        assert row["max_abs_diff_exact"] < 1e-4 and row["exact_times_library"] > 0
        assert [each["tolerance"] for each in row["modes"]] == [*score_cam.TOLERANCES]
        assert all(0 < each["scored"] <= row["channels"] for each in row["modes"])


def test_the_maps_of_networks_that_nobody_tuned_on_reach_their_tolerance():
    """Those and the zoo's: all at 0.99; at 0.95 all but GhostNet and OFA-595, whose maps reach 0.92
    and 0.94. Exact maps are as fast as the library's or faster, the goal of 1.2 times is missed by
    three networks of ten."""
    stored = files.read_json(FOLDER / "score_cam.json")
    rows, goals = stored["results"], stored["goals"]
    assert goals == score_cam.GOALS and sum(row["unseen"] for row in rows) >= 8
    assert max(row["max_abs_diff_exact"] for row in rows) < 1e-4
    assert min(row["exact_times_library"] for row in rows) >= 1
    assert sum(row["exact_times_library"] < goals["exact"] for row in rows) <= 3
    modes = pd.DataFrame([row | mode for row in rows for mode in row["modes"]])
    missed = modes[modes["spearman"] < modes["tolerance"] - 0.005]
    assert set(missed["model"]) == {"ghostnet_100", "ofa595"} and missed["spearman"].min() > 0.9
    wide = modes[modes["channels"] >= 256].groupby("tolerance")["times_library"].min()
    assert wide[0.99] >= goals["0.99"] and wide[0.95] >= 0.8 * goals["0.95"]


def test_the_script_for_a_gpu_measures_every_kind_of_row(home):
    path = gpu.main(["--toy"])
    stored = files.read_json(path)
    assert path.is_relative_to(home / "cache"), "a toy's rows are no results"
    assert not stored["failed"] and not stored["not_begun"]
    rows = {row["kind"]: row for row in stored["results"]}
    assert set(rows) == {
        *("teacher in the loop", "bare step with teacher", "bare step with teacher, compiled"),
        *("kept answers", "bare step of the student", "data alone"),
        *("Score-CAM, kdnb", "Score-CAM, pytorch-grad-cam"),
        *("plain training", "bare step alone", "bare step alone, compiled"),
    }
    for kind, row in rows.items():
        assert (row["size"], row["batch"]) == (gpu.TOY.size, gpu.TOY.batch)
        assert 0 < row["images_per_second_low"] <= row["images_per_second"], kind
        assert row["images_per_second"] <= row["images_per_second_high"], kind
    ratios = {kind: row["ratio"] for kind, row in rows.items() if "ratio" in row}
    assert len(ratios) == 6 and min(ratios.values()) > 0
    assert rows["Score-CAM, kdnb"]["max_abs_diff"] < 1e-3


def test_the_script_for_a_gpu_begins_no_row_after_its_time(home, monkeypatch):
    names = [name for name, _ in gpu.jobs(gpu.TOY)]
    stored = files.read_json(gpu.main(["--toy", "--seconds", "0"]))
    assert [row["name"] for row in stored["not_begun"]] == names and not stored["results"]

    def slow():
        time.sleep(0.2)
        return [gpu.row("slow", "row", 1, [0.2])]

    jobs = [("done", [slow]), ("long", [slow] * 100), ("next", [slow])]
    monkeypatch.setattr(gpu, "jobs", lambda setup: jobs)
    stored = files.read_json(gpu.main(["--toy", "--seconds", "1"]))
    assert 1 <= len(stored["results"]) <= 5
    assert [row["name"] for row in stored["not_begun"]] == ["long", "next"]


def test_the_script_for_a_gpu_notes_an_error_and_goes_on(home, monkeypatch):
    def fails():
        raise torch.OutOfMemoryError("too large\n  for this GPU")

    jobs = [("fails", [fails, fails]), ("data", [lambda: gpu.views(gpu.TOY)])]
    monkeypatch.setattr(gpu, "jobs", lambda setup: jobs)
    stored = files.read_json(gpu.main(["--toy"]))
    assert [row["kind"] for row in stored["results"]] == ["data alone"]
    assert [(row["name"], row["error"]) for row in stored["failed"]] == [
        ("fails", "OutOfMemoryError: too large for this GPU")
    ]
    only = files.read_json(gpu.main(["--toy", "--only", "dat"]))
    assert [row["kind"] for row in only["results"]] == ["data alone"]


def test_the_cost_of_choosing_is_measured(home, few_phantoms):
    path = selection.main(["--toy"])
    assert path.is_relative_to(home / "cache"), "a toy's rows are no results"
    stored = files.read_json(path)
    rows = {row["rule"]: row for row in stored["curation"]["results"]}
    assert [*rows] == [selection.NONE, *curation.RULES, selection.HALF]
    counted = {name: row["times_no_curation_by_count_of_passes"] for name, row in rows.items()}
    assert counted["acid"] == pytest.approx(8 / 3)
    assert counted[selection.HALF] == pytest.approx((3 + 5 / 4) / 3)
    for row in rows.values():
        spent = row["cpu_seconds"] / rows[selection.NONE]["cpu_seconds"]
        assert row["times_no_curation"] == pytest.approx(spent)
    (row,) = stored["features"]
    assert row["source"] == "handcrafted" and row["seconds_for_5000_images"] > 0


def test_curation_costs_a_third_more_where_it_scores_half_the_side():
    """Whole images cost twice as much as plain training; the goal is met by the other rules."""
    stored = files.read_json(FOLDER / "selection.json")
    times = {row["rule"]: row["times_no_curation"] for row in stored["curation"]["results"]}
    goal = stored["goals"]["times_no_curation"]
    assert times["acid"] > 2 > goal
    assert max(times[rule] for rule in (selection.HALF, "easy_reference", "random")) <= goal


def test_how_long_a_reader_waits_is_measured(home, few_phantoms):
    found = files.read_json(browsing.main(["--toy"]))
    assert 0 < found["maps_s"] < found["picture_s"] and len(found["networks"]) == 3


def test_three_maps_answer_in_half_a_second():
    stored = files.read_json(FOLDER / "browsing.json")
    assert stored["networks"] == ["densenet121", "kdfmv5", "kdfmv5"] and stored["image_size"] == 96
    assert stored["maps_s"] < stored["goal_maps_s"] == browsing.GOAL
