"""A method: what a student learns from, as one class in one file, and the registry of all methods.

A method sees the answers of the student and of its teachers for a batch and returns named losses.
It may read hidden layers, own trainable parts and memory banks, and change the images of a batch,
what happens after a step, and the course of the training. ``CONTRIBUTING.md``, "Add a method",
shows a whole one.
"""

# no postponed annotations here: beartype reads those of a NamedTuple as they stand
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kdnb import files, parameters
from kdnb.models.zoo import Classifier
from kdnb.parameters import parameter

# options that are parameters of a study as well: one name for all methods that have them
SHARED = ("alpha", "temperature", "teacher_weights")
# what a student can learn from: labels; a network's probabilities; its maps; how images relate to
# each other; the embeddings of earlier batches
TRANSFERS = ("labels", "probabilities", "maps", "relations", "memory")


class Mismatch(
    files.UserError,
    ValueError,
    code="KD402",
    way_out="choose another -p method, or change what the message names: the network, the images "
    "or an option",
):
    """What a student is to learn from does not fit the images, networks or other choices."""


class Seen(NamedTuple):
    """A network's answer for a batch of N images.

    ``logits`` ``(N, K)``; ``features`` of the layers that the method reads, each ``(N, C, h, w)``,
    the deepest layer first.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()


class Batch(NamedTuple):
    """Training images as teachers and student will see them.

    ``images`` ``(V·N, 3, S, S)`` in [0, 1]: V views of N images, all images of a view together.
    ``labels`` ``(N,)``, or ``(N, K)`` where a method mixes classes; −1, or shares of zero, for an
    image without a label, which only a method with ``unlabelled`` sees. ``rows`` ``(N,)`` are the
    rows of the dataset's table: a bank is indexed by them, never by the place in a batch.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


class Course(NamedTuple):
    """What is known before training begins.

    ``labels`` ``(R,)`` holds the class of every row of the dataset's table that is a training
    image, and −1 for all other rows. ``epochs`` is the largest number of epochs. ``student`` and
    ``teachers`` are the networks: a method that keeps one, or a layer of it, keeps a copy.
    ``images`` gives the training images of rows ``(n,)``, not augmented: ``(n, 3, S, S)`` in [0, 1]
    on the CPU.
    """

    labels: Tensor
    epochs: int
    student: Classifier
    teachers: Sequence[Classifier] = ()
    images: Callable[[Tensor], Tensor] | None = None


class Method(nn.Module):
    """What a student learns from. A subclass states facts, declares options and writes ``loss``.

    Facts: ``title`` and ``paper`` for tables, ``transfers``, a part of ``TRANSFERS``,
    ``needs_teacher``, ``teacher_shards``, the number of parts of the patients for each of which a
    teacher is trained, ``unlabelled``, whether it also learns from training images whose label was
    left out, ``rounds``, how often the student is trained, each time anew and with the student of
    the round before as the teacher, ``taps``, the number of layers it reads (the deepest of each
    network's CAM layers), and ``pooled``, whether it reads only their means over all cells,
    ``(N, C, 1, 1)``. ``rounds`` and ``taps`` are properties where an option decides.
    ``idea`` (one or two sentences), ``equation`` (LaTeX, ``\\\\`` between lines), and ``reported``,
    what the paper reports, and ``reported_on``, its data, make the method's card and its row among
    the related systems.
    ``version`` is part of a run's key: raise it when the method computes something else or a
    default changes, so that older runs are not taken for new ones.

    State that must survive an interruption belongs in parameters, sub-modules and buffers: all of
    them are in the checkpoint, and so are the optimiser's moments. ``class_weights`` ``(K,)`` or
    None is set by the training loop.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    idea: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    reported: ClassVar[str] = ""
    reported_on: ClassVar[str] = ""
    transfers: ClassVar[tuple[str, ...]] = TRANSFERS[:1]
    needs_teacher: ClassVar[bool] = True
    teacher_shards: ClassVar[int] = 1
    unlabelled: ClassVar[bool] = False
    rounds: ClassVar[int] = 1
    taps: ClassVar[int] = 0
    pooled: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @dataclass(frozen=True)
    class Options:
        """Options of every method; a subclass adds its own, see :mod:`kdnb.parameters`."""

        teacher_weights: tuple[float, ...] | None = parameter(
            None, "one number a teacher; None: equal shares", low=0
        )

        def __post_init__(self) -> None:
            parameters.check(self)
            if self.teacher_weights is not None and sum(self.teacher_weights) <= 0:
                raise parameters.BadParameter(
                    f"teacher_weights must not be all zero, got {self.teacher_weights}"
                )

    def __init__(self, options: Any = None):
        super().__init__()
        self.options = self.Options() if options is None else options
        self.register_buffer("class_weights", None, persistent=False)

    def build(self, student: Seen, teachers: Sequence[Seen], course: Course) -> None:
        """Make the projectors, heads and banks; the answers for two images show all shapes."""

    def embed(
        self, images: Tensor, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[Seen, Sequence[Seen]]:
        """Apply everything that has trainable parameters; runs inside the student's ``forward``.

        Here and nowhere else, because gradients of several processes are averaged for what runs in
        ``forward``. Every trainable parameter must take part in the loss of every step (with weight
        zero where it should not learn), or the processes wait for it for ever. ``images`` are there
        for methods with a network of their own, such as a moving average of the student.
        """
        return student, teachers

    def loss(
        self,
        student: Seen,
        teachers: Sequence[Seen],
        labels: Tensor,
        rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named losses of a whole batch, ``"loss"`` the one to minimise; all are logged.

        Called with the answers that ``embed`` gave, joined over all processes. No trainable
        parameters here; banks may be updated.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def change_batch(self, batch: Batch, student: Classifier, generator: Generator) -> Batch:
        """Mix images, add views, or keep some of the images; before teachers and student see them.

        ``generator`` (CPU) differs between processes and is all the randomness to use. Each process
        must keep equally many images. Teachers' answers are not kept on disk for such a method.
        """
        return batch

    def after_step(self, student: Classifier, step: int) -> None:
        """Follow the student after each optimiser step, for instance by a moving average."""

    def start_epoch(self, epoch: int, student: Classifier) -> None:
        """Prepare an epoch (counted from 0): schedules, stages, pseudo-labels.

        What it sets must follow from ``epoch`` and from buffers, so that a resumed run goes on as
        an uninterrupted one would.
        """

    def asks_teachers(self, epoch: int) -> bool:
        """Whether teachers are asked in this epoch; where not, ``embed`` and ``loss`` get none."""
        return True

    def end_epoch(self, epoch: int, student: Classifier) -> None:
        """Finish an epoch after its last step, before the student is validated and kept."""

    def selectable(self, epoch: int) -> bool:
        """Whether this epoch's weights may be kept as the best (not while only a part learns)."""
        return True

    @property
    def key(self) -> dict[str, Any]:
        """Names the method in a run's key: its shared options, and those that are not default.

        So an option that is added later, with a default that changes nothing, leaves the keys of
        earlier runs as they are.
        """
        values, defaults = dataclasses.asdict(self.options), self.defaults()
        shared = {name: values.pop(name) for name in SHARED if name in values}
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        optional = {"options": changed} if changed else {}
        return (
            {"method": self.name}
            | shared
            | optional
            | ({"method_version": self.version} if self.version > 1 else {})
        )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option with its default."""
        return dataclasses.asdict(cls.Options())

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether this method has its own version of a hook of the base class."""
        return getattr(cls, hook) is not getattr(Method, hook)

    @property
    def cacheable(self) -> bool:
        """Whether the teachers' answers can be kept on disk: no maps, and no images of its own."""
        return (not self.taps or self.pooled) and not self.overrides("change_batch")

    @classmethod
    def reads_logits_only(cls) -> bool:
        """Whether answers are all it needs: no hidden layers, no parts of its own, no other images.

        Only such a method can teach the subnets of a supernet.
        """
        own = cls.overrides("build") or cls.overrides("embed") or cls.overrides("change_batch")
        return cls.taps == 0 and not own

    @property
    def summary(self) -> str:
        """Name and options in one line."""
        values = dataclasses.asdict(self.options).items()
        stated = [f"{name} {value}" for name, value in values if value is not None]
        return f"{self.name} ({', '.join(stated)})" if stated else self.name

    def teacher_weights(self, teachers: Sequence) -> Tensor:
        """The weight of each teacher ``(M,)``, not normalised; ones by default.

        Raises ``ValueError`` where the weights are not one a teacher.
        """
        weights = self.options.teacher_weights
        if weights is not None and len(weights) != len(teachers):
            raise ValueError(f"{len(weights)} teacher_weights for {len(teachers)} teachers")
        return torch.ones(len(teachers)) if weights is None else torch.tensor(weights)

    def averaged(self, terms: Sequence[Tensor]) -> Tensor:
        """The mean of scalars, one a teacher, weighted by ``teacher_weights``."""
        stacked = torch.stack(list(terms))
        weights = self.teacher_weights(terms).to(stacked)
        return (stacked * weights).sum() / weights.sum()

    def teacher_logits(self, student: Seen, teachers: Sequence[Seen]) -> Tensor:
        """Logits of all teachers ``(M, N, K)``; ``ValueError`` where one does not fit the
        student's."""
        wrong = [tuple(t.logits.shape) for t in teachers if t.logits.shape != student.logits.shape]
        if wrong or not teachers:
            count, classes = student.logits.shape
            raise ValueError(
                f"{self.name} needs teacher logits ({count}, {classes}), got "
                f"{wrong[0] if wrong else 'no teacher'}"
            )
        return torch.stack([teacher.logits for teacher in teachers])


METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that enters a method under ``name``, the value of ``-p method``.

    Raises ``ValueError`` for a name that is taken, a missing ``title`` or ``paper``, and an option
    that is not declared with :func:`kdnb.parameters.parameter`.
    """

    def enter(method):
        taken = METHODS.get(name)
        # a cell that is run again defines the class anew
        if taken is not None and taken.__qualname__ != method.__qualname__:
            raise ValueError(f"the method {name!r} is there already: {taken.__qualname__}")
        missing = [
            fact for fact in ("title", "paper") if not isinstance(method.__dict__.get(fact), str)
        ]
        if missing:
            raise ValueError(f"{method.__name__} must state its {' and '.join(missing)}")
        options = {field.name for field in dataclasses.fields(method.Options)}
        if plain := options - parameters.declared(method.Options).keys():
            raise ValueError(
                f"{method.__name__}: declare {', '.join(sorted(plain))} with "
                "parameter(default, help)"
            )
        method.name = name
        METHODS[name] = method
        return method

    return enter


def create(name: str, **options: Any) -> Method:
    """A method by name; options that are not given, or None, take the method's defaults.

    Raises ``UnknownName`` with the nearest match for a name or option that does not exist, and
    ``BadParameter`` for a value out of range.
    """
    method = METHODS[files.lookup(name, METHODS, "method")]
    known, given = parameters.declared(method.Options), {}
    for option, value in options.items():
        if value is not None:
            files.lookup(option, known, f"option of {name}")
            given[option] = parameters.converted(known[option], value)
    return method(method.Options(**given))


def table() -> pd.DataFrame:
    """One row an option of each method, with its default, lowest and highest value, and help."""
    return pd.DataFrame(
        [
            {
                "method": name,
                "title": method.title,
                "paper": method.paper,
                "option": option,
                "default": method.defaults()[option],
                "lowest": field.metadata["low"],
                "highest": field.metadata["high"],
                "help": field.metadata["help"],
            }
            for name, method in METHODS.items()
            for option, field in parameters.declared(method.Options).items()
        ]
    )


class Lesson(nn.Module):
    """Student and method together: what the optimiser, the processes and the checkpoint see."""

    def __init__(self, student: Classifier, method: Method):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, images: Tensor, teachers: Sequence[Seen]) -> tuple[Seen, Sequence[Seen]]:
        """Answers of student and teachers for ``(N, 3, S, S)`` images in [0, 1], embedded."""
        answer = see(self.student, images, self.method.taps, self.method.pooled)
        return self.method.embed(images, answer, teachers)


def see(model: Classifier, images: Tensor, taps: int = 0, pooled: bool = False) -> Seen:
    """A network's logits for ``(N, 3, S, S)`` images, with the maps of its ``taps`` deepest CAM
    layers.

    Maps are ``(N, C, h, w)`` whatever the network's layout, or their means ``(N, C, 1, 1)`` where
    ``pooled``. Raises ``ValueError`` where the network has fewer such layers.
    """
    if not taps:
        return Seen(model(images))
    if taps > len(model.cam_layers):
        raise Mismatch(
            f"{model.name} has {len(model.cam_layers)} layers to learn from "
            f"({', '.join(model.cam_layers)}), and {taps} are asked for: lower the method's number "
            "of layers, or choose a method that reads fewer"
        )
    layers, maps = model.cam_layers[:taps], {}

    def keep(layer):
        def hook(module, given, output):
            # a copy, because a later layer may write into its input
            maps[layer] = model.cam_reshape(output, layer).clone()

        return hook

    hooks = [model.network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if maps[layer].ndim != 4:
            raise Mismatch(
                f"{layer} of {model.name} gives {tuple(maps[layer].shape)}, which is no map "
                "(N, C, h, w): choose a method that reads logits only"
            )
    features = tuple(maps[layer] for layer in layers)
    return Seen(
        logits, tuple(each.mean((2, 3), keepdim=True) for each in features) if pooled else features
    )


def mean_features(answer: Seen) -> Tensor:
    """The deepest map's mean over its cells, ``(N, C)`` in float32."""
    return answer.features[0].float().mean((2, 3))


def projected(
    projectors: nn.ModuleList, student: Seen, teachers: Sequence[Seen], layer: int = 0
) -> tuple[Seen, list[Seen]]:
    """The student's map of a layer through the projector of each teacher, and the teachers' maps of
    that layer, each pair on one grid: what ``embed`` returns where maps are compared."""
    maps, targets = [], []
    for projector, teacher in zip(projectors, teachers, strict=True):
        own, target = on_one_grid(student.features[layer], teacher.features[layer])
        maps.append(projector(own))
        targets.append(Seen(teacher.logits, (target,)))
    return Seen(student.logits, tuple(maps)), targets


def on_one_grid(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``(N, C, h, w)``, ``(N, D, H, W)`` averaged to the coarser grid of the two."""
    grid = tuple(map(min, one.shape[-2:], other.shape[-2:]))
    return F.adaptive_avg_pool2d(one, grid), F.adaptive_avg_pool2d(other, grid)
