"""Reports from images: captioners of an encoder, a query transformer and a small decoder, and their
measures."""

from kdnb.captioning import scores
from kdnb.captioning.attention import measured, word_maps
from kdnb.captioning.comparison import (
    controls,
    costs,
    examples,
    gaps,
    looked_at,
    measures,
    words,
    write_all,
)
from kdnb.captioning.networks import SIZES, Captioner
from kdnb.captioning.scores import another_image, differences, evaluate
from kdnb.captioning.settings import TUNES, CaptionParameters, named
from kdnb.captioning.texts import NoReports, Reports, Tokens, load, reworded, table
from kdnb.captioning.training import blind, caption, encoder, pretrain, write
from kdnb.images import grammar
from kdnb.images.grammar import VOCABULARIES, Facts, Vocabulary

__all__ = [
    "CaptionParameters",
    "Captioner",
    "Facts",
    "NoReports",
    "Reports",
    "SIZES",
    "TUNES",
    "Tokens",
    "VOCABULARIES",
    "Vocabulary",
    "another_image",
    "blind",
    "caption",
    "controls",
    "costs",
    "differences",
    "encoder",
    "evaluate",
    "examples",
    "gaps",
    "grammar",
    "load",
    "looked_at",
    "measured",
    "measures",
    "named",
    "pretrain",
    "reworded",
    "scores",
    "table",
    "word_maps",
    "words",
    "write",
    "write_all",
]
