"""Score-CAM against its reference implementation, in speed and similarity: ``make bench``.

A row is one network at one size: the library as a user runs it, our exact mode, and the modes that
score channels until the map has converged, one after the other on the same images. Nothing is
chosen for a network: the tolerances are stated beforehand, and of the networks outside the zoo only
EfficientNet-Lite0 took part in writing the method. With ``KDNB_DATA`` set the images are real
(brain_tumor), else phantoms. Networks are trained for two epochs first: random weights have other
dead channels and logits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_grad_cam
import seaborn as sns
import torch
from matplotlib.figure import Figure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from tqdm import tqdm

from kdnb import data, files, provenance
from kdnb.distillation import create
from kdnb.explanations import activations, registry
from kdnb.explanations.maps import rank_correlation
from kdnb.models import weights
from kdnb.models.zoo import Classifier
from kdnb.plots import style
from kdnb.study import Study
from kdnb.training import loop

ZOO = ("kdfmv5", "ofa595", "visformer_small", "densenet121", "autoformerv2_tiny", "vgg19_bn")
UNSEEN = (
    "resnet18",
    "mobilenetv3_small_100",
    "regnety_002",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "ghostnet_100",
    "mobilevit_xxs",
    "swin_tiny_patch4_window7_224",
    "resnext26ts",
)
TOLERANCES = (0.99, 0.95)
GOALS = {
    "exact": 1.2,
    "0.99": 3.0,
    "0.95": 15.0,
}  # times the library; the last two from 256 channels


@dataclass(frozen=True)
class Setup:
    """Images whose maps are compared, and the first of them that are also timed."""

    size: int = 96
    images: int = 60
    timed: int = 4
    per_class: int = 150
    epochs: int = 2


TOY = Setup(size=32, images=3, timed=1, per_class=6, epochs=1)


def network(name: str, dataset: data.Dataset, setup: Setup) -> Classifier:
    """A network after two epochs, from its published weights where they come with the package."""
    known = "student" if name in weights.PACKAGES else "none"
    study = Study(
        dataset=dataset.spec.name,
        image_size=setup.size,
        batch_size=32,
        student=name,
        pretrained=known,
    )
    return loop.fit(study, dataset, name, create("hard"), setup.epochs).model


def timed(work: Callable[[], np.ndarray], count: int) -> tuple[np.ndarray, float]:
    """What ``work`` gives, and its seconds for one of ``count`` images."""
    begun = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - begun) / count


def reference(model: Classifier, images: torch.Tensor, targets: Sequence[int]) -> np.ndarray:
    """The library's maps as a user runs it: contiguous float32, batches of 16; one image at a time,
    as its memory grows with images × channels."""
    plain, maps = model.to(memory_format=torch.contiguous_format), []
    with activations.untouched(plain), contextlib.redirect_stderr(io.StringIO()):
        for image, target in zip((images - model.mean) / model.std, targets, strict=True):
            cam = pytorch_grad_cam.ScoreCAM(model.network, [model.cam_module()], model.cam_reshape)
            maps.append(cam(image[None], [ClassifierOutputTarget(target)])[0])
            cam.activations_and_grads.release()
    model.to(memory_format=torch.channels_last)
    return np.stack(maps)


def counted(model: nn.Module, work: Callable[[], object]) -> tuple[object, int]:
    """What ``work`` gives, and how many images the network saw meanwhile."""
    seen = []
    hook = model.network.register_forward_hook(lambda module, given, _: seen.append(len(given[0])))
    try:
        return work(), sum(seen)
    finally:
        hook.remove()


def measure(model: Classifier, images: torch.Tensor, setup: Setup) -> dict:
    """One row: times of the library, and what each tolerance scores and reaches on all images
    ``(N, 3, S, S)`` in [0, 1]."""
    with torch.inference_mode():
        targets = model(images).argmax(1).tolist()
    some, first = images[: setup.timed], targets[: setup.timed]

    def ours(x: torch.Tensor, classes: Sequence[int], **options: object) -> np.ndarray:
        return registry.explain(model, x, "score_cam", classes, **options).maps

    theirs, library_s = timed(lambda: reference(model, some, first), setup.timed)
    mine, exact_s = timed(lambda: ours(some, first), setup.timed)
    exact = registry.explain(model, images, "score_cam", targets)
    modes = []
    for tolerance in TOLERANCES:
        _, seconds = timed(lambda t=tolerance: ours(some, first, tolerance=t), setup.timed)
        found, seen = counted(model, lambda t=tolerance: ours(images, targets, tolerance=t))
        similar = rank_correlation(found, exact.maps)
        modes.append(
            {
                "tolerance": tolerance,
                "scored": seen / len(images) - 2,  # beside the image itself, for map and class
                "spearman": float(np.nanmean(similar)),
                "spearman_lowest": float(np.nanmin(similar)),
                "times_library": library_s / seconds,
            }
        )
    return {
        "channels": int(activations.features(model, images[:1]).shape[1]),
        "effective_channels": float(exact.effective_channels.mean()),
        "empty_maps": int((exact.maps.max((1, 2)) == 0).sum()),
        "library_s": library_s,
        "exact_times_library": library_s / exact_s,
        "max_abs_diff_exact": float(np.abs(mine - theirs).max()),
        "modes": modes,
    }


def figure(rows: Sequence[dict], title: str) -> Figure:
    """Left: speed-up of each mode over the library. Right: how similar its maps are to exact ones,
    against the tolerance that was asked for."""
    table = pd.DataFrame(
        [
            {"network": f"{row['model']}, {row['size']} px", "mode": mode, **values}
            for row in rows
            for mode, values in (
                ("exact", {"times_library": row["exact_times_library"], "spearman": 1.0}),
                *((f"tolerance {each['tolerance']}", each) for each in row["modes"]),
            )
        ]
    )
    drawn, ((speed, similar),) = style.start(1, 2, size=(5.2, 1.4 + 0.42 * len(rows)))
    for axis, column, label in (
        (speed, "times_library", "times as fast as the library"),
        (similar, "spearman", "rank correlation with the exact map"),
    ):
        sns.stripplot(table, y="network", x=column, hue="mode", ax=axis, size=7)
        axis.set(ylabel="", xlabel=label)
        axis.grid(axis="y", color="0.9")
        axis.get_legend().remove()
    speed.set_xscale("log")
    speed.axvline(1, color="0.5", linewidth=1)
    for tolerance in TOLERANCES:
        similar.axvline(tolerance, color="0.5", linewidth=1, linestyle=":")
    similar.set_yticklabels([])
    handles = speed.get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    sns.despine(drawn)
    return style.done(drawn, title)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write ``outputs/benchmarks/score_cam.json`` after every row, and its figure; rows
    of other networks and sizes stay. A toy's rows prove nothing and go into the cache."""
    parser = argparse.ArgumentParser(prog="benchmarks.score_cam")
    parser.add_argument("--models", default="+".join((*ZOO, *UNSEEN)), help="a+b")
    parser.add_argument("--size", type=int, help=f"pixels a side ({Setup.size})")
    parser.add_argument("--images", type=int, help=f"images compared ({Setup.images})")
    parser.add_argument("--toy", action="store_true", help="try the script")
    asked = parser.parse_args(arguments)
    given = {name: getattr(asked, name) for name in ("size", "images") if getattr(asked, name)}
    setup = replace(TOY if asked.toy else Setup(), **given)
    place = (files.cache_dir() if asked.toy else files.outputs_dir()) / "benchmarks"
    path = place / "score_cam.json"
    stored = files.read_json(path)["results"] if path.exists() else []
    real = bool(os.environ.get("KDNB_DATA")) and not asked.toy
    dataset = data.load("brain_tumor" if real else "phantom_cxr", per_class=setup.per_class)
    rows = dataset.sample("test", setup.images)[: setup.images]
    images = dataset.pixels(setup.size).floats(rows).contiguous()
    facts = {"size": setup.size, "images": len(images), "timed": setup.timed}
    facts |= {"data": dataset.title, "hardware": provenance.hardware()}
    for name in tqdm(asked.models.split("+"), desc="Score-CAM", unit="network"):
        found = measure(network(name, dataset, setup), images, setup)
        row = {"model": name, "unseen": name in UNSEEN, **found, **facts}
        row["commit"] = provenance.collect()["commit"]
        stored = [r for r in stored if (r["model"], r["size"]) != (name, setup.size)] + [row]
        files.write_json(path, {"goals": GOALS, "results": stored})
        print(pd.Series({k: v for k, v in found.items() if k != "modes"}).to_string(), flush=True)
        print(pd.DataFrame(found["modes"]).round(3).to_string(index=False), flush=True)
    with files.atomic(place / "score_cam.png") as picture:
        drawn = figure(stored, f"Score-CAM, {dataset.title}")
        drawn.savefig(picture, dpi=110, bbox_inches="tight")
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
