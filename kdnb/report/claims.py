"""The claims of both papers that can be tested. The data are in ``claims.toml``: a new claim is one
entry there."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as resources

from kdnb.images.catalogue import DATASETS


@dataclass(frozen=True)
class Paper:
    """A paper and the networks that it compares."""

    name: str
    citation: str
    teachers: tuple[str, ...]
    students: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and how it is tested.

    ``quantity`` of ``subject`` is compared with that of ``against``, if there is one. ``kind`` says
    how it is measured (a key of :data:`kdnb.report.measures.KINDS`), ``rule`` when the claim holds
    (a key of :data:`kdnb.report.verdicts.TESTS`). ``value`` is the rule's number: a printed
    accuracy, a claimed difference (shares of 1), ratio or speed-up.

    ``claimed`` is what the paper says; ``implied`` marks what it suggests without stating it.
    ``wanted`` holds the paper's choices, the most important first. ``run`` is the command that
    produces a measurement.
    """

    id: str
    paper: Paper
    statement: str
    claimed: str
    source: str
    run: str
    kind: str
    subject: str
    quantity: str
    rule: str
    against: str = ""
    value: float | None = None
    dataset: str | None = None
    implied: bool = False
    wanted: Mapping[str, object] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The published dataset's title; empty for a claim about networks alone."""
        return DATASETS[self.dataset].title if self.dataset else ""

    @property
    def text(self) -> str:
        """The statement with the dataset that it is about."""
        return f"{self.statement} on {self.title}" if self.dataset else self.statement


def _on_dataset(paper: Paper, sources: dict, dataset: dict, entry: dict) -> Claim:
    """A claim that a paper makes on a dataset, with the paper's choices and numbers filled in."""
    wanted, printed = dataset["wanted"] | entry.get("wanted", {}), dataset.get("printed", {})
    test = dict(entry["test"])
    if isinstance(test.get("value"), str):
        test["value"] = printed[test["value"]]
    given = {"dataset": dataset["name"]} | wanted
    command = " ".join(f"-p {name} {value}" for name, value in given.items())
    return Claim(
        f"{paper.name}-{dataset['name']}-{entry['name']}",
        paper,
        entry["statement"].format(wanted=wanted, printed=printed),
        entry["claimed"].format(wanted=wanted, printed=printed),
        sources[entry.get("source", "default")],
        entry.get("run") or f"python -m kdnb.run {entry.get('notebook', '03')} {command}",
        dataset=dataset["name"],
        implied=entry.get("implied", False),
        wanted=wanted,
        **test,
    )


def _on_networks(paper: Paper, sources: dict, entry: dict) -> Claim:
    """A claim about a paper's networks, whatever they were trained on."""
    name, source = f"{paper.name}-{entry['name']}", sources[entry.get("source", "default")]
    texts = (entry["statement"], entry["claimed"], source, entry["run"])
    return Claim(name, paper, *texts, implied=entry.get("implied", False), **entry["test"])


def _read() -> tuple[dict[str, Paper], tuple[Claim, ...]]:
    """The papers and their claims, in the order of the file."""
    stored = tomllib.loads((resources("kdnb.report") / "claims.toml").read_text(encoding="utf-8"))
    papers, claims = {}, []
    for name, of in stored.items():
        paper = Paper(name, of["citation"], tuple(of["teachers"]), tuple(of["students"]))
        papers[name] = paper
        claims += [
            _on_dataset(paper, of["sources"], dataset, entry)
            for dataset in of["datasets"]
            for entry in of["on_each_dataset"]
            if dataset["name"] in entry.get("datasets", [dataset["name"]])
        ]
        claims += [_on_networks(paper, of["sources"], entry) for entry in of["on_networks"]]
    return papers, tuple(claims)


PAPERS, CLAIMS = _read()
