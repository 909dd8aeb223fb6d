"""Wrong type, wrong name, wrong size, out of range: an error within a second that names the
parameter and what is allowed."""

import ast
import collections.abc
import dataclasses
import inspect
import pkgutil
import string
import time
import types
import typing
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdnb
from kdnb import cells, checks, data, files, study
from kdnb.deployment import efficiency, latency, onnx_export, search
from kdnb.distillation import soft_targets
from kdnb.distillation.base import Seen, create
from kdnb.evaluation import calibration, metrics, shortcuts
from kdnb.explanations import agreement, faithfulness, layers, localisation, maps, registry
from kdnb.images import index, splits
from kdnb.models import ofa, zoo
from kdnb.study import Study

SECOND = settings(
    deadline=timedelta(seconds=1),
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
EVERY = Study.of(*cells.WINGS)  # a study with the parameters of all notebooks
FIELDS = {field.name: field.type for field in dataclasses.fields(EVERY)}
NAMED = {
    "dataset",
    "teacher",
    "student",
    "method",
    "profile",
    "split",
    "runtime",
    "cost",
    "intensity",
    "classes_from",
}

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def allowed(kind: str, value: object) -> bool:
    """Whether a value has a type that the annotation names, as a notebook's reader would understand
    it."""
    types = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
        "tuple[float, ...]": (list, tuple),
        "tuple[str, ...]": (list, tuple),
        "dict[str, str]": dict,
        "dict": dict,
        "None": type(None),
    }
    found = [types[part.strip()] for part in kind.split("|")]
    return any(
        isinstance(value, one) and (one is bool or not isinstance(value, bool)) for one in found
    )


@SECOND
@given(name=st.sampled_from(sorted(FIELDS)), value=anything)
def test_a_notebook_parameter_of_the_wrong_type(name, value):
    if allowed(FIELDS[name], value):
        return
    with pytest.raises(ValueError) as caught:
        EVERY.from_parameters(
            {name: value}
            if isinstance(value, str | int | float | bool | list | dict)
            else {name: [value, "x"]}
        )
    assert name in str(caught.value)


@SECOND
@given(name=st.sampled_from(sorted(FIELDS)), value=st.one_of(st.integers(), st.floats()))
def test_a_number_is_used_or_refused_by_its_name(name, value):
    try:
        made = EVERY.from_parameters({name: value})
    except ValueError as error:
        assert name in str(error)
    else:
        assert getattr(made, name) == value


@SECOND
@given(
    name=st.sampled_from(sorted(NAMED)),
    typo=st.integers(0, 100),
    letter=st.sampled_from(string.ascii_lowercase),
)
def test_a_misspelt_value_is_answered_with_the_nearest(name, typo, letter):
    value = str(getattr(EVERY(), name))
    wrong = value[: typo % len(value)] + letter + value[typo % len(value) + 1 :]
    if wrong == value:
        return
    with pytest.raises(ValueError) as caught:
        EVERY.from_parameters({name: wrong})
    assert repr(value) in str(caught.value) or value in str(caught.value)


@SECOND
@given(name=st.sampled_from(sorted(FIELDS)), letter=st.sampled_from(string.ascii_lowercase))
def test_a_misspelt_parameter_is_answered_with_the_nearest(name, letter):
    with pytest.raises(files.UnknownName, match="Did you mean|Allowed"):
        EVERY.from_parameters({name + letter: 1} if name + letter not in FIELDS else {"qqq": 1})


N, K, S = 4, 3, 32
LABELS, LOGITS = np.array([0, 1, 2, 0]), np.zeros((N, K))
MAPS, TARGETS = np.random.default_rng(0).random((N, S, S)), np.zeros(N, int)
IMAGES = torch.rand(N, 3, S, S)
LOOKED = pd.DataFrame(
    {"name": ["ofa-33-33-33-33-33"], "accuracy": [0.5], "cost": [2.0], "front": [True]}
)


TABLE = pd.DataFrame(
    {
        "path": ["1.png", "2.png"],
        "label": ["a", "b"],
        "split": ["train", "test"],
        "group": [0, 1],
        "mode": "L",
        "mask": "",
        "organ_mask": "",
        "sha256": ["0", "1"],
    }
)
PAIR = data.Dataset(
    data.describe("folder"),
    index.Index(Path("nowhere"), ("a", "b"), TABLE, pd.DataFrame()),
    TABLE,
    "official",
)


@pytest.fixture(scope="module")
def model():
    return zoo.create("kdfmv5", K, S).eval()


# what is called, and what its error must say; ``m`` is a small network
WRONG = {
    "evaluate: other lengths": (
        lambda m: metrics.evaluate(LABELS[:3], LOGITS, "abc"),
        "logits must be .N, K. with N = 3",
    ),
    "evaluate: flat logits": (
        lambda m: metrics.evaluate(LABELS, LOGITS[:, 0], "abc"),
        r"logits must be \(N, K\)",
    ),
    "evaluate: labels too high": (
        lambda m: metrics.evaluate(LABELS + 1, LOGITS, "abc"),
        "labels must lie between 0 and 2",
    ),
    "evaluate: labels as text": (
        lambda m: metrics.evaluate(LABELS.astype(str), LOGITS, "abc"),
        "labels must be whole",
    ),
    "evaluate: too few names": (
        lambda m: metrics.evaluate(LABELS, LOGITS, "ab"),
        "classes must be",
    ),
    "evaluate: NaN": (
        lambda m: metrics.evaluate(LABELS, LOGITS + np.nan, "abc"),
        "logits hold NaN",
    ),
    "compare: other shape": (
        lambda m: metrics.compare(LABELS, LOGITS, LOGITS[:, :2]),
        "other must be",
    ),
    "brier: other lengths": (lambda m: calibration.brier(LABELS[:2], LOGITS), "logits must be"),
    "reliability: no bins": (
        lambda m: calibration.reliability(LABELS, LOGITS, 0),
        "bins must be at least 1",
    ),
    "calibration: temperature 0": (
        lambda m: calibration.scores(LABELS, LOGITS, 0.0),
        "temperature must be above 0",
    ),
    "method: name": (
        lambda m: create("hybird"),
        "unknown method 'hybird'. Did you mean 'hybrid'",
    ),
    "method: alpha": (
        lambda m: create("hybrid", alpha=1.2),
        "alpha must lie between 0 and 1",
    ),
    "method: temperature": (
        lambda m: create("hybrid", temperature=-1),
        "temperature must be above 0",
    ),
    "method: no teacher": (
        lambda m: create("hybrid").loss(Seen(torch.zeros(2, 3)), [], torch.zeros(2).long()),
        "needs teacher logits",
    ),
    "soft targets: shape": (
        lambda m: soft_targets.soft_targets(torch.zeros(2, 3), 1.0),
        "teacher_logits must be",
    ),
    "soft targets: temperature": (
        lambda m: soft_targets.soft_targets(torch.zeros(1, 2, 3), 0.0),
        "temperature must be above 0",
    ),
    "soft loss: shape": (
        lambda m: soft_targets.soft_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0),
        "log_targets must be",
    ),
    "hard loss: shape": (
        lambda m: soft_targets.hard_loss(torch.zeros(2, 3), torch.zeros(3).long()),
        "labels must be",
    ),
    "create: name": (lambda m: zoo.create("densenet112", 3), "densenet121"),
    "create: classes": (lambda m: zoo.create("kdfmv5", 1), "num_classes must be at least 2"),
    "create: size": (lambda m: zoo.create("kdfmv5", 3, 8), "image_size must be at least 32"),
    "load: name": (lambda m: data.load("brain_tumour"), "Did you mean 'brain_tumor'"),
    "load: split": (lambda m: data.load("phantom_cxr", split="groups"), "Did you mean 'group'"),
    "load: per_class": (
        lambda m: data.load("phantom_cxr", per_class=0),
        "per_class must be at least 1",
    ),
    "groups: split": (
        lambda m: PAIR.groups("tset"),
        "unknown split 'tset'. Did you mean 'test'",
    ),
    "pixels: split": (
        lambda m: PAIR.pixels(64, "validation"),
        "unknown split 'validation'. Did you mean 'val'",
    ),
    "pixels: column": (
        lambda m: PAIR.pixels(64, column="masks"),
        "unknown column 'masks'. Did you mean 'mask'",
    ),
    "pixels: size": (lambda m: PAIR.pixels(0), "image_size must be at least 1"),
    "sample: split": (
        lambda m: PAIR.sample("tset", 5),
        "unknown split 'tset'. Did you mean 'test'",
    ),
    "sample: count": (lambda m: PAIR.sample("test", 0), "count must be at least 1"),
    "sample: seed": (lambda m: PAIR.sample("test", 1, -1), "seed must lie between 0"),
    "masks: column": (
        lambda m: PAIR.masks(64, "organmask", np.array([0])),
        "column 'organmask'. Did you mean 'organ_mask'",
    ),
    "masks: rows": (
        lambda m: PAIR.masks(64, "mask", np.array([2])),
        "rows must lie between 0 and 1",
    ),
    "masks: rows of other type": (
        lambda m: PAIR.masks(64, "mask", np.array([0.5])),
        "rows must be whole numbers",
    ),
    "masks: size": (
        lambda m: PAIR.masks(-1, "mask", np.array([0])),
        "image_size must be at least 1",
    ),
    "shuffled: seed": (lambda m: PAIR.shuffled(-1), "seed must lie between 0"),
    "explain: method": (
        lambda m: registry.explain(m, IMAGES, "scorecam"),
        "Did you mean 'score_cam'",
    ),
    "explain: option": (
        lambda m: registry.explain(m, IMAGES, "score_cam", chanels=3),
        "Did you mean 'channels'",
    ),
    "explain: tolerance": (
        lambda m: registry.explain(m, IMAGES, "score_cam", tolerance=1.5),
        "tolerance is a rank correlation above 0 and below 1, got 1.5",
    ),
    "explain: layer": (
        lambda m: registry.explain(m, IMAGES, "grad_cam", layer="blocks.9"),
        "unknown layer",
    ),
    "explain: class": (
        lambda m: registry.explain(m, IMAGES, "grad_cam", targets=7),
        "targets must lie between 0 and 2",
    ),
    "explain: size": (lambda m: registry.explain(m, torch.rand(1, 3, 40, 40)), "built for 32 px"),
    "explain: range": (lambda m: registry.explain(m, IMAGES * 9), r"in \[0, 1\]"),
    "curves: maps": (lambda m: faithfulness.curves(m, IMAGES, MAPS[:2], TARGETS), "maps must be"),
    "curves: baseline": (
        lambda m: faithfulness.curves(m, IMAGES, MAPS, TARGETS, fill="blurr"),
        "Did you mean 'blur'",
    ),
    "curves: steps": (
        lambda m: faithfulness.curves(m, IMAGES, MAPS, TARGETS, steps=0),
        "steps must lie between 1",
    ),
    "confidence: targets": (
        lambda m: faithfulness.confidence_change(m, IMAGES, MAPS, TARGETS[:1]),
        "targets must be",
    ),
    "road: maps": (lambda m: faithfulness.road(m, IMAGES, MAPS[..., :8], TARGETS), "maps must be"),
    "localisation: masks": (
        lambda m: localisation.localisation(MAPS, MAPS[:, :8] > 0),
        "masks must be",
    ),
    "rank correlation": (lambda m: maps.rank_correlation(MAPS, MAPS[:2]), "other must be"),
    "similarity": (lambda m: agreement.similarity(MAPS, MAPS[:2], (4, 4)), "other must be"),
    "cka: images": (lambda m: layers.cka(np.zeros((5, 2)), np.zeros((4, 2))), "other must be"),
    "latency: runtime": (
        lambda m: latency.ready(m, (1, 3, S, S), "onxx"),
        "Did you mean 'onnx'",
    ),
    "latency: agreement": (lambda m: latency.agreement([1.0], [1.0, 2.0]), "measured must be"),
    "efficiency: runtime": (
        lambda m: efficiency.measure(m, "abc", ["eagre"]),
        "Did you mean 'eager'",
    ),
    "search: cost": (lambda m: search.cost_of("latncy", S, K), "Did you mean 'latency'"),
    "search: budget": (lambda m: search.pick(LOOKED, 0.1), "raise the budget"),
    "choice: name": (lambda m: ofa.Choice.parse("ofa-99"), r"kernel \(3, 5, 7\)"),
    "onnx: class names": (
        lambda m: onnx_export.export(m, "x.onnx", ["a", "b"]),
        "2 class names for a network of 3",
    ),
    "onnx: no file": (lambda m: onnx_export.open("nowhere.onnx"), "nowhere.onnx is not there"),
    "view: name": (lambda m: shortcuts.keep_view("bordr", IMAGES), "Did you mean"),
    "study: profile": (lambda m: study.Study(profile="quik"), "Did you mean 'quick'"),
    "split: publish": (lambda m: splits.publish(pd.DataFrame(), "x.csv"), "path"),
    "shapes: axes": (
        lambda m: checks.shapes(x=(np.zeros(3), "N C")),
        r"x must be \(N, C\), got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_by_name(case, model, home):
    call, words = WRONG[case]
    with pytest.raises((ValueError, TypeError, OSError), match=words):
        call(model)


def test_functions_within_functions_carry_no_annotations():
    """They would be wrapped at every call, and what was wrapped is kept with all that it holds: see
    kdnb/__init__.py."""
    for path in Path(kdnb.__path__[0]).rglob("*.py"):
        functions = [
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        for inner in (node for outer in functions for node in ast.walk(outer) if node is not outer):
            if isinstance(inner, ast.FunctionDef) and path.stem not in ("zoo", "ofa", "study"):
                output = [
                    argument.annotation
                    for argument in ast.walk(inner.args)
                    if isinstance(argument, ast.arg)
                ]
                assert not any([*output, inner.returns]), f"{path.name}:{inner.lineno} {inner.name}"


class _Wrong:
    """Of no type that any function takes."""


# compilers and exporters read their classes: models.create, which makes them, checks
NETWORKS = {
    "models.zoo",
    "models.kdfmv",
    "models.ofa",
    "models.depthwise",
    "models.dual_stream",
}


def _public():
    """Every public function, constructor and method that takes a typed parameter, by name."""
    for module in pkgutil.walk_packages(kdnb.__path__, "kdnb."):
        found, short = import_module(module.name), module.name.removeprefix("kdnb.")
        for name, thing in vars(found).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != found.__name__:
                continue
            if inspect.isfunction(thing):
                yield f"{short}.{name}", thing
            elif inspect.isclass(thing) and not (
                short in NETWORKS and issubclass(thing, torch.nn.Module)
            ):
                for own in vars(thing):
                    method = thing if own == "__init__" else getattr(thing, own)
                    shown = not own.startswith("_") or own in (
                        "__init__",
                        "__call__",
                        "__getitem__",
                    )
                    if shown and (
                        own == "__init__" or inspect.isfunction(method) or inspect.ismethod(method)
                    ):
                        yield f"{short}.{thing.__name__}.{own}", method


def _typed(function):
    return [
        p
        for p in inspect.signature(function).parameters.values()
        if p.annotation not in (p.empty, object, "object", typing.Any, "Any")
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


PUBLIC = {name: function for name, function in _public() if _typed(function)}
MADE = {
    int: 1,
    float: 1.0,
    str: "x",
    bool: True,
    Path: Path("x"),
    type(None): None,
    np.ndarray: np.zeros(1),
    np.dtype: np.dtype("u1"),
    torch.Tensor: torch.zeros(1),
    object: None,
    type: study.Study,
    torch.device: torch.device("cpu"),
    collections.abc.Sequence: [],
}


def _fitting(hint):
    """Something of a type: what stands before the wrong value must be right, or the error is about
    that."""
    origin, inside = (
        typing.get_origin(hint),
        [one for one in typing.get_args(hint) if one is not ...],
    )
    if origin in (types.UnionType, typing.Union, typing.Annotated):
        return _fitting(inside[0])
    if origin is typing.Literal:
        return inside[0]
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return lambda *arguments: None
    if origin is tuple:
        return tuple(_fitting(one) for one in inside)
    if origin:
        return (
            {} if issubclass(origin, collections.abc.Mapping) else [_fitting(one) for one in inside]
        )
    if hint in MADE:
        return MADE[hint]
    if hasattr(hint, "_fields"):  # a named tuple
        return hint(*(_fitting(hint.__annotations__[name]) for name in hint._fields))
    return object.__new__(hint) if hint.__new__ is object.__new__ else hint.__new__(hint)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_wrong_type_is_refused_by_the_parameters_name(name):
    """Each typed parameter in turn gets what it cannot be, the others what fits; types are looked
    at before anything happens."""
    function = PUBLIC[name]
    hints = typing.get_type_hints(
        inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    )
    wanted = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    fitting = {p.name: _fitting(hints.get(p.name, object)) for p in wanted if p.default is p.empty}
    for parameter in _typed(function):
        begun = time.thread_time()  # not the clock: the machine may be busy with something else
        named = rf"parameter {parameter.name}\b|\b{parameter.name}=|\b{parameter.name} must"
        with pytest.raises((TypeError, ValueError), match=named):
            begins = function(**fitting | {parameter.name: _Wrong()})
            next(
                begins.gen if hasattr(begins, "gen") else begins
            )  # a generator looks at nothing before it is asked for the first
        assert time.thread_time() - begun < 10  # a collection of garbage may fall into it


def test_nearly_every_public_function_is_asked():
    """The test above covers the package: a filter that leaves too much out is seen here."""
    assert len(PUBLIC) > 300 and sum(len(_typed(function)) for function in PUBLIC.values()) > 700
    assert {name.split(".")[0] for name in PUBLIC} >= {
        "images",
        "leakage",
        "data",
        "models",
        "distillation",
        "study",
        "evaluation",
        "training",
        "explanations",
        "deployment",
        "plots",
        "report",
    }
