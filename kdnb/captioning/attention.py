"""Where a captioner looks when it writes a word: the attention of the decoder to the queries times
that of the queries to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdnb.captioning.networks import Captioner
from kdnb.captioning.texts import NoReports, Reports, Tokens
from kdnb.captioning.training import Maps
from kdnb.data import Dataset
from kdnb.evaluation import statistics
from kdnb.explanations.activations import enlarge
from kdnb.explanations.localisation import localisation
from kdnb.images import grammar
from kdnb.training.checkpoints import Run

ATTRIBUTES, EVERY = ("kind", "side", "zone"), "all words"
BATCH = 32
MEASURED = ("pointing", "mass", "rank", "area")


@torch.no_grad()
def shares(model: Captioner, maps: Tensor, tokens: Tensor) -> Tensor:
    """Attention ``(N, T, h, w)`` at each token of ``tokens`` ``(N, T)`` over the cells of ``maps``
    ``(N, C, h, w)``; the cells of one token sum to 1.

    The product of two matrices, as attention rollout multiplies them (Abnar & Zuidema 2020,
    arXiv:2005.00928): the decoder's attention to the queries, the mean over layers and heads and
    rescaled to sum 1, and the queries' attention to the cells. Ours: attention among words, and
    among queries, is left out.
    """
    seen, to_cells = model.eval().bridge(maps)
    out = model.writer.run(tokens, seen, attention=True)
    slots = model.writer.size.queries
    to_queries = torch.stack(out.attentions).mean((0, 2))[:, slots:, :slots]
    to_queries = to_queries / to_queries.sum(-1, keepdim=True)
    return (to_queries @ to_cells).unflatten(-1, model.grid)


@torch.no_grad()
def word_maps(
    trained: Run, dataset: Dataset, reports: Reports, tokens: Tokens, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """Maps ``(n, S, S)`` by attribute (:data:`ATTRIBUTES`) of the attention with which a captioner
    predicts the word for it in each row's reference, which it is given up to that word.

    A report that does not state the attribute has a map of zeros. :data:`EVERY`, the mean over all
    words of the report, is the control: a map that is no better does not depend on its word. Raises
    :class:`NoReports` without a vocabulary.
    """
    if reports.vocabulary is None:
        raise NoReports("no vocabulary tells the words of these reports: -p vocabulary chest")
    model, pixels = trained.model, dataset.pixels(trained.model.encoder.image_size)
    maps = Maps(model.encoder, pixels, frozen=False)
    found: dict[str, list[Tensor]] = {name: [] for name in (*ATTRIBUTES, EVERY)}
    for part in torch.from_numpy(np.asarray(rows)).split(BATCH):
        texts = reports.of(part.tolist())
        coded = tokens.encode(texts).to(model.bridge.queries.device)
        attention = shares(model, maps(part), coded).cpu()
        for name, own in found.items():
            own += [
                _at_word(each, text, tokens, _span(text, reports, name))
                for each, text in zip(attention, texts, strict=True)
            ]
    size = (model.encoder.image_size,) * 2
    return {name: enlarge(torch.stack(own), size).numpy() for name, own in found.items()}


def _span(text: str, reports: Reports, name: str) -> tuple[int, int] | None:
    return (0, len(text)) if name == EVERY else grammar.span(text, reports.vocabulary, name)


def _at_word(attention: Tensor, text: str, tokens: Tokens, span: tuple[int, int] | None) -> Tensor:
    """Mean attention ``(h, w)`` of ``(T, h, w)`` where the tokens of a span are predicted: each
    from the position before it."""
    at = [n - 1 for n in tokens.positions(text, span) if n < len(attention)] if span else []
    return attention[at].mean(0) if at else torch.zeros(attention.shape[1:])


def measured(
    maps: Mapping[str, np.ndarray], masks: np.ndarray | None, groups: np.ndarray
) -> pd.DataFrame:
    """Localisation of maps ``(N, S, S)`` by word in lesion ``masks`` ``(N, S, S)``, means with 95 %
    intervals over ``groups`` ``(N,)``: columns word, measure, mean, low, high, n. ``area`` is what
    chance reaches in ``mass``, and ``mass − area`` is paired by image. Without maps the table is
    empty."""
    columns, rows = ["word", "measure", "mean", "low", "high", "n"], []
    for word, own in maps.items():
        values = pd.DataFrame(localisation(own, masks))[list(MEASURED)]
        values["mass − area"] = values["mass"] - values["area"]
        found = statistics.summary(values, groups)
        rows += [{"word": word, "measure": name} | each for name, each in found.items()]
    return pd.DataFrame(rows, columns=columns)
