"""Related systems: other ways of teaching, and other teachers, each with its card and its verdicts.

What is known of a system stands in its class (a method, or a network that teaches): title, paper,
idea, equation, and what the paper reports. Measurements are the result files of notebook 10. The
rules of the verdicts are those of the papers' claims; the claims of both papers are counted apart.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from kdnb import parameters
from kdnb.captioning import Captioner
from kdnb.distillation import METHODS
from kdnb.models.dual_stream import DualStream
from kdnb.report import pages
from kdnb.report.claims import Claim, Paper
from kdnb.report.measures import KINDS, Evidence
from kdnb.report.results import Result
from kdnb.report.verdicts import UNTESTED, Row, judge, whole

ABOUT = (
    "Balanced accuracy of the student minus that of a student with the reference in place of the "
    "method: the same teacher, student, images and epochs, the options of the method's paper, and "
    "no tuning; of a captioner (notebook 14), the F1 of the facts in its reports. "
    "The rules are those of the claims; a verdict is about the settings named here, not "
    "about the paper's data. Each interval stands alone: of twenty, one misses its value by chance."
)
REFERENCES = {"hybrid": "plain soft targets", "hard": "no teacher"}
# networks that teach: each with the size, the student and the method of its system
TEACHERS = {"dual_stream": (DualStream, "-p student tiny_vit_5m_224 -p image_size 224", "hybrid")}


@dataclass(frozen=True)
class System:
    """A system by name: the class that states its facts, the ``method`` that teaches, and the
    ``teacher`` where it is a part of the system."""

    name: str
    facts: type
    method: str
    teacher: str = ""

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
        """What the student learns from."""
        return METHODS[self.method].transfers

    @property
    def options(self) -> list[dict]:
        """Options with default and meaning, those that are stated of a method itself."""
        if self.teacher:
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
        own = METHODS[self.method].__dict__.get("Options")
        return "" if self.teacher or own is None else _plain(inspect.getdoc(own) or "")

    @property
    def command(self) -> str:
        """A command that measures the system on a dataset whose splits keep patients together."""
        if self.teacher:
            return f"python -m kdnb.run 10 -p dataset brain_tumor -p teacher {self._networks}"
        if self.facts.unlabelled:
            return "python -m kdnb.run 11 -p dataset brain_tumor"
        named = "" if self.method in REFERENCES else f" -p methods {self.method}"
        return f"python -m kdnb.run 10 -p dataset brain_tumor{named}"

    @property
    def _networks(self) -> str:
        return f"{self.teacher} {TEACHERS[self.teacher][1]}"

    def _paragraphs(self) -> list[str]:
        return inspect.cleandoc(self.facts.__doc__ or "").split("\n\n")

    def claims(self) -> list[Claim]:
        """That it teaches better than each reference, as claims for the rules of the verdicts."""
        paper = Paper(self.name, self.facts.paper, (self.teacher,) if self.teacher else (), ())
        return [
            Claim(
                f"{self.name}-{reference}",
                paper,
                f"It teaches better than {words}",
                _said(self.fact("reported"), self.fact("reported_on")),
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


@dataclass(frozen=True)
class CaptioningSystem(System):
    """A system that writes reports: its measurements are the result files of notebook 14."""

    @property
    def transfers(self) -> tuple[str, ...]:
        """What the small captioner learns from."""
        return ("reports", "soft targets of each token")

    @property
    def options(self) -> list[dict]:
        """None of its own: notebook 14 lists its parameters."""
        return []

    @property
    def source_of_options(self) -> str:
        """Empty, as there are no options."""
        return ""

    @property
    def command(self) -> str:
        """A command that measures the system on images with a table of reports."""
        return "python -m kdnb.run 14 -p dataset folder -p data_root images -p labels reports.csv"

    def claims(self) -> list[Claim]:
        """That a large captioner teaches a small one."""
        paper = Paper(self.name, self.facts.paper, (), ())
        reported = _said(self.fact("reported"), self.fact("reported_on"))
        words = f"It teaches better than {REFERENCES['hard']}"
        test = ("reports", "small, taught", "F1 of facts", "gain")
        run = f"{self.name}-hard", paper, words, reported, self.facts.paper, self.command
        return [Claim(*run, *test, against="hard")]


def _said(reported: str, on: str) -> str:
    return f"{reported}; on {on}" if reported else ""


def _plain(text: str) -> str:
    """Documentation without its markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())


def systems() -> list[System]:
    """Every method, then every network that is a system's teacher, then what writes reports."""
    methods = [System(name, method, name) for name, method in METHODS.items()]
    networks = [System(name, of, by, name) for name, (of, _, by) in TEACHERS.items()]
    return [*methods, *networks, CaptioningSystem("captioner", Captioner, "captioner")]


@dataclass(frozen=True)
class Comparison:
    """A system against one reference: its rows, one a setting, and one verdict for all of them."""

    reference: str
    rows: tuple[Row, ...]

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
    """The columns of ``outputs/systems.csv``, one row a system, reference and setting; differences
    in balanced accuracy are shares of 1."""
    records = []
    for row in (row for each in measured for row in each.rows):
        found, e = row.evidence, row.evidence.estimate
        records.append(
            {
                "system": row.claim.paper.name,
                "paper": row.claim.source,
                "reported": row.claim.claimed,
                "against": REFERENCES[row.claim.against],
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
