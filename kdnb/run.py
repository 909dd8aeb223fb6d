"""Run the notebooks in order and render them: ``python -m kdnb.run [notebook ...] [-p name value
...]``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from kdnb import cells, errors, files, kernels, parameters
from kdnb.report import pages, rendering
from kdnb.study import Study


def notebooks(chosen: list[str] | None = None) -> list[Path]:
    """The numbered notebooks in order, or those whose names start with one of ``chosen``."""
    every = cells.notebooks()
    if not chosen:
        return every
    for name in chosen:
        if not any(path.stem.startswith(name) for path in every):
            files.lookup(name, [path.stem for path in every], "notebook")
    return [path for path in every if path.stem.startswith(tuple(chosen))]


def main(arguments: list[str] | None = None) -> int:
    """Execute, render and time each notebook; the first failure stops the series with exit status
    1."""
    options = _options(arguments)
    try:
        given = parameters.given(options)
        study = Study.of(*cells.WINGS).from_parameters(given)
        paths = notebooks(options.notebook)
    except ValueError as error:
        print(f"error: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    logging.getLogger("papermill").setLevel(logging.ERROR)  # its warnings are of hidden parameters
    timings = _Timings(study)
    started = time.monotonic()
    with kernels.own_kernel() as kernel:
        for number, path in enumerate(paths, 1):
            left = _clock(sum(timings.expected(later) for later in paths[number - 1 :]))
            print(
                f"[{number}/{len(paths)}] {path.stem} on {study.dataset}, "
                f"profile {study.profile}: about {left} left",
                flush=True,
            )
            begun = time.monotonic()
            if not _done(path, study, given, kernel):
                return 1
            timings.note(path, time.monotonic() - begun)
    print(
        f"{len(paths)} notebooks in {_clock(time.monotonic() - started)}; "
        f"pages in {files.shown(study.outputs_root)}"
    )
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kdnb.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parameters (-p), with their defaults:\n" + cells.as_text(cells.page()),
    )
    parser.add_argument(
        "notebook",
        nargs="*",
        help="number or name, for example 03, or its beginning: 0 for 00 to 09; all by default",
    )
    parameters.add_argument(parser, "set a parameter in every notebook that takes it")
    return parser.parse_args(arguments)


def _done(path: Path, study: Study, given: dict[str, object], kernel: str) -> bool:
    """Execute and render one notebook with the parameters it takes; say why where it fails."""
    executed = files.cache_dir() / "executed" / study.outputs().name / path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    taken = cells.taken(nbformat.read(path, as_version=4))
    if "options" in taken:
        taken += study.options  # each of the method's options may be set by its own name
    try:
        # the kernel's progress bars come to this terminal as they move; its advice on encrypting
        # localhost does not
        papermill.execute_notebook(
            path,
            executed,
            {name: value for name, value in given.items() if name in taken},
            cwd=path.parent,
            kernel_name=kernel,
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        print(
            f"\n{path.stem} failed in cell {error.exec_count}: {error.ename}: {error.evalue}",
            *errors.links(error.traceback),
            f"the executed notebook with the traceback: {files.shown(executed)}",
            sep="\n",
            file=sys.stderr,
        )
        return False
    # 00 and 09 read no images: their pages are about all datasets
    folder, about = study.outputs_root, ""
    if "data_root" in taken:
        folder, about = study.outputs(), _about(study.outputs())
    pages.written(rendering.render(executed, folder / f"{path.stem}.html", about))
    return True


def _about(folder: Path) -> str:
    """The dataset, as the result file that was just written names it."""
    newest = max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return pages.short(files.read_json(newest)["data"]["title"])


class _Timings:
    """How long each notebook took last time on this machine. Others are expected to take what their
    metadata states for two cores, times the ratio of measured to stated seconds so far."""

    def __init__(self, study: Study):
        self.path = files.cache_dir() / "timings.json"
        self.profile = study.profile
        self.prefix = (
            f"{study.dataset} {study.profile} {study.teacher} {study.student} {study.image_size}"
        )
        self.known = files.read_json(self.path) if self.path.exists() else {}

    def expected(self, path: Path) -> float:
        known = self.known.get(self._key(path))
        return self._stated(path) * self._slowness() if known is None else known

    def note(self, path: Path, seconds: float) -> None:
        # the longer of both: a second run finds everything trained and would promise too much
        key = self._key(path)
        self.known[key] = round(max(seconds, self.known.get(key, 0)), 1)
        files.write_json(self.path, self.known)

    def _key(self, path: Path) -> str:
        return f"{self.prefix} {path.stem}"

    def _stated(self, path: Path) -> float:
        stated = nbformat.read(path, as_version=4).metadata.get("kdnb", {}).get("seconds", {})
        return stated.get(self.profile, 60)

    def _slowness(self) -> float:
        done = [path for path in cells.notebooks() if self._key(path) in self.known]
        stated = sum(map(self._stated, done))
        return sum(self.known[self._key(path)] for path in done) / stated if stated else 1.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


if __name__ == "__main__":
    sys.exit(main())
