"""The claims of both papers that can be checked: what each says, where, and how it is measured.

No number is written here but the papers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdnb.images.catalogue import DATASETS
from kdnb.report import measures
from kdnb.report.measures import Claim, Row, row
from kdnb.report.results import Result
from kdnb.report.verdicts import UNTESTED, about, no_loss


def ledger(results: Sequence[Result]) -> list[Row]:
    """Every claim against the result files. A claim that nothing was run for says so, with the
    command that would run it."""
    rows: list[Row] = []
    for claim in CLAIMS:
        title = DATASETS[claim.dataset].title if claim.dataset else ""
        nothing = row(
            claim, None, (UNTESTED, f"not run; this would: {claim.run}"), dataset=title, unit=""
        )
        rows += claim.measure(claim, results) or [nothing]
    return rows


_A = "abstract of arXiv:2508.15251; its tables could not be read here"
_B = "secondary summary of arXiv:2502.15959, without a name or address; the paper itself could not be read here"
_B_ABSTRACT = "abstract of arXiv:2502.15959"
_A_TEACHERS = ("vgg19_bn", "visformer_small", "autoformerv2_tiny")


def _run(dataset: str, teacher: str, student: str, number: str = "03", **more: object) -> str:
    given = {"dataset": dataset, "teacher": teacher, "student": student} | more
    return f"python -m kdnb.run {number} " + " ".join(
        f"-p {name} {value}" for name, value in given.items()
    )


def _paper_a(dataset: str) -> list[Claim]:
    title = DATASETS[dataset].title
    run, explained = (_run(dataset, "visformer_small", "ofa595", number) for number in ("03", "04"))
    common = {
        "paper": "A",
        "dataset": dataset,
        "source": _A,
        "run": run,
        "wanted": (("student", "ofa595"), ("method", "hybrid")),
    }
    return [
        Claim(
            f"A-{dataset}-accuracy",
            claim=f"Accuracy of the distilled OFA-595 on {title}",
            claimed="high; the number could not be read",
            measure=measures.accuracy,
            **common,
        ),
        Claim(
            f"A-{dataset}-teacher",
            claim=f"The distilled OFA-595 keeps its teacher's accuracy on {title}",
            claimed="student maintains high classification performance",
            measure=partial(measures.against_teacher, rule=no_loss),
            **common,
        ),
        Claim(
            f"A-{dataset}-gain",
            claim=f"Labels and soft targets teach OFA-595 better than labels alone on {title}",
            claimed="hybrid supervision; implied, the abstract states no control",
            measure=measures.gains,
            **common,
        ),
        Claim(
            f"A-{dataset}-alike",
            claim=f"Score-CAM: OFA-595 looks where its teacher looks on {title}",
            claimed="insight into the spatial focus of teacher and student; implied",
            measure=partial(measures.likeness, method="score_cam", control="other_image"),
            **common | {"run": explained},
        ),
        Claim(
            f"A-{dataset}-focus",
            claim=f"Score-CAM: distillation makes OFA-595 look where its teacher looks on {title}",
            claimed="insight into the spatial focus of teacher and student; implied",
            measure=partial(measures.likeness, method="score_cam"),
            **common | {"run": explained},
        ),
    ]


def _paper_b(
    dataset: str, teacher: float | None, student: float, alpha: float, temperature: float
) -> list[Claim]:
    title = DATASETS[dataset].title
    run = _run(
        dataset, "densenet121", "kdfmv5", method="kd_fmv", alpha=alpha, temperature=temperature
    )
    wanted = (
        ("teacher", "densenet121"),
        ("method", "kd_fmv"),
        ("alpha", alpha),
        ("temperature", temperature),
        ("student", "kdfmv5"),
    )
    common = {"paper": "B", "dataset": dataset, "source": _B, "run": run, "wanted": wanted}
    loses = (
        teacher is None
    )  # eye disease: the summary gives the distance, not the teacher's accuracy
    distance = -0.05 if loses else student - teacher
    how = "stays some points below" if loses else "is as good as"
    against = Claim(
        f"B-{dataset}-teacher",
        claim=f"The student {how} its teacher on {title}",
        claimed=f"{100 * distance:+.2f} points" if not loses else "about 5 points below",
        measure=partial(
            measures.against_teacher, rule=partial(about, claimed=distance) if loses else no_loss
        ),
        value=distance,
        **common,
    )
    printed = (
        []
        if loses
        else [
            Claim(
                f"B-{dataset}-teacher-accuracy",
                claim=f"Accuracy of the DenseNet121 teacher on {title}",
                claimed=f"{teacher:.4f}",
                measure=partial(measures.accuracy, role="teacher"),
                value=teacher,
                **common,
            )
        ]
    )
    explained, layers = run.replace("run 03", "run 04"), run.replace("run 03", "run 05")
    published = common | {
        "run": run.replace("-p method kd_fmv", "-p method kd_fmv_as_released"),
        "source": "published code, github.com/AIPMLab/KD-FMV",
    }
    return [
        *printed,
        Claim(
            f"B-{dataset}-student-accuracy",
            claim=f"Accuracy of the distilled student on {title}",
            claimed=f"{student:.4f} (α {alpha:g}, T {temperature:g})",
            measure=measures.accuracy,
            value=student,
            **common,
        ),
        against,
        Claim(
            f"B-{dataset}-gain",
            claim=f"Distillation makes the student better than training alone does on {title}",
            claimed="implied; no control is known here",
            measure=measures.gains,
            **common,
        ),
        Claim(
            f"B-{dataset}-optimum",
            claim=f"α {alpha:g} and T {temperature:g} are best on {title}",
            claimed=f"α {alpha:g}, T {temperature:g}",
            measure=measures.optimum,
            **common | {"run": "make study SET=cpu"},
        ),
        Claim(
            f"B-{dataset}-released",
            claim=f"The loss of the published code distils on {title}",
            claimed="it distils",
            measure=measures.released,
            **published,
        ),
        Claim(
            f"B-{dataset}-alike",
            claim=f"Grad-CAM: the student looks where its teacher looks on {title}",
            claimed="retain most of the features of the data set; that both look at the same places is implied",
            measure=partial(measures.likeness, method="grad_cam", control="other_image"),
            **common | {"source": _B_ABSTRACT, "run": explained},
        ),
        Claim(
            f"B-{dataset}-focus",
            claim=f"Grad-CAM: distillation makes the student look where its teacher looks on {title}",
            claimed="retain most of the features of the data set; that the student looks where its teacher looks is implied",
            measure=partial(measures.likeness, method="grad_cam"),
            **common | {"source": _B_ABSTRACT, "run": explained},
        ),
        Claim(
            f"B-{dataset}-features",
            claim=f"Distillation brings the student's last layer closer to its teacher's on {title}",
            claimed="retain most of the features of the data set; that the teacher hands them on is implied",
            measure=measures.features,
            **common | {"source": _B_ABSTRACT, "run": layers},
        ),
        *(
            Claim(
                f"B-{dataset}-met-{how.lower().replace(' ', '-')}",
                claim=f"{how}: the student is faster on {title}",
                claimed=claimed,
                measure=partial(measures.explanation_time, title=how, kind=kind),
                **common | {"source": source, "run": command},
                value=times,
            )
            for how, claimed, source, times, kind, command in (
                ("SHAP", "about 60 s to about 15 s", _B, 4.0, "explain", explained),
                ("Grad-CAM", "less time for the analysis", _B_ABSTRACT, None, "explain", explained),
                (
                    "Average feature maps",
                    "less time for the analysis",
                    _B_ABSTRACT,
                    None,
                    "layers",
                    layers,
                ),
            )
        ),
    ]


_ZOO = "python -m kdnb.run 00"
CLAIMS: tuple[Claim, ...] = (
    *_paper_a("covid_qu_ex"),
    *_paper_a("lc25000"),
    Claim(
        "A-parameters",
        "A",
        "OFA-595 has fewer parameters than its teachers",
        "significantly reduced parameters",
        _A,
        partial(measures.counted, column="parameters", teachers=_A_TEACHERS, students=("ofa595",)),
        _ZOO,
    ),
    Claim(
        "A-macs",
        "A",
        "OFA-595 needs fewer multiply-accumulates than its teachers",
        "implied by the reduced inference time; no operations are named",
        _A,
        partial(measures.counted, column="macs", teachers=_A_TEACHERS, students=("ofa595",)),
        _ZOO,
    ),
    Claim(
        "A-latency",
        "A",
        "OFA-595 answers faster than its teachers",
        "significantly reduced inference time",
        _A,
        partial(measures.latency, teachers=_A_TEACHERS),
        "python -m benchmarks.latency",
    ),
    *_paper_b("brain_tumor", 0.9676, 0.9748, 0.7, 10.0),
    *_paper_b("eye_disease", None, 0.9351, 0.4, 15.0),
    *_paper_b("alzheimer", 0.9938, 0.9946, 0.4, 5.0),
    Claim(
        "B-macs",
        "B",
        "The student needs less than half of the teacher's FLOPs",
        "less than half",
        _B,
        partial(
            measures.counted,
            column="macs",
            teachers=("densenet121",),
            students=("kdfmv5", "kdfmv8"),
            limit=0.5,
        ),
        _ZOO,
    ),
    Claim(
        "B-parameters",
        "B",
        "The student has fewer parameters than its teacher",
        "implied by a simplified architecture; no parameters are named",
        _B_ABSTRACT,
        partial(
            measures.counted,
            column="parameters",
            teachers=("densenet121",),
            students=("kdfmv5", "kdfmv8"),
        ),
        _ZOO,
    ),
    Claim(
        "B-layers",
        "B",
        "The student has fewer layers than its teacher",
        "reduce the number of network layers",
        _B_ABSTRACT,
        partial(
            measures.counted,
            column="layers",
            teachers=("densenet121",),
            students=("kdfmv5", "kdfmv8"),
        ),
        _ZOO,
    ),
)
