"""Related systems: verdicts by the rules of the ledger, cards from the classes."""

import re
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from test_prose import options, value

from kdnb import cells, distillation, files, segmentation
from kdnb.captioning import CaptionParameters
from kdnb.evaluation import predictions
from kdnb.report import ledger, pages, results, site, systems
from kdnb.report.claims import CLAIMS
from kdnb.report.verdicts import HOLDS, NOT, PART, UNDECIDED, UNTESTED
from kdnb.study import Study
from kdnb.training import methods

TAUGHT = {"hard": 0.6, "hybrid": 0.7, "dkd": 0.9, "crckd": 0.4, "limit_trained": 0.5}
RELATED = ("dual_stream", "kd_oct", "efcm", "limit_trained", "ssd_kd", "crckd")
MASKS = "limit_trained_masks"
APART = (
    "pca_svc",
    "deep_handcrafted",
    "ensemble",
    "acid",
    "self_training",
    "aucm",
    MASKS,
    "captioner",
)
GENERIC = ("fitnet", "attention_transfer", "similarity_preserving", "rkd", "crd", "dkd", "dist")


def compared(
    home, name, seed=0, right=TAUGHT, known=0.8, title="Brain Tumor MRI", caveat="", **choices
):
    """A file as notebook 10 writes it; ``right`` are the shares of 300 images that each method's
    student answers correctly, ``known`` is the teacher's balanced accuracy."""
    labels, rng = np.arange(300) % 3, np.random.default_rng(seed)
    rows = {}
    for method, share in right.items():
        answers = np.where(rng.permutation(300) >= 300 * share, (labels + 1) % 3, labels)
        rows[method] = {"predicted": predictions.as_text(answers), "balanced_accuracy": share}
    given = {"dataset": "brain_tumor", "methods": "all", "seed": seed} | choices
    truth = predictions.truth(labels, np.arange(300))
    return files.write_json(
        home / "outputs" / f"{name}.json",
        {
            "results": truth | {"methods": rows, "teachers": {"t": {"balanced_accuracy": known}}},
            "config": Study.of(methods.MethodParameters)(**given).config(),
            "data": {
                "title": title,
                "caveat": caveat,
                "split": "group (copies together)",
                "checksum": files.digest([given["dataset"]]),
                "classes": ["a", "b", "c"],
            },
        },
    )


def found(name, reference, kind=None):
    """The comparison of a system with a reference in the result files under ``outputs/``, of a kind
    where it is compared in several."""
    (own,) = [m for m in systems.measure(results.load(), every=True) if m.system.name == name]
    if kind:
        (chosen,) = [
            each
            for each in own.comparisons
            if (each.reference, each.rows[0].claim.kind) == (reference, kind)
        ]
        return chosen
    return own.against(reference)


def test_three_seeds_decide_and_every_rule_applies(home):
    compared(home, "a/methods-x-s0")
    (row,) = found("dkd", "hybrid").rows
    assert row.verdict == UNDECIDED and "1 run trained, 3 are needed" in row.why
    for seed in (1, 2):
        compared(home, f"a/methods-x-s{seed}", seed)
    for reference, gap in (("hybrid", 0.2), ("hard", 0.3)):
        (row,) = found("dkd", reference).rows
        e = row.evidence.estimate
        assert row.verdict == HOLDS and e.value == pytest.approx(gap, abs=0.01)
        assert e.low > 0 and (e.n, e.seeds, row.evidence.seeds) == (300, 3, (0, 1, 2))
        assert row.evidence.files == tuple(f"outputs/a/methods-x-s{seed}.json" for seed in range(3))
    assert found("hybrid", "hard").verdict == HOLDS and found("hybrid", "hybrid") is None
    (worse,) = found("limit_trained", "hybrid").rows
    assert worse.verdict == NOT and "its own teachers" in worse.why
    assert found("crckd", "hybrid").verdict == NOT
    assert found("rkd", "hybrid").verdict == UNTESTED and not found("rkd", "hybrid").measured


def test_a_teacher_that_knows_no_more_refutes_a_method_that_learns_from_it(home):
    for seed in range(3):
        compared(home, f"a/methods-x-s{seed}", seed, known=0.55)
    (row,) = found("limit_trained", "hard").rows
    assert row.verdict == UNTESTED and "teacher (0.550) is no better" in row.why
    # a mean teacher is the student's own average: the given teacher plays no part
    assert found("crckd", "hard").verdict == NOT


def test_a_partial_copy_weakens_and_phantoms_and_own_folders_do_not_count(home):
    for seed in range(3):
        compared(home, f"a/methods-x-s{seed}", seed, caveat="partial copy: 9 images")
        compared(home, f"b/methods-x-s{seed}", seed, dataset="phantom_cxr", caveat="synthetic")
        compared(home, f"c/methods-x-s{seed}", seed, dataset="folder", title="Your images")
    (row,) = found("dkd", "hard").rows
    assert row.verdict == PART and row.why.endswith("on a partial copy")
    (row,) = found("crckd", "hard").rows
    assert row.verdict == UNTESTED and "a partial copy cannot refute it" in row.why


def test_each_setting_has_its_row_and_names_it(home):
    for seed in range(3):
        compared(home, f"a/methods-x-s{seed}", seed)
        named = {"dataset": "medmnist:breastmnist", "title": "BreastMNIST", "image_size": 64}
        compared(home, f"b/methods-x-s{seed}", seed, right=TAUGHT | {"dkd": 0.2}, **named)
        compared(home, f"c/methods-x-s{seed}", seed, recipe="kd_oct", student_epochs=3)
    comparison = found("dkd", "hybrid")
    assert [row.verdict for row in comparison.rows] == [HOLDS, NOT, HOLDS]
    assert comparison.verdict == UNDECIDED
    words = [
        row["setting"]
        for row in systems.table(systems.measure(results.load())).to_dict("records")
        if row["system"] == "dkd" and row["against"] == "plain soft targets"
    ]
    assert words[0].startswith("Brain Tumor MRI, split group: densenet121 → kdfmv5, 96 px, 8 + 15")
    assert "64 px" in words[1] and words[2].endswith(
        "8 + 3 epochs, random initial weights, recipe kd_oct"
    )


def test_runs_without_the_method_do_not_count_and_the_fuller_file_speaks(home):
    for seed in range(4):
        some = TAUGHT if seed else {"hard": 0.6, "hybrid": 0.7}
        compared(home, f"a/methods-x-s{seed}", seed, right=some)
    few = {name: TAUGHT[name] for name in ("hard", "hybrid")}
    compared(home, "methods-x-s1", 1, right=few, methods="")
    (row,) = found("dkd", "hybrid").rows
    assert (
        row.evidence.seeds == (1, 2, 3) and row.evidence.files[0] == "outputs/a/methods-x-s1.json"
    )
    (row,) = found("hybrid", "hard").rows
    assert row.evidence.seeds == (0, 1, 2, 3)


def test_a_teacher_is_a_system_in_its_own_cells_only(home):
    compared(home, "a/methods-x-s0")
    assert not found("dual_stream", "hard").measured
    compared(home, "b/methods-y-s0", teacher="dual_stream", image_size=96)
    (row,) = found("dual_stream", "hard").measured
    assert row.evidence.teacher == "dual_stream" and found("dual_stream", "hybrid") is None


def segmented(home, seed, gaps, known=0.8, **choices):
    """A file as notebook 13 writes it: Dice of 30 images of 10 patients by three students, of which
    the last differs from the two before it by ``gaps``, and of the teachers, ``known``."""
    rng = np.random.default_rng(seed)
    last = 0.6 + rng.normal(0, 0.01, 30)
    names = ("student, no teacher", "student, one teacher", "student, 2 limit-trained teachers")
    dice = [last - gaps[0], last - gaps[1] + rng.normal(0, 0.001, 30), last]
    teachers = ("teacher of all patients", "teacher 1 of 2", "teacher 2 of 2")
    given = {"dataset": "lgg_mri", "seed": seed, "teacher_shards": 2} | choices
    by_name = {name: [known] * 30 for name in teachers}
    by_name |= {name: list(values) for name, values in zip(names, dice, strict=True)}
    test = {"groups": [k // 3 for k in range(30)], "dice": by_name}
    return files.write_json(
        home / "outputs" / f"segmentation-x-{files.digest(choices)}-s{seed}.json",
        {
            "results": {"test": test},
            "config": Study.of(segmentation.SegmentationParameters)(**given).config(),
            "data": {
                "title": "LGG MRI",
                "caveat": "",
                "split": "group: patients",
                "checksum": "0123",
                "classes": ["background", "lesion"],
            },
        },
    )


def test_a_system_that_segments_is_measured_in_dice_against_its_own_controls(home):
    for seed in range(3):
        segmented(home, seed, (0.09, -0.05))
    (row,) = found(MASKS, "hard").rows
    e = row.evidence.estimate
    assert row.verdict == HOLDS and e.value == pytest.approx(0.09) and (e.n, e.seeds) == (30, 3)
    assert row.number.startswith("+9.0") and "points of Dice" in row.number
    (row,) = found(MASKS, "one_teacher").rows
    assert row.verdict == NOT and row.evidence.estimate.value == pytest.approx(-0.05, abs=0.001)
    assert "10 patients" in row.why and row.evidence.teacher.startswith("2 × ")
    measured = {m.system.name: m for m in systems.measure(results.load())}[MASKS]
    table = systems.table([measured])
    assert table["against"].tolist() == ["one teacher of all patients", "no teacher"]
    html = site.method_card(measured)
    assert "one teacher of all patients" in html and "+9.0" in html
    for seed in range(3):
        segmented(home, seed, (0.09, -0.05), known=0.3)
    (row,) = found(MASKS, "one_teacher").rows
    assert row.verdict == UNTESTED and "the teacher (0.300) is no better" in row.why
    segmented(home, 0, (0.2, 0.2), weighting="equal")
    assert len(found(MASKS, "hard").rows) == 2, "another weighting is another setting"


def test_every_related_system_has_a_row_beside_the_claims_of_the_papers(home):
    """They are counted apart from the claims of papers A and B."""
    measured = systems.measure(results.load())
    assert {each.system.name for each in measured} == {*RELATED, *GENERIC, *APART}
    assert {each.system.name for each in measured if each.system.apart} == {*APART}
    for each in measured:
        assert each.system.fact("reported_on") and each.system.fact("paper"), each.system.name
        for row in each.rows:
            assert row.verdict == UNTESTED and f"to run it: {row.claim.run}" in row.why
    ids = {row.claim.id for each in measured for row in each.rows}
    assert not ids & {claim.id for claim in CLAIMS}
    assert len(ledger.measure(results.load())) == len(CLAIMS)
    page = ledger.page(ledger.measure(results.load()), results.load())
    rows = BeautifulSoup(page, "html.parser").select("tr[id^=system-]")
    in_order = sorted(measured, key=lambda each: each.system.apart)
    assert [row["id"] for row in rows] == [f"system-{each.system.name}" for each in in_order]


def test_a_captioner_is_judged_by_the_facts_in_its_reports(home):
    def ran(seed, measure="f1", chance=0.1, ends=(0.05, 0.08, 0.11), **choices):
        given = {"dataset": "brain_tumor", "seed": seed} | choices
        gap = {"measure": measure} | dict(zip(("low", "difference", "high"), ends, strict=True))
        levels = {"probe": 0.2, "encoder_lora": 0.28, "small": 0.2, "small, taught": 0.28}
        levels["report of another image"] = chance
        scores = [{"writer": w, "measure": measure, "value": v} for w, v in levels.items()]
        gaps = [gap | {"label": each} for each in ("small, taught − small", "encoder_lora − probe")]
        files.write_json(
            home / "outputs" / measure / f"reports-x-s{seed}.json",
            {
                "results": {
                    "measure": measure,
                    "differences": gaps,
                    "images": {"test": 90},
                    "scores": scores,
                },
                "config": Study.of(CaptionParameters)(**given).config(),
                "data": {
                    "title": "Brain Tumor MRI",
                    "caveat": "",
                    "split": "group (copies together)",
                    "checksum": "one",
                    "classes": ["a", "b", "c", "d"],
                },
            },
        )

    ran(0, "rouge_l")  # words alone are no evidence of truth
    (row,) = found("captioner", "small", "captions").rows
    assert row.verdict == UNDECIDED and row.number == "+8.0 [+5.0, +11.0] points of ROUGE-L"
    ran(7, "synthetic", dataset="phantom_cxr")
    assert not found("captioner", "small", "reports").measured
    for seed in range(3):
        ran(seed)
    assert found("captioner", "probe", "reports").verdict == HOLDS
    (row,) = found("captioner", "small", "reports").rows
    assert row.verdict == HOLDS and row.number == "+8.0 [+5.0, +11.0] points of F1"
    assert row.evidence.seeds == (0, 1, 2) and row.evidence.estimate.n == 90
    for seed in range(3):
        ran(seed, ends=(-0.001, 0.0, 0.001))
    assert found("captioner", "small", "reports").verdict == NOT
    for seed in range(3):
        ran(seed, chance=0.3, ends=(-0.001, 0.0, 0.001))
    (row,) = found("captioner", "small", "reports").rows
    assert row.verdict == UNTESTED and "neither captioner (0.280 at most)" in row.why
    for seed in range(3):
        ran(seed)
    card = {m.system.name: m for m in systems.measure(results.load())}["captioner"]
    text = BeautifulSoup(site.method_card(card), "html.parser").get_text(" ", strip=True)
    assert "+8.0" in text and "ImageCLEFmedical" in text and "kdnb.run 14" in text


def test_commands_are_commands():
    for system in systems.systems():
        words = system.command.split()
        assert words[:3] == ["python", "-m", "kdnb.run"] and 10 <= int(words[3]) <= 14
        Study.of(*cells.WINGS).from_parameters(options(words))
    assert value("224") == 224


def test_the_csv_has_a_row_a_comparison(home):
    compared(home, "a/methods-x-s0")
    table = pd.read_csv(StringIO(systems.csv(systems.measure(results.load()))))
    dkd = table[(table["system"] == "dkd") & (table["against"] == "plain soft targets")]
    assert dkd["measured"].item() == pytest.approx(0.2, abs=0.01)
    assert dkd["result_file"].item() == "outputs/a/methods-x-s0.json"
    assert (table["measured"].notna() == table["result_file"].notna()).all()


# a test of CONTRIBUTING may have registered its example in this process
OURS = [each for each in systems.systems() if each.facts.__module__.startswith("kdnb.")]


@pytest.mark.parametrize("system", OURS, ids=lambda system: system.name)
def test_a_class_states_what_its_card_shows(system):
    assert system.idea.endswith(".") and len(system.idea) < 260 and "`" not in system.idea
    assert all("<math" in convert(line) for line in system.equation.split(r"\\"))
    assert "\\" not in re.sub("<[^>]*>", "", pages.equation(system.equation)), "unread LaTeX"
    assert "`" not in system.ours
    assert bool(system.ours) == ("Ours" in (system.facts.__doc__ or ""))


def test_a_new_method_brings_its_own_card(home, monkeypatch):
    monkeypatch.setattr(distillation.base, "METHODS", dict(distillation.METHODS))
    monkeypatch.setattr(systems, "METHODS", distillation.base.METHODS)

    @distillation.register("new_way")
    class NewWay(distillation.METHODS["hybrid"]):
        """A sum of two terms.

        Ours: the second term.
        """

        title, paper = "a new way", "Someone 2030"
        idea, equation = "Two terms are better than one.", r"\mathcal{L} = a + b"
        reported, reported_on = "two terms teach better", "two <images>"

    card = {m.system.name: m for m in systems.measure([], every=True)}["new_way"]
    text = BeautifulSoup(site.method_card(card), "html.parser").get_text(" ", strip=True)
    for words in ("Two terms are better", "The second term.", "Someone 2030", "two <images>"):
        assert words in text
    assert "-p methods new_way" in text and "temperature" in text
    assert 'alttext="\\mathcal{L} = a + b"' in site.method_card(card)
    assert "new_way" in {each.system.name for each in systems.measure([])}


def test_a_card_shows_the_result_and_its_files(home):
    for seed in range(3):
        compared(home, f"a/methods-x-s{seed}", seed)
    cards = {m.system.name: m for m in systems.measure(results.load(), every=True)}
    html = site.method_card(cards["dkd"])
    assert re.search(r"\+\d\d\.\d \[\+\d+\.\d, \+\d+\.\d\] points", html) and "v-holds" in html
    assert 'href="../outputs/a/methods-x-s2.json"' in html and "3 runs" in html
    assert "Result here" not in site.method_card(cards["hard"])


# systems with controls of their own


def told(share, seed, count=300):
    """Answers for ``count`` images of three classes in turn, ``share`` of them right, and their
    balanced accuracy, as a result file holds both."""
    labels, rng = np.arange(count) % 3, np.random.default_rng(seed)
    answers = np.where(rng.permutation(count) >= count * share, (labels + 1) % 3, labels)
    return {"predicted": predictions.as_text(answers), "balanced_accuracy": share}


def apart(home, kind, held, seed=0, **choices):
    """A file as notebook 11 (``labels``) or 12 (``features``) writes it."""
    given = {"dataset": "covid_ct", "seed": seed, "teacher": "resnet10t"} | choices
    data = {"title": "COVID-CT", "caveat": "", "split": "official", "checksum": "x", "classes": []}
    truth = predictions.truth(np.arange(300) % 3, np.arange(300))
    stored = {
        "results": truth | held,
        "config": Study.of(*cells.WINGS)(**given).config(),
        "data": data,
    }
    return files.write_json(home / "outputs" / "covid_ct" / f"{kind}-{seed}.json", stored)


def features(seed, parts=("a", "b", "glcm", "fft")):
    shares = {"all parts": 0.95, "a": 0.4, "b": 0.6, "all networks": 0.7, "handcrafted": 0.3}
    pipelines = {f"{name} alone": told(x, seed) | {"parts": [name]} for name, x in shares.items()}
    pipelines["a alone"]["validated"], pipelines["b alone"]["validated"] = 0.75, 0.65
    members = {"teacher t": 0.5, "student s": 0.6, "mean of probabilities": 0.85, "pipeline": 0.9}
    return {
        "features": [{"part": name} for name in parts],
        "pipelines": pipelines,
        "shortcuts": {
            f"{name} only": told(share, seed + 9)
            for name, share in {"statistics": 0.96, "border": 0.5, "colour mode": 0.7}.items()
        },
        "networks": {name: told(share, seed + 5) for name, share in members.items()},
    }


def test_features_are_compared_with_their_parts_and_with_shortcuts(home):
    for seed in range(3):
        apart(home, "features", features(seed), seed, features="teacher+resnet34+glcm+fft")
    for name, reference, gap, verdict in (
        # the best network is chosen by cross-validation in training, not by test accuracy
        ("pca_svc", "one network", 0.3, HOLDS),
        ("pca_svc", "statistics", -0.26, NOT),
        ("pca_svc", "border", 0.2, HOLDS),
        ("deep_handcrafted", "colour mode", 0.25, HOLDS),
        ("deep_handcrafted", "networks", 0.25, HOLDS),
        ("deep_handcrafted", "handcrafted", 0.65, HOLDS),
        ("ensemble", "best member", 0.25, HOLDS),
    ):
        (row,) = found(name, reference).rows
        assert row.evidence.estimate.value == pytest.approx(gap, abs=1e-6), (name, reference)
        assert row.verdict == verdict and row.evidence.seeds == (0, 1, 2), (name, reference)
    assert (
        "a is the best of its networks in cross-validation"
        in found("pca_svc", "one network").rows[0].why
    )
    assert "teacher+resnet34+glcm+fft" in pages.setting(found("pca_svc", "statistics").rows[0])


def test_seeds_of_a_pipeline_on_published_features_are_one_run(home):
    """They draw the folds of its cross-validation only, so that its images alone decide; the
    ensemble's networks are trained."""
    for seed in range(3):
        apart(home, "features", features(seed), seed, features="resnet18+resnet34+glcm+fft")
    (row,) = found("deep_handcrafted", "handcrafted").rows
    assert row.verdict == HOLDS and "other seeds only draw other folds" in row.why
    assert row.evidence.untrained and row.evidence.estimate.seeds == 1
    assert row.evidence.seeds == (0, 1, 2) and "are needed" not in row.why
    assert "epochs" not in row.evidence.setting and "resnet18+resnet34" in row.evidence.setting
    assert found("ensemble", "best member").rows[0].verdict == HOLDS


def test_one_run_decides_nothing_and_one_network_is_joined_with_none(home):
    apart(home, "features", features(0))
    (row,) = found("ensemble", "best member").rows
    assert row.verdict == UNDECIDED and "1 run trained, 3 are needed" in row.why
    assert not found("acid", "random").measured
    one = features(1, ("a", "glcm", "fft"))
    apart(home, "features", one, 1, image_size=32)
    assert len(found("pca_svc", "statistics").rows) == 1
    # the network alone stands in place of several
    gaps = [row.evidence.estimate.value for row in found("deep_handcrafted", "networks").rows]
    assert gaps == pytest.approx([0.25, 0.55])


def labels(seed, gap=0.1, order=0.7):
    shares = [
        {"share": share, "method": method} | told(x, seed)
        for share, method, x in (
            (0.3, "hard", 0.7),
            (0.3, "self_training", 0.75),
            (0.15, "hard", 0.5),
            (0.15, "self_training", 0.75),
            (0.15, "teacher t", 0.65),
            (0.05, "hard", 0.1),  # the claim is about 15 %
            (0.05, "self_training", 0.2),
            (1.0, "hard", 0.97),
        )
    ]
    names = {"hard, acid": 0.9, "hard, random": 0.65, "hard, random, equal cost": 0.99}
    area = {"difference": gap, "low": gap - 0.05, "high": gap + 0.05, "n": 300}
    positives = [
        {"positives": share, "loss": loss, "against": against, "auc_interval": [order, 0.9]}
        for share in (0.05, 0.5)
        for loss, against in (
            ("weighted cross-entropy", {}),
            ("AUC margin", {"auc": area | {"difference": gap + (share == 0.5)}}),
        )
    ]
    curated = [{"name": name} | told(x, seed) for name, x in names.items()]
    return {"shares": shares, "curated": curated, "positives": positives}


def test_self_training_curation_and_areas_have_rows_and_verdicts(home):
    """One seed has the whole curve; the others have the share of the claim alone."""
    for seed, extent in enumerate(("0.05+0.15+0.3", "0.15", "0.15")):
        apart(home, "labels", labels(seed), seed, label_shares=extent)
    for name, reference, gap, verdict in (
        ("self_training", "all labels", -0.22, NOT),
        ("self_training", "few labels", 0.25, HOLDS),
        ("acid", "random", 0.25, HOLDS),
        ("acid", "random of equal cost", -0.09, NOT),
        ("aucm", "weighted cross-entropy", 0.1, HOLDS),
    ):
        (row,) = found(name, reference).rows
        assert row.evidence.estimate.value == pytest.approx(gap, abs=1e-6), name
        assert row.verdict == verdict, (name, row.why)
    (row,) = found("self_training", "all labels").rows
    assert "15% of the labels" in row.why and row.number.endswith("points")
    assert "5% positives, AUC" in found("aucm", "weighted cross-entropy").rows[0].why
    for seed in range(3):  # neither loss has learnt anything
        apart(home, "labels", labels(seed, -0.1, 0.45), seed)
    (row,) = found("aucm", "weighted cross-entropy").rows
    assert row.verdict == UNTESTED and "better than chance" in row.why
    html = site.method_card({m.system.name: m for m in systems.measure(results.load())}["acid"])
    assert "random batches, equal cost" in html and "of every comparison" not in html
