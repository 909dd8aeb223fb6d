"""Speed on one GPU: our training loop against the bare step, and Score-CAM against
pytorch-grad-cam: ``make gpu``. ``benchmarks/gpu.md`` says what it needs and writes.

Networks have random weights, images are phantoms in memory. The two sides of a comparison take
turns: between two epochs of our loop the bare step trains as many images. Times are those of the
training part of an epoch, from its first batch to its last step, answers written or read included;
validation, recalibration of batch norm and checkpoints are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from kdnb import data, device, files, provenance
from kdnb.distillation import Method, create
from kdnb.explanations import activations, registry
from kdnb.images import index, phantoms
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.zoo import Classifier
from kdnb.study import Study
from kdnb.training import answers, loop, teachers
from kdnb.training.checkpoints import Run

DATASET, DRAWN, VAL, LR, ALPHA, TEMPERATURE = "phantom_histology", 16, 24, 1e-4, 0.5, 4.0
GOALS = {"ours / bare step": "at least 0.85, with the teacher in the loop and with kept answers"}
ROOM = 16e9  # free bytes of a folder in memory, for a cache with the checkpoints of VGG19


@dataclass(frozen=True)
class InMemory(data.Dataset):
    """A dataset whose pixels are an array ``(N, 3, S, S)``, not files."""

    array: np.ndarray = field(default=None, repr=False)

    def pixels(self, image_size: int, split: str | None = None, column: str = "path") -> Pixels:
        """Rows of one split, all by default."""
        rows = None if split is None else np.flatnonzero(self.table["split"] == split)
        return Pixels(self.array, self.labels, rows)


def dataset(train: int, size: int) -> InMemory:
    """``train`` training images and a few for validation: the same few phantoms, again and
    again."""
    spec = data.describe(DATASET)
    classes, count = tuple(spec.classes), train + VAL
    kinds = list(itertools.islice(itertools.cycle(classes), DRAWN * len(classes)))
    drawn = [
        phantoms.draw(DATASET, label, number, size=size).image for number, label in enumerate(kinds)
    ]
    pixels = (np.stack(drawn).transpose(0, 3, 1, 2) * 255).astype(np.uint8)
    rows = np.arange(count) % len(kinds)
    table = pd.DataFrame(
        {
            "path": [f"{row:06}" for row in range(count)],
            "label": [kinds[row] for row in rows],
            "split": ["train"] * train + ["val"] * VAL,
            "mode": "RGB",
            "group": np.arange(count),
        }
        | dict.fromkeys(("patient", "mask", "organ_mask", "sha256"), "")
    )
    found = index.Index(Path(), classes, table, pd.DataFrame(columns=index.PROBLEMS))
    return InMemory(spec, found, table, "random", array=pixels[rows])


@dataclass(frozen=True)
class Setup:
    """Sizes and networks. An epoch has ``steps`` batches, ``repeats`` epochs are measured after the
    first; ``first`` and ``rest`` are pairs of a teacher and a student."""

    size: int = 224
    batch: int = 128
    steps: int = 24
    repeats: int = 3
    cam_images: int = 4
    compiler: str = "inductor"
    first: tuple[tuple[str, str], ...] = (
        ("vgg19_bn", "ofa595"),
        ("visformer_small", "ofa595"),
        ("tf_efficientnet_lite0", "ofa595"),
    )
    rest: tuple[tuple[str, str], ...] = (
        ("autoformerv2_tiny", "ofa595"),
        ("densenet121", "ofa595"),
        ("densenet121", "kdfmv5"),
        ("densenet121", "kdfmv8"),
    )
    explained: tuple[str, ...] = ("ofa595", "densenet121", "vgg19_bn")

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return self.steps * self.batch

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of a teacher and a student."""
        return self.first + self.rest

    @functools.cached_property
    def dataset(self) -> InMemory:
        """The images, drawn once."""
        return dataset(self.images, self.size)

    def study(self, student: str) -> Study:
        """The settings of a training."""
        return Study(
            dataset=DATASET,
            student=student,
            image_size=self.size,
            batch_size=self.batch,
            lr=LR,
            pretrained="none",
        )

    def network(self, name: str) -> Classifier:
        """A network with random weights."""
        return zoo.create(name, len(self.dataset.classes), self.size)

    def floats(self, count: int) -> torch.Tensor:
        """Some images on the device, ``(count, 3, S, S)`` in [0, 1]."""
        return self.dataset.pixels(self.size).floats(range(count)).to(device.default())


TOY = Setup(32, 8, 2, 1, 1, "eager", (("resnet10t", "kdfmv5"),), (), ("kdfmv5",))


def synchronize() -> None:
    """Wait until the device has done all its work."""
    getattr(torch, device.default().type).synchronize()


def timed(work: Callable[[], object]) -> float:
    """Seconds of ``work``, the device's part included."""
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


class Watch:
    """Seconds of each epoch of our loop in ``ours``, and in ``other`` those of ``burst``, which
    runs after each of them."""

    def __init__(self, burst: Callable[[], float]):
        self.burst, self.ours, self.other = burst, [], []

    def start(self) -> None:
        """An epoch begins."""
        synchronize()
        self.begun = time.perf_counter()

    def stop(self) -> None:
        """An epoch ends."""
        synchronize()
        self.ours.append(time.perf_counter() - self.begun)
        self.other.append(self.burst())


def watched(name: str, watch: Watch, **options: float) -> Method:
    """The method ``name``; its hooks at both ends of an epoch tell the watch."""

    class Watched(type(create(name))):
        def start_epoch(self, epoch, student):
            super().start_epoch(epoch, student)
            watch.start()

        def end_epoch(self, epoch, student):
            super().end_epoch(epoch, student)
            watch.stop()

    return Watched(create(name, **options).options)


def bare(
    setup: Setup, name: str, teacher: str | None = None, compiler: str | None = None
) -> Callable[[], float]:
    """An epoch of bare steps, which returns its seconds: forward of a teacher in half precision,
    forward and backward of network ``name``, AdamW, on a batch that is there already."""
    place = device.default()
    ready = functools.partial(torch.compile, backend=compiler) if compiler else lambda model: model
    model = setup.network(name).to(place, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    student = ready(model)
    asked = ready(teachers.frozen(setup.network(teacher)).to(place)) if teacher else None
    images = setup.floats(setup.batch).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(setup.batch, device=place) % len(setup.dataset.classes)

    def step() -> None:
        with device.autocast(place):
            with torch.no_grad():
                targets = None if asked is None else asked(images)
            logits = student(images)
        loss(logits.float(), labels, targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: timed(lambda: [step() for _ in range(setup.steps)])


def loss(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy, with a teacher's logits ``targets`` also Hinton's soft loss."""
    hard = F.cross_entropy(logits, labels)
    if targets is None:
        return hard
    both = (F.log_softmax(each / TEMPERATURE, -1) for each in (logits, targets.float()))
    soft = F.kl_div(*both, reduction="batchmean", log_target=True)
    return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft


def fit(
    setup: Setup, name: str, method: Method, taught: Sequence[Run] = (), epochs: int = 0
) -> Run:
    """Train in our loop, without its messages."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return loop.fit(
            setup.study(name), setup.dataset, name, method, epochs or 1 + setup.repeats, taught
        )


def row(
    kind: str,
    name: str,
    images: int,
    seconds: Sequence[float],
    than: Sequence[float] = (),
    ratio_to: str | None = None,
) -> dict:
    """Images a second: median and range of the repeats, and the ratio to another way, which took
    the seconds ``than`` in the same rounds."""
    rates, ratios = images / np.array(seconds), np.array(than) / np.array(seconds[: len(than)])
    found = {"kind": kind, "name": name, "repeats": len(rates)}
    found |= _spread("images_per_second", rates)
    return found | (_spread("ratio", ratios) | {"ratio_to": ratio_to} if ratio_to else {})


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    picked = {name: np.median(values), f"{name}_low": values.min(), f"{name}_high": values.max()}
    return {key: float(f"{value:.4g}") for key, value in picked.items()}


Rows = list[dict]


def compared(setup: Setup, kind: str, bare_kind: str, name: str, watch: Watch) -> Rows:
    """Rows of our loop and of the bare step; the first epoch warms up."""
    ours, other = watch.ours[1:], watch.other[1:]
    return [
        row(bare_kind, name, setup.images, other),
        row(kind, name, setup.images, ours, other, bare_kind),
    ]


class Pair:
    """A student with its teacher in the loop, then with the answers that the first run kept."""

    def __init__(self, setup: Setup, teacher: str, student: str):
        self.setup, self.teacher, self.student = setup, teacher, student
        self.name = f"{teacher} -> {student}"

    @functools.cached_property
    def taught(self) -> list[Run]:
        """The teacher as a finished run; what it knows does not matter here."""
        model = self.setup.network(self.teacher)
        return [Run(model, pd.DataFrame(), {"weights": zoo.checksum(model.network)}, Path())]

    def distil(self, step: Callable[[], float], alpha: float) -> Watch:
        """Train in our loop and in turns with it the bare ``step``."""
        watch = Watch(step)
        method = watched("hybrid", watch, alpha=alpha, temperature=TEMPERATURE)
        fit(self.setup, self.student, method, self.taught)
        return watch

    def asked(self) -> Rows:
        """The teacher is asked for every batch."""
        watch = self.distil(bare(self.setup, self.student, self.teacher), ALPHA)
        kinds = "teacher in the loop", "bare step with teacher"
        return compared(self.setup, *kinds, self.name, watch)

    def kept(self) -> Rows:
        """The same views with another ``alpha``, so that the run is another one."""
        watch = self.distil(bare(self.setup, self.student), 0.3)
        expected = 1 + self.setup.repeats
        if (found := len([*answers.folder().rglob("epoch-*")])) != expected:
            raise RuntimeError(f"answers of {found} epochs were kept, expected {expected}")
        return compared(self.setup, "kept answers", "bare step of the student", self.name, watch)


def plain(setup: Setup, name: str) -> Rows:
    """A network alone, trained on labels."""
    watch = Watch(bare(setup, name))
    fit(setup, name, watched("hard", watch))
    return compared(setup, "plain training", "bare step alone", name, watch)


def views(setup: Setup) -> Rows:
    """The data alone: batches, transfer and augmentation, without a network."""
    place, generator = device.default(), torch.Generator().manual_seed(0)
    pixels, augment = setup.dataset.pixels(setup.size, "train"), setup.dataset.augment()
    pixels = pixels.moved_to(place)

    def epoch() -> None:
        for images, *_ in pixels.batches(setup.batch, shuffle=True):
            augment(images.to(place), generator).contiguous(memory_format=torch.channels_last)

    seconds = [timed(epoch) for _ in range(1 + setup.repeats)][1:]
    return [row("data alone", DATASET, setup.images, seconds)]


def compiled(setup: Setup, student: str, teacher: str | None = None) -> Rows:
    """The bare step with torch.compile, beside the one without."""
    name = f"{teacher} -> {student}" if teacher else student
    kind = "bare step with teacher" if teacher else "bare step alone"
    eager, fast = bare(setup, student, teacher), bare(setup, student, teacher, setup.compiler)
    first, _ = fast(), eager()
    rounds = [(eager(), fast()) for _ in range(setup.repeats)]
    than, seconds = zip(*rounds, strict=True)
    found = row(f"{kind}, compiled", name, setup.images, seconds, than, f"{kind}, in turns")
    return [found | {"first_epoch_s": round(first, 1)}]


def score_cam(setup: Setup, name: str) -> Rows:
    """Exact Score-CAM of one class: ours against pytorch-grad-cam's, both in float32.

    The network is trained a little first, because random weights score all channels alike.
    """
    model, images = fit(setup, name, create("hard"), epochs=2).model, setup.floats(setup.cam_images)
    ways = {"ours": ours, "theirs": theirs}
    maps, seconds = {}, {way: [] for way in ways}
    for _ in range(1 + setup.repeats):
        for way, explain in ways.items():
            seconds[way].append(timed(lambda: maps.update({way: explain(model, images)})))  # noqa: B023
    # by default the GPU rounds the factors of convolutions to TF32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = [explain(model, images) for explain in ways.values()]
    count, (mine, other) = len(images), (seconds["ours"][1:], seconds["theirs"][1:])
    kinds = ("Score-CAM, kdnb", "Score-CAM, pytorch-grad-cam")
    facts = {
        "layer": model.cam_layer,
        "channels": int(activations.features(model, images[:1]).shape[1]),
        "images": count,
        "max_abs_diff": float(np.abs(maps["ours"] - maps["theirs"]).max()),
        "max_abs_diff_without_tf32": float(np.abs(exact[0] - exact[1]).max()),
    }
    return [
        row(kinds[1], name, count, other),
        row(kinds[0], name, count, mine, other, kinds[1]) | facts,
    ]


def ours(model: Classifier, images: torch.Tensor) -> np.ndarray:
    """Maps ``(N, H, W)`` of class 1."""
    model.to(memory_format=torch.channels_last)
    return registry.explain(model, images, "score_cam", 1).maps


def theirs(model: Classifier, images: torch.Tensor) -> np.ndarray:
    """The same by pytorch-grad-cam, one image at a time, as its memory grows with their number."""
    model.to(memory_format=torch.contiguous_format)
    maps, targets = [], [ClassifierOutputTarget(1)]
    with activations.untouched(model), contextlib.redirect_stderr(io.StringIO()):
        for image in (images - model.mean) / model.std:
            cam = pytorch_grad_cam.ScoreCAM(model.network, [model.cam_module()], model.cam_reshape)
            maps.append(cam(image[None], targets)[0])
            cam.activations_and_grads.release()
    return np.stack(maps)


Job = tuple[str, list[Callable[[], Rows]]]  # its name, and its measurements in order


def jobs(setup: Setup) -> list[Job]:
    """What is measured, the most important first."""
    students = list(dict.fromkeys(student for _, student in setup.pairs))
    names = list(dict.fromkeys(name for names in zip(*setup.pairs, strict=True) for name in names))

    def one(title: str, work: Callable[..., Rows], *of: str) -> Job:
        return " ".join((title, *of)), [functools.partial(work, setup, *of)]

    def both(teacher: str, student: str) -> Job:
        pair = Pair(setup, teacher, student)
        return f"distil {teacher} {student}", [pair.asked, pair.kept]

    return [
        *(both(*pair) for pair in setup.first),
        one("data", views),
        *(one("score-cam", score_cam, name) for name in setup.explained),
        *(both(*pair) for pair in setup.rest),
        *(one("plain", plain, name) for name in names),
        *(one("compile", compiled, student, teacher) for teacher, student in setup.pairs),
        *(one("compile", compiled, name) for name in students),
    ]


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """An empty cache for the block, in memory where there is room: a run that is only loaded takes
    no time, and checkpoints should not wait for a disk."""
    memory, was = Path("/dev/shm"), os.environ.get("KDNB_CACHE")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with TemporaryDirectory(dir=memory if roomy else None) as folder:
        os.environ["KDNB_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("KDNB_CACHE")
            os.environ.update({"KDNB_CACHE": was} if was is not None else {})


def measure(job: Job, until: float) -> Iterator[Rows]:
    """The rows of a job, each when it is there; none is begun after the time ``until``. An error is
    a row as well, and ends the job."""
    name, parts = job
    with own_cache():
        for part in parts:
            if time.monotonic() >= until:
                yield [{"kind": "not begun", "name": name}]
                return
            try:
                rows = part()
            except Exception as error:  # whatever a network, a compiler or a full memory raises
                text = " ".join(f"{type(error).__name__}: {error}".split())
                rows = [{"kind": "error", "name": name, "error": text[:300]}]
            yield rows
            if rows[0]["kind"] == "error":
                return


def free() -> None:
    """Give back what the last job held on the device."""
    torch.compiler.reset()
    gc.collect()
    if device.default().type == "cuda":
        torch.cuda.empty_cache()


def line(found: dict) -> str:
    """A row as it is printed."""
    rate = f"{found['images_per_second']:10,.2f} images/s" if "images_per_second" in found else ""
    ratio = f"  {found['ratio']:.2f} × {found['ratio_to']}" if "ratio" in found else ""
    return f"{found['kind']:32} {found['name']:34}{rate}{ratio}{found.get('error', '')}"


def facts(setup: Setup) -> dict:
    """What all rows have in common."""
    return {
        "goals": GOALS,
        "gpu": device.gpu(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "precision": device.precision(),
        "memory_format": "channels_last",
        "optimizer": "AdamW, fused",
        "method": "hybrid",
        "data": f"{DATASET}, RGB, {setup.images} images in memory",
        "not_in_the_times": "validation, recalibration of batch norm, checkpoints",
        "provenance": provenance.collect(),
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="See benchmarks/gpu.md.")
    parser.add_argument("--seconds", type=float, default=480, help="begin no row after so long")
    parser.add_argument("--batch", type=int, help=f"images a batch ({Setup.batch})")
    parser.add_argument("--only", default="", help="jobs with this in their name, e.g. compile")
    parser.add_argument("--toy", action="store_true", help="try the script: tiny, on any device")
    asked = parser.parse_args(arguments)
    if not asked.toy and device.gpu() is None:
        parser.error("there is no GPU here; --toy tries the script without one")
    return asked


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write ``outputs/benchmarks/gpu.json`` after every row; a toy's rows prove
    nothing and go into the cache."""
    asked, until = parsed(arguments), time.monotonic()
    until += asked.seconds
    setup = TOY if asked.toy else Setup()
    setup = replace(setup, batch=asked.batch) if asked.batch else setup
    path = (files.cache_dir() if asked.toy else files.outputs_dir()) / "benchmarks" / "gpu.json"
    stored, shared = facts(setup), {"size": setup.size, "batch": setup.batch}
    stored |= {"results": [], "failed": [], "not_begun": []}
    lists = {"error": "failed", "not begun": "not_begun"}
    print(f"{stored['gpu']}, torch {stored['torch']}, {stored['precision']}", flush=True)
    for job in jobs(setup):
        if asked.only not in job[0]:
            continue
        for rows in measure(job, until):
            for each in rows:
                stored[lists.get(each["kind"], "results")].append(each | shared)
                print(line(each), flush=True)
            files.write_json(path, stored)
        free()
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
