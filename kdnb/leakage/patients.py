"""Patients that file names carry: proposed from names, and never taken for granted.

A name such as ``person12_bacteria_3.jpeg`` starts with a code that several images share. The code
is read as the first fields of the name, where fields are divided by signs. A pattern is proposed
where it yields a plausible number of groups. The proposal only keeps images together in one part of
a split, and it is shown with examples, so that a reader can refuse it or give a better pattern.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from kdnb.images.catalogue import PARTS

LARGEST_GROUP = 200  # images a patient, on average over the set
SMALLEST_GROUP = 1.2  # fewer images a patient are no grouping: almost every name is its own code
USUAL = 0.9  # share of the fields whose form a pattern takes
COVERAGE = 0.1  # share of all names that a pattern must match
SIGNS = " !#$%&'()+,-.;=@[]^_`{}~"  # between the fields of a name
ANY = r"[^\W_]+"  # letters and digits
# codes that are known as such and need no guess at how many fields they have
KNOWN_CODES = (r"^(TCGA[-_]\w{2}[-_]\w{4})(?=[-_.])",)  # Cancer Genome Atlas: site, patient
# a number after one of these words counts something else than patients
NOT_A_PATIENT = {
    *("train", "training", "val", "valid", "validation", "test", "testing", "dev", "fold", "split"),
    *("part", "set", "batch", "class", "label", "grade", "stage", "level", "slice", "frame"),
    *("tile", "patch", "row", "col", "x", "y", "z", "aug", "augmented", "copy", "version", "v"),
}


@dataclass(frozen=True)
class Proposal:
    """Patients that file names suggest.

    ``patterns`` are regular expressions with one group each, ``codes`` the patient of every row of
    the table, ``(N,)`` text, empty where no pattern matches; ``examples`` a few codes with the
    names that share them.
    """

    patterns: tuple[str, ...]
    codes: np.ndarray
    examples: tuple[str, ...]


def propose(table: pd.DataFrame, copies: np.ndarray) -> Proposal | None:
    """Patients suggested by the names in an index table (columns path, label), or None.

    A pattern must match a tenth of the names and give between N/200 and n/1.2 groups, for N images
    of which it matches n. ``copies`` numbers the copies of one image, ``(N,)``: where different
    images have equal names, the numbering starts again in every folder, and the folder becomes part
    of the code. Of several plausible patterns the one that matches most names is taken, and then
    the one with the fewest fields; names that it does not match may follow a second pattern.
    """
    paths = [PurePosixPath(path) for path in table["path"]]
    names = pd.DataFrame(
        {
            "name": [path.name for path in paths],
            "folder": [f"{path.parent}/" for path in paths],
            "label": table["label"].to_numpy(),
        }
    )
    anew = _numbered_anew(names["name"], copies)
    codes, patterns, open_ = pd.Series("", index=names.index), [], names
    while (found := _best(open_, anew, len(names))) is not None:
        pattern, code = found
        codes[code.index] = names["folder"][code.index] + code if anew else code
        patterns.append(pattern)
        open_ = open_.drop(code.index)
    if not patterns:
        return None
    return Proposal(tuple(patterns), codes.to_numpy(dtype=object), _examples(names["name"], codes))


def _numbered_anew(names: pd.Series, copies: np.ndarray) -> bool:
    """Whether more than a tenth of the names stand for several images that are no copies."""
    images = pd.Series(copies, index=names.index).groupby(names).transform("nunique")
    return bool((images > 1).mean() > COVERAGE)


def _best(names: pd.DataFrame, anew: bool, total: int) -> tuple[str, pd.Series] | None:
    """The best pattern and the code of every name it matches; None where none is plausible."""
    plausible = []
    for pattern in _candidates(names["name"], total):
        code = names["name"].str.extract(pattern, expand=False).dropna()
        fewest = _fewest_groups(names.loc[code.index].assign(code=code), anew, total)
        if fewest:
            # a class needs a group for each part of a split: with fewer, more fields are tried
            rank = (pattern in KNOWN_CODES, fewest >= len(PARTS), len(code))
            plausible.append((rank, pattern, code))
    if not plausible:
        return None
    return max(plausible, key=lambda entry: entry[0])[1:]  # the first of equals has fewest fields


def _fewest_groups(matched: pd.DataFrame, anew: bool, total: int) -> int:
    """Groups in the class that has fewest, or 0 where the codes cannot be those of patients.

    Codes that are unique within their folders number images, and codes that are as many as the
    classes name those.
    """
    here = (matched["folder"] + matched["code"]).nunique()
    count = matched["code"].nunique()
    most = len(matched) / SMALLEST_GROUP
    if (
        len(matched) < COVERAGE * total
        or not max(2, total / LARGEST_GROUP) <= count <= most
        or here > most
        or count <= matched["label"].nunique()
    ):
        return 0
    codes = matched["folder"] + matched["code"] if anew else matched["code"]
    return int(codes.groupby(matched["label"]).nunique().min())


def _candidates(names: pd.Series, total: int) -> list[str]:
    """Patterns worth counting: known codes, then the first fields of names with equal separators.

    Few fields come before many. Something must follow the last of them.
    """
    starts = defaultdict(list)
    for name in names:
        fields, gaps = _fields(PurePosixPath(name).stem)
        for count in range(1, len(fields)):
            signed = fields[0][:1] in SIGNS  # _345_2 and 345_2 are named by different rules
            starts[(signed, *gaps[:count])].append(fields[:count])
    often = [item for item in starts.items() if len(item[1]) >= COVERAGE * total]
    often.sort(key=lambda item: (len(item[0]), -len(item[1])))
    general = [_pattern(fields, gaps) for (_, *gaps), fields in often]
    return [*KNOWN_CODES, *(pattern for pattern in general if pattern)]


def _fields(stem: str) -> tuple[list[str], list[str]]:
    """The fields of a name and what separates them: signs, or letters between digits (``p12s3``).

    A sign before the first field or after the last one belongs to that field.
    """
    inner = stem.strip(SIGNS)
    gap = re.compile(f"[{re.escape(SIGNS)}]+")
    if not gap.search(inner):
        gap = re.compile(r"(?<=\d)[^\W\d_]+(?=\d)")
    fields = gap.split(inner)
    fields[0] = stem[: len(stem) - len(stem.lstrip(SIGNS))] + fields[0]
    return fields, gap.findall(inner)


def _pattern(rows: Sequence[Sequence[str]], gaps: Sequence[str]) -> str | None:
    """The expression of the first fields of some names, as literal as all of these names allow.

    ``rows`` holds the fields of each name, ``gaps`` what follows each field. None where the last
    field has no digit in any name, or follows a word that numbers something else than patients.
    """
    rows = [row for row in rows if re.search(r"\d", row[-1])]
    columns = list(zip(*rows, strict=True))
    if not rows or _words(columns) <= NOT_A_PATIENT:
        return None
    *inner, last = map(_expression, columns)
    last = last.replace(ANY, r"[^\W_]*\d[^\W_]*")
    fields = [*inner, last]
    escaped = [*map(_escape, gaps)]
    code = "".join(field + gap for field, gap in zip(fields, [*escaped[:-1], ""], strict=True))
    return f"^({code}){escaped[-1]}"


def _words(columns: Sequence[Sequence[str]]) -> set[str]:
    """What a code numbers: the letters of the last field, else the field before it."""
    words = {re.sub(r"[\W\d_]+", "", field).lower() for field in columns[-1]}
    if words == {""} and len(columns) > 1:
        words = {field.lower() for field in columns[-2]}
    return words


def _expression(texts: Sequence[str]) -> str:
    """A regular expression of one field: literal but for digits, letters before digits, or any."""
    shapes = Counter(re.sub(r"\d+", "0", text) for text in texts)
    shape, count = shapes.most_common(1)[0]
    if count >= USUAL * len(texts):
        return _escape(shape).replace("0", r"\d+")
    if all(re.fullmatch(r"[A-Za-z]+\d+", text) for text in texts):
        return r"[A-Za-z]+\d+"
    return ANY


def _escape(text: str) -> str:
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)


def _examples(names: pd.Series, codes: pd.Series, count: int = 3) -> tuple[str, ...]:
    """The codes of a few groups of usual size, each with the first names that share it."""
    sizes = codes[codes != ""].value_counts(sort=False)
    usual = sizes[sizes >= min(2, sizes.max())].index[:count]
    shown = []
    for code in usual:
        same = names[codes == code]
        more = f" and {len(same) - 2} more" if len(same) > 2 else ""
        shown.append(f"{code}: {', '.join(same.head(2))}{more}")
    return tuple(shown)
