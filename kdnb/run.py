"""Run the notebooks in order and render them: ``python -m kdnb.run [notebook ...] [-p name value
...]``."""

from __future__ import annotations

import argparse
import ast
import logging
import sys
import time
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from kdnb import files
from kdnb.report import pages
from kdnb.study import Study


def notebooks(chosen: list[str] | None = None) -> list[Path]:
    """The numbered notebooks in order, or those whose names start with one of ``chosen``."""
    every = sorted((files.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not chosen:
        return every
    for name in chosen:
        if not any(path.stem.startswith(name) for path in every):
            files.lookup(name, [path.stem for path in every], "notebook")
    return [path for path in every if path.stem.startswith(tuple(chosen))]


def declared(notebook: nbformat.NotebookNode) -> set[str]:
    """Names that a notebook's parameters cell sets."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return {
        target.id
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }


def main(arguments: list[str] | None = None) -> int:
    """Execute, render and time each notebook; the first failure stops the series with exit status
    1."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.run", description=__doc__)
    parser.add_argument(
        "notebook", nargs="*", help="number or name, for example 03; all by default"
    )
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    options = parser.parse_args(arguments)
    try:
        parameters = {name: _literal(value) for name, value in options.parameters}
        study = Study.from_parameters(parameters)
        paths = notebooks(options.notebook)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logging.getLogger("papermill").setLevel(logging.WARNING)
    timings = _Timings(study)
    started = time.monotonic()
    for number, path in enumerate(paths, 1):
        left = _clock(sum(timings.expected(later) for later in paths[number - 1 :]))
        print(
            f"[{number}/{len(paths)}] {path.stem} on {study.dataset}, profile {study.profile}: about {left} left",
            flush=True,
        )
        begun = time.monotonic()
        executed = files.cache_dir() / "executed" / study.outputs().name / path.name
        executed.parent.mkdir(parents=True, exist_ok=True)
        known = declared(nbformat.read(path, as_version=4))
        try:
            # the kernel's progress bars come to this terminal as they move; its advice on
            # encrypting localhost does not
            papermill.execute_notebook(
                path,
                executed,
                {k: v for k, v in parameters.items() if k in known},
                cwd=path.parent,
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            print(
                f"\n{path.stem} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                f"the executed notebook with the traceback: {files.shown(executed)}",
                file=sys.stderr,
            )
            return 1
        # 00 and 09 read no images: their pages are about all datasets
        folder, about = (
            (study.outputs(), _about(study.outputs()))
            if "data_root" in known
            else (study.outputs().parent, "")
        )
        pages.written(pages.render(executed, folder / f"{path.stem}.html", about))
        timings.note(path, time.monotonic() - begun)
    print(
        f"{len(paths)} notebooks in {_clock(time.monotonic() - started)}; pages in {files.shown(study.outputs().parent)}"
    )
    return 0


def _about(folder: Path) -> str:
    """The dataset, as the result file that was just written names it."""
    newest = max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return pages.short(files.read_json(newest)["data"]["title"])


class _Timings:
    """How long each notebook took last time on this machine, or what its metadata says of two
    cores."""

    def __init__(self, study: Study):
        self.path = files.cache_dir() / "timings.json"
        self.prefix = (
            f"{study.dataset} {study.profile} {study.teacher} {study.student} {study.image_size}"
        )
        self.known = files.read_json(self.path) if self.path.exists() else {}

    def expected(self, path: Path) -> float:
        stated = nbformat.read(path, as_version=4).metadata.get("kdnb", {}).get("seconds", {})
        return self.known.get(f"{self.prefix} {path.stem}", stated.get(self.prefix.split()[1], 60))

    def note(self, path: Path, seconds: float) -> None:
        # the longer of both: a second run finds everything trained and would promise too much
        key = f"{self.prefix} {path.stem}"
        self.known[key] = round(max(seconds, self.known.get(key, 0)), 1)
        files.write_json(self.path, self.known)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


if __name__ == "__main__":
    sys.exit(main())
