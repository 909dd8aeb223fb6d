"""Where the maps of teacher, student, and student alone lie, and what is said of it."""

import numpy as np
import pytest

from kdnb import plots
from kdnb.explanations import cases
from kdnb.study import Study


@pytest.fixture
def looked():
    """Eight images of 4 × 4 pixels, a lesion in the upper left quarter of all but the last; the
    teacher's map lies in it, half of the distilled student's does, and that of the student alone
    is flat."""
    lesion = np.zeros((8, 4, 4), bool)
    lesion[:7, :2, :2] = True
    distilled = np.zeros((8, 4, 4))
    distilled[:, :2, :2], distilled[:, 2:, 2:] = 1.0, 1.0
    maps = {"teacher": lesion * 1.0, "distilled": distilled, "alone": np.ones((8, 4, 4))}
    inside = cases._inside(maps, lesion, np.arange(8))
    return {method: {"lesion": inside} for method in cases.COMPARED}


def test_the_share_of_each_map_in_the_lesion(looked):
    found = looked["score_cam"]["lesion"]
    shares = {role: found[role]["mean"] for role in ("teacher", "distilled", "alone", "chance")}
    assert shares == pytest.approx({"teacher": 1, "distilled": 0.5, "alone": 0.25, "chance": 0.25})
    assert found["teacher"]["n"] == 7, "an image without a lesion says nothing"
    assert found["distilled_minus_alone"]["mean"] == pytest.approx(0.25)
    assert found["distilled_minus_teacher"]["mean"] == pytest.approx(-0.5)
    assert found["distilled_minus_chance"]["mean"] == pytest.approx(0.25)


def test_a_method_without_a_given_teacher_says_whose_maps_are_compared():
    assert cases.teaching_of(Study(method="attention_transfer")) == (
        "densenet121 taught the student by attention_transfer"
    )
    text = cases.teaching_of(Study(method="crckd"))
    assert "mean teacher" in text and "used nothing of densenet121" in text


def test_the_figure_has_every_network_and_the_share_of_the_image(looked):
    table = cases.places_table(looked)
    assert list(dict.fromkeys(table["model"])) == [
        *("teacher", "distilled", "baseline", "share of the image"),
    ]
    assert set(table["method"]) == {"Score-CAM", "Grad-CAM"} and set(table["measure"]) == {"lesion"}
    figure = plots.measures(table, {"lesion": "share of the map in the lesion"}, "where maps lie")
    drawn = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert drawn == set(table["model"])
