"""How the software is cited: valid files, one version everywhere, a section of the changelog."""

import json
import re
import subprocess
import sys

import pytest
import yaml

import kdnb
from kdnb import files
from kdnb.images.catalogue import DATASETS
from kdnb.report import citation

CODEMETA = {"@context", "@type", "name", "description", "version", "license", "author"}


def test_the_files_are_those_of_the_package(tmp_path):
    citation.write(tmp_path)
    for name in ("CITATION.cff", "codemeta.json"):
        assert (tmp_path / name).read_text() == (files.ROOT / name).read_text(), (
            f"{name} is another than python -m kdnb.report citation writes"
        )


def test_every_citation_is_valid(tmp_path):
    pytest.importorskip("check_jsonschema")
    entries = [files.write_text(tmp_path / "own.cff", citation.as_yaml(citation.software()))]
    for name, spec in DATASETS.items():
        text = citation.as_yaml(citation.model(f"a network for {name}", spec))
        entries.append(files.write_text(tmp_path / f"{name}.cff", text))
    schema = ("--builtin-schema", "vendor.citation-file-format")
    command = [sys.executable, "-m", "check_jsonschema", *schema, *map(str, entries)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.cff"
    broken.write_text((files.ROOT / "CITATION.cff").read_text().replace("authors:", "writers:", 1))
    done = subprocess.run([*command[:-1], str(broken)], capture_output=True, text=True)
    assert done.returncode == 1 and "authors" in done.stdout


def test_a_network_refers_to_its_paper_and_its_data():
    entry = yaml.safe_load(citation.as_yaml(citation.model("x", DATASETS["brain_tumor"])))
    own, paper, images = entry["references"]
    assert own["title"] == "kdnb" and paper["doi"] == citation.PAPERS["B"]["doi"]
    assert images["type"] == "data" and images["year"] == 2021
    assert images["authors"] == [{"name": "Nickparvar"}]
    (only,) = citation.model("x", DATASETS["phantom_cxr"])["references"]
    assert only["title"] == "kdnb"


def test_codemeta_has_what_it_must():
    stored = json.loads((files.ROOT / "codemeta.json").read_text())
    assert stored.keys() >= CODEMETA and all(stored[name] for name in CODEMETA)
    assert stored["@context"] == "https://w3id.org/codemeta/3.0"
    assert stored["@type"] == "SoftwareSourceCode"
    assert {paper["name"] for paper in stored["referencePublication"]} == {
        paper["title"] for paper in citation.PAPERS.values()
    }


def test_the_version_has_one_source():
    from setuptools.config.pyprojecttoml import read_configuration

    project = read_configuration(files.ROOT / "pyproject.toml", expand=True)["project"]
    cff = yaml.safe_load((files.ROOT / "CITATION.cff").read_text())
    meta = json.loads((files.ROOT / "codemeta.json").read_text())
    assert project["version"] == cff["version"] == meta["version"] == kdnb.__version__
    assert project["description"] == meta["description"] == citation.DESCRIPTION
    changes = (files.ROOT / "CHANGELOG.md").read_text()
    assert f"## {kdnb.__version__}\n" in changes
    # packaging reads the number without importing the package
    source = (files.ROOT / "kdnb" / "__init__.py").read_text()
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [kdnb.__version__]


def test_a_tag_names_the_version_that_it_marks():
    """Every tag v<version> marks a commit of that version."""
    command = ["git", "tag", "--points-at", "HEAD", "v*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=files.ROOT)
    if done.returncode:
        pytest.skip("no repository here")
    assert set(done.stdout.split()) <= {f"v{kdnb.__version__}"}


def test_papers_are_those_of_the_claims_and_the_bibliography():
    from kdnb.report import PAPERS

    assert citation.PAPERS.keys() == PAPERS.keys()
    bibliography = (files.ROOT / "site" / "references.bib").read_text()
    for paper in citation.PAPERS.values():
        assert paper["title"] in bibliography and paper.get("doi", "") in bibliography
