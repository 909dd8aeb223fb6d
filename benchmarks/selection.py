"""Cost of choosing what to learn from: curation of batches (11), and features of networks and
texture (12): ``make bench``.

Curation is measured as :mod:`benchmarks.methods` measures a method: CPU seconds of the training
loop for equally many images that are learnt from, in units of training without curation; the
reference's losses are kept. Features are timed by the clock, on all threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from benchmarks.methods import Setup, least, own_cache, prepared, seconds
from kdnb import data, files, provenance
from kdnb.classical import blocks
from kdnb.classical.settings import FeatureParameters
from kdnb.distillation import create
from kdnb.study import Study
from kdnb.training.curation import RULES, SUPER, Curation, passes

GOALS = {"times_no_curation": 1.35, "seconds_for_5000_images": 60}
NONE, HALF = "none", "acid, half the side"
SOURCES = ("tf_efficientnet_lite0", "tf_efficientnet_lite2", "handcrafted")


@dataclass(frozen=True)
class Features:
    """Whose features are timed, and on how many images a class of the phantoms."""

    sources: Sequence[str] = SOURCES
    size: int = 96
    per_class: int = 200


# a student that takes images of any size, so that those it scores can be smaller
CURATED = Setup(student="ofa595", per_class=80)
TOY = Setup("resnet10t", "resnet10t", 32, 4, 24, 1), Features(("handcrafted",), 32, 4)


def curation(setup: Setup) -> Iterator[dict]:
    """One row a rule: its cost in units of training without curation, and by count of forward
    passes. ``acid`` scores whole images, and images of half their side."""
    study, dataset, teacher = prepared(setup)
    method = create("hard")

    def timed(rule: Curation | None) -> Callable[[], float]:
        return lambda: seconds(study, dataset, method, teacher, curation=rule)

    rules = {NONE: None} | {rule: Curation(rule) for rule in RULES}
    rules[HALF] = Curation("acid", scale=0.5)
    timed(rules["acid"])()  # asks the reference once
    spent = least(setup.repeats, {name: timed(rule) for name, rule in rules.items()})
    for name, rule in rules.items():
        scored = (rule.scored, rule.scale) if rule else (0,)
        yield {
            "rule": name,
            "cpu_seconds": spent[name],
            "times_no_curation": spent[name] / spent[NONE],
            "times_no_curation_by_count_of_passes": passes(1, *scored) / passes(1, 0),
            "super_batch": SUPER,
            "repeats": setup.repeats,
        }


def features(settings: Features) -> Iterator[dict]:
    """One row a source: seconds for 5,000 images, from those that were timed."""
    dataset = data.load("phantom_cxr", per_class=settings.per_class)
    for name in settings.sources:
        study = Study.of(FeatureParameters)(
            dataset="phantom_cxr", features=name, image_size=settings.size, profile="smoke"
        )
        dataset.pixels(settings.size)  # decoded once, for all sources
        begun = time.perf_counter()
        found = blocks.load(study, dataset)
        spent = time.perf_counter() - begun
        yield {
            "source": name,
            "features": sum(len(block.names) for block in found),
            "images": len(dataset.table),
            "seconds_for_5000_images": 5000 * spent / len(dataset.table),
            "threads": torch.get_num_threads(),
        }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write ``outputs/benchmarks/selection.json``; a toy's rows go into the cache."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.selection", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--toy", action="store_true", help="try the script: tiny networks")
    parser.add_argument("--repeats", type=int, help=f"of each time ({Setup.repeats})")
    asked = parser.parse_args(arguments)
    setup, sources = TOY if asked.toy else (CURATED, Features())
    setup = replace(setup, repeats=asked.repeats) if asked.repeats else setup
    path = (files.cache_dir() if asked.toy else files.outputs_dir()) / "benchmarks/selection.json"
    with TemporaryDirectory() as folder, own_cache(Path(folder, "cache")):
        rows = list(curation(setup))
        timed = list(features(sources))
    print(pd.DataFrame(rows).to_string(), pd.DataFrame(timed).to_string(), sep="\n\n")
    pair = {"teacher": setup.teacher, "student": setup.student, "batch_size": setup.batch}
    facts = {"data": "phantom radiographs", "image_size": setup.size, "goals": GOALS}
    facts |= {"hardware": provenance.hardware(), "commit": provenance.collect()["commit"]}
    stored = facts | {"curation": {**pair, "results": rows}, "features": timed}
    files.write_json(path, stored)
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
