"""The site: built from committed files alone, complete, escaped, and checked in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlparse

import chromium
import pytest
from bs4 import BeautifulSoup
from test_claims import distillation
from test_report import png

from kdnb import files
from kdnb.report import pages, results, site
from kdnb.study import Study

EVIL = "<script>window.injected=1</script>"


def rendered(title, image):
    """A page as :func:`rendering.render` writes it, with a skipped heading level and with markup
    that must not run."""
    escaped = EVIL.replace("<", "&lt;")
    raw = (
        '<svg onload="window.injected=1"></svg><a href=" java\tscript:window.injected=1">x</a>'
        '<iframe src="data:text/html,x"></iframe>'
    )
    return f"""<!doctype html><html><head><title>{title}</title></head><body>
<div class="cell text_cell rendered"><div class="text_cell_render">
<h1 id="t">{title}<a class="anchor-link" href="#t">¶</a></h1>
<p>What it is. It takes <math><mi>T</mi></math>.</p>
<h3 id="d">Deep *down* &amp; ~~~</h3><p>Look at the curve "here".</p></div></div>
<div class="cell code_cell rendered"><details><summary>code</summary><pre>x</pre></details>
<pre>{escaped} ~~~~~~~~</pre>
<table><tbody><tr><td>{raw}</td></tr></tbody></table>
<img src="data:image/png;base64,{image}" alt="figure"></div>
<script>injected()</script><footer>f</footer></body></html>"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A site of a few made result files and pages: seconds, and the same code as the whole one."""
    home = tmp_path_factory.mktemp("site")
    outputs = home / "outputs"
    for seed in range(
        3
    ):  # one run decides nothing, and the front page is to show more than one verdict
        distillation(
            home, f"runs/{seed}/distill", title="Brain Tumor MRI", classes=(EVIL, "b"), seed=seed
        )
    distillation(
        home,
        "covid_qu_ex/distill",
        dataset="covid_qu_ex",
        title="COVID-QU-Ex (stand-in: 3 images)",
        student="ofa595",
        caveat="stand-in: 3 images",
        method="hybrid",
    )
    files.write_json(
        outputs / "brain_tumor" / "data.json",
        {
            "results": {
                "counts": {EVIL: {"train": 5, "val": 1, "test": 2}},
                "published": {EVIL: 9},
                "test_images": 2,
                "leaking_test_images": 1,
                "problems": [{"problem": EVIL, "files": 1, "example": EVIL}],
            },
            "config": Study(dataset="brain_tumor").config(),
            "data": {
                "title": "Brain Tumor MRI",
                "caveat": "",
                "split": "official",
                "checksum": "c",
                "images": 8,
            },
        },
    )
    for place in (
        "brain_tumor/01_data_prep",
        "brain_tumor/group/03_distill",
        "covid_qu_ex/03_distill",
    ):
        files.write_text(outputs / f"{place}.html", rendered(f"{place[-10:]} & co", png()))
    files.write_text(outputs / "09_report.html", rendered("09 · The report", png()))
    counts = {
        "densenet121": {"layers": 121, "macs": 100, "parameters": 8},
        "kdfmv5": {"layers": 7, "macs": 40, "parameters": 15},
    }
    files.write_json(outputs / "zoo.json", {"results": counts})
    return site.build(home / "html", outputs)


def soups(built):
    return {
        path: BeautifulSoup(path.read_text(), "html.parser")
        for path in built.rglob("*.html")
        if "_static" not in path.parts
    }


def test_every_page_is_there_and_reached_from_the_front(built):
    names = {path.relative_to(built).as_posix() for path in soups(built)}
    assert {
        "index.html",
        "bibliography.html",
        "datasets/brain_tumor.html",
        "datasets/eye_disease.html",
        "notebooks/brain_tumor/01_data_prep.html",
        "notebooks/brain_tumor/group/03_distill.html",
        "notebooks/overview/09_report.html",
    } <= names
    front = (built / "index.html").read_text()
    for name in names:
        if name.count("/") and not name.endswith("index.html"):
            assert f'href="{name}"' in front, name
    assert "Rizvi 2025" in front and all(
        f'verdict v-{word}"' in front for word in ("holds", "not-testable-here")
    )


def test_no_link_image_or_anchor_is_broken_and_nothing_comes_from_the_net(built):
    for path, soup in soups(built).items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in soup.find_all(tag):
                address = urlparse(element.get(attribute) or "")
                if tag != "a":
                    assert not address.netloc, f"{path}: {address.geturl()} needs a network"
                if (
                    address.scheme
                    or address.netloc
                    or not address.path
                    or "search.html" in address.path
                ):
                    continue
                target = (path.parent / unquote(address.path)).resolve()
                assert target.exists(), f"{path}: {address.path} is broken"
        for element in soup.select("a[href^='#']"):
            anchor = unquote(element["href"][1:])
            assert not anchor or soup.find(id=anchor), f"{path}: #{anchor}"


def test_every_figure_says_what_it_shows(built):
    seen = 0
    for path, soup in soups(built).items():
        for image in soup.select("article img"):
            seen += 1
            assert len(image["alt"]) > 20 and image["alt"] != "figure", path
            assert image.parent["href"] == image["src"] and "enlarge" in image.parent["class"]
    assert seen >= 4
    alt = soups(built)[built / "notebooks/brain_tumor/01_data_prep.html"].select_one("article img")[
        "alt"
    ]
    assert alt == 'Figure 1 of: Deep *down* & ~~~. Look at the curve "here".'


def test_names_from_outside_are_text(built):
    for path in built.rglob("*.html"):
        text = path.read_text()
        assert (
            "<script>window.injected" not in text
            and "injected()" not in text
            and "<iframe" not in text
        ), path
        assert not re.search(r"<\w[^>]*(?:\bon\w+=.window\.injected|script:window)", text), path
    card = (built / "datasets" / "brain_tumor.html").read_text()
    assert "&lt;script&gt;window.injected" in card and "1 of 2" in card
    assert "&lt;script&gt;" in (built / "notebooks/brain_tumor/01_data_prep.html").read_text()


def test_a_stand_in_carries_its_name_everywhere(built):
    assert "stand-in" in (built / "datasets" / "covid_qu_ex.html").read_text()
    front = BeautifulSoup((built / "index.html").read_text(), "html.parser")
    (row,) = [row for row in front.select(".ledger tr[id^=A-covid_qu_ex-gain]")]
    assert "stand-in" in row.get_text()


def test_a_page_whose_image_is_elsewhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match="outside itself.*render the notebook again"):
        site.convert('<body><img src="x.png"></body>', "notebooks/a/b", tmp_path)


def test_alternative_texts_come_from_the_argument():
    images = '<img src="a"><img alt="kept" src="b"><img alt="figure" src="c">'
    html = f"<h2>Curves <a>¶</a></h2><p>First &lt;b&gt;.</p><p>Second.</p>{images}"
    alts = re.findall(r'alt="([^"]*)"', pages.describe(html))
    assert alts == [
        "Figure 1 of: Curves. First &lt;b&gt;.",
        "kept",
        "Figure 3 of: Curves. First &lt;b&gt;.",
    ]
    named = pages.describe(html, "COVID-QU-Ex (stand-in)")
    assert (
        named.count('<img alt="COVID-QU-Ex (stand-in): ')
        == 3
        == named.count(">COVID-QU-Ex (stand-in)</small>")
    )
    assert (
        pages.describe(named, "COVID-QU-Ex (stand-in)") == named == pages.describe(named)
    )  # once is enough
    long = pages.describe(f'<h2>T</h2><p>{"word " * 200}</p><img src="a">')
    assert 150 < len(re.search(r'alt="([^"]*)"', long)[1]) <= 240


# Every page in a frame of a phone's width: the probe looks for pages that scroll sideways, images
# that do not load, and figures that do not open.
PROBE = """<!doctype html><body><script>
const pages = %s, found = [];
async function probe(page) {
  const frame = document.createElement("iframe");
  frame.style = "width:375px;height:812px;border:0"; frame.src = page;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; });
  const page_ = frame.contentDocument, images = [...page_.images];
  images.forEach((image) => { image.loading = "eager"; });
  for (let n = 0; n < 100 && !images.every((image) => image.complete); n++)
    await new Promise((done) => setTimeout(done, 50));
  images.filter((image) => !image.naturalWidth)
    .forEach((image) => found.push(`${page}: ${image.src} does not load`));
  const width = page_.documentElement.scrollWidth;
  if (width > 375) found.push(`${page}: ${width} px wide`);
  if (frame.contentWindow.injected) found.push(`${page}: a injected script ran`);
  const figure = page_.querySelector("a.enlarge");
  if (figure) {
    figure.click();
    if (!page_.querySelector("dialog.enlarged[open] img[alt]")) found.push(`${page}: no dialog`);
    else page_.querySelector("dialog.enlarged").close();
  }
  frame.remove();
}
(async () => {
  for (const page of pages) await probe(page);
  document.body.dataset.found = JSON.stringify(found);
})();
</script></body>"""


def browse(address, *options):
    """Chromium's DOM after scripts have run, and the messages on its console."""
    browser = pages.chromium()
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            *options,
            "--virtual-time-budget=60000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    # messages of the theme are expected; every other one is a fault
    return done.stdout, [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and '"[PST]: ' not in line
    ]


def faults(folder: Path, home: Path) -> list[str]:
    """The faults that a browser finds in the pages of a folder."""
    names = sorted(
        path.resolve().as_uri()
        for path in folder.rglob("*.html")
        if not {"_static", "outputs"} & set(path.parts)
    )
    probe = files.write_text(home / "probe.html", PROBE % json.dumps(names))
    dom, console = browse(
        probe.as_uri(), "--allow-file-access-from-files", f"--user-data-dir={home / 'chromium'}"
    )
    found = BeautifulSoup(dom, "html.parser").body.get("data-found")
    assert found is not None, "the probe did not finish"
    return json.loads(found) + console


def test_a_browser_finds_no_fault_at_phone_width(built, tmp_path):
    assert faults(built, tmp_path) == []


def test_the_browser_test_finds_faults(tmp_path):
    files.write_text(
        tmp_path / "html" / "bad.html",
        """<!doctype html><meta name="viewport" content="width=device-width"><body>
<div style="width:700px">wide</div>
<a class="enlarge" href="no.png"><img src="no.png" alt="none"></a>
<script>window.injected = 1; console.error("oh")</script></body>""",
    )
    found = " ".join(faults(tmp_path / "html", tmp_path))
    assert all(
        part in found
        for part in ("px wide", "no.png does not load", "injected script", "no dialog", "oh")
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The site of the committed outputs."""
    return site.build(tmp_path_factory.mktemp("whole") / "html", files.ROOT / "outputs")


@pytest.mark.slow
def test_the_whole_site_builds_from_committed_files(whole, tmp_path):
    """The committed outputs: no warning, no broken link, no fault in a browser."""
    test_no_link_image_or_anchor_is_broken_and_nothing_comes_from_the_net(whole)
    test_every_figure_says_what_it_shows_in_all(whole)
    assert faults(whole, tmp_path) == []


AXE = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((v) => ["serious", "critical"].includes(v.impact))
  .map((v) => `${v.id}: ${v.help} (${v.nodes.length}), ${v.nodes[0].html.slice(0, 200)}`))"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The script of axe-core, from npm's index."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here: apt-get install npm")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", folder, "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    if done.returncode:
        pytest.skip(f"npm's index was not reached: {done.stderr[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def barriers(page: chromium.Page, address: str, axe: str) -> list[str]:
    """What axe-core calls serious or critical on a page, in light and dark mode."""
    found = []
    for dark in (False, True):
        page.look(dark=dark)
        page.open(address)
        page.run(f"{axe};1")
        found += [f"{address}, {'dark' if dark else 'light'}: {each}" for each in page.run(AXE)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("built_site", ["built", "whole"])
def test_axe_finds_no_serious_barrier(built_site, axe, request):
    """Every page, in both colour schemes."""
    folder = request.getfixturevalue(built_site)
    with chromium.page() as page:
        found = [each for path in soups(folder) for each in barriers(page, path.as_uri(), axe)]
    assert found == []


@pytest.mark.slow
def test_axe_finds_a_barrier(axe, tmp_path):
    html = '<html lang="en"><title>t</title><body><img src="x.png"><p style="color:#ccc">pale'
    with chromium.page() as page:
        found = barriers(page, files.write_text(tmp_path / "bad.html", html).as_uri(), axe)
    assert {each.split(": ")[1] for each in found} >= {"image-alt", "color-contrast"}


def test_the_search_works_from_a_file(built):
    """Typed into the address of the search page; no server answers."""
    with chromium.page() as page:
        page.open(f"{(built / 'search.html').as_uri()}?q=curve")
        # results appear one by one; the summary is there when all are
        links = page.wait(
            "document.querySelector('.search-summary')?.innerText.includes('finished') && "
            "[...document.querySelectorAll('#search-results li a')].map(a => a.href)+''"
        )
    assert "01_data_prep.html" in links


def test_every_figure_says_what_it_shows_in_all(built):
    for path, soup in soups(built).items():
        assert all(len(image["alt"]) > 20 for image in soup.select("article img")), path


def test_a_page_prints_to_its_end(built, tmp_path):
    """Blocks that scroll on a screen must not be cut off on paper."""
    if pages.chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    page = built / "notebooks" / "brain_tumor" / "01_data_prep.html"
    long = page.read_text().replace(
        "What it is.", "".join(f"<pre style='height:16cm'>{n}</pre>" for n in range(20))
    )
    printed = [
        pages.print_pdf(
            files.write_text(page.with_name(name), text), tmp_path / "a.pdf"
        ).read_bytes()
        for name, text in (("short.html", page.read_text()), ("long.html", long))
    ]
    for name in ("short.html", "long.html"):
        page.with_name(name).unlink()
    sheets = [pdf.count(b"/Type /Page\n") for pdf in printed]
    # an A4 sheet holds one block of 16 cm, and no block may be cut
    assert sheets[0] >= 1 and sheets[1] >= sheets[0] + 19, sheets


def test_the_ledger_prints(tmp_path):
    if pages.chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    page = files.ROOT / "outputs" / "claims.html"
    pdf = pages.print_pdf(page, tmp_path / "a.pdf").read_bytes()
    rows = BeautifulSoup(page.read_text(), "html.parser").select(".ledger tbody tr")
    # some ten rows fill a sheet of A4; a ledger that is cut off after the first would have one
    assert pdf.startswith(b"%PDF") and len(rows) / 20 < pdf.count(b"/Type /Page\n") < len(rows), (
        len(rows)
    )


def test_the_ledger_to_attach_is_readable_at_phone_width(tmp_path):
    shutil.copy(files.ROOT / "outputs" / "claims.html", tmp_path)
    assert [fault for fault in faults(tmp_path, tmp_path) if "no dialog" not in fault] == []


def test_committed_pages_fit_and_every_figure_names_its_images():
    outputs = files.ROOT / "outputs"
    assert sum(path.stat().st_size for path in outputs.rglob("*") if path.is_file()) < 25e6
    titles = {
        Path(result.file).parent: pages.short(result.title)
        for result in results.load(outputs)
        if "data" in result.stored
    }
    seen = 0
    for page in outputs.rglob("[0-9][0-9]_*.html"):
        about = titles.get(page.parent.relative_to(files.ROOT), "")
        for image in BeautifulSoup(page.read_text(), "html.parser").select("img"):
            seen += 1
            assert len(image["alt"]) > 20 and image["src"].startswith("data:image/"), page
            if about:  # a stand-in is called one
                assert (
                    image["alt"].startswith(f"{about}: ")
                    and image.find_next("small").get_text() == about
                ), page
    assert seen > 50 and "COVID-QU-Ex (partial copy)" in titles.values()
