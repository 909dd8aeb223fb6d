"""SHAP values of one class against ``shap.GradientExplainer``, error against time: ``make bench``.

Both sides explain the class that the network predicts (``ranked_outputs=1`` of the library), the
same images from the same background, in one run. The error of an image is the L2 distance from
values of :data:`CONVERGED` samples, relative to their norm. With ``KDNB_DATA`` set the images are
real (brain_tumor), else phantoms.
"""

from __future__ import annotations

import copy
import os
import time

import numpy as np
import pandas as pd
import seaborn as sns
import shap
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from torch import Tensor
from tqdm import tqdm

from benchmarks.score_cam import Setup, network
from kdnb import data, files, provenance
from kdnb.explanations import activations, shapley
from kdnb.models.zoo import Classifier
from kdnb.plots import style

MODELS, SIZE = ("kdfmv5", "ofa595", "visformer_small", "densenet121"), 96  # the small ones first
IMAGES, BACKGROUND, CONVERGED = 2, 12, 2048
SAMPLES, SEEDS = (12, 24, 48, 96), 2
AT = 96  # samples of the library with whose error and time the others are compared
LIBRARY, SAME, OURS = "shap library", "kdnb, the library's samples", "kdnb, stratified samples"
GOAL = 1 / 3  # of the library's time for the same error


class Double(torch.nn.Module):
    """Converts the input of a float64 network, as both implementations pass float32."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` as float64."""
        return x.double()


def ways(model: Classifier, x: Tensor, background: Tensor, targets: Tensor) -> dict:
    """Way → function of samples and seed that gives values ``(N, 3, S, S)``."""
    explainer = shap.GradientExplainer(model.network, background)

    def library(samples: int, seed: int) -> Tensor:
        model.to(memory_format=torch.contiguous_format)  # as its users run it
        found, ranks = explainer.shap_values(x, nsamples=samples, rseed=seed, ranked_outputs=1)
        assert ranks[:, 0].tolist() == targets.tolist(), "not the same class"
        return torch.from_numpy(np.asarray(found)[..., 0])

    def ours(draws: str):
        def work(samples: int, seed: int) -> Tensor:
            model.to(memory_format=torch.channels_last)  # as registry.explain finds it
            inputs = (model.network, x, targets, background)
            return shapley.gradient_shap(*inputs, samples, seed, draws=draws)

        return work

    return {LIBRARY: library, SAME: ours("independent"), OURS: ours("stratified")}


def converged(model: Classifier, x: Tensor, background: Tensor, targets: Tensor) -> Tensor:
    """Values ``(N, 3, S, S)`` of :data:`CONVERGED` samples with a seed that nothing else uses."""
    return shapley.gradient_shap(model.network, x, targets, background, CONVERGED, seed=1000)


def measure(name: str, model: Classifier, images: Tensor, background: Tensor) -> list[dict]:
    """One row for each way and number of samples: seconds an image (the fastest of the seeds) and
    the relative error (the mean over images and seeds)."""
    x, base = ((some - model.mean) / model.std for some in (images, background))
    rows = []
    with activations.untouched(model):
        with torch.no_grad():
            targets = model.network(x).argmax(1)
        truth = converged(model, x, base, targets)
        every = ways(model, x, base, targets)
        for work in every.values():  # the first call of a shape prepares its kernels
            work(SAMPLES[0], 0)
        for samples in SAMPLES:
            seconds, errors = {way: [] for way in every}, {way: [] for way in every}
            for seed in range(SEEDS):
                for way, work in every.items():  # interleaved, so that all meet the same machine
                    begun = time.perf_counter()
                    found = work(samples, seed)
                    seconds[way].append((time.perf_counter() - begun) / len(x))
                    distance = (found - truth).flatten(1).norm(dim=1)
                    errors[way].append(float((distance / truth.flatten(1).norm(dim=1)).mean()))
            rows += [
                {
                    "model": name,
                    "way": way,
                    "samples": samples,
                    "seconds": min(seconds[way]),
                    "error": float(np.mean(errors[way])),
                }
                for way in every
            ]
        agreement = _agreement(model, x[:1], base, targets[:1])
    return [row | {"max_diff_of_scale": agreement} for row in rows]


def _agreement(model: Classifier, x: Tensor, background: Tensor, targets: Tensor) -> float:
    """Largest difference from the library for the same samples, relative to its largest value; in
    float64, because in float32 a unit whose input is nearly 0 may fall on either side of its
    kink."""
    double = torch.nn.Sequential(Double(), copy.deepcopy(model.network).double())
    theirs = shap.GradientExplainer(double, background).shap_values(
        x, nsamples=8, rseed=0, ranked_outputs=1
    )[0][..., 0]
    ours = shapley.gradient_shap(double, x, targets, background, 8, draws="independent").numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compared(table: pd.DataFrame) -> list[dict]:
    """One row a network: how many times as fast as the library for the same samples, and the share
    of its time for the error that it has with :data:`AT` samples (:func:`time_for`)."""
    rows = []
    for name, own in table.groupby("model", sort=False):
        by_way = {way: part.sort_values("samples") for way, part in own.groupby("way")}
        library = by_way[LIBRARY].set_index("samples").loc[AT]
        same = by_way[SAME].set_index("samples").loc[AT]
        needed = time_for(by_way[OURS], library["error"])
        rows.append(
            {
                "model": name,
                "times_library_same_samples": library["seconds"] / same["seconds"],
                "share_of_library_for_same_error": needed / library["seconds"],
                "error": library["error"],
            }
        )
    return rows


def time_for(curve: pd.DataFrame, error: float) -> float:
    """Seconds at which a falling curve of ``error`` and ``seconds`` reaches an error, on lines in
    log and log; those of its first point for a larger error, NaN for one that it never reaches."""
    own = np.log(curve.sort_values("error", ascending=False)[["error", "seconds"]])
    return float(np.exp(np.interp(-np.log(error), -own["error"], own["seconds"], right=np.nan)))


def figure(table: pd.DataFrame, title: str) -> Figure:
    """Error against time of the three ways, one panel a network."""
    names = list(table["model"].unique())
    drawn, (axes,) = style.start(1, len(names), size=(2.9, 3.1))
    for axis, name in zip(axes, names, strict=True):
        sns.lineplot(
            table[table["model"] == name],
            x="seconds",
            y="error",
            hue="way",
            style="way",
            markers=True,
            dashes=False,
            ax=axis,
        )
        axis.set(xscale="log", yscale="log", title=name, xlabel="seconds an image")
        axis.set_ylabel("relative error" if name == names[0] else "")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 3)))
            side.set_major_formatter(FormatStrFormatter("%g"))
            side.set_minor_formatter(NullFormatter())
        axis.get_legend().remove()
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    sns.despine(drawn)
    return style.done(drawn, f"{title}: SHAP values of one class, {IMAGES} images of {SIZE} px")


def main() -> None:
    """Measure and write ``outputs/benchmarks/shap.json`` and ``shap.png``."""
    real = bool(os.environ.get("KDNB_DATA"))
    dataset = data.load("brain_tumor" if real else "phantom_cxr", per_class=150)
    cached, rows = dataset.pixels(SIZE), []
    images = cached.floats(dataset.sample("test", IMAGES)[:IMAGES]).contiguous()
    background = cached.floats(dataset.sample("train", BACKGROUND)[:BACKGROUND])
    for name in tqdm(MODELS, desc="SHAP", unit="model"):
        rows += measure(name, network(name, dataset, Setup(SIZE, epochs=4)), images, background)
        write(rows, dataset.title)


def write(rows: list[dict], title: str) -> None:
    """Write what was measured so far."""
    table = pd.DataFrame(rows)
    stored = {
        "results": compared(table),
        "curve": rows,
        "goal": GOAL,
        "at": AT,
        "converged": CONVERGED,
        "background": BACKGROUND,
        "images": IMAGES,
        "size": SIZE,
        "data": title,
        "hardware": provenance.hardware(),
        "commit": provenance.collect()["commit"],
    }
    folder = files.outputs_dir() / "benchmarks"
    print("wrote", files.write_json(folder / "shap.json", stored))
    with files.atomic(folder / "shap.png") as picture:
        figure(table, title).savefig(picture, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
