"""The parameters cell of every notebook, written from the declarations: ``python -m kdnb.cells``.

A notebook's cell names the parameters that its reader is most likely to change. This module gives
each line its default and its comment; the other parameters are listed on one page.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import tomllib
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from kdnb import files, notebook, parameters
from kdnb.captioning.settings import CaptionParameters
from kdnb.classical.settings import FeatureParameters
from kdnb.deployment.efficiency import RuntimeParameters
from kdnb.deployment.search import SearchParameters
from kdnb.explanations.settings import MapParameters, SampleParameters
from kdnb.segmentation.settings import SegmentationParameters
from kdnb.study import Study
from kdnb.training.labels import LabelParameters
from kdnb.training.methods import MethodParameters
from kdnb.training.split_audit import SplitAuditParameters

WINGS = (
    SampleParameters,
    MapParameters,
    RuntimeParameters,
    SearchParameters,
    SplitAuditParameters,
    MethodParameters,
    LabelParameters,
    FeatureParameters,
    SegmentationParameters,
    CaptionParameters,
)
GROUPS = (*Study.parts, *WINGS)


def declared() -> dict[str, dataclasses.Field]:
    """Every parameter that some notebook takes, by name."""
    return {name: field for group in GROUPS for name, field in parameters.declared(group).items()}


def line(field: dataclasses.Field) -> str:
    """The line of a parameters cell: name, default and help."""
    return f"{field.name} = {_literal(parameters.default(field))}  # {comment(field)}"


def comment(field: dataclasses.Field) -> str:
    """A parameter's help with the values that its profiles stand for."""
    by_profile = field.metadata["profiles"].values()
    by_profile_text = f"; None: {', '.join(map(str, by_profile))} by profile" if by_profile else ""
    return field.metadata["help"] + by_profile_text


def written(names: list[str]) -> str:
    """The source of a parameters cell that shows ``names``, in the order of their declaration."""
    every = declared()
    for name in names:
        files.lookup(name, every, "parameter")
    lines = [line(every[name]) for name in every if name in names]
    return "\n".join([install_line(names), notebook.MARK, *lines])


def install_line(names: list[str]) -> str:
    """The comment that installs, on a notebook service, what a notebook with these parameters
    needs; the address of the repository is that of pyproject.toml."""
    needed = sorted({e for group in GROUPS if _shows(group, names) for e in group.extras})
    package = f"kdnb[{','.join(needed)}]" if needed else "kdnb"
    return f'{notebook.SERVICE}%pip install -q "{package} @ git+{_address()}"'


def _shows(group: type, names: Collection[str]) -> bool:
    """Whether one of these parameters is the group's: then a notebook takes all of them."""
    return bool(set(names) & set(parameters.declared(group)))


def _address() -> str:
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "https://<this repository>")


def notebooks() -> list[Path]:
    """The numbered notebooks in order: the repository's, or those in the working directory where
    no repository is around."""
    whole = files.ROOT / "notebooks"
    return sorted((whole if whole.is_dir() else Path.cwd()).glob("[0-9][0-9]_*.ipynb"))


def cell(stored: dict) -> dict:
    """A notebook's parameters cell. ``stored`` is the notebook as JSON or as nbformat reads it
    (which takes seconds to import)."""
    return next(c for c in stored["cells"] if "parameters" in c["metadata"].get("tags", []))


def taken(stored: dict) -> list[str]:
    """Every parameter that a notebook takes: those of each group of which its cell shows one."""
    shown = notebook.assigned("".join(cell(stored)["source"]))
    groups = [group for group in GROUPS if _shows(group, shown)]
    return [name for group in groups for name in parameters.declared(group)]


def page() -> pd.DataFrame:
    """Every parameter with its default, its help and the notebooks that take it."""
    by_notebook = {path.stem[:2]: files.read_json(path) for path in notebooks()}
    rows = [
        {
            "parameter": name,
            "default": _literal(parameters.default(field)),
            "meaning": comment(field),
            "notebooks": _span([n for n, nb in by_notebook.items() if name in taken(nb)]),
        }
        for name, field in declared().items()
    ]
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame) -> str:
    """The page of all parameters for a terminal 100 columns wide."""
    lines = []
    for row in table.itertuples():
        head = f"{row.parameter} = {row.default}"
        tail = f"{row.meaning} (notebooks {row.notebooks})"
        lines += textwrap.wrap(tail, 98, initial_indent=f"  {head:34} ", subsequent_indent=" " * 37)
    return "\n".join(lines)


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _span(numbers: list[str]) -> str:
    """Numbers in order, three or more without a gap as ``01–08``."""
    runs: list[list[str]] = []
    for number in numbers:
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def main() -> int:
    """Rewrite the parameters cell of every notebook."""
    for path in notebooks():
        stored = files.read_json(path)
        found = cell(stored)
        source = written(list(notebook.assigned("".join(found["source"]))))
        found["source"] = source.splitlines(keepends=True)
        files.write_json(path, stored)
    return 0


if __name__ == "__main__":
    sys.exit(main())
