# The experiments of both papers as papermill runs of the notebooks: all teachers (02), then all
# students (03), then what a row of study.yaml requests in `also` (explain: 04, layers: 05, methods: 10,
# labels: 11, features: 12). Each run has its own folder outputs/runs/<cell>/. study.yaml defines the sets, profiles/ where
# they run.
#
#   snakemake --profile profiles/local --config set=cpu         on this machine; --dry-run lists the runs
#   snakemake --profile profiles/slurm --config set=paper       on a cluster
#   snakemake --profile profiles/local --configfile mine.yaml   sets of your own (sets: {mine: [...]},
#                                                               set: mine), or values for every row
#                                                               (override: {dataset: folder, ...})
#
# After an interruption, the same command continues: finished runs stay, and a training continues
# after its last complete epoch. After kill -9, run `snakemake --unlock` first, then the command with
# --rerun-incomplete. Checkpoints lie in KDNB_CACHE under a hash of their configuration and are not
# outputs of a rule, so neither a failed run nor an edited text cell causes a new training.
import difflib
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

configfile: Path(workflow.basedir, "study.yaml")

RUNS = os.path.join(os.environ.get("KDNB_OUTPUTS") or "outputs", "runs")
LOGS = os.path.join("logs", "study")
NOTEBOOKS = os.path.join(workflow.basedir, "notebooks")
STUDENTS_OWN = (
    "student", "recipe", "method", "options", "alpha", "temperature", "teacher_weights",
    "student_epochs", "methods", "curation", "curation_temperature", "curation_scale", "label_shares",
    "positive_shares", "features",
)
ALSO = {
    "explain": "04_explain.ipynb", "layers": "05_feature_maps.ipynb", "methods": "10_methods.ipynb",
    "labels": "11_labels.ipynb", "features": "12_features.ipynb",
}
# What a notebook gets beside its cell: maps of the few images that 04 shows by itself decide nothing.
ALSO_GIVEN = {"explain": {"compared": 300}}
PYTHON = sys.executable


def chosen():
    """The cells of the chosen set, each with its `also`; `override` of a --configfile applies to all."""
    name = config.get("set", "cpu")
    if name not in config["sets"]:
        near = difflib.get_close_matches(str(name), config["sets"], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise WorkflowError(f"unknown set {name!r}.{hint} study.yaml has: {', '.join(config['sets'])}.")
    rows = [row | config.get("override", {}) for row in config["sets"][name]]
    for row in rows:
        also = row.pop("also", [])
        if not isinstance(also, list) or not set(also) <= set(ALSO):
            allowed = f"must be a list of {', '.join(ALSO)}, for example also: [explain]"
            raise WorkflowError(f"also: {also!r} in set {name!r} {allowed}.")
        values = [value if isinstance(value, list) else [value] for value in row.values()]
        yield from ((dict(zip(row, product)), also) for product in itertools.product(*values))


def name(cell, parts):
    """A readable name for the folder of a run, made unique by a hash of its parameters."""
    words = [str(cell[part]).replace("+", "-").replace(":", "-") for part in parts if part in cell]
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:8]
    return "_".join([*words, f"s{cell.get('seed', 0)}", digest])


def teachers_of(cell):
    """The cells of a student's teachers: several where their soft targets are averaged."""
    shared = {key: value for key, value in cell.items() if key not in STUDENTS_OWN}
    return [shared | {"teacher": teacher} for teacher in cell["teacher"].split("+")]


def teacher_name(cell):
    return name(cell, ("dataset", "split", "teacher", "label_share"))


def student_name(cell):
    networks = ("teacher", "student", "method", "alpha", "temperature")
    return name(cell, ("dataset", "split", *networks, "label_share"))


STUDENTS = {student_name(cell): cell for cell, _ in chosen()}
# sets, because rows may share a cell
WANTED = {(student_name(cell), what) for cell, also in chosen() for what in ("distill", *also)}
TEACHERS = {teacher_name(cell): cell for row in STUDENTS.values() for cell in teachers_of(row)}

# Notebooks are executed in logs/ and their results copied on success: snakemake deletes the declared
# outputs of a failed job, and the notebook with the traceback must stay.
RUN = """
    rm -rf {params.scratch:q} && mkdir -p {params.scratch:q}
    env -u KDNB_PROFILE KDNB_OUTPUTS="$(realpath {params.scratch:q})" \
        {PYTHON:q} -m papermill {params.notebook:q} {log.notebook:q} --cwd {NOTEBOOKS:q} --kernel python3 \
        --parameters_yaml {params.values:q} --no-progress-bar --log-level WARNING
    find {params.scratch:q} -name '{params.stem}-*.json' -exec cp {{}} {output.result:q} \\;
"""
HISTORY = """
    find {params.scratch:q} -name '{params.stem}-*-history.csv' -exec cp {{}} {output.history:q} \\;
"""


wildcard_constraints:
    cell="[^/]+",
    what="|".join(ALSO),


localrules:
    all,


rule all:
    input:
        [os.path.join(RUNS, cell, f"{what}.json") for cell, what in sorted(WANTED)],


rule teacher:
    output:
        result=os.path.join(RUNS, "{cell}", "teacher.json"),
        history=os.path.join(RUNS, "{cell}", "teacher-history.csv"),
    log:
        notebook=os.path.join(LOGS, "{cell}_teacher.ipynb"),
    params:
        values=lambda wildcards: json.dumps(TEACHERS[wildcards.cell]),
        notebook=os.path.join(NOTEBOOKS, "02_train_teacher.ipynb"),
        scratch=os.path.join(LOGS, "{cell}_teacher"),
        stem="teacher",
    threads: config.get("threads", 2)
    retries: 1  # kernels that start at the same time can compete for a port
    shell:
        RUN + HISTORY


rule distil:
    input:
        # ancient: modification times in a fresh clone are arbitrary, and another teacher has another folder
        lambda wildcards: [
            ancient(os.path.join(RUNS, teacher_name(cell), "teacher.json"))
            for cell in teachers_of(STUDENTS[wildcards.cell])
        ],
    output:
        result=os.path.join(RUNS, "{cell}", "distill.json"),
        history=os.path.join(RUNS, "{cell}", "distill-history.csv"),
    log:
        notebook=os.path.join(LOGS, "{cell}.ipynb"),
    params:
        values=lambda wildcards: json.dumps(STUDENTS[wildcards.cell]),
        notebook=os.path.join(NOTEBOOKS, "03_distill.ipynb"),
        scratch=os.path.join(LOGS, "{cell}"),
        stem="distill",
    threads: config.get("threads", 2)
    retries: 1
    shell:
        RUN + HISTORY


rule look:
    input:
        ancient(os.path.join(RUNS, "{cell}", "distill.json")),
    output:
        result=os.path.join(RUNS, "{cell}", "{what}.json"),
    log:
        notebook=os.path.join(LOGS, "{cell}_{what}.ipynb"),
    params:
        values=lambda wildcards: json.dumps(STUDENTS[wildcards.cell] | ALSO_GIVEN.get(wildcards.what, {})),
        notebook=lambda wildcards: os.path.join(NOTEBOOKS, ALSO[wildcards.what]),
        scratch=os.path.join(LOGS, "{cell}_{what}"),
        stem="{what}",
    threads: config.get("threads", 2)
    retries: 1
    shell:
        RUN
