"""Errors that a reader of a notebook can meet: each kind has a code, a cause and a way out.

``python -m kdnb.errors KD101`` explains a code, ``python -m kdnb.errors`` all of them; the site has
the same text as its page "What went wrong". Both are read from the source of the package, so they
hold the messages as they are.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

PAGE = "what-went-wrong"  # its name on the site
# codes start with the number of an area
AREAS = {
    1: "Datasets and own images",
    2: "Parameters",
    3: "Networks and weights",
    4: "Training and methods",
    5: "Explanations",
    6: "ONNX files and the search for a student",
    7: "Installation and machine",
    8: "Features and reports",
}


class UserError(Exception):
    """An error whose message is meant for the reader: a notebook shows that sentence alone, and the
    code under which the way out is written down.

    A subclass states both: ``class SplitError(UserError, ValueError, code="KD102", way_out="…")``;
    its docstring is the cause. ``%env KDNB_TRACEBACK=1`` and then ``%tb`` show the whole trace;
    scripts always print it.
    """

    code: ClassVar[str] = ""
    way_out: ClassVar[str] = ""

    def __init_subclass__(cls, code: str = "", way_out: str = "", **options: object) -> None:
        super().__init_subclass__(**options)
        cls.code, cls.way_out = code or cls.code, way_out or cls.way_out

    def __init__(self, *arguments: object):
        super().__init__(*arguments)
        if self.code:
            self.add_note(self.link)

    @property
    def link(self) -> str:
        """Where cause and way out are written down."""
        return (
            f"{self.code}: cause and way out by python -m kdnb.errors {self.code}, or on the page "
            f"{PAGE}.html#{self.code.lower()} of the site"
        )

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in place of the trace."""
        if os.environ.get("KDNB_TRACEBACK"):
            from IPython import get_ipython

            return get_ipython().InteractiveTB.structured_traceback(
                type(self), self, self.__traceback__
            )
        hint = "For the whole trace: %env KDNB_TRACEBACK=1, then %tb"
        link = [self.link] if self.code else []
        return [f"{type(self).__name__}: {self}", "", *link, hint]


def links(trace: Iterable[str]) -> list[str]:
    """The lines of a notebook's trace that lead from a code to its way out."""
    return [line for line in trace if re.match(r"KD\d{3}: ", line)]


@dataclass(frozen=True)
class Kind:
    """A kind of error: its code, the name of its class, cause, way out, and its messages with … for
    what they name."""

    code: str
    name: str
    cause: str
    way_out: str
    messages: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"Cause: {self.cause}", f"Way out: {self.way_out}", "Messages:"]
        text = [textwrap.fill(line, 98) for line in lines]
        listed = [textwrap.fill(f"- {message}", 98) for message in self.messages]
        return "\n".join([f"{self.code} {self.name}", "", *text, *listed])


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """Every kind of error of the package in the order of codes, read from its source."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in _sources()]
    classes = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(word.arg == "code" for word in node.keywords)
    ]
    said: dict[str, dict[str, None]] = {node.name: {} for node in classes}
    for tree in trees:
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in said and (message := max(map(_template, call.args), default="", key=len)):
                said[name][message] = None
    found = []
    for node in classes:
        stated = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        cause = re.sub(r"``|:\w+:|`", "", " ".join((ast.get_docstring(node) or "").split()))
        messages = tuple(sorted(said[node.name]))
        found.append(Kind(stated["code"], node.name, cause, stated["way_out"], messages))
    return tuple(sorted(found, key=lambda kind: kind.code))


def page() -> str:
    """The page of the site in MyST Markdown: every code with cause, way out and messages."""
    parts = [
        "# What went wrong",
        "A message of the package names a code. Under it stand the cause, the way out, and every "
        "message of that kind, with … for what it names.",
    ]
    for number, area in AREAS.items():
        parts.append(f"## {area}")
        for kind in (kind for kind in kinds() if kind.code.startswith(f"KD{number}")):
            listed = "\n".join(f"- `{message.replace('`', chr(39))}`" for message in kind.messages)
            parts += [
                f"({kind.code.lower()})=\n### {kind.code} · {kind.name}",
                f"**Cause.** {_plain(kind.cause)}",
                f"**Way out.** {_plain(kind.way_out)}",
                listed,
            ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return re.sub(r"([\\*_<>\[\]$])", r"\\\1", text)


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.rglob("*.py"))


def _template(node: ast.expr) -> str:
    """The text of a message's expression on one line, with … where a value stands."""
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_template(node.left)} {_template(node.right)}"
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
        return " ".join("".join(parts).split())
    return "…"


def main(codes: list[str]) -> int:
    """Print the kinds of these codes, all of them without one; 1 where a code is unknown."""
    known = {kind.code: kind for kind in kinds()}
    wanted = [code.upper() for code in codes] or list(known)
    if unknown := [code for code in wanted if code not in known]:
        print(f"no such code: {', '.join(unknown)}. Known: {', '.join(known)}", file=sys.stderr)
        return 1
    print("\n\n".join(str(known[code]) for code in wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
