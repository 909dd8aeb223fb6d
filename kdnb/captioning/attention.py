"""Where a captioner looks when it writes a word: the attention of the decoder to the queries times
that of the queries to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdnb.captioning import grammar
from kdnb.captioning.networks import Captioner
from kdnb.captioning.texts import Reports, Tokens
from kdnb.captioning.training import Maps, Trained
from kdnb.data import Dataset
from kdnb.evaluation import statistics
from kdnb.explanations.activations import enlarge
from kdnb.explanations.localisation import localisation

ATTRIBUTES = ("kind", "side", "zone")
MEASURED = ("pointing", "mass", "rank", "area")


@torch.no_grad()
def shares(model: Captioner, maps: Tensor, tokens: Tensor) -> Tensor:
    """Attention ``(N, T, h, w)`` at each token of ``tokens`` ``(N, T)`` over the cells of ``maps``
    ``(N, C, h, w)``; the cells of one token sum to 1.

    The product of two matrices, after attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928):
    the decoder's attention to the queries, the mean over layers and heads and rescaled to sum 1,
    and the queries' attention to the cells.
    """
    seen, to_cells = model.eval().bridge(maps)
    out = model.writer.run(tokens, seen, attention=True)
    slots = model.writer.size.queries
    to_queries = torch.stack(out.attentions).mean((0, 2))[:, slots:, :slots]
    to_queries = to_queries / to_queries.sum(-1, keepdim=True)
    return (to_queries @ to_cells).unflatten(-1, model.grid)


def word_maps(
    trained: Trained,
    dataset: Dataset,
    reports: Reports,
    tokens: Tokens,
    rows: Sequence[int],
    attribute: str = "kind",
) -> np.ndarray:
    """Maps ``(n, S, S)`` of the attention with which a captioner predicts the word for an attribute
    (:data:`ATTRIBUTES`) of each row's reference, which it is given up to that word. A report that
    does not state the attribute has a map of zeros. Raises ``ValueError`` without a vocabulary."""
    if reports.vocabulary is None:
        raise ValueError("no vocabulary tells the words of these reports: -p vocabulary chest")
    model, size = trained.model, dataset.pixels(trained.model.encoder.image_size)
    coded, found = tokens.encode(reports.of(rows)), []
    maps = Maps(model.encoder, size, frozen=False)
    for number, row in enumerate(rows):
        given = coded[number : number + 1].to(model.bridge.queries.device)
        attention = shares(model, maps(torch.tensor([int(row)])), given)[0].cpu()
        span = grammar.span(reports.texts[row], reports.vocabulary, attribute)
        at = tokens.positions(reports.texts[row], span) if span else []
        # the word at a position is predicted from the one before
        at = [position - 1 for position in at if position < coded.shape[1]]
        found.append(attention[at].mean(0) if at else torch.zeros(model.grid))
    return enlarge(torch.stack(found), (model.encoder.image_size,) * 2).numpy()


def measured(maps: Mapping[str, np.ndarray], masks: np.ndarray | None) -> pd.DataFrame:
    """Localisation of maps ``(N, S, S)`` by word in lesion ``masks`` ``(N, S, S)``, means with 95 %
    intervals: columns word, measure, mean, low, high, n. ``area`` is what chance reaches, and
    ``mass − area`` is paired by image. Without maps the table is empty."""
    columns, rows = ["word", "measure", "mean", "low", "high", "n"], []
    for word, own in maps.items():
        values = localisation(own, masks)
        rows += [
            {"word": word, "measure": name} | statistics.mean_interval(values[name])
            for name in MEASURED
        ]
        gap = statistics.paired_difference(values["mass"], values["area"])
        rows.append({"word": word, "measure": "mass − area"} | gap)
    return pd.DataFrame(rows, columns=columns)
