"""What one experiment is: every choice checked at once, completed from a profile, and the folder
its results go to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdnb import data, files, typed
from kdnb.distillation import soft_targets
from kdnb.distillation.soft_targets import Objective
from kdnb.images import splits
from kdnb.models import zoo


@typed
@dataclass(frozen=True)
class Profile:
    """Sizes and lengths of a run, and nothing else: the code path is the same in all of them.

    ``per_class`` caps the images of a class in each split, ``explained`` counts the images that are
    explained and measured, ``channels`` the masks a Score-CAM asks for (0: one for every channel),
    ``compiled`` whether torch.compile, which takes minutes, is among the runtimes that are timed,
    ``seeds`` and ``audit_epochs`` how often and how long a network is trained under each split in
    the audit. The last four are of the student search: epochs of the supernet and of what
    fine-tunes a subnet, generations of the search with 16 subnets each, subnets that check the
    predictor.
    """

    image_size: int
    teacher_epochs: int
    student_epochs: int
    batch_size: int
    pretrained: bool = False
    per_class: int | None = None
    explained: int = 24
    channels: int = 0
    compiled: bool = True
    seeds: int = 3
    audit_epochs: int = 50
    supernet_epochs: int = 60
    tune_epochs: int = 20
    generations: int = 20
    probes: int = 50


PROFILES = {
    "smoke": Profile(
        image_size=64,
        teacher_epochs=1,
        student_epochs=1,
        batch_size=16,
        per_class=16,
        explained=6,
        channels=8,
        compiled=False,
        seeds=2,
        audit_epochs=1,
        supernet_epochs=1,
        tune_epochs=1,
        generations=2,
        probes=3,
    ),
    "quick": Profile(
        image_size=96,
        teacher_epochs=8,
        student_epochs=15,
        batch_size=32,
        explained=18,
        channels=128,
        compiled=False,
        seeds=3,
        audit_epochs=3,
        supernet_epochs=2,
        tune_epochs=2,
        generations=4,
        probes=50,
    ),
    # paper B's code trains for 100 epochs at batch 16 from ImageNet weights; paper A's settings
    # could not be read
    "paper": Profile(
        image_size=224,
        teacher_epochs=100,
        student_epochs=100,
        batch_size=16,
        pretrained=True,
        explained=60,
    ),
}


# of notebook 07; named here so that a wrong one fails at once, without what measures them
RUNTIMES, COSTS = ("onnx", "eager"), ("latency", "macs", "parameters")


class BadParameter(ValueError):
    """A parameter that no study has, or a value it cannot take; the message says what is allowed."""


@dataclass(frozen=True)
class Study:
    """One experiment. What is left ``None`` comes from the profile (sizes, lengths), the method
    (alpha, temperature) or the network (``lr``).

    ``teacher`` may join several names with ``+`` (soft targets are averaged with
    ``teacher_weights``). ``image_size`` is in pixels, ``lr`` the peak learning rate of AdamW,
    ``image`` a file of the reader's own to be explained. ``runtime``, ``cost`` and
    ``latency_budget_ms`` (milliseconds an image) say for which device a student is searched. Raises
    ``UnknownName`` or :class:`BadParameter`.
    """

    dataset: str = "phantom_cxr"
    data_root: str | None = None
    download: bool = False
    split: str = "auto"
    teacher: str = "densenet121"
    student: str = "kdfmv5"
    method: str = "hybrid"
    alpha: float | None = None
    temperature: float | None = None
    teacher_weights: tuple[float, ...] | None = None
    profile: str = "quick"
    image_size: int | None = None
    teacher_epochs: int | None = None
    student_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    augment: bool = True
    pretrained: bool | None = None
    explained: int | None = None
    channels: int | None = None
    image: str | None = None
    compiled: bool | None = None
    seeds: int | None = None
    audit_epochs: int | None = None
    supernet_epochs: int | None = None
    tune_epochs: int | None = None
    generations: int | None = None
    probes: int | None = None
    runtime: str = "onnx"
    cost: str = "latency"
    latency_budget_ms: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        files.lookup(self.profile, PROFILES, "profile")
        files.lookup(self.split, splits.MODES, "split")
        files.lookup(self.method, soft_targets.METHODS, "method")
        files.lookup(self.runtime, RUNTIMES, "runtime")
        files.lookup(self.cost, COSTS, "cost")
        data.describe(self.dataset)
        for name in (*self.teachers, self.student):
            zoo.resolve(name)
        for name, value in dataclasses.asdict(PROFILES[self.profile]).items():
            if name != "per_class" and getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, low, high in (
            ("image_size", 32, 1024),
            ("teacher_epochs", 1, 10_000),
            ("student_epochs", 1, 10_000),
            ("batch_size", 2, 65_536),
            ("lr", 1e-8, 10.0),
            ("explained", 4, 100_000),
            ("channels", 0, 100_000),
            ("seeds", 1, 1000),
            ("audit_epochs", 1, 10_000),
            ("supernet_epochs", 1, 10_000),
            ("tune_epochs", 1, 10_000),
            ("generations", 1, 10_000),
            ("probes", 3, 1000),
            ("latency_budget_ms", 1e-3, 1e6),
            ("seed", 0, 2**31),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise BadParameter(
                    f"{name} must lie between {low} and {high}, got {getattr(self, name)}"
                )
        if self.teacher_weights and len(self.teacher_weights) != len(self.teachers):
            raise BadParameter(
                f"{len(self.teacher_weights)} teacher_weights for {len(self.teachers)} teachers: {self.teacher}"
            )
        object.__setattr__(self, "alpha", self.objective().alpha)
        object.__setattr__(self, "temperature", self.objective().temperature)

    @classmethod
    @typed
    def from_parameters(cls, names: Mapping[str, object]) -> Study:
        """The study that a notebook's parameters cell describes: call with ``globals()``.

        Papermill only warns of a ``-p`` name that no notebook has; here it is an error.
        ``KDNB_PROFILE`` replaces the profile, so that tests can run a notebook as it is.
        """
        literals = str | int | float | bool | list | tuple | dict | None
        given = {
            name: value
            for name, value in names.items()
            if isinstance(value, literals)
            and not name.startswith("_")
            and name not in ("In", "Out")
        }
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            files.lookup(name, known, "parameter")
        if profile := os.environ.get("KDNB_PROFILE"):
            given["profile"] = profile
        return cls(**given)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of all teachers."""
        return tuple(name.strip() for name in self.teacher.split("+"))

    @typed
    def peak_lr(self, name: str) -> float:
        """The peak learning rate of a network: the study's, else 1e-4 from pretrained weights
        (paper B), else the zoo's."""
        return self.lr or (
            1e-4 if self.pretrained and not name.startswith("kdfmv") else zoo.resolve(name).lr
        )

    def objective(self) -> Objective:
        """What the student learns from."""
        return Objective(self.method, self.alpha, self.temperature, self.teacher_weights)

    def load_data(self) -> data.Dataset:
        """The dataset of this study, split."""
        return data.load(
            self.dataset,
            self.data_root,
            self.split,
            self.download,
            PROFILES[self.profile].per_class,
        )

    def outputs(self) -> Path:
        """Where results go: ``outputs/<dataset>/``, below that ``<split>/`` for a split that is not
        the default.

        A smoke run proves nothing, so its results stay in the cache.
        """
        base = files.cache_dir() / "smoke" if self.profile == "smoke" else files.outputs_dir()
        return (
            base / data.describe(self.dataset).slug / ("" if self.split == "auto" else self.split)
        )

    def config(self) -> dict[str, object]:
        """Every choice, resolved; written beside every result."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        lines = [
            f"  {name:15} {value}" for name, value in self.config().items() if value is not None
        ]
        return "Study\n" + "\n".join(lines)


def _typed(field: dataclasses.Field, value: object) -> object:
    """The value as the field's type, where that is what was meant; papermill turns ``007`` into 7
    and lists stay lists."""
    optional = "None" in field.type
    if value is None and optional:
        return None
    kind = field.type.split(" |")[0]
    if (
        kind.startswith("tuple")
        and isinstance(value, list | tuple)
        and all(isinstance(v, int | float) for v in value)
    ):
        return tuple(float(v) for v in value)
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    hint = (
        " (papermill reads numbers as numbers: pass it with -r instead of -p)"
        if kind == "str"
        else ""
    )
    raise BadParameter(f"{field.name} must be {field.type}, got {value!r}{hint}")
