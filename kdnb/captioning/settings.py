"""Parameters of notebook 14: which parts are trained, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kdnb import files
from kdnb.images.grammar import VOCABULARIES
from kdnb.parameters import BadParameter, Parameters, parameter


@dataclass(frozen=True)
class Tune:
    """The parts of a captioner that are trained beside its query transformer: of the ``decoder``
    nothing (empty), its ``last`` block, ``lora`` (low-rank updates of its attention) or ``all``,
    and the ``encoder`` or not."""

    decoder: str = ""
    encoder: bool = False


TUNES = {
    "probe": Tune(),
    "last": Tune("last"),
    "lora": Tune("lora"),
    "encoder_lora": Tune("lora", encoder=True),  # the best one of R6, which trains it in two steps
    "all": Tune("all", encoder=True),
}


def named(tune: str) -> tuple[str, ...]:
    """The names that ``a+b`` joins, each a key of :data:`TUNES`. Raises ``UnknownName`` and
    :class:`~kdnb.parameters.BadParameter`."""
    names = [name.strip() for name in tune.split("+") if name.strip()]
    for name in names:
        files.lookup(name, TUNES, "tune")
    if not names:
        raise BadParameter(f"tune must name one or more of {', '.join(TUNES)}")
    return tuple(dict.fromkeys(names))


def _vocabulary(name: str) -> None:
    files.lookup(name, VOCABULARIES, "vocabulary")


@dataclass(frozen=True)
class CaptionParameters(Parameters):
    """Settings of notebook 14."""

    extras: ClassVar[tuple[str, ...]] = ("reports",)

    tune: str = parameter("+".join(TUNES), "parts that are trained, a+b compares", valid=named)
    text_epochs: int | None = parameter(
        None,
        "epochs of the decoders on text alone",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 10, "paper": 40},
    )
    caption_epochs: int | None = parameter(
        None,
        "epochs of the captioners on pairs",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 10, "paper": 40},
    )
    vocabulary: str | None = parameter(
        None,
        "words that facts are read by: chest, brain …; None: the phantom's own, else none",
        valid=_vocabulary,
    )
    corpus: str | None = parameter(
        None, "more texts for the decoders: a text file (a report a line) or NLMCXR_reports.tgz"
    )
