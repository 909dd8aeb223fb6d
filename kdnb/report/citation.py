"""How this software, and a network trained with it, is cited: ``CITATION.cff`` and
``codemeta.json``, whose one source is this module and ``kdnb.__version__``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml  # huggingface_hub brings it

import kdnb
from kdnb import files
from kdnb.images.catalogue import DatasetSpec
from kdnb.report.claims import CLAIMS

DESCRIPTION = (
    "Notebook companion to two papers on explainable knowledge distillation for medical images"
)
KEYWORDS = (
    "knowledge distillation",
    "explainable artificial intelligence",
    "medical image classification",
    "reproducibility",
)
AUTHORS = [{"name": "The kdnb authors"}]


def _people(*names: str) -> list[dict[str, str]]:
    """Authors in the form of CFF, from ``given names|family names``."""
    pairs = (name.split("|") for name in names)
    return [{"given-names": given, "family-names": family} for given, family in pairs]


PAPERS: dict[str, dict] = {
    "A": {
        "type": "article",
        "title": "Explainable Knowledge Distillation for Efficient Medical Image Classification",
        "authors": _people("Aqib Nazir|Mir", "Danish Raza|Rizvi"),
        "year": 2025,
        "journal": "arXiv",
        "url": "https://arxiv.org/abs/2508.15251",
    },
    "B": {
        "type": "conference-paper",
        "title": "A Knowledge Distillation-Based Approach to Enhance Transparency of Classifier "
        "Models",
        "authors": _people("Yuchen|Jiang", "Xinyuan|Zhao", "Yihang|Wu", "Ahmad|Chaddad"),
        "year": 2025,
        "collection-title": "Proceedings of the AAAI Conference on Artificial Intelligence",
        "volume": 39,
        "issue": 17,
        "start": 17653,
        "end": 17661,
        "doi": "10.1609/aaai.v39i17.33941",
        "url": "https://arxiv.org/abs/2502.15959",
    },
}


def software() -> dict:
    """``CITATION.cff`` of the repository, in the Citation File Format 1.2.0."""
    return {
        "cff-version": "1.2.0",
        "message": "Please cite kdnb and the paper whose experiment you ran.",
        "type": "software",
        "title": f"kdnb: {DESCRIPTION[0].lower()}{DESCRIPTION[1:]}",
        "authors": AUTHORS,
        "version": kdnb.__version__,
        "license": "MIT",
        "keywords": list(KEYWORDS),
        "references": list(PAPERS.values()),
    }


def codemeta() -> dict:
    """``codemeta.json`` of the repository, in CodeMeta 3.0."""
    papers = [
        {
            "@type": "ScholarlyArticle",
            "@id": f"https://doi.org/{paper['doi']}" if "doi" in paper else paper["url"],
            "name": paper["title"],
            "url": paper["url"],
        }
        for paper in PAPERS.values()
    ]
    return {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": "kdnb",
        "description": DESCRIPTION,
        "version": kdnb.__version__,
        "license": "https://spdx.org/licenses/MIT",
        "author": [{"@type": "Organization", "name": AUTHORS[0]["name"]}],
        "programmingLanguage": "Python",
        "runtimePlatform": "Python 3.11 or newer",
        "operatingSystem": ["Linux", "macOS", "Windows"],
        "keywords": list(KEYWORDS),
        "referencePublication": papers,
    }


def model(title: str, spec: DatasetSpec) -> dict:
    """``CITATION.cff`` of a trained network with ``title``: it refers to this software, to the
    papers that use the dataset, and to the dataset."""
    names = {claim.paper.name for claim in CLAIMS if claim.dataset == spec.name}
    ours = {"type": "software", "title": "kdnb", "authors": AUTHORS, "version": kdnb.__version__}
    papers = [paper for name, paper in PAPERS.items() if name in names]
    return {
        "cff-version": "1.2.0",
        "message": "Please cite the software, the paper and the dataset below.",
        "type": "software",
        "title": title,
        "authors": AUTHORS,
        "references": [ours, *papers, *_dataset(spec)],
    }


def _dataset(spec: DatasetSpec) -> list[dict]:
    """A published dataset as a reference; none for phantoms and a reader's own images."""
    dated = re.match(r"(.+?) \((\d{4})\), ([^,]+)", spec.citation)
    found = dated or re.match(r"(\w+), ()([^,]+)", spec.citation)
    if spec.synthetic or found is None:
        return []
    who, year, title = found.groups()
    entry = {"type": "data", "title": title, "authors": [{"name": who}], "notes": spec.citation}
    return [entry | ({"year": int(year)} if year else {})]


def as_yaml(entry: dict) -> str:
    """An entry in the Citation File Format as text."""
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=100)


def write(folder: Path = files.ROOT) -> None:
    """Write ``CITATION.cff`` and ``codemeta.json`` of the repository."""
    files.write_text(folder / "CITATION.cff", as_yaml(software()))
    text = json.dumps(codemeta(), indent=2, ensure_ascii=False)
    files.write_text(folder / "codemeta.json", text + "\n")
