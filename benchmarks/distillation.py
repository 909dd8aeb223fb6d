"""Images a second of distilling, against torchdistill and against the student's own bare step:
``make bench``.

All rows come from one run with the same networks, images, batch size and optimiser. torchdistill
runs as its examples do: image files, float32, contiguous memory, AdamW not fused, and torch's
depthwise convolutions; and once more as well as it can be run: bf16 where the processor has it
(through torch.autocast, because its own way through accelerate reads a property that accelerate no
longer has), channels_last, fused AdamW, a worker, and our depthwise layers
(:mod:`kdnb.models.depthwise`). The first row says what precision and layers are worth together with
the loop, the second what the loop is worth alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from PIL import Image
from torch import nn
from torch.utils.data import RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kdnb import data, device, files, provenance
from kdnb.distillation import create
from kdnb.images import phantoms
from kdnb.models import zoo
from kdnb.models.depthwise import DepthwiseConv2d
from kdnb.plots import style
from kdnb.study import Study
from kdnb.training import loop

TEACHER, STUDENT, SIZE, BATCH, CLASSES = "vgg19_bn", "ofa595", 96, 32, 3
TRAIN, VAL, ALPHA, TEMPERATURE = 1920, 24, 0.5, 4.0  # an epoch of a few thousand images
EXAMPLE, BEST = "torchdistill as in its example", "torchdistill at its best"
GOALS = {
    "teacher in the loop": "1.5 times torchdistill at its best",
    "cached soft targets": "3 times torchdistill at its best",
    "share of the bare step": "0.85 with cached soft targets",
}


def tree(root: Path) -> Path:
    """Phantom radiographs as a user's files: ``<split>/<class>/*.png``."""
    labels = list(data.describe("phantom_cxr").classes)
    for split, count in (("train", TRAIN), ("val", VAL), ("test", VAL)):
        for number, label in zip(range(count), itertools.cycle(range(CLASSES)), strict=False):
            path = root / split / files.simplify(labels[label]) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = phantoms.draw("phantom_cxr", labels[label], number, size=SIZE).image
            Image.fromarray(np.uint8(drawn * 255)).save(path)
    return root


def rate(step: Callable[[], int], seconds: float = 20.0) -> float:
    """Images a second of calling ``step``, which returns how many it took; the first two calls warm
    up."""
    step(), step()
    seen, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        seen += step()
    return seen / (time.perf_counter() - begun)


def as_it_is(network: nn.Module) -> nn.Module:
    """The network as it is."""
    return network


def with_torchs_layers(network: nn.Module) -> nn.Module:
    """The same network with torch's depthwise convolutions in place of ours."""
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return network


def torchdistill(root: Path, at_its_best: bool = False) -> float:
    """Images a second of torchdistill's training box with Hinton's loss: as its example has it, or
    ``at_its_best`` with all that this processor and its own interface offer."""
    logging.disable(logging.INFO)
    from torchdistill.core.distillation import get_distillation_box

    transform = v2.Compose(
        [
            v2.Grayscale(3),
            v2.Resize((SIZE, SIZE)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    layers = as_it_is if at_its_best else with_torchs_layers
    layout = torch.channels_last if at_its_best else torch.contiguous_format
    both = [
        layers(zoo.create(name, CLASSES, SIZE)).to(memory_format=layout)
        for name in (TEACHER, STUDENT)
    ]
    box = get_distillation_box(
        *both,
        {"train": ImageFolder(root / "train", transform)},
        configuration(at_its_best),
        torch.device("cpu"),
        [],
        False,
        1,
    )
    box.teacher_model.eval(), box.student_model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(box.train_data_loader))

    def step() -> int:
        images, targets, extra = next(batches)
        with torch.autocast("cpu", enabled=at_its_best and device.precision("cpu") == "bf16"):
            loss = box.forward_process(images.contiguous(memory_format=layout), targets, extra)
        box.post_forward_process(loss=loss)
        return len(images)

    return rate(step)


def configuration(at_its_best: bool) -> dict:
    """torchdistill's configuration of one epoch of Hinton's loss."""
    loss = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": TEMPERATURE,
            "alpha": ALPHA,
            "reduction": "batchmean",
        },
    }
    workers = {"num_workers": 1, "persistent_workers": True} if at_its_best else {"num_workers": 0}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "drop_last": True, **workers},
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-4, "fused": at_its_best}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }


def ours(dataset: data.Dataset) -> dict[str, float]:
    """The training loop as notebook 03 runs it, whole epochs; batch statistics and validation on a
    few images are in the time."""
    study = Study(
        dataset="folder",
        data_root=str(dataset.index.root),
        split="official",
        image_size=SIZE,
        batch_size=BATCH,
        teacher=TEACHER,
        student=STUDENT,
    )
    few = data.load("folder", dataset.index.root, "official", per_class=BATCH)
    teacher, found = (
        loop.fit(study, few, TEACHER, create("hard"), 1),
        {},
    )  # what it knows does not matter here
    for name, augment in (
        ("kdnb, teacher in the loop", True),
        ("kdnb, cached soft targets", False),
    ):
        views, objective = (
            dataclasses.replace(study, augment=augment),
            create("hybrid", alpha=ALPHA, temperature=TEMPERATURE),
        )
        run = loop.fit(views, dataset, STUDENT, objective, 3, [teacher])
        found[name] = TRAIN / float(np.median(run.history["seconds"][1:]))
    return found


def bare(layers: Callable[[nn.Module], nn.Module]) -> float:
    """The student alone on random tensors that are there already: forward, backward, AdamW; nothing
    can be faster."""
    place = device.default().type
    model = (
        layers(zoo.create(STUDENT, CLASSES, SIZE))
        .to(place, memory_format=torch.channels_last)
        .train()
    )
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=place).contiguous(
        memory_format=torch.channels_last
    )
    targets = torch.randint(0, CLASSES, (BATCH,), device=place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as training has it

    def step() -> int:
        with device.autocast(place):
            loss = nn.functional.cross_entropy(model(images).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return len(images)

    return rate(step)


def main() -> None:
    """Measure and write ``outputs/benchmarks/distillation.json`` and its figure."""
    with TemporaryDirectory() as folder:
        os.environ["KDNB_CACHE"] = str(
            Path(folder, "cache")
        )  # a run that is only loaded tells the seconds of another day
        root = tree(Path(folder, "images"))
        dataset = data.load("folder", root, "official")
        found = {
            EXAMPLE: torchdistill(root),
            BEST: torchdistill(root, at_its_best=True),
            **ours(dataset),
            "bare step of the student": bare(as_it_is),
            "bare step with torch's depthwise layers": bare(with_torchs_layers),
        }
    limit = found["bare step of the student"]
    rows = [
        {
            "what": name,
            "images_per_second": value,
            "times_torchdistill": value / found[EXAMPLE],
            "times_torchdistill_at_its_best": value / found[BEST],
            "share_of_bare_step": value / limit,
            "precision": "float32"
            if name == EXAMPLE or device.precision() == "no"
            else device.precision(),
        }
        for name, value in found.items()
    ]
    facts = {
        "teacher": TEACHER,
        "student": STUDENT,
        "image_size": SIZE,
        "batch_size": BATCH,
        "data": "phantom radiographs",
        "hardware": provenance.hardware(),
        "commit": provenance.collect()["commit"],
    }
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    folder = files.outputs_dir() / "benchmarks"
    print(
        "wrote",
        files.write_json(
            folder / "distillation.json", {"goals": GOALS, "results": [row | facts for row in rows]}
        ),
    )
    drawn, axes = style.start(size=(6.4, 3.2))
    sns.barplot(pd.DataFrame(rows), y="what", x="images_per_second", ax=axes[0, 0], color="C0")
    axes[0, 0].bar_label(
        axes[0, 0].containers[0],
        [f"{row['times_torchdistill_at_its_best']:.1f}×" for row in rows],
        padding=3,
    )
    axes[0, 0].set(ylabel="", xlabel="images a second (times torchdistill at its best)")
    axes[0, 0].margins(x=0.12)  # room for the labels
    sns.despine(drawn)
    with files.atomic(folder / "distillation.png") as picture:
        style.done(drawn, f"{TEACHER} teaches {STUDENT}, {SIZE} px, batches of {BATCH}").savefig(
            picture, dpi=110, bbox_inches="tight"
        )


if __name__ == "__main__":
    main()
