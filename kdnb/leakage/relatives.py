"""Relatives, images that show the same thing or the same patient, and splits that divide them.

A split is trusted as far as its test images have no relative in training or validation. What is
known of relatives has two sources, the search for copies (:mod:`kdnb.leakage.detector`) and the
patients of the table; either may be missing, and every sentence here says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdnb.images import splits, tables
from kdnb.images.source import NO_PATTERN
from kdnb.leakage.detector import Leakage


@dataclass(frozen=True)
class Patients:
    """How the patients of a table are known: ``source`` completes "patients ..." (``by
    `^(person\\d+)_```), empty where they are not known. ``examples`` show a proposal."""

    source: str = ""
    examples: tuple[str, ...] = ()

    def sentence(self, table: pd.DataFrame) -> str:
        """Number of patients in an index table, how they are known, and for how many images."""
        known = table.loc[table["patient"] != "", "patient"]
        if known.empty:
            return "patients not known"
        some = f" ({len(known):,} of {len(table):,} images)" if len(known) < len(table) else ""
        return f"patients{self.source and ' '}{self.source}: {known.nunique():,}{some}"

    def lines(self) -> list[str]:
        """Examples of a proposal and how to correct it, as lines of text, if there is one."""
        if not self.examples:
            return []
        return [
            *(f"  patient {example}" for example in self.examples),
            "  (a better pattern: -p patient_pattern '^(p\\d+)_'; no patients in the names: "
            f"-p patient_pattern {NO_PATTERN})",
        ]


@dataclass(frozen=True)
class Finding:
    """How many test images have a relative in training or validation.

    ``test`` counts the test images, ``related`` those with a copy or their patient on the other
    side, ``copies`` and ``patients`` those with either; ``kinds`` says what counts as a copy.
    """

    test: int
    related: int
    copies: int
    patients: int
    kinds: str
    patients_known: bool

    @property
    def share(self) -> float:
        """Part of the test images that have a relative, in [0, 1]."""
        return self.related / max(1, self.test)

    def __str__(self) -> str:
        kinds = f"{self.kinds}: {self.copies:,}"
        if self.patients_known:
            kinds += f", patients: {self.patients:,}"
        return (
            f"{self.related:,} of {self.test:,} test images ({self.share:.1%}) have a relative in "
            f"training or validation ({kinds})"
        )


def kept_together(table: pd.DataFrame, copies: Leakage | None, patients: Patients) -> str:
    """What a split of an index table keeps together, in words that claim no more than is known."""
    return f"{_kinds(copies)}; {patients.sentence(table)}"


def _kinds(copies: Leakage | None) -> str:
    return copies.kinds if copies else "byte-identical copies"


def groups(table: pd.DataFrame, copies: Leakage | None) -> np.ndarray:
    """Number the rows of an index table so that relatives have one number, ``(N,)``.

    Relatives are the copies found (None: not searched), byte-identical files and images of one
    patient, and relatives of relatives.
    """
    return copies.groups(table) if copies else tables.groups(table)


def count(table: pd.DataFrame, copies: Leakage | None) -> Finding:
    """Count the test images of a table (columns path, patient, sha256, split) with relatives.

    Rows without a split count as training images.
    """
    by_patient = tables.groups(table.assign(sha256=np.arange(len(table)).astype(str)))
    by_copy = groups(table.assign(patient=""), copies)
    return Finding(
        test=int((table["split"] == "test").sum()),
        related=len(splits.leaking(table, groups(table, copies))),
        copies=len(splits.leaking(table, by_copy)),
        patients=len(splits.leaking(table, by_patient)),
        kinds=_kinds(copies),
        patients_known=bool((table["patient"] != "").any()),
    )
