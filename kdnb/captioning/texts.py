"""The reports of a dataset's images, and the tokeniser that is trained on them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdnb import extras, files
from kdnb.data import Dataset
from kdnb.images import grammar, phantoms
from kdnb.images.grammar import VOCABULARIES, Facts, Vocabulary
from kdnb.study import Study

tokenizers = extras.late("tokenizers")

PAD, START, END = 0, 1, 2
WORDS, LONGEST = 2000, 96  # largest vocabulary of the tokeniser; tokens of the longest text
PARTS = re.compile(r'<AbstractText Label="(\w+)"[^>/]*>([^<]*)<')  # of a report in XML
FEWEST = 8  # different texts that a decoder can learn from
SMALL = 1000  # training reports below which a line says that they are few; ours


class NoReports(
    files.UserError,
    ValueError,
    code="KD806",
    way_out="state a text for each image in the column report of a table, -p labels reports.csv",
):
    """Images without reports, or reports that nothing can be learnt from; the message says which
    and what to do."""


@dataclass(frozen=True)
class Reports:
    """One text an image: ``texts`` in the order of the dataset's table, empty where an image has
    none.

    ``facts`` are those that phantoms were written from, empty for other sets; ``vocabulary`` are
    the words that facts are read by, None where none is known; ``left_out`` names images without a
    text; ``source`` says where the texts come from; ``other`` are texts without images, for the
    decoders alone.
    """

    texts: tuple[str, ...]
    vocabulary: Vocabulary | None
    source: str
    facts: tuple[Facts, ...] = ()
    left_out: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def rows(self, dataset: Dataset, part: str) -> np.ndarray:
        """Rows ``(n,)`` of the table that belong to a part of the split and have a report."""
        here = (dataset.table["split"] == part).to_numpy()
        return np.flatnonzero(here & np.array([text != "" for text in self.texts]))

    @property
    def read_back(self) -> bool:
        """Whether the reader finds in every text of a phantom the facts that it was written
        from."""
        return all(
            grammar.read(text, self.vocabulary) == own.stated(self.vocabulary)
            for text, own in zip(self.texts, self.facts or (), strict=bool(self.facts))
        )

    def of(self, rows: Sequence[int]) -> list[str]:
        """The texts of chosen rows."""
        return [self.texts[row] for row in rows]


def load(study: Study, dataset: Dataset) -> Reports:
    """The reports of a dataset: the column ``report`` of its index. A table of labels states it,
    and phantoms are drawn with it.

    Prints how many images have none. Raises :class:`NoReports` where no image has one, where a part
    of the split lacks them, or where the training texts are nearly all the same.
    """
    own = phantoms.WORDS.get(dataset.spec.name)
    if own and study.vocabulary not in (None, own):
        raise NoReports(f"{dataset.title} is written in words of the {own}: leave vocabulary out")
    words = study.vocabulary or own
    vocabulary = VOCABULARIES.get(words)
    texts = dataset.table["report"].map(_plain)
    facts, source = (), "the table of labels"
    if own and study.labels is None:
        facts, source = of_phantoms(dataset, vocabulary), "written from the masks (synthetic)"
    left = tuple(dataset.table["path"][texts == ""])
    other = corpus(study.corpus) if study.corpus else ()
    found = Reports(tuple(texts), vocabulary, source, tuple(facts), left, other)
    _check(found, dataset)
    count = len(found.rows(dataset, "train"))
    if count < SMALL:
        print(f"{count:,} training reports are few to learn to write from: read scores as a trial")
    if left:
        print(f"{len(left):,} of {len(texts):,} images have no report and are left out: {left[0]}")
    return found


# captions of COVID-CT are the text of a Python list, in which quotes are not escaped
_LISTED = re.compile(r"""^\[\s*(['"])(.*?)(?:\1\s*\])?$""", re.DOTALL)


def _plain(text: str) -> str:
    """On one line, without the brackets and quotes of a list that was written as text."""
    if listed := _LISTED.match(text.strip()):
        quote, inside = listed.groups()
        text = re.sub(rf"{quote}\s*,\s*{quote}", " ", inside)
    return " ".join(text.split())


def _check(found: Reports, dataset: Dataset) -> None:
    if len(found.left_out) == len(found.texts):
        raise NoReports(
            f"{dataset.title} has no reports: state them in a table, -p labels table.csv with a "
            'column report (or caption), or -p columns \'{"report": "…"}\''
        )
    for part in ("train", "val", "test"):
        if not len(found.rows(dataset, part)):
            raise NoReports(
                f"no {part} image of {dataset.title} has a report, {found.left_out[0]} for "
                "example: fill the column, or choose another -p split"
            )
    texts = found.of(found.rows(dataset, "train"))
    if len(set(texts)) < FEWEST:
        raise NoReports(
            f"the {len(texts):,} training reports of {dataset.title} have {len(set(texts))} "
            f"different wordings ({texts[0][:60]!r}): a decoder would learn these by heart. Does "
            "the column hold labels? -p columns names another"
        )


def of_phantoms(dataset: Dataset, vocabulary: Vocabulary) -> list[Facts]:
    """The facts of all images of a phantom set, from their masks."""
    lesions, organs = (
        dataset.pixels(phantoms.SIZE, column=column).images[:, 0].numpy() > 127
        for column in ("mask", "organ_mask")
    )
    return [
        grammar.of_masks(label, lesion, organ, vocabulary)
        for label, lesion, organ in zip(dataset.table["label"], lesions, organs, strict=True)
    ]


def reworded(found: Reports) -> list[str]:
    """The facts of all phantoms in other words than their reports."""
    return [
        grammar.write(own, found.vocabulary, (phantoms.SEED, row))
        for row, own in enumerate(found.facts)
    ]


def corpus(path: str) -> tuple[str, ...]:
    """Texts for the decoders alone, from a text file with one a line, or from the archive of chest
    X-ray reports of the National Library of Medicine (``NLMCXR_reports.tgz``: findings and
    impression). Raises :class:`NoReports` for a file that holds none."""
    named = Path(path).expanduser()
    found = [base / named for base in (Path.cwd(), files.ROOT) if (base / named).is_file()]
    if not found:
        raise NoReports(f"corpus: there is no file {path} here or in the project")
    place = found[0]
    if place.name.endswith((".tgz", ".tar.gz")):
        texts = _of_archive(place)
    else:
        texts = place.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = tuple(text for text in map(_plain, texts) if text)
    if not kept:
        raise NoReports(f"corpus: {place.name} holds no text")
    return kept


def _of_archive(path: Path) -> list[str]:
    texts = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".xml"):
                found = archive.extractfile(member).read().decode("utf-8", "replace")
                parts = {label: unescape(text) for label, text in PARTS.findall(found)}
                texts.append(f"{parts.get('FINDINGS', '')} {parts.get('IMPRESSION', '')}")
    return texts


# --- tokens --------------------------------------------------------------------------------------


class Tokens:
    """A byte-pair tokeniser that is trained on texts, lower case (Sennrich et al. 2016,
    arXiv:1508.07909). The same texts give the same tokens."""

    def __init__(self, texts: Sequence[str]):
        self.inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        self.inner.normalizer = tokenizers.normalizers.Lowercase()
        self.inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        self.inner.decoder = tokenizers.decoders.ByteLevel()
        special = ["<pad>", "<start>", "<end>"]
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        self.inner.train_from_iterator(
            sorted(set(texts)),
            tokenizers.trainers.BpeTrainer(
                vocab_size=WORDS,
                special_tokens=special,
                initial_alphabet=sorted(alphabet),
                show_progress=False,
            ),
        )

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return self.inner.get_vocab_size()

    @property
    def checksum(self) -> str:
        """Names the vocabulary and its merges."""
        return files.digest(self.inner.to_str())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as ``(N, T)`` int64: start, tokens, end, padding. Texts of more than ``LONGEST``
        tokens are cut, without an end."""
        coded = [[START, *self.inner.encode(text).ids, END][:LONGEST] for text in texts]
        whole = torch.full((len(coded), max(map(len, coded))), PAD)
        for row, ids in enumerate(coded):
            whole[row, : len(ids)] = torch.tensor(ids)
        return whole

    def decode(self, tokens: Tensor) -> list[str]:
        """``(N, T)`` as texts, each up to its end."""
        rows = []
        for ids in tokens.tolist():
            ids = ids[: ids.index(END)] if END in ids else ids
            rows.append([one for one in ids if one > END])
        return [text.strip() for text in self.inner.decode_batch(rows)]

    def positions(self, text: str, span: tuple[int, int]) -> list[int]:
        """Positions in :meth:`encode`, where the start is 0, of the tokens that hold letters of a
        ``span`` [start, end)."""
        coded = self.inner.encode(text)
        return [
            number
            for number, (low, high) in enumerate(coded.offsets, 1)
            if low < span[1] and high > span[0] and text[low:high].strip()
        ]


def table(found: Reports, dataset: Dataset, tokens: Tokens) -> pd.DataFrame:
    """Reports by part of the split: their number, different wordings, median and longest length in
    tokens, and how many are cut."""
    rows = {}
    for part in ("train", "val", "test"):
        texts = found.of(found.rows(dataset, part))
        lengths = np.array([len(tokens.inner.encode(text).ids) + 2 for text in texts])
        rows[part] = {
            "reports": len(texts),
            "wordings": len(set(texts)),
            "median tokens": int(np.median(lengths)),
            "longest": int(lengths.max()),
            "cut": int((lengths > LONGEST).sum()),
        }
    return pd.DataFrame(rows).T


def sentences(texts: Sequence[str]) -> list[str]:
    """Texts in lower case with blanks around marks, as the metrics of captions split them."""
    return [" ".join(re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())) for text in texts]
