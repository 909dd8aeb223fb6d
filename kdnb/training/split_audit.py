"""One network trained under several splits: how much of a score is owed to copies across the split."""

from __future__ import annotations

from dataclasses import dataclass

from kdnb.parameters import Parameters, parameter


@dataclass(frozen=True)
class SplitAuditParameters(Parameters):
    """Settings of notebook 08."""

    seeds: int | None = parameter(
        None,
        "trainings under each split, counted up from seed",
        low=1,
        high=1000,
        profiles={"smoke": 2, "quick": 3, "paper": 3},
    )
    audit_epochs: int | None = parameter(
        None,
        "epochs of each training under another split",
        low=1,
        high=10_000,
        profiles={"smoke": 1, "quick": 3, "paper": 50},
    )
