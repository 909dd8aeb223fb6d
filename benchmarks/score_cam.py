"""Score-CAM against its reference implementation, in speed and similarity: ``make bench``.

Every row comes from one run: the same images, the same network, one after the other. With
``KDNB_DATA`` set the images are real (brain_tumor), else phantoms. Networks are trained for a
minute first: random weights have other dead channels and logits.
"""

from __future__ import annotations

import contextlib
import io
import os
import time

import numpy as np
import pandas as pd
import pytorch_grad_cam
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tqdm import tqdm

from kdnb import data, files, provenance
from kdnb.distillation import create
from kdnb.explanations import activations, registry
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


def network(name: str, dataset: data.Dataset) -> Classifier:
    """A network after four epochs: random weights have other dead channels and logits."""
    study = Study(dataset=dataset.spec.name, image_size=SIZE, batch_size=32)
    return loop.fit(study, dataset, name, create("hard"), 4).model


def timed(work) -> tuple[object, float]:
    begun = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - begun) / IMAGES


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


def _mean(maps: np.ndarray, reference: np.ndarray) -> float:
    return float(np.nanmean(rank_correlation(maps, reference)))


def _pixels(images: torch.Tensor) -> pixels.Pixels:
    return pixels.Pixels((images * 255).round().to(torch.uint8).numpy(), np.zeros(len(images), int))


def main() -> None:
    """Measure and write ``outputs/benchmarks/score_cam.json``, its table and figure."""
    dataset = data.load(
        "brain_tumor" if os.environ.get("KDNB_DATA") else "phantom_cxr", per_class=150
    )
    cached = dataset.pixels(SIZE)
    images, cams = cached.floats(dataset.sample("test", IMAGES)).contiguous()[:IMAGES], []
    for name in tqdm(MODELS, desc="Score-CAM", unit="model"):
        cams.append(score_cam(name, network(name, dataset), images))
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in cams[-1].items()})
    facts = {
        "data": dataset.title,
        "hardware": provenance.hardware(),
        "commit": provenance.collect()["commit"],
    }
    folder = files.outputs_dir() / "benchmarks"
    print("wrote", files.write_json(folder / "score_cam.json", [row | facts for row in cams]))
    with files.atomic(folder / "score_cam.csv") as table:
        pd.DataFrame(cams).drop(columns="curve").round(5).to_csv(table, index=False)
    with files.atomic(folder / "score_cam.png") as picture:
        figure(pd.DataFrame(cams), dataset.title).savefig(picture, dpi=110, bbox_inches="tight")


def figure(cams: pd.DataFrame, title: str) -> Figure:
    """Left: speed-up of each mode over its library. Right: similarity of the maps by the number of
    scored channels."""
    drawn, ((speed, similarity),) = style.start(1, 2, size=(5.3, 4.6))
    _draw_speed(speed, cams)
    _draw_similarity(similarity, cams)
    sns.despine(drawn)
    return style.done(drawn, f"{title}, {IMAGES} images of {SIZE} px, two cores")


def _draw_speed(axis: Axes, cams: pd.DataFrame) -> None:
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
        title="numbers above bars: rank correlation of the maps with the library's",
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
