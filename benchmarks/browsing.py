"""How long a reader waits for three Score-CAM maps side by side in 04's ``browse``: ``make bench``.

Each image is explained for the first time. Networks are trained for one epoch: what they know costs
no time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.methods import TOY, Setup
from kdnb import data, files, provenance, training, widgets
from kdnb.explanations import browsing
from kdnb.study import Study

GOAL = 0.5  # seconds for the maps of all three networks
WAITED, IMAGES = Setup(teacher="densenet121", per_class=8), 12


def waits(browser: browsing.Browser) -> dict[str, float]:
    """Median seconds over the images of a browser: for the maps of all networks, and for the
    picture with them."""
    maps, pictures = [], []
    for image in range(len(browser.rows)):
        begun = time.perf_counter()
        for name, model in browser.trio.models.items():
            browser.maps(name, image, "score_cam", model.cam_layer, 0)
        maps.append(time.perf_counter() - begun)
        browser.seen.clear()
        begun = time.perf_counter()
        widgets.png(browser.draw(None, browsing.ANY, image, "score_cam", None))
        pictures.append(time.perf_counter() - begun)
    return {"maps_s": float(np.median(maps)), "picture_s": float(np.median(pictures))}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write ``outputs/benchmarks/browsing.json``; a toy's numbers go into the cache."""
    parser = argparse.ArgumentParser(prog="benchmarks.browsing", description=__doc__.split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="try the script: tiny networks")
    asked = parser.parse_args(arguments)
    setup = TOY if asked.toy else WAITED
    study = Study(
        dataset="phantom_cxr",
        teacher=setup.teacher,
        student=setup.student,
        image_size=setup.size,
        batch_size=setup.batch,
        profile="smoke",
    )
    dataset = data.load("phantom_cxr", per_class=setup.per_class)
    found = waits(browsing.browser(training.trio(study, dataset), dataset, IMAGES))
    facts = {"goal_maps_s": GOAL, "networks": [setup.teacher, setup.student, setup.student]}
    facts |= {"image_size": setup.size, "threads": torch.get_num_threads()}
    facts |= {"hardware": provenance.hardware(), "commit": provenance.collect()["commit"]}
    place = (files.cache_dir() if asked.toy else files.outputs_dir()) / "benchmarks"
    path = files.write_json(place / "browsing.json", found | facts)
    print(found, "wrote", path)
    return path


if __name__ == "__main__":
    main()
