"""Names of result files: what was trained, and every choice of teaching that is not the usual one.

The budget (image size, epochs, batch, rates, seed) and the initial weights are in a file, not in
its name: a run with another budget replaces it. ``make study`` gives each run a folder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdnb import files, parameters
from kdnb.distillation.base import METHODS, SHARED
from kdnb.report.claims import CLAIMS
from kdnb.study import Study

LONGEST = 100  # characters that choices may take; longer ones are replaced by a hash
OF_TEACHERS = ("label_share", "teacher_recipe", "teacher_shards")
OF_ALL = (*OF_TEACHERS, "recipe")


def teacher(study: Study, name: str) -> str:
    """The file of one teacher of a study, ``teacher-<name>``, without a suffix."""
    return _joined("teacher", name, stated(study.config(), OF_TEACHERS))


def student(study: Study, kind: str) -> str:
    """The file of a study's distilled student, ``<kind>-<teacher>-<student>-<method>``, without a
    suffix; for example ``distill-densenet121-kdfmv5-fitnet-hint_layer_1``.

    Usual are the method's defaults, and alpha and temperature that the method's paper chose for the
    dataset.
    """
    chosen = study.options | {name: getattr(study, name) for name in SHARED}
    usual = dict.fromkeys(SHARED) | METHODS[study.method].defaults() | _of_the_paper(study)
    changed = {name: value for name, value in chosen.items() if value != usual[name]}
    parts = (study.teacher, study.student, study.method)
    return _joined(kind, *parts, stated(study.config()) | changed)


def comparison(study: Study, kind: str, *others: str) -> str:
    """The file of one seed of a comparison, ``<kind>-<teacher>-<student>-s<seed>``, without a
    suffix; ``others`` stand in place of the student. What is compared stands in the file."""
    name = _joined(kind, study.teacher, *(others or (study.student,)), stated(study.config()))
    return f"{name}-s{study.seed}"


def stated(config: Mapping[str, object], choices: Sequence[str] = OF_ALL) -> dict[str, object]:
    """Those of ``choices`` that differ from their defaults, by name, in a study's configuration;
    older files lack newer choices, which then had their defaults."""
    fields = parameters.declared(Study)
    usual = {name: parameters.default(fields[name]) for name in choices}
    values = {name: config.get(name, usual[name]) for name in choices}
    return {name: value for name, value in values.items() if value != usual[name]}


def _of_the_paper(study: Study) -> dict[str, object]:
    wanted = [claim.wanted for claim in CLAIMS if claim.dataset == study.dataset]
    own = [choice for choice in wanted if choice["method"] == study.method]
    return {name: value for choice in own for name, value in choice.items() if name in SHARED}


def _joined(*parts: str | Mapping[str, object]) -> str:
    """Words with hyphens between them; the last part holds choices by name."""
    *words, choices = parts
    added = [_word(name, value) for name, value in choices.items()]
    if len("-".join(added)) > LONGEST:
        added = [files.digest(choices)]
    return "-".join([*words, *added]).replace(" ", "-")


def _word(name: str, value: object) -> str:
    values = value if isinstance(value, tuple | list) else (value,)
    texts = [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
    return "_".join([name, *texts])
