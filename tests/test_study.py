"""A study checks every value at once and says what is allowed."""

import time

import pytest

from kdnb import cells, files, parameters
from kdnb.deployment.search import SearchParameters
from kdnb.parameters import BadParameter
from kdnb.study import Study


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"dataset": "covid_quex"}, "Did you mean 'covid_qu_ex'?"),
        ({"teacher": "densenet12"}, "densenet121"),
        ({"student": "ofa959"}, "Did you mean 'ofa595'?"),
        ({"method": "hybird"}, "Did you mean 'hybrid'?"),
        ({"profile": "papper"}, "Did you mean 'paper'?"),
        ({"split": "offical"}, "Did you mean 'official'?"),
        ({"dataset": "medmnist:pneumoniamnst"}, "Did you mean 'pneumoniamnist'?"),
        ({"dataset": 7}, "pass it with -r"),
        ({"patient_pattern": "("}, "is no regular expression"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1"),
        ({"temperature": 0}, "above 0"),
        ({"image_size": 8}, "between 32 and 1024"),
        ({"batch_size": "16"}, "batch_size must be int"),
        ({"augment": 1}, "augment must be bool"),
        ({"seed": -1}, "between 0"),
        ({"lr": float("nan")}, "between"),
        (
            {"teacher": "vgg19+densenet121", "teacher_weights": [1]},
            "1 teacher_weights for 2 teachers",
        ),
        ({"teacher_weights": [0.0]}, "must not be all zero"),
        ({"datset": "x"}, "Did you mean 'dataset'?"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(wrong, hint):
    with pytest.raises(ValueError) as caught:
        Study.from_parameters(wrong)
    assert hint in str(caught.value)


def test_a_wrong_value_is_refused_in_under_a_second_once_the_imports_are_done():
    started = time.perf_counter()
    with pytest.raises(files.UnknownName):
        Study.from_parameters({"student": "ofa959"})
    assert time.perf_counter() - started < 1


def test_what_is_left_open_comes_from_profile_and_method():
    study = Study(profile="paper", method="kd_fmv")
    assert (study.image_size, study.batch_size, study.pretrained) == (224, 16, "teacher")
    assert (study.alpha, study.temperature) == (0.7, 10.0)
    assert Study(profile="paper", image_size=96).image_size == 96
    assert Study().config()["student_epochs"] == 15


def test_numbers_become_what_was_meant():
    study = Study.from_parameters(
        {"alpha": 1, "temperature": 3, "teacher": "vgg19 + densenet121", "teacher_weights": [1, 3]}
    )
    assert study.alpha == 1.0 and study.teacher_weights == (1.0, 3.0)
    assert study.teachers == ("vgg19", "densenet121")


def test_pretrained_students_learn_gently_and_a_given_rate_wins():
    assert Study().peak_lr("densenet121", pretrained=True) == 1e-4
    assert Study().peak_lr("kdfmv5") == 3e-4
    assert Study(lr=0.01).peak_lr("densenet121") == 0.01


def test_tests_can_replace_the_profile_and_smoke_results_stay_out_of_outputs(home, monkeypatch):
    assert Study().outputs() == home / "outputs" / "phantom_cxr"
    monkeypatch.setenv("KDNB_PROFILE", "smoke")
    study = Study.from_parameters({"profile": "paper", "dataset": "medmnist:bloodmnist"})
    assert study.profile == "smoke"
    assert study.outputs() == home / "cache" / "smoke" / "medmnist-bloodmnist"


def test_a_bad_parameter_is_a_value_error():
    assert issubclass(BadParameter, ValueError)


def test_a_wing_adds_its_parameters_to_the_study():
    plain, wide = Study(), Study.of(SearchParameters)(profile="smoke", probes=7)
    assert isinstance(wide, Study) and (wide.probes, wide.generations) == (7, 2)
    assert wide.config().keys() - plain.config().keys() == set(
        parameters.declared(SearchParameters)
    )
    with pytest.raises(BadParameter, match="probes must lie between 3 and 1000, got 2"):
        Study.of(SearchParameters)(probes=2)


def test_every_parameter_is_declared_once_with_a_default_that_it_allows():
    names = [name for group in cells.GROUPS for name in parameters.declared(group)]
    assert len(names) == len(set(names)) and len(names) > 35
    made = Study.of(*cells.WINGS)()
    for name, field in cells.declared().items():
        assert field.metadata["help"] and "\n" not in field.metadata["help"]
        default = parameters.default(field)
        assert getattr(made, name) == default or default is None


def test_the_page_of_parameters_lists_all_of_them_and_the_notebooks_that_take_them():
    page = cells.page().set_index("parameter")
    assert set(page.index) == set(cells.declared())
    assert page.loc["lr", "notebooks"] == "02–08, 10–14" and page.loc["probes", "notebooks"] == "07"
    assert page.loc["profile", "notebooks"] == "00–14"
    text = cells.as_text(cells.page())
    assert max(map(len, text.splitlines())) <= 100 and "latency_budget_ms = None" in text


@pytest.mark.parametrize("pretrained", ["student", "both"])
def test_a_student_without_published_weights_cannot_start_from_them(pretrained):
    with pytest.raises(ValueError, match="of kdfmv5; .* -p pretrained teacher"):
        Study(student="kdfmv5", pretrained=pretrained)
    assert Study(student="resnet18", pretrained=pretrained).starts_pretrained("student")


def test_pretrained_is_a_role():
    assert Study(profile="paper", student="ofa595").pretrained == "both"
    study = Study(pretrained="teacher")
    assert study.starts_pretrained("teacher") and not study.starts_pretrained("student")
    with pytest.raises(
        ValueError, match="one of none, teacher, student, both; got True|, got True"
    ):
        Study.from_parameters({"pretrained": True})


def test_a_network_named_after_its_weights_starts_from_them():
    with pytest.raises(BadParameter, match="named after the weights .*: -p pretrained teacher"):
        Study(teacher="vgg19_from_vgg16")
    assert Study(teacher="vgg19_from_vgg16", pretrained="teacher").starts_pretrained("teacher")
    with pytest.raises(BadParameter, match="-p pretrained student"):
        Study(student="vgg19_from_vgg16", pretrained="teacher")
