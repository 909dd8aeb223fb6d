"""Findings in words: facts of an image, a small grammar that writes them in many wordings, and the
reader that finds them again in any text.

What is written is read back exactly; of other texts, those of a network or of a person, the reader
finds what they state in the words of a vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from kdnb import checks, files

PRESENT, POSSIBLE, ABSENT = "present", "possible", "absent"
COUNTS = {
    "one": ("a single", "one", "a solitary"),
    "two": ("two",),
    "three": ("three",),
    "many": ("multiple", "several", "numerous"),
}
SIZES = {
    "small": ("small", "tiny"),
    "medium": ("medium-sized", "moderate"),
    "large": ("large", "extensive"),
}
SPECK = 0.0005  # share of the image below which a part of a mask is no finding of its own
BOTH_SIDES = 0.2  # share of a lesion on its smaller side from which it is on both
NEGATION = re.compile(r"\b(?:no|not|without|absent|free of|negative for)\b")
HEDGE = re.compile(r"\b(?:possibl[ey]|probabl[ey]|suspected|cannot be excluded)\b")
STOPS = re.compile(r"[.;:\n]")
# a denial is a clause of its own: "… in the left lung and no effusion", "… without effusion"
CLAUSES = re.compile(rf"{STOPS.pattern}|,?\s+(?:(?:and|but)\s+)?(?=(?:no|without)\b)")
BOTH = re.compile(r"\bboth\b|\bbilateral")


@dataclass(frozen=True)
class Vocabulary:
    """The words of one kind of image.

    ``kinds`` maps a finding to pairs of singular and plural; ``labels`` a class to its finding, a
    class that is not named has none. ``sides`` and ``zones`` hold phrases for ``left``, ``right``,
    ``both`` and for ``upper``, ``middle``, ``lower``. ``clear`` are sentences that deny every
    finding. ``bounds`` are shares of the organ: a finding below the first is uncertain, below the
    second small, from the third on large. ``facing``: the image's left is the patient's right, as
    radiologists look at it.
    """

    kinds: Mapping[str, Sequence[tuple[str, str]]]
    labels: Mapping[str, str]
    sides: Mapping[str, Sequence[str]]
    zones: Mapping[str, Sequence[str]]
    clear: Sequence[str]
    bounds: tuple[float, float, float]
    facing: bool = True


def _halves(of: str, both: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {side: (f"in the {side} {of}", f"on the {side} side") for side in ("left", "right")} | {
        "both": tuple(both)
    }


def _thirds(upper: str, middle: str, lower: str, *nouns: str) -> dict[str, tuple[str, ...]]:
    named = {"upper": upper, "middle": middle, "lower": lower}
    return {zone: tuple(f"in the {word} {noun}" for noun in nouns) for zone, word in named.items()}


VOCABULARIES: dict[str, Vocabulary] = {
    "chest": Vocabulary(
        {
            "ground-glass opacity": (
                ("ground-glass opacity", "ground-glass opacities"),
                ("hazy opacity", "hazy opacities"),
                ("patch of ground glass", "patches of ground glass"),
            ),
            "consolidation": (
                ("consolidation", "consolidations"),
                ("dense opacity", "dense opacities"),
                ("airspace consolidation", "airspace consolidations"),
            ),
        },
        {"COVID-like": "ground-glass opacity", "Non-COVID-like": "consolidation"},
        _halves("lung", ("in both lungs", "bilaterally", "on both sides")),
        _thirds("upper", "middle", "lower", "zone", "field"),
        ("the lungs are clear", "both lungs are clear", "normal chest", "no acute finding"),
        (0.12, 0.15, 0.185),
    ),
    "brain": Vocabulary(
        {
            "infiltrating lesion": (
                ("infiltrating lesion", "infiltrating lesions"),
                ("ill-defined mass", "ill-defined masses"),
            ),
            "extra-axial lesion": (
                ("extra-axial lesion", "extra-axial lesions"),
                ("mass on the surface", "masses on the surface"),
            ),
            "sellar lesion": (
                ("sellar lesion", "sellar lesions"),
                ("mass at the skull base", "masses at the skull base"),
            ),
        },
        {
            "infiltrating": "infiltrating lesion",
            "extra-axial": "extra-axial lesion",
            "sellar": "sellar lesion",
        },
        _halves("hemisphere", ("in the midline", "on both sides")),
        _thirds("anterior", "central", "posterior", "third", "part"),
        ("the brain is unremarkable", "normal brain", "no mass is seen"),
        (0.025, 0.035, 0.06),
    ),
    "histology": Vocabulary(
        {
            "gland": (("gland", "glands"), ("glandular structure", "glandular structures")),
            "solid nest": (("solid nest", "solid nests"), ("solid island", "solid islands")),
        },
        {"gland-forming": "gland", "solid nests": "solid nest"},
        _halves("half", ("in both halves", "on both sides")),
        _thirds("upper", "middle", "lower", "third", "part"),
        ("benign tissue", "the stroma is unremarkable"),
        (0.2, 0.27, 0.38),
        facing=False,
    ),
    "fundus": Vocabulary(
        {
            "haze": (("haze", "hazes"), ("veil", "veils")),
            "haemorrhage": (("haemorrhage", "haemorrhages"), ("blot", "blots")),
            "wide cup": (("wide cup", "wide cups"), ("excavated disc", "excavated discs")),
        },
        {"hazy": "haze", "haemorrhages": "haemorrhage", "large cup": "wide cup"},
        _halves("half", ("in both halves", "on both sides")),
        _thirds("upper", "middle", "lower", "third", "part"),
        ("the fundus is unremarkable", "normal fundus"),
        (0.012, 0.02, 0.1),
        facing=False,
    ),
}


@dataclass(frozen=True)
class Facts:
    """What is known of one image: the ``kind`` of its finding (empty: none), its ``side``,
    ``zone``, ``size`` and ``count``, and whether it is ``certain``.

    Every other kind of the vocabulary is absent.
    """

    kind: str = ""
    side: str = ""
    zone: str = ""
    size: str = ""
    count: str = ""
    certain: bool = True

    def stated(self, vocabulary: Vocabulary) -> dict[str, str]:
        """The facts as statements, attribute → value, as :func:`read` finds them in a text."""
        found = dict.fromkeys(vocabulary.kinds, ABSENT)
        if not self.kind:
            return found
        found[self.kind] = PRESENT if self.certain else POSSIBLE
        return found | {name: getattr(self, name) for name in ("side", "zone", "size", "count")}


def of_masks(label: str, lesion: np.ndarray, organ: np.ndarray, vocabulary: Vocabulary) -> Facts:
    """Facts of one image from its class and its boolean masks ``(H, W)``.

    The zone is that of the largest part of the lesion, in thirds of the organ's height; a lesion is
    on both sides where its smaller side holds 20 % of it. Size and certainty follow from the
    lesion's share of the organ. Parts below 0.05 % of the image are not counted. An empty lesion is
    no finding. Raises ``ValueError`` for different shapes.
    """
    checks.shapes(lesion=(lesion, "H W"), organ=(organ, "H W"))
    kind = vocabulary.labels.get(label, "")
    if not kind or not lesion.any():
        return Facts()
    region = organ if organ.any() else np.ones_like(lesion)
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    at_row, at_column = np.nonzero(lesion)
    left = float((at_column < (columns[0] + columns[-1] + 1) / 2).mean())
    sides = ("right", "left") if vocabulary.facing else ("left", "right")
    side = "both" if BOTH_SIDES <= left <= 1 - BOTH_SIDES else sides[left < 0.5]
    third = 3 * (at_row - rows[0]) // (rows[-1] + 1 - rows[0])
    zone = tuple(vocabulary.zones)[np.bincount(third.clip(0, 2), minlength=3).argmax()]
    share, (unsure, medium, large) = float(lesion.sum() / region.sum()), vocabulary.bounds
    parts = np.bincount(ndimage.label(lesion, np.ones((3, 3)))[0].ravel())[1:]
    count = max(1, int((parts >= SPECK * lesion.size).sum()))
    return Facts(
        kind,
        side,
        zone,
        tuple(SIZES)[int(share >= medium) + int(share >= large)],
        tuple(COUNTS)[min(count, len(COUNTS)) - 1],
        share >= unsure,
    )


# --- writing -------------------------------------------------------------------------------------


def write(facts: Facts, vocabulary: Vocabulary, seed: Sequence[int]) -> str:
    """The facts as a short text; another ``seed`` gives another wording, the same one the same."""
    rng = np.random.default_rng(list(seed))

    def pick(options):
        return options[int(rng.integers(len(options)))]

    absent = [pick(words)[0] for kind, words in vocabulary.kinds.items() if kind != facts.kind]
    if not facts.kind:
        return _sentence(pick((pick(vocabulary.clear), f"no {' and no '.join(absent)}")))
    denied = " and no ".join(absent)
    denial = pick((f"no {denied}", f"there is no {denied}", f"no {denied} is seen"))
    finding = _finding(facts, vocabulary, pick)
    if pick((True, False)):
        return f"{_sentence(denial)} {finding}"
    if finding.count(".") == 1 and pick((True, False)):
        return f"{finding[:-1]}, no {denied}."
    return f"{finding} {_sentence(denial)}"


def _finding(facts: Facts, vocabulary: Vocabulary, pick) -> str:
    """One or two sentences on the finding itself."""
    one = facts.count == "one"
    noun = pick(vocabulary.kinds[facts.kind])[0 if one else 1]
    count, size = pick(COUNTS[facts.count]), pick(SIZES[facts.size])
    side, zone = pick(vocabulary.sides[facts.side]), pick(vocabulary.zones[facts.zone])
    be, whole = "is" if one else "are", f"{count} {size} {noun}"
    where = pick((f"{side}, mainly {zone}", f"{zone}, {side}", f"{side} {zone}"))
    if facts.certain:
        forms = (
            f"there {be} {whole} {where}",
            f"{whole} {where}",
            f"{whole} {be} seen {where}",
            f"{where} there {be} {whole}",
            f"{count} {noun} {be} present {side}. {pick(('Size', 'Extent'))} {size}, {zone}",
        )
    else:
        forms = (
            f"possibly {whole} {where}",
            f"{whole} {where} {be} suspected",
            f"{whole} {where} cannot be excluded",
            f"probably {whole} {where}",
        )
    return _sentence(pick(forms))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


# --- reading -------------------------------------------------------------------------------------


def read(text: str, vocabulary: Vocabulary) -> dict[str, str]:
    """What a text states, attribute → value; an attribute that it does not mention is left out.

    A finding is ``present``, ``possible`` or ``absent`` by the words of its own clause. Of two
    statements on one attribute the first counts.
    """
    found: dict[str, str] = {}
    for sentence in STOPS.split(text.lower()):
        clear = any(_holds(sentence, words) for words in vocabulary.clear)
        denied = dict.fromkeys(vocabulary.kinds, ABSENT)
        for name, value in (denied if clear else _stated(sentence, vocabulary)).items():
            found.setdefault(name, value)
    return found


def _stated(sentence: str, vocabulary: Vocabulary) -> dict[str, str]:
    """What the clauses of a sentence state."""
    found: dict[str, str] = {}
    for clause in CLAUSES.split(sentence):
        said = POSSIBLE if HEDGE.search(clause) else PRESENT
        said = ABSENT if NEGATION.search(clause.replace("cannot", "")) else said
        for kind, words in vocabulary.kinds.items():
            if any(_holds(clause, word) for pair in words for word in pair):
                found.setdefault(kind, said)
        if said != ABSENT:
            found |= {k: v for k, v in _details(clause, vocabulary).items() if k not in found}
    return found


def _details(clause: str, vocabulary: Vocabulary) -> dict[str, str]:
    """Side, zone, size and count that a clause names."""
    names = {"zone": vocabulary.zones, "size": SIZES, "count": COUNTS}
    found = {}
    for name, values in names.items():
        hits = [
            value
            for value, words in values.items()
            if any(_holds(clause, _key(word)) for word in words)
        ]
        if hits:
            found[name] = hits[0]
    sides = {side for side in ("left", "right") if _holds(clause, side)}
    both = any(_holds(clause, words) for words in vocabulary.sides["both"])
    both = both or BOTH.search(clause) is not None
    if sides or both:
        found["side"] = "both" if both or len(sides) == 2 else sides.pop()
    return found


def _key(phrase: str) -> str:
    """The word of a phrase that tells: ``upper`` of ``in the upper zone``."""
    return re.sub(r"^(?:in the|an?) | (?:zone|field|third|part)$", "", phrase)


def _holds(text: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", text) is not None


def span(text: str, vocabulary: Vocabulary, attribute: str) -> tuple[int, int] | None:
    """Where a text first says what it states of ``attribute`` (a finding that is not denied, a
    side, a zone), as positions of letters [start, end); None where it does not.

    Raises ``UnknownName`` for another attribute.
    """
    files.lookup(attribute, ("kind", "side", "zone"), "attribute")
    if attribute == "kind":
        words = [word for pairs in vocabulary.kinds.values() for pair in pairs for word in pair]
    elif attribute == "side":
        words = ["left", "right", "both", "bilateral", *vocabulary.sides["both"]]
    else:
        words = [_key(word) for phrases in vocabulary.zones.values() for word in phrases]
    pattern = "|".join(sorted(map(re.escape, set(words)), key=len, reverse=True))
    start = 0
    for clause in [*CLAUSES.finditer(text.lower()), None]:
        end = clause.start() if clause else len(text)
        part = text[start:end].lower()
        match = re.search(rf"\b(?:{pattern})\b", part)
        if match and not NEGATION.search(part.replace("cannot", "")):
            return start + match.start(), start + match.end()
        start = clause.end() if clause else end
    return None
