"""Support vector machines on joined features: PCA of each network, one kernel over all parts.

Everything that is fitted is fitted on training images; cross-validation inside them keeps groups
together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from joblib import Memory
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from kdnb import checks, files
from kdnb.classical.blocks import Block
from kdnb.evaluation import calibration, crossed, metrics, statistics

COSTS = (0.1, 1.0, 10.0, 100.0)  # candidates of the SVC's C
FOLDS = 3
VARIANCE = 0.95  # share that the components of a network's PCA explain
REPEATS = 10  # permutations of each part
TRIES = 20  # draws of the folds


class TooFewGroups(
    files.UserError,
    ValueError,
    code="KD802",
    way_out="give the training set more patients or groups, or leave the parts out that need folds",
):
    """Training images that cannot be cross-validated; the message names the class."""


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline of the parts in ``names`` and its answers.

    ``logits`` ``(R, K)`` of all rows are decision values divided by ``temperature``, those of
    training rows by the pipelines of the other folds, which have not seen them. ``cost`` is the
    chosen C, ``validated`` its balanced accuracy in cross-validation, ``components`` the numbers of
    principal components, ``seconds`` the time of the whole search.
    """

    names: tuple[str, ...]
    estimator: Pipeline
    logits: np.ndarray
    temperature: float
    cost: float
    validated: float
    components: dict[str, int]
    seconds: float

    def answer(self, values: np.ndarray) -> np.ndarray:
        """Logits ``(n, K)`` for joined features ``(n, F)`` of images that were not fitted."""
        return decisions(self.estimator, values, self.logits.shape[1]) / self.temperature


def join(blocks: Sequence[Block]) -> np.ndarray:
    """The features of several blocks beside each other, ``(R, F)`` float64."""
    return np.hstack([block.values for block in blocks]).astype(np.float64)


def folds(
    labels: np.ndarray, groups: np.ndarray, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds of training images with whole groups, as (fitted, held out) positions.

    ``labels`` and ``groups`` ``(n,)``. Three folds, or two where a class has two groups; each
    fitted part holds every class. Raises :class:`TooFewGroups`.
    """
    checks.shapes(labels=(labels, "N"), groups=(groups, "N"))
    labels, groups = np.asarray(labels), np.asarray(groups)
    every = np.unique(labels)
    counts = {label: len(np.unique(groups[labels == label])) for label in every}
    fewest = min(counts, key=counts.get)
    if len(every) < 2 or counts[fewest] < 2:
        raise TooFewGroups(
            f"class {fewest} has {counts[fewest]} group(s) of training images of {len(every)} "
            "class(es): cross-validation needs two classes, and two groups of each; use more images"
        )
    for attempt in range(TRIES):
        kfold = StratifiedGroupKFold(
            min(FOLDS, counts[fewest]), shuffle=True, random_state=seed + attempt
        )
        found = list(kfold.split(labels[:, None], labels, groups))
        if all(np.array_equal(np.unique(labels[fitted]), every) for fitted, _ in found):
            return found
    raise TooFewGroups(
        f"no folds of whole groups were found that leave class {fewest} in every fitted part; "
        "use more images, or a split by other groups"
    )


def fit(
    blocks: Sequence[Block],
    labels: np.ndarray,
    train: np.ndarray,
    groups: np.ndarray,
    num_classes: int,
    seed: int = 0,
    memory: Memory | None = None,
) -> Fitted:
    """Fit scaler, PCA of each network, and SVC on the training rows alone.

    ``labels`` and ``groups`` ``(R,)`` of all rows, of which only those of ``train`` ``(n,)`` are
    read; ``num_classes`` K. C is the one with the best balanced accuracy in :func:`folds`; the
    temperature minimises the cross-entropy of the held-out decision values (Guo et al. 2017).
    Pipelines with a ``memory`` in common find the components of each network once.
    Raises :class:`TooFewGroups` and ``ValueError`` for shapes that do not fit.
    """
    values, begun = join(blocks), time.perf_counter()
    checks.shapes(values=(values, "R F"), labels=(labels, "R"), groups=(groups, "R"))
    own, known = values[train], np.asarray(labels)[train]
    splits = folds(known, np.asarray(groups)[train], seed)
    estimator = _estimator(blocks, memory)
    by_cost = _held_out(estimator, own, known, splits, num_classes)
    reached = {
        cost: metrics.balanced_accuracy(known, held.argmax(1)) for cost, held in by_cost.items()
    }
    cost = max(reached, key=reached.get)  # of equal ones, the smallest
    held, best = by_cost[cost], estimator.set_params(svc__C=cost).fit(own, known)
    temperature = calibration.fit_temperature(known, held)
    logits = decisions(best, values, num_classes)
    logits[train] = held
    components = {
        name: int(step["pca"].n_components_)
        for name, step in best["features"].named_transformers_.items()
        if isinstance(step, Pipeline)
    }
    return Fitted(
        tuple(block.name for block in blocks),
        best,
        logits / temperature,
        temperature,
        cost,
        reached[cost],
        components,
        round(time.perf_counter() - begun, 2),
    )


def _held_out(
    estimator: Pipeline,
    values: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> dict[float, np.ndarray]:
    """Decision values ``(n, K)`` of each training image for each C, from the fold that did not fit
    it. Scaler, PCA and kernel of a fold do not depend on C and are computed once."""
    found = {cost: np.zeros((len(labels), num_classes)) for cost in COSTS}
    for fitted, out in splits:
        transform = clone(estimator["features"])
        inside = transform.fit_transform(values[fitted], labels[fitted])
        spread = inside.shape[1] * inside.var()
        gamma = 1 / spread if spread else 1.0  # "scale", the SVC's own
        kernel = rbf_kernel(inside, gamma=gamma)
        outside = rbf_kernel(transform.transform(values[out]), inside, gamma=gamma)
        for cost, held in found.items():
            machine = clone(estimator["svc"]).set_params(kernel="precomputed", C=cost)
            machine.fit(kernel, labels[fitted])
            decided = machine.decision_function(outside)
            held[out] = _by_class(decided, machine.classes_, num_classes)
    return found


def _estimator(blocks: Sequence[Block], memory: Memory | None = None) -> Pipeline:
    """Scaled features with each network, and all handcrafted features together, at equal weight.

    A part of F scaled features has variance F; divided by √F, all count alike in the distances of
    the kernel.
    """
    columns, crafted, start = {}, [], 0
    for block in blocks:
        own = list(range(start, start + block.values.shape[1]))
        start += len(own)
        if block.learnt:
            columns[block.name] = own
        else:
            crafted += own
    # a pipeline keeps all steps but its last one in its memory
    steps = [("scaler", StandardScaler()), ("pca", PCA(VARIANCE, svd_solver="full"))]
    reduced = Pipeline([*steps, ("out", "passthrough")], memory=memory)
    parts = [(name, reduced, own) for name, own in columns.items()]
    if crafted:
        columns["handcrafted"] = crafted
        parts.append(("handcrafted", StandardScaler(), crafted))
    weights = {name: len(own) ** -0.5 for name, own in columns.items()}
    joined = ColumnTransformer(parts, transformer_weights=weights)
    return Pipeline([("features", joined), ("svc", SVC(class_weight="balanced"))])


def decisions(estimator: Pipeline, values: np.ndarray, num_classes: int) -> np.ndarray:
    """Decision values ``(n, K)`` of a fitted pipeline for features ``(n, F)``; of two classes
    ±d/2, which a softmax turns into the logistic function of d."""
    return _by_class(estimator.decision_function(values), estimator.classes_, num_classes)


def _by_class(found: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    if found.ndim == 1:
        found = np.stack([-found / 2, found / 2], axis=1)
    whole = np.full((len(found), num_classes), found.min(initial=0) - 30.0)
    whole[:, classes] = found
    return whole


def importance(
    fitted: Fitted,
    blocks: Sequence[Block],
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Permutation importance of each block: how much balanced accuracy is lost when its features
    are exchanged between images (Breiman 2001, doi:10.1023/A:1010933404324).

    Columns label, difference (a loss is negative), low, high (95 % bootstrap interval over
    ``groups``), n. ``rows`` ``(n,)`` are images that were not fitted; ``labels`` and ``groups``
    ``(R,)`` of all rows. scikit-learn permutes single columns only, and gives no interval over
    images.
    """
    known, own = np.asarray(labels)[rows], np.asarray(groups)[rows]
    parts, rng = [block.values[rows] for block in blocks], np.random.default_rng(seed)
    weight = crossed.balanced(known)
    right = fitted.answer(np.hstack(parts).astype(float)).argmax(1) == known
    lost = {}
    for number, block in enumerate(blocks):
        gaps = []
        for _ in range(repeats):
            drawn = [*parts]
            drawn[number] = parts[number][rng.permutation(len(rows))]
            found = fitted.answer(np.hstack(drawn).astype(float)).argmax(1) == known
            gaps.append(found.astype(float) - right)
        lost[block.name] = np.mean(gaps, axis=0) * weight

    def means(counts):
        return {name: counts @ gap / counts.sum(1) for name, gap in lost.items()}

    limits = statistics.intervals(means, known, own)
    return pd.DataFrame(
        [
            {"label": name, "difference": float(gap.mean()), "n": len(rows)}
            | dict(zip(("low", "high"), limits[name], strict=True))
            for name, gap in lost.items()
        ]
    )
