"""The parameters of the notebook that runs here: what its cells and papermill's ``-p`` set."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection
from dataclasses import dataclass

# the first line of every parameters cell, which tells it from other cells of a kernel's history
MARK = "# Change a value and run all cells again. Every parameter: python -m kdnb.run --help"
# the line before it, for notebook services that bring a torch of their own
SERVICE = "# Colab, Kaggle: "
# papermill writes the values of -p into a cell that starts with this line
INJECTED = "# Parameters"


@dataclass(frozen=True)
class Given:
    """What a notebook sets: ``values`` by name, the names in its parameters cell (``shown``), those
    that papermill passed (``passed``), and other variables of the cell (``own``).
    """

    values: dict[str, object]
    shown: tuple[str, ...]
    passed: tuple[str, ...]
    own: tuple[str, ...]


def is_parameters(source: str) -> bool:
    """Whether a cell is a parameters cell: one of its first two lines is :data:`MARK`."""
    return MARK in source.split("\n")[:2]


def assigned(source: str) -> tuple[str, ...]:
    """Names that a cell assigns at its top level, in order; none for a cell that is no Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return ()
    targets = [
        target
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return tuple(dict.fromkeys(target.id for target in targets if isinstance(target, ast.Name)))


def given(known: Collection[str]) -> Given:
    """The parameters that this kernel's notebook sets, ``known`` being the names that may be set.

    Only the last parameters cell in the kernel's history and the cell that papermill injected after
    it count. What earlier cells or an earlier *Run All* left behind is no parameter.
    In a plain script, which has no history, every variable with a known name is one. Names that
    papermill passed are returned whether they are known or not.
    """
    namespace = vars(sys.modules["__main__"])
    cell: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    for source in map(str, namespace.get("In", ())):
        if is_parameters(source):
            cell, passed = assigned(source), ()
        elif source.split("\n")[0].strip() == INJECTED:
            passed += assigned(source)
    if not cell:
        cell = tuple(name for name in known if name in namespace)
    values = {name: namespace[name] for name in (*cell, *passed) if name in namespace}
    return Given(
        {name: value for name, value in values.items() if name in known or name in passed},
        tuple(name for name in cell if name in known),
        passed,
        tuple(name for name in cell if name not in known),
    )
