"""What notebook 14 compares: captioners, reports that ignore the image, and their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kdnb.captioning import attention, scores, texts, training
from kdnb.captioning.texts import Reports, Tokens
from kdnb.data import Dataset
from kdnb.images import grammar
from kdnb.images.grammar import Vocabulary
from kdnb.training.checkpoints import Run

ALONE, CHANCE, REWORDED = "decoder alone", "report of another image", "same facts, other words"
PROBE, UNFROZEN, WHOLE, SMALL = "probe", "encoder_lora", "all", "small"


def write_all(
    captioners: Mapping[str, Run], dataset: Dataset, tokens: Tokens, rows: Sequence[int]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Every captioner's reports for ``rows``, and the milliseconds that one took."""
    found = {name: training.write(each, dataset, tokens, rows) for name, each in captioners.items()}
    return {n: each for n, (each, _) in found.items()}, {n: ms for n, (_, ms) in found.items()}


def controls(
    reports: Reports, dataset: Dataset, writer: Run, tokens: Tokens, rows: Sequence[int]
) -> dict[str, list[str]]:
    """Reports that no image was looked at for, for each of ``rows``: that of the decoder alone, the
    same for every image, and those of images of other groups (chance). For phantoms also the true
    facts in another wording: no writer who does not know the wording can be expected to score
    higher in words."""
    references = reports.of(rows)
    found = {
        ALONE: [training.blind(writer, tokens)] * len(references),
        CHANCE: scores.another_image(references, dataset.table["group"].to_numpy()[rows]),
    }
    if not reports.facts:
        return found
    again = texts.reworded(reports)
    return found | {REWORDED: [again[row] for row in rows]}


def gaps(
    written: Mapping[str, Sequence[str]],
    by_small: Mapping[str, Sequence[str]],
    controls: Mapping[str, Sequence[str]],
    references: Sequence[str],
    vocabulary: Vocabulary | None,
    labels: np.ndarray,
    groups: np.ndarray,
) -> pd.DataFrame:
    """Paired differences of every captioner from chance and from the decoder alone, of the large
    ones (``written``, by what was trained) from the query transformer alone, of the one that R6
    finds best from that of which everything is trained, and of the small one with a teacher from
    that without: :func:`kdnb.captioning.scores.differences` in each of
    :func:`measures`, with ``labels`` and ``groups`` ``(N,)``."""
    every, pairs = {**written, **by_small}, []
    pairs += [({**every, name: controls[name]}, name) for name in (CHANCE, ALONE)]
    pairs += [(written, PROBE)] if PROBE in written and len(written) > 1 else []
    best = {name: written[name] for name in (UNFROZEN, WHOLE) if name in written}
    pairs += [(best, WHOLE)] if len(best) == 2 else []
    pairs.append((by_small, SMALL))
    return pd.concat(
        [
            scores.differences(given, other, references, vocabulary, labels, groups, measure)
            for measure in measures(vocabulary)
            for given, other in pairs
        ],
        ignore_index=True,
    )


def measures(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """By which reports are compared, the first in figures: truth where it can be read."""
    return ("rouge_l",) if vocabulary is None else ("f1", "rouge_l")


def costs(captioners: Mapping[str, Run], milliseconds: Mapping[str, float]) -> pd.DataFrame:
    """One row a captioner: its parameters and those that are trained, the seconds of its training
    (the encoding of the images included, by a teacher too), its loss on validation in nats a token,
    and milliseconds a report, in batches and longer for longer reports."""
    rows = {}
    for name, each in captioners.items():
        record = each.record
        rows[name] = {
            "parameters": record["parameters"],
            "trained": record["trained_parameters"],
            "seconds": round(record["training_seconds"] + record["encoding_seconds"], 1),
            "epochs": record["epochs_run"],
            "validation loss": round(record["best_val_loss"], 3),
            "ms a report": round(milliseconds[name], 1),
        }
    return pd.DataFrame(rows).T.astype({"parameters": int, "trained": int, "epochs": int})


def examples(
    written: Mapping[str, Sequence[str]], reports: Reports, dataset: Dataset, rows: Sequence[int]
) -> pd.DataFrame:
    """One image of each class: its reference, each writer's report, and how many of its facts are
    true where they can be read."""
    lines = []
    for label in dataset.classes:
        for place in np.flatnonzero(dataset.table["label"].iloc[rows] == label)[:1]:
            reference = reports.texts[rows[place]]
            lines.append({"class": label, "writer": "reference", "report": reference})
            for name, own in written.items():
                line = {"class": label, "writer": name, "report": own[place]}
                if reports.vocabulary is not None:
                    found = scores.facts_of(own[place], reference, reports.vocabulary)
                    line["true"] = f"{found['true']} of {found['stated']}"
                lines.append(line)
    return pd.DataFrame(lines).fillna("")


def looked_at(
    trained: Run, dataset: Dataset, reports: Reports, tokens: Tokens, rows: Sequence[int]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """The rows with a lesion mask, maps ``(n, S, S)`` of the attention at the words of each
    attribute, and the masks ``(n, S, S)``; none and a line that says why where there are no masks
    or no vocabulary."""
    size, rows = trained.model.encoder.image_size, np.asarray(rows)
    masks = dataset.masks(size, "mask", rows)
    if masks is None or reports.vocabulary is None:
        print(f"not measured: no {'lesion mask' if masks is None else 'vocabulary'}")
        return rows[:0], {}, None
    spans = [grammar.span(reports.texts[row], reports.vocabulary, "kind") for row in rows]
    kept = masks.any((1, 2)) & ~masks.all((1, 2)) & np.array([span is not None for span in spans])
    if not kept.any():
        print("not measured: no image with a lesion mask has a report that states a finding")
        return rows[:0], {}, None
    found = attention.word_maps(trained, dataset, reports, tokens, rows[kept])
    return rows[kept], found, masks[kept]


def words(reports: Reports, rows: Sequence[int], attribute: str) -> list[str]:
    """The words with which the reports of ``rows`` state an attribute; nothing for all words."""
    if attribute == attention.EVERY:
        return [""] * len(rows)
    spans = [grammar.span(text, reports.vocabulary, attribute) for text in reports.of(rows)]
    pairs = zip(reports.of(rows), spans, strict=True)
    return [text[slice(*span)] if span else "" for text, span in pairs]
