"""Figures under controls: the functions from a state to a figure, without a browser.

``test_live.py`` moves a slider in a running JupyterLab.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import paint, study
from matplotlib.figure import Figure

from kdnb import explanations, files, plots, training, widgets
from kdnb.explanations import browsing
from kdnb.leakage import review
from kdnb.leakage.detector import COLUMNS, Leakage
from kdnb.training import softening

CONTROLS = {
    "half": widgets.Choice("half", {"low": 0, "high": 10}, 10),
    "number": widgets.Choice(
        "number", lambda s: {str(n + s["half"]): n + s["half"] for n in (1, 2)}
    ),
    "size": widgets.Slider("size", 1, 3, 0.5, 2),
}


def draw(half, number, size):
    if number == 2:
        raise ValueError("2 <is> no number")
    figure = Figure((1, 1))
    figure.suptitle(f"{half} {number} {size}")
    return figure


def in_front_end(monkeypatch, metadata):
    """As if a front end had sent a request with this metadata."""
    kernel = SimpleNamespace(get_parent=lambda: {"metadata": metadata})
    monkeypatch.setattr(widgets, "get_ipython", lambda: SimpleNamespace(kernel=kernel))


@pytest.fixture
def live(monkeypatch):
    in_front_end(monkeypatch, {"cellId": "a"})


def test_a_state_holds_what_the_controls_offer():
    assert widgets.settle(CONTROLS, {}) == {"half": 10, "number": 11, "size": 2}
    assert widgets.settle(CONTROLS, {"number": 12, "size": 9}) == {
        "half": 10,
        "number": 12,
        "size": 3,
    }
    # what was chosen before is offered no more
    assert widgets.settle(CONTROLS, {"half": 0, "number": 12})["number"] == 1
    assert widgets.settle({"none": widgets.Choice("none", {})}, {}) == {"none": None}


def test_the_front_end_is_known_by_the_cell_that_it_names(monkeypatch):
    assert not widgets.live(), "pytest is no kernel"
    for metadata, known in (({"cellId": "a"}, True), ({}, False), ({"cellId": ""}, False)):
        in_front_end(monkeypatch, metadata)
        assert widgets.live() == known


def test_without_a_front_end_there_is_the_figure_alone(capsys):
    assert widgets.explore(draw, CONTROLS).get_suptitle() == "10 11 2"
    assert widgets.explore(draw, CONTROLS, still=lambda: draw(0, 1, 1)).get_suptitle() == "0 1 1"
    assert capsys.readouterr().out == ""


def test_without_ipywidgets_there_is_the_figure_and_a_line(live, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert widgets.explore(draw, CONTROLS).get_suptitle() == "10 11 2"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "pip install 'kdnb[widgets]'" in said


def test_a_control_that_moves_changes_the_figure(live):
    panel = widgets.explore(draw, CONTROLS)
    assert 'alt="10 11 2"' in panel.picture.value
    first = panel.picture.value
    panel.fields["size"].value = 2.5
    assert 'alt="10 11 2.5"' in panel.picture.value != first
    panel.fields["half"].value = 0
    assert 'alt="0 1 2.5"' in panel.picture.value
    assert panel.fields["number"].options == (("1", 1), ("2", 2))
    bundle = panel._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= bundle.keys()


def test_a_control_that_fails_says_why_and_goes_on(live):
    panel = widgets.explore(
        draw, CONTROLS, {"fail": lambda state: 1 / 0, "up": lambda s: {"size": 3}}
    )
    panel.fields["half"].value = 0
    panel.fields["number"].value = 2
    assert panel.picture.value == '<p role="alert">2 &lt;is&gt; no number</p>'
    for button, words in zip(panel.box.children[1].children, ("division", "alert"), strict=True):
        button.click()
        assert words in panel.picture.value
    panel.fields["number"].value = 1
    assert 'alt="0 1 3"' in panel.picture.value


@pytest.fixture
def found(tmp_path):
    """Three found pairs of images in a folder, and the path of their verdicts."""
    for number in range(4):
        paint(tmp_path / "images" / f"{number}.png", number)
    links = [
        (f"{n}.png", f"{n + 1}.png", "near copy", r, 0.0, 1.0, False, 0)
        for n, r in enumerate((0.9, 0.7, 0.8))
    ]
    leakage = Leakage(pd.DataFrame(links, columns=COLUMNS), {"links": 3})
    return leakage, tmp_path / "images", tmp_path / "out" / "pairs.csv"


def test_verdicts_are_written_at_once_and_taken_back(found):
    leakage, root, path = found
    assert review.read(path).empty and review.without_rejected(leakage, path).links.shape == (3, 8)
    shown = review.Review(leakage, root, path, "pairs")
    state = widgets.settle(shown.controls(), {})
    assert list(shown.pairs("open")) == [
        f"{n} of 3: near copy, r = {r}" for n, r in ((1, "0.700"), (2, "0.800"), (3, "0.900"))
    ]
    assert shown.draw(**state).get_suptitle() == "pairs"
    shown.actions()["reject"](state)
    assert review.read(path)[["first", "verdict"]].values.tolist() == [["1.png", "rejected"]]
    state = widgets.settle(shown.controls(), state)
    assert state["pair"] == 1, "the next open pair"
    shown.actions()["accept"](state)
    assert review.read(path)["verdict"].tolist() == ["rejected", "accepted"]
    kept = review.without_rejected(leakage, path)
    assert (
        kept.links["first"].tolist() == ["2.png", "0.png"] and kept.facts["rejected_by_hand"] == 1
    )
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(4)]}).assign(patient="", sha256="abcd")
    table["sha256"] = list("abcd")
    assert len(np.unique(kept.groups(table))) == 2 and len(np.unique(leakage.groups(table))) == 1
    rejected = widgets.settle(shown.controls(), {"verdict": "rejected"})
    shown.actions()["take back"](rejected)
    assert review.read(path)["verdict"].tolist() == ["accepted"]
    with pytest.raises(ValueError, match="no pairs are rejected"):
        shown.draw("rejected", None)
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == ["pairs.csv"]


def test_a_table_of_something_else_is_refused(found):
    _, _, path = found
    for text in ("a,b\n1,2\n", "first,second,kind,correlation,verdict\na,b,c,0.5,perhaps\n"):
        files.write_text(path, text)
        with pytest.raises(ValueError, match="no table of verdicts"):
            review.read(path)
    with pytest.raises(files.UnknownName):
        review.decide(path, pd.Series({"first": "a"}), "perhaps")


def test_pairs_without_a_front_end_are_six_from_least_to_most_similar(found):
    leakage, root, path = found
    figure = review.browse(leakage, root, path, "pairs")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [title[-5:] for title in titles] == ["0.700", "0.800", "0.900"] and not path.exists()


@pytest.fixture
def trio(mine):
    return training.trio(study(), mine)


def test_images_are_browsed_mistakes_first(trio, mine):
    shown = browsing.browser(trio, mine, images=9, channels=4)
    wrong = sum(each.astype(int) for each in shown.wrong.values())
    assert list(wrong[shown.mistakes_first]) == sorted(wrong, reverse=True)
    controls = shown.controls()
    everything = widgets.settle(controls, {})
    assert everything["image"] == shown.mistakes_first[0] and everything["method"] == "score_cam"
    right = shown.found(None, browsing.RIGHT)
    assert set(right.values()) == set(np.flatnonzero(wrong == 0))
    for role, each in shown.wrong.items():
        assert set(shown.found(None, f"{role} wrong").values()) == set(np.flatnonzero(each))
    assert all(shown.truth[place] == 1 for place in shown.found(1, browsing.ANY).values())
    with pytest.raises(ValueError, match="choose another"):
        shown.draw(**everything | {"image": None})
    for change in ({}, {"method": "shap"}, {"method": "grad_cam", "layer": 1}):
        figure = shown.draw(**everything | change)
        headers = {text.get_text() for axis in figure.axes for text in axis.texts}
        assert {"image", "teacher", "distilled", "baseline"} <= headers
    known = dict(shown.seen)
    shown.draw(**everything)
    assert shown.seen.keys() == known.keys() and len(known) == 9
    assert isinstance(explanations.browse(trio, mine, images=3, channels=2), Figure)


def test_targets_follow_the_sliders(trio, mine):
    shown = softening.softening(trio, mine, images=12)
    assert list(shown.least_certain()) == list(mine.classes)
    state = widgets.settle(shown.controls(0.5, 4.0), {})
    flat, sharp = (shown.probabilities(state["image"], t) for t in (20.0, 0.5))
    assert flat.sum() == pytest.approx(1) and flat.max() < sharp.max()
    figure = shown.draw(**state | {"alpha": 1.0, "temperature": 0.5})
    bars = [[bar.get_width() for bar in group] for group in figure.axes[1].containers]
    assert bars[0] == pytest.approx(bars[3]), "with α = 1 the target is the label"
    assert bars[2] == pytest.approx(list(sharp))
    method = study(alpha=0.3).make_method()
    assert isinstance(training.explore_targets(trio, mine, method), Figure)


def test_targets_are_those_of_the_loss():
    image, classes = np.zeros((8, 8), np.uint8), ("a", "b")
    teacher, softened = np.array([0.9, 0.1]), np.array([0.6, 0.4])
    figure = plots.softened_targets(image, 1, teacher, softened, classes, (0.25, 3.0), "t")
    bars = [[bar.get_width() for bar in group] for group in figure.axes[1].containers]
    assert bars == [[0, 1], [0.9, 0.1], [0.6, 0.4], pytest.approx([0.45, 0.55])]
