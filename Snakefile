# The whole study as papermill runs of the notebooks: teachers first (02), then every student (03), then what a row of study.yaml
# asks for in `also` (explain: 04, layers: 05), each run in its own folder outputs/runs/<cell>/. The sets of cells stand in
# study.yaml; profiles/ says where they run.
#
#   snakemake --profile profiles/local --config set=cpu              on this machine; --dry-run tells what would run
#   snakemake --profile profiles/slurm --config set=paper            on a cluster
#   snakemake --profile profiles/local --configfile mine.yaml        sets of your own (sets: {mine: [...]}, set: mine), or
#                                                                    override: {dataset: folder, data_root: /my/images}
#
# Interrupted, the same command goes on: finished cells stay, a training goes on after its last whole epoch. After a kill -9, first
# `snakemake --unlock`, then the command with --rerun-incomplete. Checkpoints live in KDNB_CACHE under a hash of their whole
# configuration and are no outputs of a rule, so that neither a failed job nor an edited text cell makes anything train again.
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
STUDENTS_OWN = ("student", "method", "alpha", "temperature", "teacher_weights", "student_epochs")
ALSO = {"explain": "04_explain.ipynb", "layers": "05_feature_maps.ipynb"}
PYTHON = sys.executable


def chosen():
    """Cells, and what is wanted beside accuracy, of the set that was asked for; `override: {...}` of a --configfile is in all."""
    name = config.get("set", "cpu")
    if name not in config["sets"]:
        near = difflib.get_close_matches(str(name), config["sets"], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise WorkflowError(f"unknown set {name!r}.{hint} study.yaml has: {', '.join(config['sets'])}.")
    rows = [row | config.get("override", {}) for row in config["sets"][name]]
    for row in rows:
        also = row.pop("also", [])
        if not isinstance(also, list) or not set(also) <= set(ALSO):
            raise WorkflowError(f"also: {also!r} in set {name!r} must be a list of {', '.join(ALSO)}, for example also: [explain].")
        values = [value if isinstance(value, list) else [value] for value in row.values()]
        yield from ((dict(zip(row, product)), also) for product in itertools.product(*values))


def name(cell, parts):
    """A folder's name that a reader understands, made unique by a hash of every choice."""
    words = [str(cell[part]).replace("+", "-").replace(":", "-") for part in parts if part in cell]
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:8]
    return "_".join([*words, f"s{cell.get('seed', 0)}", digest])


def teachers_of(cell):
    """The cells of a student's teachers, one each where several are averaged."""
    shared = {key: value for key, value in cell.items() if key not in STUDENTS_OWN}
    return [shared | {"teacher": teacher} for teacher in cell["teacher"].split("+")]


def name_student(cell):
    return name(cell, ("dataset", "split", "teacher", "student", "method", "alpha", "temperature"))


STUDENTS = {name_student(cell): cell for cell, _ in chosen()}
WANTED = {(name_student(cell), what) for cell, also in chosen() for what in ("distill", *also)}  # rows may share a cell
TEACHERS = {name(cell, ("dataset", "split", "teacher")): cell for row in STUDENTS.values() for cell in teachers_of(row)}
TEACHER_NAMES = {json.dumps(cell, sort_keys=True): key for key, cell in TEACHERS.items()}

# Executed into logs/, copied on success: a failed job loses its declared outputs, and the notebook with the traceback must stay.
RUN = """
    rm -rf {params.scratch:q} && mkdir -p {params.scratch:q}
    env -u KDNB_PROFILE KDNB_OUTPUTS="$(realpath {params.scratch:q})" {PYTHON:q} -m papermill {params.notebook:q} {log.notebook:q} \
        --cwd {NOTEBOOKS:q} --kernel python3 --parameters_yaml {params.values:q} --no-progress-bar --log-level WARNING
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
    retries: 1  # two kernels that start at once may race for a port
    shell:
        RUN + HISTORY


rule distil:
    input:
        # ancient: a clone's files are all of one moment, in no order; another teacher has another folder anyway
        lambda wildcards: [
            ancient(os.path.join(RUNS, TEACHER_NAMES[json.dumps(cell, sort_keys=True)], "teacher.json"))
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
        values=lambda wildcards: json.dumps(STUDENTS[wildcards.cell]),
        notebook=lambda wildcards: os.path.join(NOTEBOOKS, ALSO[wildcards.what]),
        scratch=os.path.join(LOGS, "{cell}_{what}"),
        stem="{what}",
    threads: config.get("threads", 2)
    retries: 1
    shell:
        RUN
