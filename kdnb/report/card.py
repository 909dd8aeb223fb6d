"""The model card of a trained student, in the format of the Hugging Face hub, from result files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources

from huggingface_hub import EvalResult, ModelCard, ModelCardData  # timm brings it
from jinja2 import Environment

from kdnb import parameters
from kdnb.images.catalogue import DatasetSpec
from kdnb.report import pages
from kdnb.report.results import INITIAL_WEIGHTS, Result
from kdnb.study import Study

# measures of a result file: the hub's name of each, and ours
MEASURES = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "F1, mean of the classes"),
    "macro_auc": ("roc_auc", "ROC-AUC, mean of the classes"),
    "ece": ("expected_calibration_error", "Expected calibration error"),
}
# views of evaluation.shortcuts that show nothing of the disease
SHORTCUTS = ("border only", "organ blanked", "lesion blanked", "statistics only")
# licences that the hub has a name for
LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
}
LIMITS = (
    "Research only: no clinical validation, no approval by any authority.",
    "It answers with one of its classes for any image, also for one of another organ or modality.",
    "Images of other scanners, hospitals or patients may be classified worse than those tested.",
    "The shares that `predict.py` prints are those of a softmax; their calibration error is above.",
)


def write(
    result: Result,
    integrity: Result | None,
    spec: DatasetSpec,
    measured: Sequence[Mapping[str, object]],
    place: str,
) -> ModelCard:
    """The card of the student of ``result``, a result of notebook 03.

    ``integrity`` is the result of notebook 08 on the same networks, None where it was not run;
    ``measured`` has one row a file with ``file``, ``megabytes``, ``same`` (share of the test images
    with the class that PyTorch gives) and ``accuracy``; ``place`` is the folder as it may be shown.
    """
    score, config = result.stored["results"]["distilled"], result.config
    name = f"{spec.slug}-{config['student']}-{config['method']}"
    data = ModelCardData(
        **_licence(spec),
        library_name="kdnb",
        pipeline_tag="image-classification",
        tags=["knowledge-distillation", "medical-imaging", "research-only", "onnx"],
        metrics=[hub for hub, _ in MEASURES.values()],
        model_name=name,
        eval_results=_evaluations(result, spec),
    )
    text = _ENVIRONMENT.from_string(_TEMPLATE).render(
        name=name,
        folder=place,
        spec=spec,
        files=measured,
        score=score,
        config=config,
        measures=_measures(score),
        **_about(result),
        **shortcuts(result, integrity),
        limits=_limits(result, spec, score),
        settings=_settings(result),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _licence(spec: DatasetSpec) -> dict[str, str]:
    """The licence of the data, which binds the weights, as the hub names it."""
    if known := LICENCES.get(spec.licence):
        return {"license": known}
    return {"license": "other", "license_name": "that-of-the-data"}


_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
_ENVIRONMENT.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
_TEMPLATE = (resources("kdnb.report") / "templates" / "card.md.j2").read_text(encoding="utf-8")


def title(result: Result) -> str:
    """What the student of a result is, in one line."""
    config = result.config
    return f"{config['student']} distilled from {config['teacher']} on {pages.short(result.title)}"


def command(result: Result) -> str:
    """The command that trains the networks of a result again: every choice that is not usual."""
    config, fields = result.config, parameters.declared(Study)
    first = {name: config[name] for name in ("dataset", "profile", "method") if name in config}
    usual = Study(**first).config()
    chosen = {
        name: config[name]
        for name in fields
        if config.get(name) is not None and config[name] != usual[name] and name not in first
    }
    words = (f"-p {name} {shlex.quote(str(value))}" for name, value in (first | chosen).items())
    return " ".join(["python -m kdnb.run 03", *words])


def _measures(score: Mapping) -> list[dict]:
    """The measures that have a value and an interval."""
    return [
        {"key": key, "name": name, "value": score[key], "low": low, "high": high}
        for key, (_, name) in MEASURES.items()
        if score.get(key) is not None
        for low, high in [score["intervals"][key]]
    ]


def _evaluations(result: Result, spec: DatasetSpec) -> list[EvalResult]:
    """The measures as the hub's ``model-index``, with their intervals."""
    data, score = result.stored["data"], result.stored["results"]["distilled"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=spec.slug,
            dataset_name=data["title"],
            dataset_config=result.split,
            dataset_split="test",
            dataset_args={"checksum": data["checksum"], "images": score["n"]},
            metric_type=MEASURES[row["key"]][0],
            metric_name=f"{row['name']} (95 % interval {row['low']:.4f} to {row['high']:.4f})",
            metric_value=round(row["value"], 6),
            metric_args={"confidence_level": 0.95, "low": row["low"], "high": row["high"]},
        )
        for row in _measures(score)
    ]


def _about(result: Result) -> dict[str, object]:
    """Names, data and differences, as the template takes them."""
    config, stored = result.config, result.stored["results"]
    return {
        "title": title(result),
        "student": config["student"],
        "teacher": config["teacher"].replace("+", " and "),
        "method": config["method"],
        "classes": result.stored["data"]["classes"],
        "data": result.stored["data"],
        "grouped": result.split == "group",
        "side": config["image_size"],
        "against_teacher": pages.points(stored["distilled_minus_teacher"]),
        "against_baseline": pages.points(stored["distilled_minus_alone"]),
        "command": command(result),
    }


def shortcuts(result: Result, integrity: Result | None) -> dict[str, object]:
    """What notebook 08 found of the student on parts of the images: a text ``shortcuts``, its rows
    ``views``, and ``chance``."""
    count = len(result.stored["data"]["classes"])
    if integrity is None:
        command = f"python -m kdnb.run 08 -p dataset {result.config['dataset']}"
        text = f"Not measured: `{command}` scores the student on parts of the images."
        return {"shortcuts": text, "views": [], "chance": 1 / count}
    stored = integrity.stored["results"]
    views = [row for row in stored["views"] if row["model"].startswith("distilled")]
    own, images = (_above_chance(rows, 1 / count) for rows in (views, stored["forests"]))
    text = (
        f"Parts without the disease tell the student the class more often than chance: {own}."
        if own
        else "On no part of the images without the disease is the student better than chance."
    )
    if images:
        text += f" A random forest that sees nothing else reaches: {images}."
    return {"shortcuts": text, "views": views, "chance": 1 / count}


def _above_chance(rows: Sequence[Mapping], chance: float) -> str:
    """Views without the disease whose balanced accuracy has an interval above chance, in words."""
    found = [row for row in rows if row["view"] in SHORTCUTS and row["low"] > chance]
    return ", ".join(f"{row['view']} {row['balanced_accuracy']:.2f}" for row in found)


def _limits(result: Result, spec: DatasetSpec, score: Mapping) -> list[str]:
    """Limits of any such network, and those of these data."""
    weakest = min(score["per_class"], key=lambda row: row["recall"] or 0)
    own = [
        f"The weakest class is `{weakest['class']}`: {weakest['recall'] or 0:.1%} of its "
        f"{weakest['support']} test images are found.",
        f"Images were reduced to {result.config['image_size']} px a side.",
    ]
    if spec.distrust:
        own.append(f"The official split of these data leaks: {spec.distrust}.")
    if spec.group_key:
        own.append(f"Patients: {spec.group_key}.")
    if spec.notes:
        own.append(spec.notes)
    return [*LIMITS, *own]


def _settings(result: Result) -> dict[str, object]:
    """The settings that a reader asks for first."""
    config, where = result.config, result.stored["provenance"]
    return {
        "α": config["alpha"],
        "temperature": config["temperature"],
        "epochs of teacher and student": f"{config['teacher_epochs']} and "
        f"{config['student_epochs']}",
        "initial weights": INITIAL_WEIGHTS[config["pretrained"]],
        "batch size": config["batch_size"],
        "seed": config["seed"],
        "commit": where["commit"],
        "trained": where["time"],
        "torch": where["packages"]["torch"],
    }
