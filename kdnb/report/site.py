"""The static site: the ledger as its front page, every executed notebook, a page for each dataset.

It is made from committed files alone, ``outputs/`` and ``site/``. Sphinx reads Markdown pages whose
headings are Markdown (for its table of contents and search) and whose rest is HTML, with figures
taken out into files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup, PageElement, Tag  # nbconvert brings it

from kdnb import errors, extras, files
from kdnb.images.catalogue import DATASETS, DatasetSpec
from kdnb.report import ledger, pages, questions, results, systems
from kdnb.report.results import Result
from kdnb.report.verdicts import Row


@dataclass(frozen=True)
class Page:
    """A rendered notebook under ``outputs/``. Its folder names the dataset (and split) that it ran
    on, or is ``overview``."""

    path: Path
    folder: str

    @property
    def name(self) -> str:
        """Its place on the site, without a suffix."""
        return f"notebooks/{self.folder}/{self.path.stem}"

    @property
    def dataset(self) -> str:
        """The dataset's folder."""
        return self.folder.split("/")[0]

    @property
    def title(self) -> str:
        """The notebook's title."""
        found = re.search(r"<title>(.*?)</title>", self.path.read_text(encoding="utf-8"))
        return BeautifulSoup(found[1], "html.parser").get_text()


@dataclass(frozen=True)
class Card:
    """A dataset of the catalogue, and the result file of notebook 01 on it if there is one."""

    spec: DatasetSpec
    stored: dict | None

    @property
    def title(self) -> str:
        """The title of the copy that was used, else of the published set."""
        return pages.short(self.stored["data"]["title"] if self.stored else self.spec.title)


def build(target: Path | None = None, outputs: Path | None = None) -> Path:
    """Build the site from ``outputs`` into ``target`` (``site/_build/html``). Returns ``target``.
    Raises RuntimeError on any warning of Sphinx, and ``MissingExtra``."""
    extras.require("site")
    from sphinx.cmd.build import build_main  # takes a second, and only this function needs it

    target = target or files.ROOT / "site" / "_build" / "html"
    source, trees = target.parent / "source", target.parent / "doctrees"
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    write(source, outputs or files.outputs_dir())
    options = ("-W", "--keep-going", "-q", "-b", "html", "-d", str(trees))
    if build_main([*options, str(source), str(target)]):
        raise RuntimeError(
            f"Sphinx warned about the pages in {files.shown(source)}; its warnings are above"
        )
    for page in target.rglob("*.html"):
        text = _TOGGLE.sub(r'\1 aria-label="Pages of \2">', page.read_text(encoding="utf-8"))
        page.write_text(text.replace(_REFERENCES, '<div class="citation-list"'), encoding="utf-8")
    return target


# the theme's buttons that unfold a list of pages have an icon and no name
_TOGGLE = re.compile(r'(">([^<>"]+)</a><details[^<>]*><summary)>')
# docutils calls references a list, but none of them an item of it
_REFERENCES = '<div role="list" class="citation-list"'


def write(source: Path, outputs: Path) -> None:
    """Write all that Sphinx reads into the folder ``source``."""
    shutil.copytree(files.ROOT / "site", source, ignore=shutil.ignore_patterns("_build"))
    files.write_text(source / "_static" / "ledger.css", ledger.STYLE)
    found, notebooks = results.load(outputs), _rendered(outputs)
    rows, cards = ledger.measure(found), _cards(found, notebooks)

    def add(name, html, toctree=""):
        page = convert(html, name, source / "_static") + "\n" + toctree
        files.write_text(source / f"{name}.md", page)

    files.write_text(source / f"{errors.PAGE}.md", errors.page())
    names = ["which-notebook", "datasets/index", "methods/index", "notebooks/index", errors.PAGE]
    names += ["bibliography"]
    listed = _toctree(names, hidden=True)
    add("index", _front(rows, found, notebooks, cards), listed)
    for slug, card in cards.items():
        add(f"datasets/{slug}", _dataset(card, rows, notebooks))
    ways = systems.measure(found, every=True)
    for each in ways:
        add(f"methods/{each.system.name}", method_card(each))
    for page in notebooks:
        add(page.name, page.path.read_text(encoding="utf-8"))
    for name, text in _lists(notebooks, cards, ways).items():
        files.write_text(source / f"{name}.md", text)
    linked = {file for row in rows for file in row.evidence.files}
    linked |= {file for each in ways for file in each.files}
    linked |= {file for answer in questions.answers(found) for file in answer.files}
    _copy_results(linked, outputs, source / "extra")


def _rendered(outputs: Path) -> list[Page]:
    """Every rendered notebook, by folder and number."""

    def place(path):
        above = path.parent.relative_to(outputs).as_posix()
        return "overview" if path.parent == outputs else above

    found = outputs.rglob("[0-9][0-9]_*.html")
    ordered = sorted(found, key=lambda path: (path.parent != outputs, path))
    return [Page(path, place(path)) for path in ordered]


def _cards(found: Sequence[Result], notebooks: Sequence[Page]) -> dict[str, Card]:
    """Folder → card of every dataset of the catalogue, a reader's own folder apart."""
    data = {r.config["dataset"]: r.stored for r in reversed(found) if r.kind == "data"}
    specs = (spec for spec in DATASETS.values() if spec.slug != "folder")
    return {spec.slug: Card(spec, data.get(spec.name)) for spec in specs}


def _copy_results(linked: Iterable[str], outputs: Path, extra: Path) -> None:
    """Copy the result files that the ledger links to."""
    extra.mkdir(exist_ok=True)
    for file in sorted({*linked, "outputs/claims.csv", "outputs/systems.csv"}):
        origin, copy = outputs / Path(file).relative_to("outputs"), extra / file
        if origin.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, copy)


def _front(
    rows: Sequence[Row], found: Sequence[Result], notebooks: Sequence[Page], cards: dict[str, Card]
) -> str:
    """The front page: the report, and links to all pages."""
    sections = [
        (
            _folder(folder, cards),
            [(p.title, f"{p.name}.html") for p in notebooks if p.folder == folder],
        )
        for folder in dict.fromkeys(page.folder for page in notebooks)
    ]
    datasets = [(card.title, f"datasets/{slug}.html") for slug, card in cards.items()]
    methods = [(each.name, f"methods/{each.name}.html") for each in systems.systems()]
    others = [
        ("data cards", datasets),
        ("ways of teaching", methods),
        (
            "help",
            [
                ("which notebook you need", "which-notebook.html"),
                ("what went wrong", f"{errors.PAGE}.html"),
            ],
        ),
        ("sources", [("bibliography", "bibliography.html")]),
    ]
    links = {"link": "./", "cards": "methods/", "sections": sections + others}
    return pages.fill("front.html.j2", **ledger.context(rows, found) | links)


def _dataset(card: Card, rows: Sequence[Row], notebooks: Sequence[Page]) -> str:
    """A dataset's page: its card, the copy that was used, its rows of the ledger, its notebooks."""
    spec, stored = card.spec, card.stored or {"data": {}, "results": {}}
    data, found = stored["data"], stored["results"]
    facts = {
        "modality": spec.modality,
        "licence": spec.licence,
        "source": spec.source,
        "cite": spec.citation,
        "published images": f"{spec.total:,}",
        "official split": spec.official_split or "none",
        "evidence against it" if spec.official_split else "evidence against any split": (
            spec.distrust
        ),
        "patients identified by": spec.group_key,
        "folders": spec.layout,
        "notes": spec.notes,
        "images here": f"{data['images']:,}" if data else "",
        "split here": data.get("split"),
        "checksum here": data.get("checksum"),
    }
    if found.get("test_images"):
        leaking = f"{found.get('leaking_test_images', 0):,} of {found['test_images']:,}"
        searched = found.get("relatives", {}).get("searched")  # missing in older result files
        kind = "a copy" if searched else "a byte-identical image"
        facts[f"test images with {kind} or the same patient in training"] = leaking
    return pages.fill(
        "dataset.html.j2",
        spec=spec,
        data=data,
        results=found,
        facts=facts.items(),
        rows=[row for row in rows if row.measured and row.claim.dataset == spec.name],
        notebooks=[(p.title, f"../{p.name}.html") for p in notebooks if p.dataset == spec.slug],
        link="../",
    )


def method_card(measured: systems.Measured) -> str:
    """The card of a way of teaching."""
    about = "" if measured.system.apart else systems.ABOUT
    words = {"references": systems.REFERENCES, "about": about, "others": systems.OTHERS}
    return pages.fill("method.html.j2", measured=measured, link="../", **words)


def _folder(folder: str, cards: dict[str, Card]) -> str:
    """A folder's name for readers: the dataset with its caveat, and the split if it has a folder of
    its own."""
    slug, _, split = folder.partition("/")
    if slug not in cards:
        return "All datasets" if folder == "overview" else folder
    return cards[slug].title + (f", split {split}" if split else "")


def convert(html: str, name: str, static: Path) -> str:
    """A page as Markdown for Sphinx: headings in Markdown, the rest as raw HTML, figures as files
    under ``static``. Raises ValueError if an image is not stored in the page itself."""
    soup = BeautifulSoup(pages.harmless(pages.describe(html)), "html.parser")
    body = soup.body or soup
    for tag in body.find_all("footer") + body.find_all("a", class_="anchor-link"):
        tag.decompose()
    for image in body.find_all("img"):
        _extract(image, "../" * name.count("/"), static)
    _reachable(body)
    parts, level, raw = [], 0, ""
    for element in _flat(body):
        heading = re.fullmatch(r"h([1-6])", element.name or "")
        if heading:
            level = min(int(heading[1]), level + 1)  # Sphinx allows no level to be left out
            parts += [_raw(raw), f"{'#' * level} {_markdown(element.get_text())}"]
            raw = ""
        else:
            raw += str(element)
    return "\n\n".join(filter(None, [*parts, _raw(raw)])) + "\n"


def _reachable(body: Tag) -> None:
    """Make what may scroll sideways reachable by keyboard: code, equations, and tables, each in a
    region with a name."""
    for wide in body.select("pre, math[display=block]"):
        wide["tabindex"] = "0"
    tables = [t for t in body.find_all("table") if "ledger" not in t.get("class", [])]
    for number, table in enumerate(tables, 1):
        if "wide" in table.parent.get("class", []):
            continue
        region = {
            "class": "wide",
            "tabindex": "0",
            "role": "region",
            "aria-label": f"Table {number}",
        }
        table.wrap(BeautifulSoup("", "html.parser").new_tag("div", attrs=region))
        for cell in table.select("thead th"):
            if not cell.get_text(strip=True):
                cell.name = "td"  # the corner of a table of pandas is the header of nothing


def _flat(body: Tag) -> Iterable[PageElement]:
    """The elements of a page in order: those of text cells one by one, all others whole."""
    for cell in body.find_all(recursive=False):
        text = cell.find(class_="text_cell_render")
        yield from text.contents if text and "text_cell" in cell.get("class", []) else [cell]


def _extract(image: Tag, root: str, static: Path) -> None:
    """Move an image's bytes into a file, and make the image a link to it."""
    head, _, data = image["src"].partition(",")
    try:
        content = base64.b64decode(data, validate=False) if head.startswith("data:image/") else b""
    except binascii.Error:
        content = b""
    if not content:
        raise ValueError(
            f"a page refers to an image outside itself, {image['src'][:80]}: render the notebook "
            "again with python -m kdnb.run"
        )
    suffix = re.match(r"data:image/(\w+)", head)[1]
    path = static / "figures" / f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    address = f"{root}_static/figures/{path.name}"
    image.attrs = {"src": address, "alt": image["alt"], "loading": "lazy"}
    link = {"class": "enlarge", "href": address}
    image.wrap(BeautifulSoup("", "html.parser").new_tag("a", attrs=link))


def _raw(html: str) -> str:
    """HTML in a fence longer than any run of tildes in it; empty for blank text."""
    if not html.strip():
        return ""
    fence = "~" * (3 + max((len(run) for run in re.findall(r"~+", html)), default=0))
    return f"{fence}{{raw}} html\n{html.strip()}\n{fence}"


def _markdown(text: str) -> str:
    """Text with everything escaped that Markdown would read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|$&!~])", r"\\\1", " ".join(text.split()))


def _toctree(names: Iterable[str], hidden: bool = False) -> str:
    options = ":maxdepth: 1\n" + ":hidden:\n" * hidden
    return "\n".join(["```{toctree}", options, *names, "```", ""])


def _lists(
    notebooks: Sequence[Page], cards: dict[str, Card], ways: Sequence[systems.Measured]
) -> dict[str, str]:
    """Name → text of the pages that list others."""
    folders: dict[str, list[str]] = {}
    for page in notebooks:
        folders.setdefault(page.folder, []).append(page.path.stem)
    taught = "Each method and related system: its idea, our choices, its result here."
    ran = "Each page is one notebook on one dataset, executed, with its figures."
    return {
        "datasets/index": _list("Datasets", "Each dataset, and the copy used here.", cards),
        "methods/index": _list("Ways of teaching", taught, [each.system.name for each in ways]),
        "notebooks/index": _list("Executed notebooks", ran, [f"{f}/index" for f in folders]),
        **{
            f"notebooks/{folder}/index": _list(_folder(folder, cards), "", names)
            for folder, names in folders.items()
        },
    }


def _list(title: str, words: str, names: Iterable[str]) -> str:
    """A page that lists others."""
    return "\n\n".join(filter(None, [f"# {_markdown(title)}", words, _toctree(names)]))


def report() -> None:
    """Build the site and say where it is."""
    target = build()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"wrote {files.shown(target)}/index.html ({size:.1f} MB); it opens without a server")
