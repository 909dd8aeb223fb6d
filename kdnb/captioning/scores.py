"""Quality of reports: words shared with the reference (BLEU-4, ROUGE-L, CIDEr), and truth, the
facts that are read back. Intervals draw groups of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kdnb import checks, extras
from kdnb.captioning import texts
from kdnb.evaluation import statistics
from kdnb.images import grammar
from kdnb.images.grammar import POSSIBLE, PRESENT, Vocabulary
from kdnb.parameters import BadParameter

cider_scorer = extras.late("pycocoevalcap.cider.cider")
rouge_scorer = extras.late("rouge_score.rouge_scorer")
bleu_metrics = extras.late("sacrebleu.metrics")

TITLES = {
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "precision": "precision of facts",
    "recall": "recall of facts",
    "f1": "F1 of facts",
    "contradictions": "contradictions a report",
}
ORDER = 4  # of n-grams in BLEU


def facts_of(text: str, reference: str, vocabulary: Vocabulary) -> dict[str, int]:
    """Facts that a text states and that its reference states: ``stated``, ``true`` (the same
    statement in both), ``known`` and ``contradictions``, other statements on the same attribute.

    A finding that is possible in one and present in the other is not true, and no contradiction.
    """
    said, known = (grammar.read(each, vocabulary) for each in (text, reference))
    shared = said.keys() & known.keys()
    alike = {PRESENT, POSSIBLE}
    against = [
        name for name in shared if said[name] != known[name] and {said[name], known[name]} != alike
    ]
    true = sum(said[name] == known[name] for name in shared)
    return {
        "stated": len(said),
        "true": true,
        "known": len(known),
        "contradictions": len(against),
    }


class Scores:
    """Sums of each image's report against its reference, from which every measure of any bootstrap
    draw follows: called with counts ``(draws, N)`` it gives ``{measure: (draws,)}``.

    ``written`` and ``references`` are N texts. Truth is measured where a ``vocabulary`` is known.
    Raises ``ValueError`` for lists of different length.
    """

    def __init__(
        self, written: Sequence[str], references: Sequence[str], vocabulary: Vocabulary | None
    ):
        checks.shapes(written=(list(written), "N"), references=(list(references), "N"))
        pairs = list(zip(written, references, strict=True))
        own, known = texts.sentences(list(written)), texts.sentences(list(references))
        self.grams = np.array([ngrams(a, b) for a, b in zip(own, known, strict=True)], float)
        self.rouge, self.cider = rouge_l(own, known), cider(own, known)
        self.facts = None
        if vocabulary is not None:
            rows = [facts_of(text, reference, vocabulary) for text, reference in pairs]
            self.facts = pd.DataFrame(rows).astype(float)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        total = counts.sum(1)
        found = {
            "bleu4": bleu(counts @ self.grams),
            "rouge_l": counts @ self.rouge / total,
            "cider": counts @ self.cider / total,
        }
        if self.facts is None:
            return found
        sums = {name: counts @ self.facts[name].to_numpy() for name in self.facts}
        return found | {
            "precision": sums["true"] / np.maximum(sums["stated"], 1),
            "recall": sums["true"] / np.maximum(sums["known"], 1),
            "f1": 2 * sums["true"] / np.maximum(sums["stated"] + sums["known"], 1),
            "contradictions": sums["contradictions"] / total,
        }


def ngrams(text: str, reference: str) -> list[int]:
    """Matches of n-grams of length 1 to 4, their numbers, and both lengths: ten numbers, which add
    up over texts (Papineni et al. 2002, counted by ``sacrebleu``)."""
    score = bleu_metrics.BLEU(tokenize="none", effective_order=True).sentence_score(
        text, [reference]
    )
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 in [0, 1] ``(draws,)`` of summed :func:`ngrams` ``(draws, 10)``, without smoothing:
    the geometric mean of the four precisions times min(1, exp(1 − reference / length)) (Papineni
    et al. 2002, section 2.3)."""
    matches, totals, (length, reference) = sums[:, :ORDER], sums[:, ORDER:-2], sums[:, -2:].T
    with np.errstate(divide="ignore"):
        logs = np.log(matches / np.maximum(totals, 1)).mean(1)
        penalty = np.minimum(0, 1 - reference / np.maximum(length, 1e-9))
    return np.exp(logs + penalty)


def rouge_l(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L ``(N,)``, the F1 of the longest common subsequence (Lin 2004), by
    ``rouge_score``."""
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    pairs = zip(references, written, strict=True)
    return np.array([scorer.score(known, text)["rougeL"].fmeasure for known, text in pairs])


def cider(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """CIDEr-D ``(N,)``, from 0 to 10: cosine of n-grams weighted by their rarity among the
    references (Vedantam et al. 2015, arXiv:1411.5726), by ``pycocoevalcap``. It needs several
    different references; a set of one gives 0."""
    known, own = ({n: [text] for n, text in enumerate(each)} for each in (references, written))
    with contextlib.redirect_stdout(io.StringIO()):
        _, scores = cider_scorer.Cider().compute_score(known, own)
    return np.asarray(scores, dtype=float)


def evaluate(
    written: Mapping[str, Sequence[str]],
    references: Sequence[str],
    vocabulary: Vocabulary | None,
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures of each writer's N reports with 95 % bootstrap intervals over groups: columns
    writer, measure, value, low, high, n.

    ``labels`` and ``groups`` ``(N,)`` as in :func:`kdnb.evaluation.statistics.draws`.
    """
    rows = []
    for name, own in written.items():
        scores = Scores(own, references, vocabulary)
        values = scores(np.ones((1, len(labels)), np.float32))
        limits = statistics.intervals(scores, labels, groups, seed)
        for measure, value in values.items():
            low, high = limits[measure]
            known = {"writer": name, "measure": measure, "value": float(value[0])}
            rows.append(known | {"low": low, "high": high, "n": len(labels)})
    return pd.DataFrame(rows)


def differences(
    written: Mapping[str, Sequence[str]],
    reference: str,
    references: Sequence[str],
    vocabulary: Vocabulary | None,
    labels: np.ndarray,
    groups: np.ndarray,
    measure: str = "f1",
    seed: int = 0,
) -> pd.DataFrame:
    """One measure of each writer minus that of the writer ``reference``, with 95 % intervals of a
    paired bootstrap over groups: columns measure, label, difference, low, high.

    ``labels`` and ``groups`` are ``(N,)``.
    """
    scores = {name: Scores(own, references, vocabulary) for name, own in written.items()}
    ones, base, rows = np.ones((1, len(labels)), np.float32), scores.pop(reference), []
    for name, own in scores.items():
        drawn = np.concatenate(
            [
                own(counts)[measure] - base(counts)[measure]
                for counts in statistics.draws(labels, groups, seed=seed)
            ]
        )
        low, high = statistics.interval(drawn)
        gap = float((own(ones)[measure] - base(ones)[measure])[0])
        label = f"{name} − {reference}"
        row = {"measure": measure, "label": label, "difference": gap}
        rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Measures as text with their intervals: a row a writer."""
    shown = scores.assign(
        text=[f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in scores.itertuples()],
        measure=scores["measure"].map(TITLES),
    )
    wide = shown.pivot_table(index="writer", columns="measure", values="text", aggfunc="first")
    return wide.reindex(index=shown["writer"].unique(), columns=shown["measure"].unique())


def another_image(texts: Sequence[str], groups: np.ndarray, seed: int = 0) -> list[str]:
    """Chance: each of N images has the reference of one that is drawn from the other ``groups``
    ``(N,)``. Raises :class:`~kdnb.parameters.BadParameter` for a single group."""
    checks.shapes(texts=(list(texts), "N"), groups=(groups, "N"))
    if len(np.unique(groups)) < 2:
        raise BadParameter(
            "chance needs test reports of two groups (patients), and all are of one: -p split "
            "chooses other test images"
        )
    rng = np.random.default_rng(seed)
    return [texts[rng.choice(np.flatnonzero(groups != own))] for own in groups]
