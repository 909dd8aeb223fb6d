"""Found pairs of copies under a reader's eyes: each may be accepted or rejected, and the verdicts
are kept in a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kdnb import files, plots, widgets
from kdnb.leakage.detector import Leakage

COLUMNS = ["first", "second", "kind", "correlation", "verdict"]
VERDICTS = ("accepted", "rejected", "")  # the last takes a verdict back
OPEN = "open"
SHOWN = 200  # pairs in the list of one filter; the next come when these have a verdict


class BadVerdicts(
    files.UserError,
    ValueError,
    code="KD104",
    way_out="correct the table that the message names, or remove it; or choose another verdict",
):
    """Verdicts on pairs of copies that cannot be read, or a verdict that no pair has."""


def read(path: Path) -> pd.DataFrame:
    """The table of verdicts at ``path``: columns ``COLUMNS``, one row a pair that has one.

    Empty where there is no file. Raises :class:`BadVerdicts` for a table without these columns, or
    with a verdict that is not known.
    """
    if not Path(path).exists():
        return pd.DataFrame(columns=COLUMNS)
    texts = dict.fromkeys(("first", "second", "kind", "verdict"), str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False)
    if list(table.columns) != COLUMNS or not set(table["verdict"]) <= set(VERDICTS[:2]):
        raise BadVerdicts(
            f"{files.shown(path)} is no table of verdicts (columns {', '.join(COLUMNS)}, the last "
            f"{' or '.join(VERDICTS[:2])}): correct the file or remove it"
        )
    return table


def decide(path: Path, pair: pd.Series, verdict: str) -> pd.DataFrame:
    """Write the verdict on a pair, a row of the detector's links, into the table at ``path``, and
    return the table.

    An empty verdict takes an earlier one back. The file is replaced whole or not at all, and
    another process's verdicts are kept. Raises ``UnknownName`` for another verdict.
    """
    files.lookup(verdict, VERDICTS, "verdict")
    with files.lock(path):
        table = read(path)
        table = table[~_same(table, pair)]
        if verdict:
            row = pd.DataFrame([{**pair[COLUMNS[:-1]], "verdict": verdict}])
            table = pd.concat([table, row], ignore_index=True) if len(table) else row
        with files.atomic(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.5g")
    return table


def with_verdicts(links: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The detector's links with a column ``verdict``, empty for pairs without one, the least
    similar first: they are the most doubtful."""
    verdicts = table.set_index(["first", "second"])["verdict"].to_dict()
    pairs = zip(links["first"], links["second"], strict=True)
    found = links.assign(verdict=[verdicts.get(pair, "") for pair in pairs])
    return found.sort_values("correlation", kind="stable").reset_index(drop=True)


def without_rejected(found: Leakage, path: Path) -> Leakage:
    """A finding without the pairs that the table at ``path`` rejects, and how many these are.

    A group of m copies may be held together by m − 1 links only, so a rejected link can part images
    of the same group that are copies of each other by way of the rejected one.
    """
    links = with_verdicts(found.links, read(path))
    rejected = links["verdict"] == "rejected"
    before = found.facts.get("rejected_by_hand", 0)
    facts = found.facts | {"rejected_by_hand": before + int(rejected.sum())}
    return dataclasses.replace(found, links=links.loc[~rejected, found.links.columns], facts=facts)


def browse(found: Leakage, root: Path, path: Path, title: str = "") -> object:
    """Show the found pairs, the least similar first, with buttons that accept or reject one.

    ``root`` is the folder of the images; each verdict is written to the table at ``path`` at once,
    and the next open pair is shown. Without a live front end this is the figure of six pairs, from
    the least to the most similar.
    """
    review = Review(found, root, path, title)
    return widgets.explore(
        review.draw,
        review.controls(),
        review.actions(),
        lambda: sample(found.links, root, title),
    )


def sample(links: pd.DataFrame, root: Path, title: str = "", count: int = 6) -> Figure:
    """A figure of ``count`` pairs, evenly spaced from the least to the most similar."""
    ordered = links.sort_values("correlation", kind="stable").reset_index(drop=True)
    places = {k * (len(ordered) - 1) // max(1, count - 1) for k in range(count)}
    return plots.image_pairs(root, ordered.iloc[sorted(places)], title)


@dataclasses.dataclass(frozen=True)
class Review:
    """The pairs of a finding, and where verdicts on them are kept."""

    found: Leakage
    root: Path
    path: Path
    title: str = ""

    def pairs(self, verdict: str) -> dict[str, int]:
        """Pairs with a verdict (``open``: without one), words → position among all."""
        links = with_verdicts(self.found.links, read(self.path))
        chosen = links[links["verdict"] == ("" if verdict == OPEN else verdict)]
        return {
            f"{number} of {len(chosen)}: {row.kind}, r = {row.correlation:.3f}": int(row.Index)
            for number, row in enumerate(chosen.head(SHOWN).itertuples(), 1)
        }

    def controls(self) -> dict[str, widgets.Control]:
        """What a reader chooses, the arguments of :meth:`draw`."""
        verdicts = {name: name for name in (OPEN, *VERDICTS[:2])}
        return {
            "verdict": widgets.Choice("pairs", verdicts),
            "pair": widgets.Choice("pair", lambda state: self.pairs(state["verdict"])),
        }

    def actions(self) -> dict[str, widgets.Action]:
        """The buttons, by label."""
        return {
            "accept": self.button("accepted"),
            "reject": self.button("rejected"),
            "take back": self.button(""),
        }

    def button(self, verdict: str) -> Callable[[dict], dict]:
        """A function that gives the pair of a state a verdict; what is then shown is the next."""

        def press(state):
            if state["pair"] is not None:
                links = with_verdicts(self.found.links, read(self.path))
                decide(self.path, links.loc[state["pair"]], verdict)
            return {}

        return press

    def draw(self, verdict: str, pair: int | None) -> Figure:
        """One pair of images. Raises :class:`BadVerdicts` where there is none with this verdict."""
        if pair is None:
            raise BadVerdicts(f"no pairs are {verdict}; verdicts: {files.shown(self.path)}")
        links = with_verdicts(self.found.links, read(self.path))
        return plots.image_pairs(self.root, links.loc[[pair]], self.title)


def _same(table: pd.DataFrame, pair: pd.Series) -> pd.Series:
    return (table["first"] == pair["first"]) & (table["second"] == pair["second"])
