"""Related systems: other ways of teaching, and other teachers, each with its card and its verdicts.

What is known of a system stands in its class (a method, a network that teaches, or one of
:mod:`kdnb.report.neighbours`): title, paper, idea, equation, and what the paper reports.
Measurements are the result files of notebooks 10 to 14. The rules of the verdicts are those of the
papers' claims; the claims of both papers are counted apart.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from kdnb import parameters
from kdnb.distillation import METHODS
from kdnb.models.dual_stream import DualStream
from kdnb.report import pages
from kdnb.report.claims import Claim, Paper
from kdnb.report.measures import KINDS, Evidence
from kdnb.report.neighbours import COMPARISONS, LABELS, SYSTEMS
from kdnb.report.results import Result
from kdnb.report.verdicts import UNTESTED, Row, judge, whole

ABOUT = (
    "Balanced accuracy of the student minus that of a student with the reference in place of the "
    "method: the same teacher, student, images and epochs, the options of the method's paper, and "
    "no tuning. The rules are those of the claims; a verdict is about the settings named here, not "
    "about the paper's data. Each interval stands alone: of twenty, one misses its value by chance."
)
REFERENCES = {"hybrid": "plain soft targets", "hard": "no teacher"}
WORDS = REFERENCES | {
    wanted.against: wanted.words for own in COMPARISONS.values() for wanted in own
}
OTHERS = (
    "Systems that choose labels, images, losses or features, or that answer with masks or reports. "
    "Each is compared with the named control on the same test images; differences are in balanced "
    "accuracy where no other measure is named."
)
# networks that teach: each with the size, the student and the method of its system
TEACHERS = {"dual_stream": (DualStream, "-p student tiny_vit_5m_224 -p image_size 224", "hybrid")}


@dataclass(frozen=True)
class System:
    """A system by name: the class that states its facts, the ``method`` that teaches, empty for one
    that is no way of teaching, and the ``teacher`` where it is a part of the system."""

    name: str
    facts: type
    method: str = ""
    teacher: str = ""

    @property
    def apart(self) -> bool:
        """Whether it is compared with controls of its own."""
        return self.name in COMPARISONS

    def fact(self, name: str) -> str:
        """A fact that the class itself states; empty if it does not."""
        return vars(self.facts).get(name, "")

    @property
    def idea(self) -> str:
        """The idea in one or two sentences; the first sentence of the documentation where none is
        stated."""
        return self.facts.idea or _plain(self._paragraphs()[0])

    @property
    def equation(self) -> str:
        """What is minimised, in LaTeX; empty if it is not stated."""
        return self.facts.equation

    @property
    def ours(self) -> str:
        """The choices that the paper leaves open, as the class documents them."""
        marked = re.compile(r"\bOurs(?:, ([^:.]*))?:\s+(.*)", re.DOTALL)
        found = [match for text in self._paragraphs() if (match := marked.search(text))]
        texts = [f"{match[1]}: {match[2]}" if match[1] else match[2] for match in found]
        return _plain(" ".join(texts))

    @property
    def transfers(self) -> tuple[str, ...]:
        """What the student learns from; empty for a system that is no way of teaching."""
        return METHODS[self.method].transfers if self.method else ()

    @property
    def options(self) -> list[dict]:
        """Options with default and meaning, those that are stated of a method itself."""
        if self.teacher or not self.method:
            return []
        known = METHODS[self.method]
        defaults, declared = known.defaults(), parameters.declared(known.Options)
        return [
            {"name": name, "default": defaults[name], "meaning": field.metadata["help"]}
            for name, field in declared.items()
            if defaults[name] is not None
        ]

    @property
    def source_of_options(self) -> str:
        """Where the defaults come from."""
        if self.teacher or not self.method:
            return ""
        own = METHODS[self.method].__dict__.get("Options")
        return "" if own is None else _plain(inspect.getdoc(own) or "")

    @property
    def command(self) -> str:
        """A command that measures the system on a dataset whose splits keep patients together."""
        if self.teacher:
            return f"python -m kdnb.run 10 -p dataset brain_tumor -p teacher {self._networks}"
        if not self.method:
            return self.facts.command
        if self.apart:
            return LABELS
        named = "" if self.method in REFERENCES else f" -p methods {self.method}"
        return f"python -m kdnb.run 10 -p dataset brain_tumor{named}"

    @property
    def _networks(self) -> str:
        return f"{self.teacher} {TEACHERS[self.teacher][1]}"

    def _paragraphs(self) -> list[str]:
        return inspect.cleandoc(self.facts.__doc__ or "").split("\n\n")

    def claims(self) -> list[Claim]:
        """That it teaches better than each reference, or its own comparisons, as claims for the
        rules of the verdicts."""
        paper = Paper(self.name, self.facts.paper, (self.teacher,) if self.teacher else (), ())
        said = _said(self.fact("reported"), self.fact("reported_on"))
        if self.apart:
            return [
                Claim(
                    *(f"{self.name}-{wanted.kind}-{wanted.against}", paper, wanted.statement, said),
                    *(self.facts.paper, self.command, wanted.kind, wanted.subject),
                    *(wanted.quantity, wanted.rule, wanted.against),
                )
                for wanted in COMPARISONS[self.name]
            ]
        return [
            Claim(
                f"{self.name}-{reference}",
                paper,
                f"It teaches better than {words}",
                said,
                self.facts.paper,
                self.command,
                "method",
                self.method,
                "balanced accuracy",
                "gain",
                against=reference,
            )
            for reference, words in REFERENCES.items()
            if reference != self.method and self.method != "hard"
        ]


def _said(reported: str, on: str) -> str:
    return f"{reported}; on {on}" if reported else ""


def _plain(text: str) -> str:
    """Documentation without its markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())


def systems() -> list[System]:
    """Every method, then every network that is a system's teacher, then the others."""
    methods = [System(name, method, name) for name, method in METHODS.items()]
    teachers = [System(name, of, by, name) for name, (of, _, by) in TEACHERS.items()]
    return [*methods, *teachers, *(System(name, facts) for name, facts in SYSTEMS.items())]


@dataclass(frozen=True)
class Comparison:
    """A system against one reference: its rows, one a setting, and one verdict for all of them."""

    reference: str
    rows: tuple[Row, ...]

    @property
    def words(self) -> str:
        """What the system is compared with."""
        return WORDS[self.reference]

    @property
    def verdict(self) -> str:
        """One verdict for all settings."""
        return whole(self.rows)

    @property
    def measured(self) -> list[Row]:
        """The rows that have a number."""
        return [row for row in self.rows if row.measured]


@dataclass(frozen=True)
class Measured:
    """A system with its comparisons."""

    system: System
    comparisons: tuple[Comparison, ...]

    @property
    def rows(self) -> list[Row]:
        """The rows of all comparisons."""
        return [row for comparison in self.comparisons for row in comparison.rows]

    @property
    def files(self) -> list[str]:
        """The result files, each once."""
        return list(dict.fromkeys(file for row in self.rows for file in row.evidence.files))

    def against(self, reference: str) -> Comparison | None:
        """The comparison with a reference; None where the system is that reference."""
        return next((each for each in self.comparisons if each.reference == reference), None)


def measure(found: Sequence[Result], every: bool = False) -> list[Measured]:
    """The systems of related papers against the result files; with ``every`` all methods, those of
    papers A and B and the references too."""
    chosen = [each for each in systems() if every or each.fact("reported")]
    return [Measured(each, tuple(_comparisons(each, found))) for each in chosen]


def _comparisons(system: System, found: Sequence[Result]) -> list[Comparison]:
    compared = []
    for claim in system.claims():
        evidence = list(KINDS[claim.kind].measure(claim, found))
        rows = [Row(claim, one, *judge(claim, one)) for one in evidence]
        nothing = Row(claim, Evidence(profile=""), UNTESTED, f"not run; to run it: {claim.run}")
        compared.append(Comparison(claim.against, tuple(rows or [nothing])))
    return compared


def table(measured: Sequence[Measured]) -> pd.DataFrame:
    """The columns of ``outputs/systems.csv``, one row a system, reference, quantity and setting;
    differences are shares of 1."""
    records = []
    for row in (row for each in measured for row in each.rows):
        found, e = row.evidence, row.evidence.estimate
        records.append(
            {
                "system": row.claim.paper.name,
                "paper": row.claim.source,
                "reported": row.claim.claimed,
                "against": WORDS[row.claim.against],
                "quantity": row.claim.quantity,
                "measured": e.value,
                "low": e.low,
                "high": e.high,
                "n": e.n,
                "seeds": " ".join(map(str, found.seeds)),
                "setting": pages.setting(row) if row.measured else "",
                "verdict": row.verdict,
                "reason": row.why,
                "result_file": " ".join(found.files),
            }
        )
    return pd.DataFrame(records).astype({"n": "Int64"})


def csv(measured: Sequence[Measured]) -> str:
    """The text of ``outputs/systems.csv``."""
    return table(measured).to_csv(index=False, float_format="%.6g")
