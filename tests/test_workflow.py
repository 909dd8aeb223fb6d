"""The study as a workflow: its sets, its cells, and its resumption after kill -9."""

import ast
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from kdnb import cells, files, parameters, run
from kdnb.classical import FeatureParameters
from kdnb.study import Study
from kdnb.training import LabelParameters, MethodParameters

TINY = {
    "dataset": "folder",
    "teacher": "resnet10t",
    "split": "auto",
    "image_size": 32,
    "batch_size": 16,
    "lr": 0.003,
}


def snakemake(home, *options, override=None, **config):
    """Run the workflow in a folder of its own and return the finished process."""
    return subprocess.run(
        command(home, *options, override=override, **config),
        cwd=files.ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )


def command(home, *options, override=None, **config):
    # a file, because snakemake reads numbers nested in a value of --config as text
    mine = files.write_text(
        home / "mine.yaml",
        yaml.safe_dump({"set": "smoke", "threads": 1, "override": override or {}} | config),
    )
    return [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(files.ROOT / "Snakefile"),
        "--directory",
        str(home / "work"),
        "--configfile",
        str(mine),
        *(options or ["--cores", "1"]),
    ]


def environment():
    return os.environ | {"PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"}


def rows(name):
    """Each row of a set with the values of each parameter; ``also`` names results instead."""
    for row in yaml.safe_load((files.ROOT / "study.yaml").read_text())["sets"][name]:
        assert set(row.pop("also", [])) <= {"explain", "layers"}
        values = [value if isinstance(value, list) else [value] for value in row.values()]
        yield row, values


@pytest.mark.parametrize("name", ["smoke", "cpu", "paper"])
def test_every_value_of_a_set_is_valid_for_a_study(name):
    for row, values in rows(name):
        for key, options in zip(row, values, strict=True):
            for option in options:
                first = {k: v[0] for k, v in zip(row, values, strict=True)} | {key: option}
                study = Study(**first)
                assert getattr(study, key) == option


def test_the_paper_set_contains_the_experiments_of_both_papers():
    cells = [
        {k: v[0] if len(v) == 1 else v for k, v in zip(row, values, strict=True)}
        for row, values in rows("paper")
    ]
    grid = next(
        cell
        for cell in cells
        if isinstance(cell["alpha" if "alpha" in cell else "seed"], list) and "alpha" in cell
    )
    assert grid["alpha"] == [0.1, 0.4, 0.7, 1.0] and grid["temperature"] == [1.0, 5.0, 10.0, 15.0]
    assert {cell["dataset"] for cell in cells if isinstance(cell["dataset"], str)} >= {
        "covid_qu_ex",
        "lc25000",
        "brain_tumor",
    }
    assert all("group" in cell["split"] for cell in cells)
    teachers = {
        cell["teacher"] if isinstance(cell["teacher"], str) else tuple(cell["teacher"])
        for cell in cells
    }
    assert "vgg19_bn+visformer_small+autoformerv2_tiny" in teachers


def test_profiles_are_commented_and_name_their_executor():
    for name, executor in (("local", None), ("slurm", "slurm"), ("kubernetes", "kubernetes")):
        text = (files.ROOT / "profiles" / name / "config.yaml").read_text()
        assert text.startswith("# ") and yaml.safe_load(text).get("executor") == executor
        assert (
            yaml.safe_load(text)["keep-going"] and yaml.safe_load(text)["rerun-triggers"] == "mtime"
        )


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_each_cell_of_a_large_set_is_scheduled_once(home, name):
    done = snakemake(home, "--cores", "1", "--dry-run", set=name)
    output = done.stdout + done.stderr
    cells = {
        Path(path).parent.name for path in re.findall(r"outputs/runs/[^\s,]+/distill\.json", output)
    }
    wanted = {
        tuple(sorted(zip(row, choice, strict=True)))
        for row, values in rows(name)
        for choice in itertools.product(*values)
    }
    assert done.returncode == 0 and len(cells) == len(wanted), output[
        -3000:
    ]  # rows may share a cell
    if name == "cpu":  # the committed runs come from this set, from evidence and from methods
        for other in ("evidence", "methods"):
            more = snakemake(home, "--cores", "1", "--dry-run", set=other)
            output += more.stdout + more.stderr
        named = r"outputs/runs/([^\s,/]+)/(?:teacher|distill)\.json"
        committed = {path.name for path in (files.ROOT / "outputs" / "runs").iterdir()}
        assert committed <= set(re.findall(named, output))


def test_cells_are_planned_once_and_those_of_a_fresh_clone_are_not_run_again(home):
    """Git writes files in order of their names, so a teacher may be younger than its student."""
    done = snakemake(home, "--cores", "1", "--dry-run")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    for rule in ("distil", "teacher", "look"):
        assert output.count(f"rule {rule}:") == 2
    assert "phantom_cxr_auto_resnet10t_kdfmv5_hybrid_s0_" in output
    assert not list(home.rglob("*.ipynb"))
    made = sorted(set(re.findall(r"\S+\.(?:json|csv)", output)) - {str(home / "mine.yaml")})
    assert len(made) == 10
    youngest = (
        "layers.json",
        "distill.json",
        "distill-history.csv",
        "teacher.json",
        "teacher-history.csv",
    )
    for age, path in enumerate(
        sorted(made, key=lambda path: youngest.index(Path(path.rstrip(",")).name))
    ):
        path = home / "work" / path.rstrip(",")
        files.write_text(path, "{}")
        os.utime(path, (1_000_000 + 10 * age,) * 2)
    again = snakemake(
        home, "--cores", "1", "--dry-run", "--rerun-triggers", "mtime"
    )  # as in profiles/
    assert "Nothing to be done" in again.stdout + again.stderr


def test_an_unknown_notebook_in_also_is_refused_with_the_allowed_ones(home):
    smoke = yaml.safe_load((files.ROOT / "study.yaml").read_text())["sets"]["smoke"]
    for wish in ("explain", ["explian"]):
        done = snakemake(
            home,
            "--cores",
            "1",
            "--dry-run",
            sets={"mine": [smoke[0] | {"also": wish}]},
            set="mine",
        )
        assert (
            done.returncode != 0
            and "must be a list of explain, layers" in done.stdout + done.stderr
        )


def test_an_unknown_set_is_refused_with_the_nearest(home):
    done = snakemake(home, "--cores", "1", "--dry-run", set="smok")
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "Did you mean 'smoke'?" in output and "cpu" in output


@pytest.mark.slow
def test_a_killed_workflow_resumes(folder, home):
    """kill -9 of the process group after the first teacher; then --unlock and --rerun-incomplete
    run the remaining cells only."""
    override = TINY | {"data_root": str(folder)}
    started = subprocess.Popen(
        command(home, override=override),
        cwd=files.ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs, log = home / "outputs" / "runs", home / "work" / "logs" / "study"
    wait_for(
        lambda: list(runs.glob("*/teacher.json")) and len(list(log.glob("*.ipynb"))) >= 2, started
    )
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")}
    assert before and len(list(runs.glob("*/distill.json"))) < 2

    refused = snakemake(home, override=override)
    assert refused.returncode != 0 and "unlock" in (refused.stdout + refused.stderr)
    assert snakemake(home, "--unlock", override=override).returncode == 0
    done = snakemake(home, "--cores", "1", "--rerun-incomplete", override=override)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), (
        "a finished cell ran again"
    )
    found = sorted(runs.glob("*/distill.json"))
    assert len(found) == 2 and {files.read_json(path)["config"]["seed"] for path in found} == {0, 1}
    assert all((path.parent / "distill-history.csv").exists() for path in found)
    assert all(
        files.read_json(path.parent / "layers.json")["results"]["met_seconds"] for path in found
    )

    again = snakemake(home, "--cores", "1", "--dry-run", override=override)
    assert "Nothing to be done" in again.stdout + again.stderr

    # Repeating a cell without trained networks gives the same numbers to the last digit.
    first = files.read_json(found[0])
    found[0].unlink()
    for run_folder in (home / "cache" / "runs").rglob("run.json"):
        run_folder.unlink()
    assert snakemake(home, "--cores", "1", override=override).returncode == 0
    second = files.read_json(found[0])
    for role in ("teacher", "distilled", "alone", "distilled_minus_alone"):
        assert second["results"][role] == first["results"][role]


@pytest.mark.slow
def test_a_failed_cell_keeps_its_traceback(folder, home):
    override = TINY | {"data_root": str(folder / "nowhere"), "seed": 0}
    done = snakemake(home, "--cores", "1", "--retries", "0", override=override)
    assert done.returncode != 0 and not list((home / "outputs").rglob("*.json"))
    (notebook,) = (home / "work" / "logs" / "study").glob("*_teacher.ipynb")
    assert "DatasetMissing" in notebook.read_text()


def wait_for(condition, process, seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the workflow ended before it could be killed"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.2)


def test_parameters_of_the_student_are_not_passed_to_the_teacher():
    """The Snakefile lists the parameters that notebook 03 takes and notebook 02 does not."""
    teacher, student = (
        cells.taken(nbformat.read(path, as_version=4)) for path in run.notebooks(["02", "03"])
    )
    text = (files.ROOT / "Snakefile").read_text()
    listed = ast.literal_eval(re.search(r"STUDENTS_OWN = (\(.+?\))", text, re.DOTALL)[1])
    # those of notebooks that a row asks for beside 02 and 03 are no teacher's either
    wings = (MethodParameters, LabelParameters, FeatureParameters)
    also = {name for wing in wings for name in parameters.declared(wing)}
    assert set(listed) == set(student) - set(teacher) | also


def test_maps_of_the_workflow_are_compared_on_more_images_than_are_shown(home):
    override = {"seed": 0, "also": ["explain"]}
    done = snakemake(home, "--cores", "1", "--dry-run", "--printshellcmds", override=override)
    (told,) = {
        json.loads(found)["compared"] for found in re.findall(r"\{.*compared.*?\}", done.stdout)
    }
    assert told > 60, "60 are those of the paper's profile"
