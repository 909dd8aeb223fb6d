"""Declared parameters: a dataclass field with its default, its range and one line of help.

A study, the options of a method and the settings of a wing are all declared this way, so that the
value of a ``-p`` is checked by one rule and described by one sentence wherever it appears.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kdnb import files


class BadParameter(
    files.UserError,
    ValueError,
    code="KD202",
    way_out="set the parameter to an allowed value; python -m kdnb.run --help lists all "
    "parameters with their meaning",
):
    """A parameter with a value that it cannot take; the message says which values are allowed."""


def parameter(
    default: object,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
    profiles: Mapping[str, object] | None = None,
    valid: Callable[[Any], object] | None = None,
) -> Any:
    """A dataclass field that :func:`check` validates.

    ``help`` is the comment beside the parameter in a notebook. ``low`` and ``high`` are inclusive
    bounds of a number, or of each number of a list; ``choices`` are the allowed names of a text.
    ``profiles`` holds the value of each profile, which stands in for ``None``. ``valid`` is called
    with the value and raises for one that is not allowed. ``None`` as a value is allowed where the
    annotation allows it, and is not compared.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "choices": None if choices is None else tuple(choices),
        "profiles": dict(profiles or {}),
        "valid": valid,
    }
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parameters:
    """Base of every group of declared parameters: a wrong value is refused at once.

    ``needs`` names what the networks of a study must be able to do where this group is asked for
    (``kdnb.models.check``); ``extras`` what must be installed for it (:mod:`kdnb.extras`).
    """

    needs: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check(self)


def declared(owner: type) -> dict[str, dataclasses.Field]:
    """The parameters of a dataclass by name, in order."""
    return {field.name: field for field in dataclasses.fields(owner) if "help" in field.metadata}


def default(field: dataclasses.Field) -> object:
    """The value of a parameter that is not set."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def check(instance: object) -> None:
    """Convert and validate every declared field of a frozen dataclass; call in ``__post_init__``.

    Raises :class:`BadParameter` for a wrong type or a number out of range, ``UnknownName`` with the
    nearest match for a name that is not among the choices.
    """
    for name, field in declared(type(instance)).items():
        value = converted(field, getattr(instance, name))
        object.__setattr__(instance, name, value)
        if value is None:
            continue
        if field.metadata["choices"] is not None:
            files.lookup(value, field.metadata["choices"], name)
        for number in value if isinstance(value, tuple) else (value,):
            _within(name, number, field.metadata["low"], field.metadata["high"])
        if field.metadata["valid"] is not None:
            field.metadata["valid"](value)


def converted(field: dataclasses.Field, value: object) -> object:
    """The value in the field's type, where that is what was meant.

    Papermill reads ``007`` as 7 and keeps lists as lists. Raises :class:`BadParameter`.
    """
    # a class where annotations are not postponed, its name where they are
    annotation = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    kinds = [kind.strip() for kind in annotation.split("|")]
    if value is None and "None" in kinds:
        return None
    for kind in kinds:
        if (found := _as(kind, value)) is not None:
            return found
    text = "str" in kinds and isinstance(value, int | float)
    hint = " (papermill reads numbers as numbers: pass it with -r instead of -p)" if text else ""
    choices = field.metadata["choices"]
    allowed = f"one of {', '.join(choices)}" if choices else annotation
    raise BadParameter(f"{field.name} must be {allowed}, got {value!r}{hint}")


def literal(text: str) -> object:
    """The value of a parameter that a command line gives as text: a Python literal, else the text,
    as papermill reads it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def add_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``-p NAME VALUE``, which may be repeated, to a command line; ``purpose`` is its help."""
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help=purpose,
    )


def given(options: argparse.Namespace) -> dict[str, object]:
    """The values by name that ``-p`` gave."""
    return {name: literal(text) for name, text in options.parameters}


def _as(kind: str, value: object) -> object | None:
    """``value`` as the type that an annotation names, or None where it is not of that type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "tuple[float, ...]" and isinstance(value, list | tuple):
        plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        return tuple(float(v) for v in value) if plain else None
    if kind == "tuple[str, ...]" and isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(v, str) for v in value) else None
    if kind.startswith(("dict", "Mapping")) and isinstance(value, Mapping):
        return dict(value) if all(isinstance(key, str) for key in value) else None
    if kind.startswith("dict") and isinstance(value, str):  # -p options '{"beta": 2.0}'
        with contextlib.suppress(json.JSONDecodeError):
            return _as(kind, json.loads(value))
    if kind == "float" and number:
        return float(value)
    plain = {"str": str, "bool": bool, "int": int}.get(kind)
    if plain is None or not isinstance(value, plain) or (plain is int and not number):
        return None
    return value


def _within(name: str, value: object, low: float | None, high: float | None) -> None:
    below = low is not None and not value >= low
    above = high is not None and not value <= high
    if not below and not above:
        return
    if low is not None and high is not None:
        raise BadParameter(f"{name} must lie between {low} and {high}, got {value}")
    limit = f"at least {low}" if low is not None else f"at most {high}"
    raise BadParameter(f"{name} must be {limit}, got {value}")
