"""Score-CAM and SHAP against their reference implementations, in speed and similarity: ``make
bench``.

Every row comes from one run: the same images, the same network, one after the other. With
``KDNB_DATA`` set the images are real (brain_tumor), else phantoms. Networks are trained for a
minute first: random weights have other dead channels and logits.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import time

import numpy as np
import pandas as pd
import pytorch_grad_cam
import seaborn as sns
import shap
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tqdm import tqdm

from kdnb import data, files, provenance
from kdnb.distillation import create
from kdnb.explanations import activations, registry, shapley
from kdnb.explanations.maps import rank_correlation
from kdnb.images import pixels
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.plots import style
from kdnb.study import Study
from kdnb.training import loop

IMAGES, SIZE = 20, 96
SCORED, SIMILAR = (32, 64, 96, 128), 0.95  # channels scored; sufficient rank correlation
MODELS = ("densenet121", "visformer_small", "ofa595", "kdfmv5")


class Double(torch.nn.Module):
    """Converts the input of a float64 network, as both implementations pass float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, H, W)`` as float64."""
        return x.double()


def network(name: str, dataset: data.Dataset) -> Classifier:
    """A network after four epochs: random weights have other dead channels and logits."""
    study = Study(dataset=dataset.spec.name, image_size=SIZE, batch_size=32)
    return loop.fit(study, dataset, name, create("hard"), 4).model


def timed(work) -> tuple[object, float]:
    begun = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - begun) / IMAGES


def warm(work) -> float:
    """Seconds of the faster of two calls: the first call of a shape prepares its kernels."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def score_cam(name: str, model: Classifier, images: torch.Tensor) -> dict:
    """One row: seconds per image of the reference and of our three modes, and the rank correlation
    of their maps, for images ``(N, 3, S, S)`` in [0, 1].

    ``topk`` scores the fewest channels that suffice; ``curve`` has a point for each number of them.
    """
    targets = torch.from_numpy(predict(model, _pixels(images))).argmax(1).tolist()

    def reference() -> np.ndarray:
        # as a user runs it: contiguous float32, batches of 16; one image at a time, as its memory
        # grows with images × channels
        plain, maps = model.to(memory_format=torch.contiguous_format), []
        with activations.untouched(plain), contextlib.redirect_stderr(io.StringIO()):
            for image, target in zip((images - model.mean) / model.std, targets, strict=True):
                cam = pytorch_grad_cam.ScoreCAM(
                    model.network, [model.cam_module()], model.cam_reshape
                )
                maps.append(cam(image[None], [ClassifierOutputTarget(target)])[0])
                cam.activations_and_grads.release()
        return np.stack(maps)

    slow, reference_s = timed(reference)
    model.to(memory_format=torch.channels_last)

    def ours(**options) -> tuple[np.ndarray, float]:
        return timed(lambda: registry.explain(model, images, "score_cam", targets, **options).maps)

    (exact, exact_s), (fast, fast_s), curve = ours(), ours(fast=True), []
    for count in SCORED:
        some, seconds = ours(fast=True, channels=count)
        curve.append({"asked": count, "seconds": seconds, "spearman": _mean(some, slow)})
    enough = next((point for point in curve if point["spearman"] >= SIMILAR), curve[-1])
    return {
        "model": name,
        "images": IMAGES,
        "size": SIZE,
        "channels": int(activations.features(model, images[:1]).shape[1]),
        "asked": enough["asked"],
        "reference_s": reference_s,
        "exact_s": exact_s,
        "fast_s": fast_s,
        "topk_s": enough["seconds"],
        "exact_speedup": reference_s / exact_s,
        "fast_speedup": reference_s / fast_s,
        "topk_speedup": reference_s / enough["seconds"],
        "max_abs_diff_exact": float(np.abs(exact - slow).max()),
        "spearman_exact": _mean(exact, slow),
        "spearman_fast": _mean(fast, slow),
        "spearman_topk": enough["spearman"],
        "curve": curve,
        "empty_maps": int((slow.max((1, 2)) == 0).sum()),
    }


def shap_row(
    name: str, model: Classifier, images: torch.Tensor, background: torch.Tensor, samples: int = 32
) -> dict:
    """One row: the library's values of all classes against ours of one class, same samples."""
    few = images[:4]
    x, base = ((some - model.mean) / model.std for some in (few, background))
    model.to(memory_format=torch.contiguous_format)
    targets = torch.full((len(few),), 1)
    with activations.untouched(model):
        theirs = shap.GradientExplainer(model.network, base)
        reference_s = warm(lambda: theirs.shap_values(x, nsamples=samples, rseed=0)) / len(few)
        model.to(
            memory_format=torch.channels_last
        )  # as training leaves it and kdnb.explanations.registry finds it
        ours_s = warm(
            lambda: shapley.gradient_shap(model.network, x, targets, base, samples)
        ) / len(few)
        # agreement in float64: in float32 a unit whose input is nearly 0 may fall on either side of
        # its kink, whoever computes
        double = torch.nn.Sequential(Double(), copy.deepcopy(model.network).double())
        theirs = shap.GradientExplainer(double, base).shap_values(x[:2], nsamples=8, rseed=0)[
            ..., 1
        ]
        ours = shapley.gradient_shap(double, x[:2], targets[:2], base, 8).numpy()
    return {
        "model": name,
        "images": len(few),
        "size": SIZE,
        "samples": samples,
        "background": len(base),
        "batch": 64,
        "classes_reference": model.num_classes,
        "classes_ours": 1,
        "reference_s": reference_s,
        "ours_s": ours_s,
        "share_of_reference": ours_s / reference_s,
        "max_diff_of_scale": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }


def _mean(maps: np.ndarray, reference: np.ndarray) -> float:
    return float(np.nanmean(rank_correlation(maps, reference)))


def _pixels(images: torch.Tensor) -> pixels.Pixels:
    return pixels.Pixels((images * 255).round().to(torch.uint8).numpy(), np.zeros(len(images), int))


def main() -> None:
    """Measure and write ``outputs/benchmarks/score_cam.json`` and ``shap.json``."""
    dataset = data.load(
        "brain_tumor" if os.environ.get("KDNB_DATA") else "phantom_cxr", per_class=150
    )
    cached = dataset.pixels(SIZE)
    images, background = (
        cached.floats(dataset.sample("test", IMAGES)).contiguous(),
        cached.floats(dataset.sample("train", 12)),
    )
    cams, shaps = [], []
    for name in tqdm(MODELS, desc="explanations", unit="model"):
        model = network(name, dataset)
        cams.append(score_cam(name, model, images[:IMAGES]))
        shaps.append(shap_row(name, model, images, background))
        print(
            {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in (cams[-1] | shaps[-1]).items()
            }
        )
    facts = {
        "data": dataset.title,
        "hardware": provenance.hardware(),
        "commit": provenance.collect()["commit"],
    }
    folder = files.outputs_dir() / "benchmarks"
    for name, rows in (("score_cam", cams), ("shap", shaps)):
        print("wrote", files.write_json(folder / f"{name}.json", [row | facts for row in rows]))
        with files.atomic(folder / f"{name}.csv") as table:
            pd.DataFrame(rows).drop(columns="curve", errors="ignore").round(5).to_csv(
                table, index=False
            )
    with files.atomic(folder / "explanations.png") as picture:
        figure(pd.DataFrame(cams), pd.DataFrame(shaps), dataset.title).savefig(
            picture, dpi=110, bbox_inches="tight"
        )


def figure(cams: pd.DataFrame, shaps: pd.DataFrame, title: str) -> Figure:
    """Left: speed-up of each mode over its library. Right: similarity of the maps by the number of
    scored channels."""
    drawn, ((speed, similarity),) = style.start(1, 2, size=(5.3, 4.6))
    _draw_speed(speed, cams, shaps)
    _draw_similarity(similarity, cams)
    sns.despine(drawn)
    return style.done(drawn, f"{title}, {IMAGES} images of {SIZE} px, two cores")


def _draw_speed(axis: Axes, cams: pd.DataFrame, shaps: pd.DataFrame) -> None:
    modes = {
        "exact": "Score-CAM, exact",
        "fast": "Score-CAM, bf16, half of the channels",
        "topk": f"Score-CAM, bf16, fewest channels with {SIMILAR} or more",
    }
    rows = [
        {
            "model": row["model"],
            "mode": label,
            "speed": row[f"{mode}_speedup"],
            "similarity": row[f"spearman_{mode}"],
        }
        for row in cams.to_dict("records")
        for mode, label in modes.items()
    ]
    rows += [
        {
            "model": row["model"],
            "mode": "SHAP of one class",
            "speed": 1 / row["share_of_reference"],
            "similarity": 1 - row["max_diff_of_scale"],
        }
        for row in shaps.to_dict("records")
    ]
    table = pd.DataFrame(rows)
    sns.barplot(table, x="model", y="speed", hue="mode", ax=axis)
    for bars, (_, part) in zip(axis.containers, table.groupby("mode", sort=False), strict=True):
        numbers = [f"{value:.3f}" for value in part["similarity"]]
        axis.bar_label(bars, numbers, fontsize="xx-small", rotation=90, padding=3)
    axis.axhline(1, color="0.5", linewidth=1)
    axis.set(yscale="log", ylim=(0.7, 2 * table["speed"].max()))
    axis.set(ylabel="speed-up over the library", xlabel="")
    axis.tick_params(axis="x", rotation=20)
    axis.get_legend().remove()
    axis.figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        title="numbers above bars: rank correlation of the maps with the library's "
        "(SHAP: 1 − largest difference, relative to the scale)",
    )


def _draw_similarity(axis: Axes, cams: pd.DataFrame) -> None:
    points = [
        {"model": f"{row['model']} ({row['channels']:,} channels)"} | point
        for row in cams.to_dict("records")
        for point in row["curve"]
    ]
    table = pd.DataFrame(points)
    sns.lineplot(table, x="asked", y="spearman", hue="model", marker="o", ax=axis)
    axis.axhline(SIMILAR, color="0.5", linewidth=1)
    axis.set(ylabel="rank correlation with the library")
    axis.set(xlabel="channels scored", xticks=SCORED)
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()
