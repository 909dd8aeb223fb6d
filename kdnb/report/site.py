"""The static site: the ledger as its front page, every executed notebook, a card for each dataset.
``python -m kdnb.report.site``.

Made from committed files alone: ``outputs/`` and ``site/``. Sphinx sees Markdown pages whose
headings are its own (so that its contents list and search know them) and whose rest is the HTML
that ``report.render`` wrote, figures taken out into files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup, Tag  # nbconvert brings it
from jinja2 import Environment

from kdnb import files
from kdnb.images.catalogue import DATASETS, DatasetSpec
from kdnb.report import claims, ledger, pages, results
from kdnb.report.measures import Row
from kdnb.report.verdicts import RULES


@dataclass(frozen=True)
class Page:
    """One rendered notebook under ``outputs/``: the folder says on which dataset (and split) it
    ran, ``overview`` on none."""

    path: Path
    folder: str

    @property
    def name(self) -> str:
        """Where the site keeps it, without a suffix."""
        return f"notebooks/{self.folder}/{self.path.stem}"

    @property
    def dataset(self) -> str:
        """The dataset's folder."""
        return self.folder.split("/")[0]


def rendered(outputs: Path) -> list[Page]:
    """Every rendered notebook, by folder and number."""
    found = sorted(
        outputs.rglob("[0-9][0-9]_*.html"), key=lambda path: (path.parent != outputs, path)
    )
    return [
        Page(
            path,
            "overview" if path.parent == outputs else path.parent.relative_to(outputs).as_posix(),
        )
        for path in found
    ]


def build(target: Path | None = None, outputs: Path | None = None) -> Path:
    """Build the site into ``target`` (``site/_build/html``) and return that folder; a warning of
    Sphinx is an error."""
    from sphinx.cmd.build import build_main  # an optional extra: pip install -e .[site]

    target, outputs = (
        target or files.ROOT / "site" / "_build" / "html",
        outputs or files.outputs_dir(),
    )
    source = target.parent / "source"
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    write(source, outputs)
    if build_main(
        [
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-d",
            str(target.parent / "doctrees"),
            str(source),
            str(target),
        ]
    ):
        raise RuntimeError(
            f"Sphinx found fault with the pages; they are in {files.shown(source)}, its words stand above"
        )
    return target


def write(source: Path, outputs: Path) -> None:
    """Write everything that Sphinx reads."""
    shutil.copytree(files.ROOT / "site", source, ignore=shutil.ignore_patterns("_build"))
    files.write_text(source / "_static" / "ledger.css", ledger.STYLE)
    found = results.load(outputs)
    rows, notebooks = claims.ledger(found), rendered(outputs)
    named = [
        slug
        for slug in dict.fromkeys(
            [*(s.slug for s in DATASETS.values()), *(page.dataset for page in notebooks)]
        )
    ]
    cards = {
        slug: _card_of(slug, found) for slug in named if slug != "folder" and _card_of(slug, found)
    }
    files.write_text(source / "index.md", _front(rows, found, source, notebooks, cards))
    for slug, (spec, data) in cards.items():
        files.write_text(source / "datasets" / f"{slug}.md", _dataset(spec, data, rows, notebooks))
    files.write_text(
        source / "datasets" / "index.md",
        _list("Datasets", "What each dataset is, and what was found in it.", cards),
    )
    for page in notebooks:
        files.write_text(
            source / f"{page.name}.md",
            convert(page.path.read_text(encoding="utf-8"), page.name, source / "_static"),
        )
    folders = list(dict.fromkeys(page.folder for page in notebooks))
    for folder in folders:
        here = [page.path.stem for page in notebooks if page.folder == folder]
        files.write_text(
            source / "notebooks" / folder / "index.md", _list(_folder(folder, cards), "", here)
        )
    words = "Each page is one notebook on one dataset, executed, with its figures."
    files.write_text(
        source / "notebooks" / "index.md",
        _list("Notebooks as they ran", words, [f"{f}/index" for f in folders]),
    )
    for file in sorted(
        {name for row in rows for name in row.result_file.split()} | {"outputs/claims.csv"}
    ):
        origin = outputs / Path(file).relative_to("outputs")
        if origin.exists():
            copy = source / "extra" / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, copy)
    (source / "extra").mkdir(exist_ok=True)


def convert(html: str, name: str, static: Path) -> str:
    """A rendered notebook as a page for Sphinx: headings in Markdown, the rest as it is, figures as
    files that can be enlarged."""
    body = BeautifulSoup(pages.harmless(pages.describe(html)), "html.parser").body
    for tag in body.find_all("footer") + body.find_all("a", class_="anchor-link"):
        tag.decompose()
    root = "../" * name.count("/")
    for image in body.find_all("img"):
        _extract(image, root, static)
    parts, level, held = [], 0, []
    for element in _flat(body):
        heading = (
            re.fullmatch(r"h([1-6])", element.name or "") if isinstance(element, Tag) else None
        )
        if heading:
            parts += [_raw("".join(held))] if "".join(held).strip() else []
            held, level = [], min(int(heading[1]), level + 1)  # Sphinx wants no level left out
            parts.append(f"{'#' * level} {_markdown(element.get_text())}")
        else:
            held.append(str(element))
    parts += [_raw("".join(held))] if "".join(held).strip() else []
    return "\n\n".join(parts) + "\n"


def _flat(body: Tag) -> Iterable[Tag]:
    """The elements of a page in order: those of text cells one by one, code cells and the rest
    whole."""
    for cell in body.find_all(recursive=False):
        text = (
            cell.find(class_="text_cell_render") if "text_cell" in cell.get("class", []) else None
        )
        yield from text.contents if text else [cell]


def _extract(image: Tag, root: str, static: Path) -> None:
    """Move an image's bytes into a file, and make it a link to that file."""
    head, _, data = image["src"].partition(",")
    try:
        content = base64.b64decode(data, validate=False) if head.startswith("data:image/") else b""
    except binascii.Error:
        content = b""
    if not content:
        raise ValueError(
            f"an image of a page does not lie inside it: {image['src'][:80]}; render the notebook again"
        )
    suffix = re.match(r"data:image/(\w+)", head)[1]
    path = static / "figures" / f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    image.attrs = {
        "src": f"{root}_static/figures/{path.name}",
        "alt": image["alt"],
        "loading": "lazy",
    }
    image.wrap(
        BeautifulSoup("", "html.parser").new_tag(
            "a", attrs={"class": "enlarge", "href": image["src"]}
        )
    )


def _raw(html: str) -> str:
    fence = "~" * (3 + max((len(run) for run in re.findall(r"~+", html)), default=0))
    return f"{fence}{{raw}} html\n{html.strip()}\n{fence}"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, whatever it holds."""
    return re.sub(r"([\\`*_{}\[\]<>#|$&!~])", r"\\\1", " ".join(text.split()))


def _toctree(names: Iterable[str], hidden: bool = False) -> str:
    return (
        "```{toctree}\n:maxdepth: 1\n"
        + (":hidden:\n" if hidden else "")
        + "\n"
        + "\n".join(names)
        + "\n```"
    )


def _list(title: str, words: str, names: Iterable[str]) -> str:
    """A page that lists others."""
    return "\n\n".join(filter(None, [f"# {_markdown(title)}", words, _toctree(names)])) + "\n"


_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_CARD = _TEMPLATES.from_string("""
{% if data and data.caveat %}<p class="caveat"><strong>{{ data.title }}.</strong>
{{ "Drawn images: no evidence of anything medical." if spec.synthetic else "Not the published images: every number from them is one
of this copy. Licence, source and citation below are those of the published set." }}</p>{% endif %}
<table><tbody>
{% for name, value in facts %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</tbody></table>
{% if counts %}
<table><thead><tr><th>class</th><th>published</th><th>train</th><th>validation</th><th>test</th></tr></thead><tbody>
{% for name, parts in counts.items() %}<tr><th scope="row">{{ name }}</th><td>{{ "{:,}".format(published.get(name, 0)) }}</td>
{% for part in ("train", "val", "test") %}<td>{{ "{:,}".format(parts.get(part, 0)) }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>{% endif %}
{% if problems %}<table><thead><tr><th>problem found</th><th>files</th><th>example</th></tr></thead><tbody>
{% for p in problems %}<tr><td>{{ p.problem }}</td><td>{{ p.files }}</td><td>{{ p.example }}</td></tr>{% endfor %}
</tbody></table>{% endif %}""")


def _card_of(slug: str, found: Sequence[results.Result]) -> tuple[DatasetSpec, dict | None] | None:
    """The catalogue's entry of a dataset's folder and what notebook 01 found in it; None for a
    folder that names no dataset."""
    spec = next((spec for spec in DATASETS.values() if spec.slug == slug), None)
    if spec is None:
        return None
    return spec, next(
        (r.stored for r in found if r.kind == "data" and r.config["dataset"] == spec.name), None
    )


def _dataset(
    spec: DatasetSpec, stored: dict | None, rows: Sequence[Row], notebooks: Sequence[Page]
) -> str:
    """A dataset's page: its card, what was found in the copy that was used, its rows of the ledger,
    its notebooks."""
    facts = [
        ("modality", spec.modality),
        ("licence", spec.licence),
        ("source", spec.source),
        ("cite", spec.citation),
        ("published images", f"{spec.total:,}"),
        ("official split", spec.official_split or "none"),
        ("patients known by", spec.group_key),
        ("folders", spec.layout),
        ("notes", spec.notes),
    ]
    data, found = (stored["data"], stored["results"]) if stored else ({}, {})
    if data:
        facts += [
            ("images here", f"{data['images']:,}"),
            ("split here", data["split"]),
            ("checksum here", data["checksum"]),
        ]
    if found.get("test_images"):
        leaking = f"{found.get('leaking_test_images', 0):,} of {found['test_images']:,}"
        searched = found.get("relatives", {}).get(
            "searched"
        )  # results of before have no such entry
        kind = "a copy" if searched else "a byte-identical image"
        facts.append((f"test images with {kind} or the same patient in training", leaking))
    card = _CARD.render(
        spec=spec,
        data=data,
        facts=[fact for fact in facts if fact[1]],
        counts=found.get("counts"),
        published=found.get("published") or {},
        problems=found.get("problems"),
    )
    parts = [f"# {_markdown(pages.short(data.get('title') or spec.title))}", _raw(card)]
    if not data:
        parts.append("No copy of it was read here: what stands above is what is published of it.")
    if mine := [
        row for row in rows if row.measured is not None and (row.id.split("-")[1] == spec.name)
    ]:
        parts += ["## What was measured on it", _raw(ledger.fragment(mine, "../"))]
    if here := [page for page in notebooks if page.dataset == spec.slug]:
        parts += [
            "## Its notebooks",
            "\n".join(f"- [{_markdown(_title(page))}](../{page.name}.md)" for page in here),
        ]
    return "\n\n".join(parts) + "\n"


def _folder(folder: str, cards: dict[str, tuple[DatasetSpec, dict | None]]) -> str:
    """A folder's name for readers: the dataset with its caveat, and the split where it has a folder
    of its own."""
    slug, _, split = folder.partition("/")
    if slug not in cards:
        return "All datasets" if folder == "overview" else folder
    spec, stored = cards[slug]
    return pages.short(stored["data"]["title"] if stored else spec.title) + (
        f", split {split}" if split else ""
    )


def _title(page: Page) -> str:
    found = re.search(r"<title>(.*?)</title>", page.path.read_text(encoding="utf-8"))
    return BeautifulSoup(found[1], "html.parser").get_text()


def _front(
    rows: Sequence[Row],
    found: Sequence[results.Result],
    source: Path,
    notebooks: Sequence[Page],
    cards: dict[str, tuple[DatasetSpec, dict | None]],
) -> str:
    """The front page: in words, as a figure, and claim by claim."""
    parts = [
        "# What holds of two papers, on public data",
        "**A**: {cite:t}`mir2025`. **B**: {cite:t}`jiang2025`. Research use only, no medical advice. Every number was "
        "computed from the result file it links to.",
        *(_markdown(told) for told in ledger.summary(rows, found)),
    ]
    (source / "_static" / "figures").mkdir(parents=True, exist_ok=True)
    for number, (figure, caption, words) in enumerate(ledger.pictures(rows, found)):
        name = f"_static/figures/ledger-{number}.png"
        figure.savefig(source / name, dpi=150, bbox_inches="tight")
        image = BeautifulSoup("", "html.parser").new_tag("img", src=name, alt=words)
        parts += [_raw(f'<a class="enlarge" href="{name}">{image}</a>'), f"*{_markdown(caption)}*"]
    measured, missing = (
        [row for row in rows if (row.measured is None) == wanted] for wanted in (False, True)
    )
    if measured:
        parts += ["## Claim by claim", _raw(ledger.fragment(measured, "./"))]
    parts += ["## How a verdict is reached", "\n".join(f"- {_markdown(rule)}" for rule in RULES)]
    if missing:
        parts += ["## What was not run here", _raw(ledger.fragment(missing))]
    parts.append("## All pages")
    for folder in dict.fromkeys(page.folder for page in notebooks):
        links = [
            f"[{_markdown(_title(page))}]({page.name}.md)"
            for page in notebooks
            if page.folder == folder
        ]
        parts.append(f"- {_markdown(_folder(folder, cards))}: " + " · ".join(links))
    links = [f"[{_markdown(_folder(slug, cards))}](datasets/{slug}.md)" for slug in cards]
    parts += [
        "- data cards: " + " · ".join(links),
        "- [bibliography](bibliography.md)",
        _toctree(["datasets/index", "notebooks/index", "bibliography"], hidden=True),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Build the site and say where it is."""
    target = build()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(
        f"the site is {files.shown(target)}/index.html ({size:.1f} MB); it opens without a server or a network"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
