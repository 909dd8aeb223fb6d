"""A student for the device at hand: subnets of a trained supernet, their latency predicted, the
best found by evolution.

Cai et al. (2020), Once-for-All, arXiv:1908.09791, section 4.3 (accuracy and latency of subnets),
with NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from kdnb import device, extras, files
from kdnb.data import Dataset
from kdnb.deployment.latency import RUNTIMES, LatencyTable
from kdnb.evaluation import metrics
from kdnb.models import ofa, zoo
from kdnb.models.ofa import LARGEST, OFA595_CHOICE, SMALLEST, Choice
from kdnb.models.predict import predict
from kdnb.models.zoo import Classifier
from kdnb.parameters import Parameters, parameter
from kdnb.training import batch_norm

nsga2 = extras.late("pymoo.algorithms.moo.nsga2")
ux = extras.late("pymoo.operators.crossover.ux")
pm = extras.late("pymoo.operators.mutation.pm")
rounding = extras.late("pymoo.operators.repair.rounding")
optimize = extras.late("pymoo.optimize")
functional = extras.late("pymoo.problems.functional")
sorting = extras.late("pymoo.util.nds.non_dominated_sorting")

COSTS = ("latency", "macs", "parameters")


@dataclass(frozen=True)
class SearchParameters(Parameters):
    """Settings of notebook 07."""

    extras: ClassVar[tuple[str, ...]] = ("export", "search")

    runtime: str = parameter(
        "onnx", "runtime that the student will run in: onnx or eager", choices=RUNTIMES
    )
    cost: str = parameter("latency", "cost to keep low: latency, macs or parameters", choices=COSTS)
    latency_budget_ms: float | None = parameter(
        None,
        "milliseconds an image may take; None: half of OFA-595's, if any",
        low=1e-3,
        high=1e6,
    )
    supernet_epochs: int | None = parameter(
        None,
        "epochs of the supernet",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 2, "paper": 60},
    )
    tune_epochs: int | None = parameter(
        None,
        "epochs that fine-tune an extracted subnet",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 2, "paper": 20},
    )
    generations: int | None = parameter(
        None,
        "generations of the search, 16 subnets each",
        low=1,
        high=10_000,
        profiles={"smoke": 2, "quick": 4, "paper": 20},
    )
    fitted: int | None = parameter(
        None,
        "random subnets that the latency predictor is fitted to",
        low=2,
        high=1000,
        profiles={"smoke": 4, "quick": 24, "paper": 24},
    )
    probes: int | None = parameter(
        None,
        "random subnets that check the latency predictor",
        low=3,
        high=1000,
        profiles={"smoke": 3, "quick": 24, "paper": 50},
    )


class NoSuchStudent(
    files.UserError,
    ValueError,
    code="KD603",
    way_out="raise the budget (-p latency_budget_ms), or take a smaller -p image_size",
):
    """A budget that nothing meets; the message names the fastest there is."""


def extract(model: Classifier, choice: Choice, calibration: Tensor) -> Classifier:
    """A subnet of a trained supernet as a student of its own, on the supernet's device.

    Its batch statistics are those of ``calibration`` images ``(N, 3, S, S)`` in [0, 1]: some
    hundred training images. The supernet is not changed.
    """
    student = zoo.create(choice.name, model.num_classes, model.image_size).to(device.of(model))
    student.network.load_state_dict(model.network.extract(choice).state_dict(), strict=True)
    return batch_norm.recalibrate(student, calibration)


class SubnetEvaluator:
    """Balanced accuracy on validation images of subnets with shared weights; every answer is kept
    on disk, so that a search that was stopped goes on where it stood."""

    def __init__(self, model: Classifier, dataset: Dataset):
        self.model, self.val = model, dataset.pixels(model.image_size, "val")
        self.calibration = batch_norm.calibration_images(dataset, model.image_size)
        key = [
            zoo.checksum(model.network),
            dataset.checksum,
            model.image_size,
            batch_norm.IMAGES,
            batch_norm.BATCH,
        ]
        self.path = files.cache_dir() / "search" / f"{dataset.spec.slug}-{files.digest(key)}.json"
        self.known: dict[str, float] = {}

    def __call__(self, choice: Choice) -> float:
        if choice.name not in self.known:
            self._read()
        if choice.name not in self.known:
            student = extract(self.model, choice, self.calibration)
            predicted = predict(student, self.val).argmax(1)
            answer = metrics.balanced_accuracy(self.val.labels[self.val.rows].numpy(), predicted)
            with files.lock(self.path):
                self._read()
                self.known.setdefault(choice.name, answer)
                files.write_json(self.path, self.known)
        return self.known[choice.name]

    def _read(self) -> None:
        """What is on disk now: a search beside this one may have answered, and what it wrote
        stands."""
        if self.path.exists():
            self.known |= files.read_json(self.path)


def cost_of(
    kind: str, image_size: int, num_classes: int, table: LatencyTable | None = None
) -> Callable[[Choice], float]:
    """What a subnet costs: predicted ``latency`` (ms), ``macs`` or ``parameters``."""
    files.lookup(kind, COSTS, "cost")
    if kind == "latency":
        return table
    if kind == "macs":
        return lambda choice: float(zoo.count_macs(choice.name, num_classes, image_size))
    return lambda choice: float(zoo.count_parameters(ofa.skeleton(choice, num_classes)))


def _decode(genes: np.ndarray) -> Choice:
    """Five depths, twenty kernels, twenty expansions, each 0, 1 or 2; genes of blocks beyond a
    stage's depth mean nothing."""
    depths, kernels, expansions = np.split(np.asarray(genes, int), (5, 25))
    return Choice(
        tuple(
            tuple(
                (ofa.KERNELS[k], ofa.EXPANSIONS[e])
                for k, e in zip(
                    kernels[4 * n : 4 * n + ofa.DEPTHS[d]], expansions[4 * n :], strict=False
                )
            )
            for n, d in enumerate(depths)
        )
    )


def _encode(choice: Choice) -> np.ndarray:
    genes = np.zeros(45, int)
    for n, stage in enumerate(choice.stages):
        genes[n] = ofa.DEPTHS.index(len(stage))
        for depth, (kernel, expansion) in enumerate(stage):
            genes[5 + 4 * n + depth], genes[25 + 4 * n + depth] = (
                ofa.KERNELS.index(kernel),
                ofa.EXPANSIONS.index(expansion),
            )
    return genes


def evolve(
    accuracy: Callable[[Choice], float],
    cost: Callable[[Choice], float],
    population: int = 16,
    generations: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """NSGA-II over subnets: high ``accuracy`` in [0, 1], low ``cost``; the same for a seed.

    Returns every subnet that was looked at, one row each (``name``, ``accuracy``, ``cost``,
    ``front``), cheapest first; ``front`` marks those that no other beats in both.
    """
    start = np.random.default_rng(seed).integers(0, 3, (population, 45))
    known = [SMALLEST, LARGEST, OFA595_CHOICE][:population]
    start[: len(known)] = [
        _encode(choice) for choice in known
    ]  # the ends of the front are known; evolution fills it
    seen: dict[str, tuple[float, float]] = {}
    bar = tqdm(total=population * generations, desc="searching", unit="subnet", leave=False)

    def loss(genes):
        choice = _decode(genes)
        seen[choice.name] = (accuracy(choice), cost(choice))
        bar.update()
        return 1 - seen[choice.name][0]

    problem = functional.FunctionalProblem(
        45, [loss, lambda genes: seen[_decode(genes).name][1]], xl=0, xu=2, vtype=int
    )
    algorithm = nsga2.NSGA2(
        population,
        sampling=start,
        crossover=ux.UX(),
        eliminate_duplicates=True,
        mutation=pm.PolynomialMutation(
            prob=1.0, prob_var=1 / 15, vtype=float, repair=rounding.RoundingRepair()
        ),
    )
    optimize.minimize(problem, algorithm, ("n_gen", generations), seed=seed)
    bar.close()
    return front_of(seen)


def front_of(seen: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """A table of subnets and their (accuracy, cost), cheapest first, with the ones that none beats
    marked ``front``."""
    table = pd.DataFrame(
        [{"name": name, "accuracy": a, "cost": c} for name, (a, c) in seen.items()]
    )
    best = sorting.NonDominatedSorting().do(
        np.stack([1 - table["accuracy"], table["cost"]], 1), only_non_dominated_front=True
    )
    table["front"] = table.index.isin(best)
    return table.sort_values(["cost", "accuracy"], ascending=[True, False], ignore_index=True)


def default_budget(table: pd.DataFrame, reference: float) -> float:
    """Half of OFA-595's cost (``reference``), or the cost of the cheapest subnet of the table where
    that is more: on small images the parts that all subnets share take most of the time."""
    return max(reference / 2, table["cost"].min())


def pick(table: pd.DataFrame, budget: float, unit: str = "ms") -> Choice:
    """The most accurate subnet of a table within a budget of cost; raises :class:`NoSuchStudent`
    when none is."""
    within = table[table["cost"] <= budget]
    if within.empty:
        first = table.iloc[0]
        raise NoSuchStudent(
            f"no subnet costs {budget:g} {unit} or less; the cheapest found is {first['name']} "
            f"with {first['cost']:.3g} {unit}: raise the budget, or take a smaller image_size"
        )
    return Choice.parse(
        within.sort_values(["accuracy", "cost"], ascending=[False, True]).iloc[0]["name"]
    )
