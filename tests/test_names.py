"""Names of result files: those of usual choices are short, and other choices are told apart."""

import pytest

from kdnb import files
from kdnb.report import names, results
from kdnb.study import Study


def distilled(**choices):
    return names.student(Study(**choices), "distill").removeprefix("distill-densenet121-kdfmv5-")


def test_usual_choices_have_the_short_name():
    assert names.student(Study(), "explain") == "explain-densenet121-kdfmv5-hybrid"
    assert names.teacher(Study(), "vgg19") == "teacher-vgg19"
    assert names.comparison(Study(seed=3), "methods") == "methods-densenet121-kdfmv5-s3"
    given = {"method": "fitnet", "options": {"hint_layer": 2}, "temperature": 3.0}
    assert distilled(**given) == "fitnet"
    assert names.comparison(Study(), "features", "fft") == "features-densenet121-fft-s0"
    # the budget does not stand in a name
    assert distilled(seed=4, image_size=64, student_epochs=2, lr=0.1) == "hybrid"


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        ({"method": "fitnet", "options": {"hint_layer": 1}}, "fitnet-hint_layer_1"),
        ({"recipe": "kd_oct"}, "hybrid-recipe_kd_oct"),
        ({"alpha": 0.1, "temperature": 2.0}, "hybrid-alpha_0.1-temperature_2"),
        ({"method": "hard", "recipe": "kd_oct"}, "hard-recipe_kd_oct"),
        (
            {"method": "limit_trained", "options": {"weighting": "equal"}, "teacher_shards": 2},
            "limit_trained-teacher_shards_2-weighting_equal",
        ),
        ({"teacher_recipe": "kd_oct"}, "hybrid-teacher_recipe_kd_oct"),
        ({"label_share": 0.1}, "hybrid-label_share_0.1"),
    ],
)
def test_other_choices_are_added(choices, name):
    assert distilled(**choices) == name


def test_teachers_have_weights_recipes_and_numbers():
    two = Study(teacher="resnet10t+resnet10t", teacher_weights=(1.0, 2.5))
    found = names.student(two, "distill")
    assert found == "distill-resnet10t+resnet10t-kdfmv5-hybrid-teacher_weights_1_2.5"
    sharded = Study(teacher_shards=3, teacher_recipe="kd_oct", seed=1)
    stated = "teacher_recipe_kd_oct-teacher_shards_3"
    assert names.teacher(sharded, "vgg19 2") == f"teacher-vgg19-2-{stated}"
    assert names.comparison(sharded, "methods") == f"methods-densenet121-kdfmv5-{stated}-s1"


def test_a_papers_choice_for_a_dataset_is_usual_there():
    eye = {"dataset": "eye_disease", "method": "kd_fmv"}
    assert distilled(**eye, alpha=0.4, temperature=15.0) == "kd_fmv"
    assert distilled(**eye) == "kd_fmv-alpha_0.7-temperature_10"
    assert distilled(dataset="brain_tumor", method="kd_fmv") == "kd_fmv"


def test_many_choices_are_a_short_hash():
    changed = {
        "rotated_views": 1,
        "rotated_weight": 1.0,
        "similarity_weight": 1.0,
        "head_epochs": 1,
    }
    every = changed | {"distance_weight": 1.0, "angle_weight": 1.0, "gram_weight": 1.0}
    one, other = (
        distilled(method="ssd_kd", options=every | {"gram_weight": weight}) for weight in (1.0, 2.0)
    )
    assert one != other and one == distilled(method="ssd_kd", options=every)
    assert len(one) < 30 and one.startswith("ssd_kd-")


def test_committed_results_keep_their_names():
    """What runs again with a committed file's configuration is written over that file."""
    seen = 0
    for result in results.load(files.ROOT / "outputs"):
        kind, stem = result.kind, result.file.rpartition("/")[2].removesuffix(".json")
        if stem == kind or kind not in ("distill", "explain", "layers", "integrity", "methods"):
            continue
        known = {name: v for name, v in result.config.items() if hasattr(Study, name)}
        study = Study(**known | {"options": result.config.get("options", {})})
        again = names.comparison(study, kind) if kind == "methods" else names.student(study, kind)
        assert again == stem, result.file
        seen += 1
    assert seen > 10


def test_the_committed_files_of_a_run_are_of_the_same_images():
    for folder in (files.ROOT / "outputs" / "runs").iterdir():
        stored = [files.read_json(path) for path in folder.glob("*.json")]
        images = {one["data"]["checksum"] for one in stored}
        assert len(images) == 1, f"{folder.name}: a file is left of an earlier split; run it again"
