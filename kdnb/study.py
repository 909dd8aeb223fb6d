"""What one experiment is: where its data come from, its recipe and its budget, checked at once."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kdnb import data, distillation, extras, files, notebook, parameters, typed
from kdnb.distillation.base import SHARED, Method
from kdnb.images import splits
from kdnb.images.source import Source
from kdnb.models import capabilities, zoo
from kdnb.parameters import BadParameter, Parameters, parameter

# a profile sets sizes and lengths, and nothing else: the code path is the same in all of them
PROFILES = {
    "smoke": "seconds",
    "quick": "minutes",
    "paper": "224 px, pretrained",
}
PRETRAINED = ("none", "teacher", "student", "both")
PER_CLASS = {"smoke": 8}  # at most so many images of a class in each split
EPOCHS = {"low": 1, "high": 10_000}


@typed
def teacher_names(teacher: str) -> tuple[str, ...]:
    """Names of the teachers that ``a+b`` joins. Raises ``UnknownName`` for an unknown network."""
    names = tuple(name.strip() for name in teacher.split("+"))
    for name in names:
        zoo.resolve(name)
    return names


def _recipe(role: str) -> Callable[[str], object]:
    """Look up a recipe of a role, by name and only now: recipes stand above this module."""
    return lambda name: getattr(importlib.import_module("kdnb.training.recipes"), role)(name)


def _tracker(name: str) -> object:
    """Look up a tracker, by name as recipes are. Raises :class:`BadParameter`."""
    return importlib.import_module("kdnb.training.tracking").installed(name)


@dataclass(frozen=True)
class Data(Source):
    """Where the images come from, how their files are read, and how they are split."""

    dataset: str = parameter(
        "phantom_cxr", "a name that 00 lists, medmnist:<name>, or folder", valid=data.describe
    )
    data_root: str | None = parameter(None, "folder of the images; None: KDNB_DATA/<dataset>")
    download: bool = parameter(False, "True fetches a public dataset from Kaggle")
    split: str = parameter(
        "auto",
        "official, random, group (keeps copies and patients together) or auto",
        choices=splits.MODES,
    )
    label_share: float = parameter(
        1.0,
        "share of the training and validation labels, groups kept together; drawn by the seed",
        low=1e-4,
        high=1.0,
    )
    folds: int | None = parameter(
        None, "cross-validation: parts of the groups, one of them the test set", low=3, high=20
    )
    fold: int | None = parameter(None, "the part that is the test set; None: the first, 0", low=0)


@dataclass(frozen=True)
class Training(Parameters):
    """The networks that teach, and how any network is trained."""

    needs: ClassVar[tuple[str, ...]] = ("train",)

    teacher: str = parameter(
        "densenet121",
        "vgg19, visformer_small, autoformerv2_tiny, any timm name; several: a+b",
        valid=teacher_names,
    )
    teacher_epochs: int | None = parameter(
        None,
        "epochs of a teacher",
        **EPOCHS,
        profiles={"smoke": 1, "quick": 8, "paper": 100},
    )
    teacher_shards: int | None = parameter(
        None,
        "train so many of each teacher, on disjoint patients; 1: on all; None: the method's",
        low=1,
        high=100,
    )
    teacher_recipe: str | None = parameter(
        None,
        "kd_oct (focal loss, averaged weights), deep_auc (AUC), simclr; None: the settings here",
        valid=_recipe("of_teacher"),
    )
    teacher_flips: bool = parameter(
        False, "True tests teachers on mirror images too and averages their answers"
    )
    # paper B's code trains for 100 epochs at batch 16 from ImageNet weights; paper A's settings
    # could not be read
    batch_size: int | None = parameter(
        None,
        "images a batch",
        low=2,
        high=65_536,
        profiles={"smoke": 16, "quick": 32, "paper": 16},
    )
    lr: float | None = parameter(
        None, "peak learning rate of AdamW; None: the network's", low=1e-8, high=10.0
    )
    augment: bool = parameter(True, "random views; False: fixed views")
    pretrained: str | None = parameter(
        None,
        "ImageNet weights: teacher, student, both",
        choices=PRETRAINED,
        profiles={"smoke": "none", "quick": "none", "paper": "both"},
    )
    track: str | None = parameter(
        None,
        "follow what is trained in tensorboard, wandb or mlflow; None: history.csv alone",
        choices=("tensorboard", "wandb", "mlflow"),
        valid=_tracker,
    )


@dataclass(frozen=True)
class Recipe(Parameters):
    """The student and the method that teaches it; ``None`` for what the method defines."""

    student: str = parameter(
        "kdfmv5", "ofa595 (paper A), kdfmv5 or kdfmv8 (paper B), any timm name", valid=zoo.resolve
    )
    student_epochs: int | None = parameter(
        None,
        "epochs of a student",
        **EPOCHS,
        profiles={"smoke": 1, "quick": 15, "paper": 100},
    )
    recipe: str | None = parameter(
        None,
        "how a student is trained: kd_oct, simclr (first without labels); None: the settings here",
        valid=_recipe("of_student"),
    )
    method: str = parameter(
        "hybrid",
        "hard, hybrid (paper A), kd_fmv (paper B), dkd, crd, ssd_kd … (03 lists all)",
        valid=distillation.create,
    )
    alpha: float | None = parameter(
        None, "share of the labels in the loss, 0 to 1; None: the method's"
    )
    temperature: float | None = parameter(None, "softens teacher and student; None: the method's")
    teacher_weights: tuple[float, ...] | None = parameter(
        None, "one number a teacher; None: equal shares"
    )
    curation: str | None = parameter(
        None,
        "draw each batch from five: acid (learnability), easy_reference, random; None: no choice",
        choices=("acid", "easy_reference", "random"),
    )
    curation_temperature: float = parameter(
        1.0, "temperature of the draw, in nats of the loss", low=1e-3
    )
    curation_scale: float = parameter(
        1.0,
        "side of the images that acid scores, a share of theirs; 0.5 costs a quarter",
        low=0.1,
        high=1.0,
    )
    options: dict = parameter({}, "more options of the method; each may be set by its own name too")


@dataclass(frozen=True)
class Budget(Parameters):
    """The profile, the size of an image, and the seed."""

    profile: str = parameter(
        "quick",
        ", ".join(f"{name} ({length})" for name, length in PROFILES.items()),
        choices=PROFILES,
    )
    image_size: int | None = parameter(
        None,
        "pixels a side",
        low=32,
        high=1024,
        profiles={"smoke": 64, "quick": 96, "paper": 224},
    )
    seed: int = parameter(
        0, "of initial weights, order and augmentation; not of the split", low=0, high=2**31
    )


@dataclass(frozen=True)
class Study(Budget, Recipe, Training, Data):
    """One experiment. What is left ``None`` comes from the profile (sizes, lengths), the method
    (``alpha``, ``temperature``, ``options``) or the network (``lr``).

    ``parts`` are the groups of parameters that count: :meth:`config` holds theirs. A notebook's
    study has those of which its parameters cell shows one, and those of the wings it asks for.
    Raises ``UnknownName`` or :class:`BadParameter`.
    """

    parts: ClassVar[tuple[type, ...]] = (Data, Training, Recipe, Budget)
    shown: ClassVar[tuple[str, ...] | None] = None  # names that print(study) lists; None: all

    def __post_init__(self) -> None:
        fields, stated = parameters.declared(type(self)), self.pretrained
        parameters.converted(fields["profile"], self.profile)
        files.lookup(self.profile, PROFILES, "profile")
        for name, field in fields.items():
            if getattr(self, name) is None and field.metadata["profiles"]:
                object.__setattr__(self, name, field.metadata["profiles"][self.profile])
        super().__post_init__()
        self._resolve_folds()
        self._resolve_options()
        self._resolve_pretrained(stated)
        count = len(self.teachers) * self.shards
        if self.teacher_weights and len(self.teacher_weights) != count:
            parts = f", each on {self.shards} parts of the patients" if self.shards > 1 else ""
            raise BadParameter(
                f"{len(self.teacher_weights)} teacher_weights for {count} teachers: "
                f"{self.teacher}{parts}"
            )

    def _resolve_folds(self) -> None:
        if self.folds is None and self.fold is not None:
            raise BadParameter(f"fold {self.fold} of how many: -p folds 5")
        if self.folds is None:
            return
        object.__setattr__(self, "fold", self.fold or 0)
        if self.fold >= self.folds:
            raise BadParameter(f"fold must lie between 0 and {self.folds - 1}, got {self.fold}")
        if self.split not in ("auto", "group"):
            raise BadParameter(
                f"folds keep groups together, and split {self.split} does not: -p split group"
            )

    def _resolve_pretrained(self, stated: str | None) -> None:
        """A profile asks for the weights that there are; a reader who asks for others is told."""
        for role, names in (("teacher", self.teachers), ("student", (self.student,))):
            for name in names:
                if zoo.resolve(name).only_pretrained and not self.starts_pretrained(role):
                    raise BadParameter(
                        f"{name} is named after the weights that it starts from: -p pretrained "
                        f"{role}; or choose another {role} that starts from random weights"
                    )
        if not self.starts_pretrained("student") or zoo.has_weights(self.student):
            return
        if stated is not None:
            raise BadParameter(
                f"pretrained {stated}: no weights are published of {self.student}; for a teacher "
                "that starts from ImageNet weights, -p pretrained teacher"
            )
        object.__setattr__(self, "pretrained", "teacher")

    def _resolve_options(self) -> None:
        """Complete the method's options. Those that are parameters as well may come either way."""
        given = dict(self.options)
        for name in SHARED:
            value = given.pop(name, None)
            if value is None:
                continue
            if getattr(self, name) not in (None, value):
                raise BadParameter(
                    f"{name} is given twice: {getattr(self, name)}, and {value} in options"
                )
            object.__setattr__(self, name, value)
        object.__setattr__(self, "options", given)
        resolved = dataclasses.asdict(self.make_method().options)
        for name in SHARED:
            object.__setattr__(self, name, resolved.pop(name, None))
        object.__setattr__(self, "options", resolved)

    @classmethod
    def of(cls, *wings: type) -> type[Study]:
        """The study with the parameters of ``wings`` beside its own, for example
        ``Study.of(search.SearchParameters)(dataset="lc25000", generations=8)``."""
        return _derived(cls, wings, cls.parts + wings, None)

    @classmethod
    def from_notebook(cls, *wings: type) -> Study:
        """The study that this notebook's parameters cell and papermill's ``-p`` describe.

        ``wings`` are parameters that the notebook takes beside the study's own. A name that
        papermill was given and no notebook takes is an error with the nearest match. Variables of
        the reader's own are left alone. Packages that the wings need are looked for first:
        ``MissingExtra``. ``KDNB_PROFILE`` replaces the profile, so that tests can
        run a notebook as it is.
        """
        extras.require(*(name for wing in wings for name in wing.extras))
        whole = cls.of(*wings)
        every = {name for method in distillation.METHODS.values() for name in method.defaults()}
        given = notebook.given({*parameters.declared(whole), *every})
        parts = tuple(
            part for part in whole.parts if set(given.shown) & set(parameters.declared(part))
        )
        used = [name for part in parts for name in parameters.declared(part)]
        used += _options(whole, given.values) if "method" in used else []
        for name in given.passed:
            if name not in used:
                _without_effect(name, used)
        for name in given.own:
            _not_misspelt(name, [other for other in used if other not in given.shown])
        values = {name: value for name, value in given.values.items() if name in used}
        shown = tuple(name for name in used if name in values)
        return _derived(cls, wings, parts, shown).from_parameters(values)

    @classmethod
    @typed
    def from_parameters(cls, names: Mapping[str, object]) -> Study:
        """The study of parameters by name, as ``-p`` gives them. A name that no study has is an
        error with the nearest match; ``KDNB_PROFILE`` replaces the profile."""
        given, known, short = dict(names), parameters.declared(cls), _options(cls, names)
        for name in given:
            files.lookup(name, {**known, **dict.fromkeys(short)}, "parameter")
        if options := {name: given.pop(name) for name in short if name in given}:
            stated = parameters.converted(known["options"], given.get("options") or {})
            if twice := ", ".join(sorted(options.keys() & stated.keys())):
                raise BadParameter(f"{twice} is given twice: by name and in options")
            given["options"] = stated | options
        if profile := os.environ.get("KDNB_PROFILE"):
            given["profile"] = profile
        return cls(**given)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of all teachers."""
        return teacher_names(self.teacher)

    @property
    def shards(self) -> int:
        """Parts of the training patients for each of which a teacher is trained."""
        return self.teacher_shards or distillation.METHODS[self.method].teacher_shards

    @typed
    def starts_pretrained(self, role: str) -> bool:
        """Whether the networks of a role, ``teacher`` or ``student``, start from ImageNet
        weights."""
        return self.pretrained in (role, "both")

    @typed
    def peak_lr(self, name: str, pretrained: bool = False) -> float:
        """The peak learning rate of a network: the study's, else 1e-4 from pretrained weights
        (paper B), else the zoo's."""
        return self.lr or (1e-4 if pretrained else zoo.resolve(name).lr)

    def make_method(self) -> Method:
        """What the student learns from, with the study's options."""
        shared = {name: getattr(self, name) for name in SHARED}
        return distillation.create(self.method, **shared, **self.options)

    def load_data(self) -> data.Dataset:
        """The dataset of this study, split. Raises :class:`BadParameter` for fewer than two
        classes."""
        loaded = self.read()
        self.mirrored(loaded)
        if len(loaded.classes) < 2:
            raise BadParameter(
                f"{loaded.title} has one class, {loaded.classes[0]!r}; a classifier needs two or "
                "more: is data_root the folder above the classes?"
            )
        if self.shown is not None:
            self._try_networks(len(loaded.classes))
        return loaded.labelled(self.label_share, self.seed)

    def read(self) -> data.Dataset:
        """The dataset of this study, split, with all labels and however few classes it has."""
        return data.load(
            self.dataset,
            self.data_root,
            self.split,
            self.download,
            PER_CLASS.get(self.profile),
            self.source,
            None if self.folds is None else (self.fold, self.folds),
        )

    def _try_networks(self, num_classes: int) -> None:
        """Try in seconds what a notebook will need of its networks, before anything is trained.

        All must be trainable; what is explained or exported is the student and its first teacher.
        """
        teachers = self.teachers if Training in self.parts else ()
        students = (self.student,) if Recipe in self.parts else ()
        needs = [need for part in self.parts for need in part.needs]
        for name in dict.fromkeys((*teachers, *students)):
            every = name in (*teachers[:1], *students)
            wanted = needs if every else Training.needs
            capabilities.check(name, num_classes, self.image_size, wanted)

    @typed
    def mirrored(self, dataset: data.Dataset) -> str:
        """The mirrorings over which teachers are tested, empty by default. Raises
        :class:`BadParameter` where mirror images of a dataset are not plausible."""
        if self.teacher_flips and not dataset.spec.flips:
            raise BadParameter(
                f"teacher_flips: no mirror image of {dataset.title} is plausible "
                f"({dataset.spec.modality}); leave it out"
            )
        return dataset.spec.flips if self.teacher_flips else ""

    @property
    def source(self) -> Source:
        """How the files are read."""
        return Source(**{name: getattr(self, name) for name in parameters.declared(Source)})

    @property
    def outputs_root(self) -> Path:
        """The folder of all datasets' results; a smoke run proves nothing, so its results stay in
        the cache."""
        return files.cache_dir() / "smoke" if self.profile == "smoke" else files.outputs_dir()

    def outputs(self) -> Path:
        """Where results go: ``outputs/<dataset>/``, below that ``<split>/`` for a split that is not
        the default, or a folder for each fold."""
        folder = self.outputs_root / data.describe(self.dataset).slug
        if self.folds is not None:
            return folder / f"fold-{self.fold}-of-{self.folds}"
        return folder if self.split == "auto" else folder / self.split

    def config(self) -> dict[str, object]:
        """Every choice of the parts that count, resolved; written beside every result."""
        return {
            name: getattr(self, name) for part in self.parts for name in parameters.declared(part)
        }

    def __repr__(self) -> str:
        config = self.config()
        listed = [
            f"  {name:17} {value}"
            for name, value in config.items()
            if value is not None and (self.shown is None or name in self.shown)
        ]
        return "\n".join(["Study", *listed])


def _derived(
    base: type[Study],
    wings: tuple[type, ...],
    parts: tuple[type, ...],
    shown: tuple[str, ...] | None,
) -> type[Study]:
    return dataclasses.make_dataclass(
        "Study",
        (),
        bases=(base, *wings),
        namespace={"parts": parts, "shown": shown, "__module__": __name__},
        frozen=True,
        repr=False,
    )


def _options(of: type[Study], values: Mapping[str, object]) -> list[str]:
    """Names of the options of the chosen method that are no parameters of this kind of study: each
    may be given as one, ``-p hint_layer 1``. Raises ``UnknownName`` for an option of another
    method."""
    chosen = values.get("method", parameters.default(parameters.declared(Recipe)["method"]))
    study = parameters.declared(of)
    own = [name for name in _defaults(chosen) if name not in study]
    for name in values.keys() - study.keys() - set(own):
        methods = [method for method in distillation.METHODS if name in _defaults(method)]
        if methods and _defaults(chosen):
            raise files.UnknownName(f"{name} is an option of {', '.join(methods)}, not of {chosen}")
    return own


def _defaults(method: object) -> dict[str, object]:
    known = distillation.METHODS.get(method) if isinstance(method, str) else None
    return known.defaults() if known else {}


def _without_effect(name: str, used: list[str]) -> None:
    """Say that another notebook takes this name; raise ``UnknownName`` where none does."""
    # by name and only now: the wings that declare parameters stand above this module
    if name not in importlib.import_module("kdnb.cells").declared():
        files.lookup(name, used, "parameter")
    print(f"{name} has no effect in this notebook", file=sys.stderr)


def _not_misspelt(name: str, unset: list[str]) -> None:
    """A variable of the reader's own in the parameters cell may not be nearly the name of a
    parameter that the cell does not set."""
    if difflib.get_close_matches(name, unset, n=1, cutoff=0.8):
        files.lookup(name, unset, "parameter")
