"""Every figure is drawn from realistic values, with its text inside the figure and nothing on top
of it."""

import io
import itertools
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import paint
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kdnb import plots
from kdnb.evaluation import ranking
from kdnb.files import UnknownName
from kdnb.plots import style
from kdnb.report.methods import what_is_transferred

CLASSES = ("COVID-19", "Non-COVID pneumonia", "Normal")
TEACHER, DISTILLED, BASELINE = "teacher densenet121", "distilled kdfmv5", "baseline kdfmv5"
ROLES = {TEACHER: "teacher", DISTILLED: "distilled", BASELINE: "baseline"}
METHODS = ("Score-CAM", "Grad-CAM", "Grad-CAM++ ⚠", "Eigen-CAM", "Layer-CAM", "SHAP", "Occlusion")
METHODS += ("Integrated gradients", "Guided backpropagation", "random map", "centre prior")


def png(figure: Figure) -> np.ndarray:
    """Grey values ``(H, W)`` of a figure as a notebook shows it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert not plt.get_fignums(), "an open figure is shown twice"
    return np.asarray(Image.open(buffer).convert("L"))


def numbers() -> np.random.Generator:
    return np.random.default_rng(0)


def photographs(count: int, size: int = 96) -> np.ndarray:
    """Smooth grey images ``(N, H, W)``, brighter in two lungs."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lungs = np.exp(-((np.abs(x) - 0.45) ** 2) / 0.05 - y**2 / 0.3)
    noise = numbers().normal(0, 8, (count, size, size))
    return (40 + 150 * lungs + noise).clip(0, 255).astype(np.uint8)


def maps(count: int, size: int = 96) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    places = numbers().uniform(-0.6, 0.6, (count, 2))
    return np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.1) for a, b in places])


def squares(count: int, size: int = 96) -> np.ndarray:
    found = np.zeros((count, size, size), bool)
    found[:, 30:50, 20:40] = True
    return found


def spread(rows: list[dict], column: str, low: float, high: float, width: float) -> pd.DataFrame:
    """Rows with a value in [``low``, ``high``] and an interval around it."""
    table = pd.DataFrame(rows)
    value = numbers().uniform(low, high, len(table))
    return table.assign(**{column: value, "low": value - width, "high": value + width})


def history(best: float) -> pd.DataFrame:
    epoch = np.arange(1, 13)
    wave = 0.02 * np.sin(epoch)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "hard_loss": 1.1 * np.exp(-epoch / 4) + 0.05,
            "val_loss": 1.1 * np.exp(-epoch / 5) + 0.15 + wave,
            "val_balanced_accuracy": best - 0.5 * np.exp(-epoch / 3) + wave,
        }
    )


def bins(slope: float) -> pd.DataFrame:
    confidence = np.linspace(0.45, 0.99, 9)
    accuracy = (0.3 + slope * confidence**2).clip(0, 1)
    return pd.DataFrame(
        {"confidence": confidence, "accuracy": accuracy, "count": np.arange(5, 50, 5)}
    )


def samples() -> Figure:
    labels = [name for name in CLASSES for _ in range(5)]
    masks = {"organ": squares(15) | np.roll(squares(15), 35, 2), "lesion": squares(15)}
    masks["lesion"][10:] = False
    return plots.samples(photographs(15), labels, masks, "Phantom chest radiographs")


def class_balance() -> Figure:
    counts = {"train": [7658, 7208, 6849], "val": [1903, 1802, 1712], "test": [2395, 2253, 2140]}
    return plots.class_balance(pd.DataFrame(counts, index=CLASSES), "Images by class and split")


def problems() -> Figure:
    table = {
        "problem": ["unreadable file", "label conflict", "exact duplicate"],
        "files": [2, 1, 9],
    }
    return plots.problems(pd.DataFrame(table), "Files with a problem")


def image_pairs(folder) -> Figure:
    for number in range(5):
        paint(folder / "COVID-19" / f"covid_image_{number}.png", number)
    rows = [
        {
            "first": f"COVID-19/covid_image_{n}.png",
            "second": f"COVID-19/covid_image_{n + 1}.png",
            "kind": "near duplicate",
            "correlation": 0.95 + n / 100,
        }
        for n in range(4)
    ]
    return plots.image_pairs(folder, pd.DataFrame(rows), "Detected duplicates")


def learning_curves() -> Figure:
    histories = {name: history(best) for name, best in zip(ROLES, (0.95, 0.93, 0.9), strict=True)}
    return plots.learning_curves(histories, ROLES, "Phantom chest radiographs: validation")


def confusion() -> Figure:
    counts = numbers().integers(0, 40, (3, 3)) + 400 * np.eye(3, dtype=int)
    matrices = dict.fromkeys(ROLES, counts.tolist())
    return plots.confusion(matrices, CLASSES, "Confusion on test images")


def reliability() -> Figure:
    tables = {name: bins(slope) for name, slope in zip(ROLES, (0.7, 0.6, 0.5), strict=True)}
    errors = dict(zip(ROLES, (0.021, 0.034, 0.112), strict=True))
    return plots.reliability(tables, errors, ROLES, "Calibration on test images")


def forest() -> Figure:
    rows = [
        {"group": group, "label": f"{label}  (random, α 0.5, n 2,100, 3 seeds)"}
        for group in ("COVID-QU-Ex", "LC25000")
        for label in ("distilled − baseline", "distilled − teacher")
    ]
    return plots.forest(spread(rows, "difference", -0.03, 0.03, 0.01), "Differences in accuracy")


def accuracy_grid() -> Figure:
    values = numbers().uniform(0.85, 0.97, (3, 4))
    values[1, 2] = np.nan
    table = pd.DataFrame(values, index=[0.1, 0.4, 0.7], columns=[1.0, 5.0, 10.0, 15.0])
    return plots.accuracy_grid(table, (0.7, 10.0), "Distilled student")


def label_shares() -> Figure:
    table = pd.DataFrame({"share": [0.05, 0.1, 0.25, 1.0]})
    rising = np.array([0.6, 0.7, 0.8, 0.9])
    for name, values in {
        "teacher": rising + 0.05,
        "distilled": rising + 0.02,
        "baseline": rising,
        "difference": np.array([0.06, 0.04, 0.02, 0.0]),
    }.items():
        bounds = {f"{name} low": values - 0.02, f"{name} high": values + 0.02}
        table = table.assign(**{name: values}, **bounds)
    table = table.assign(seeds=3, n=1166, epochs="10 + 20")
    return plots.label_shares(table, "COVID-QU-Ex (partial copy): tf_efficientnet_lite0 → ofa595")


SEGMENTERS = {
    "teacher of all patients": "teacher",
    **{f"teacher {number} of 3": "teacher" for number in (1, 2, 3)},
    "student, no teacher": "baseline",
    "student, one teacher": "distilled",
    "student, 3 limit-trained teachers": "distilled",
}


def masks_over_images() -> Figure:
    names = ["teacher of all patients", "student, 3 limit-trained teachers"]
    masks = {name: np.roll(squares(3), 8 * shift, 2) for shift, name in enumerate(names)}
    rows = [f"{dice:.2f} Dice" for dice in (0.1, 0.6, 0.93)]
    return plots.masks_over_images(photographs(3), squares(3), masks, rows, "LGG MRI")


def dice_curves() -> Figure:
    histories = {
        name: history(0.6 + number / 30).rename(columns={"val_balanced_accuracy": "val_dice"})
        for number, name in enumerate(SEGMENTERS)
    }
    return plots.dice_curves(histories, SEGMENTERS, "LGG MRI")


def dice_by_size() -> Figure:
    rows = [
        {"model": name, "role": role, "size": size, "n": 40}
        for name, role in SEGMENTERS.items()
        for size in (0.004, 0.012, 0.03, 0.07)
    ]
    return plots.dice_by_size(spread(rows, "dice", 0.2, 0.9, 0.05), "LGG MRI, 64 px")


def agreement() -> Figure:
    names = [TEACHER, "tf_efficientnet_lite0", "student kdfmv5"]
    rows = [
        {"one": one, "other": other, "kappa": 0.3, "disagreement": 0.25}
        for one, other in itertools.combinations(names, 2)
    ]
    return plots.agreement(pd.DataFrame(rows), "Agreement on 203 test images")


def accuracy_by_split() -> Figure:
    rows = [
        {"split": split, "seed": seed, "n": 2100}
        for split in ("official", "random", "group")
        for seed in range(3)
    ]
    table = spread(rows, "balanced_accuracy", 0.8, 0.95, 0.02)
    return plots.accuracy_by_split(table, "kdfmv5, 12 epochs, 64 px")


def accuracy_by_share() -> Figure:
    ways = ("teacher tf_efficientnet_lite0", "hard", "hybrid", "self_training")
    rows = [{"share": share, "method": way} for share in (0.05, 0.15, 0.3, 1.0) for way in ways]
    table = spread(rows, "balanced_accuracy", 0.5, 0.9, 0.04)
    return plots.accuracy_by_share(table, "kdfmv5, group split")


def accuracy_by_view() -> Figure:
    views = ("whole image", "border only", "centre only", "organ blanked", "organ only")
    rows = [{"view": v, "model": m, "role": r} for v in views for m, r in ROLES.items()]
    table = spread(rows, "balanced_accuracy", 0.4, 0.9, 0.04)
    return plots.accuracy_by_view(table, 1 / 3, "Accuracy from partial views")


def maps_over_images() -> Figure:
    names = [f"{role}\n{method}" for method in METHODS[:4] for role in ("teacher", "distilled")]
    columns = {name: maps(3) for name in names}
    columns[names[-1]] = maps(3) - 0.5
    columns[names[2]] = np.zeros((3, 96, 96))
    titles = {name: [f"{label} 0.97" for label in CLASSES] for name in names}
    rows = [*CLASSES[:2], "Normal\n(misclassified)"]
    picture = photographs(3), columns, rows, titles, squares(3), names[-1:]
    return plots.maps_over_images(*picture, title="The same class explained for both networks")


def shap_values() -> Figure:
    values = [maps(3) - np.roll(maps(3), 20, 1) for _ in CLASSES]
    title = f"{TEACHER}: SHAP values"
    return plots.shap_values(photographs(3), values, CLASSES, CLASSES, title)


def feature_maps() -> Figure:
    layers = {f"features.denseblock{n}": maps(3, 48 // n) for n in range(1, 6)}
    return plots.feature_maps(photographs(3), layers, f"{TEACHER}: average feature maps")


def measures() -> Figure:
    labels = {
        "deletion": "deletion, blur (lower is better)",
        "insertion": "insertion, blur (higher is better)",
        "average_drop": "average drop (lower is better)",
        "increase": "increase in confidence (higher is better)",
        "road": "ROAD (higher is better)",
        "sparseness": "sparseness (Gini index)",
    }
    rows = [
        {"method": method, "model": model, "role": ROLES[model], "measure": measure}
        for method in METHODS
        for model in (TEACHER, DISTILLED)
        for measure in labels
    ]
    table = spread(rows, "mean", 0.1, 0.9, 0.08)
    return plots.measures(table, labels, "Faithfulness on 24 test images")


def removal_curves() -> Figure:
    steps = np.linspace(0, 1, 17)
    curves = {
        method: {
            "deletion": np.exp(-steps * (2 + number))[None],
            "insertion": 1 - np.exp(-steps * (2 + number))[None],
        }
        for number, method in enumerate(METHODS)
    }
    return plots.removal_curves(curves, f"{TEACHER}: deleted pixels become blurred")


def randomisation() -> Figure:
    stages = ["trained", *(f"{n} of 121 layers" for n in (1, 41, 81, 121))]
    tables = {
        method: pd.DataFrame({"stage": stages, "spearman": np.linspace(1, number / 12, 5)})
        for number, method in enumerate(METHODS[:9])
    }
    return plots.randomisation(tables, f"{DISTILLED}: maps after re-initialising layers")


def map_similarity() -> Figure:
    roles = {"distilled student": "distilled", "baseline student": "baseline"}
    roles |= {"distilled, other image": "distilled", "centre prior": ""}
    rows = [{"comparison": c, "role": r, "measure": "spearman"} for c, r in roles.items()]
    return plots.map_similarity(spread(rows, "mean", -0.1, 0.6, 0.1), title="Score-CAM, 6×6 grid")


def execution_times() -> Figure:
    rows = [
        {
            "method": method,
            "model": model,
            "role": ROLES[model],
            "seconds": 10.0 ** (number / 2 - 3),
        }
        for number, method in enumerate(METHODS[:7])
        for model in (TEACHER, DISTILLED)
    ]
    return plots.execution_times(pd.DataFrame(rows), "Mean execution time of an explanation")


def layer_similarity() -> Figure:
    rows, columns = [f"features.denseblock{n}" for n in range(8)], [f"acts.{n}" for n in range(5)]
    table = pd.DataFrame(numbers().random((8, 5)), index=rows, columns=columns)
    return plots.layer_similarity(table, TEACHER, DISTILLED, "Layer similarity, 96 test images")


def probes() -> Figure:
    depth = np.linspace(0, 1, 8)
    tables = {
        name: pd.DataFrame({"depth": depth, "balanced_accuracy": 0.4 + top * depth**0.5})
        for name, top in zip(ROLES, (0.55, 0.5, 0.4), strict=True)
    }
    return plots.probes(tables, 1 / 3, ROLES, "Linear probes, 240 training and 240 test images")


def predicted_latency() -> Figure:
    measured = numbers().uniform(5, 30, 20)
    predicted = measured * numbers().normal(1, 0.05, 20)
    return plots.predicted_latency(measured, predicted, "Latency at batch size 1, onnxruntime")


def pareto_front() -> Figure:
    cost, noise = numbers().uniform(5, 30, 60), numbers().normal(0, 0.03, (2, 60))[1]
    accuracy = 0.6 + 0.3 * (cost / 30) ** 0.5 + noise
    best = [not ((cost < c) & (accuracy >= a)).any() for c, a in zip(cost, accuracy, strict=True)]
    table = pd.DataFrame({"cost": cost, "accuracy": accuracy, "front": best})
    marks = {"OFA-595": (20, 0.83), "smallest subnet": (5, 0.65), "kdfmv5": (9, 0.8)}
    return plots.pareto_front(table, marks, "latency (ms)", "Subnets with shared weights")


def costs() -> pd.DataFrame:
    rows = [
        {"role": role, "latency_ms": ms, "macs": macs, "weights_mb": mb}
        for role, ms, macs, mb in zip(
            ROLES.values(), (60, 9, 9), (2.8e9, 9.8e8, 9.8e8), (30, 55, 55), strict=True
        )
    ]
    table = spread(rows, "accuracy", 0.88, 0.96, 0.015)
    return table.set_index(pd.Index(list(ROLES)))


def accuracy_against_cost() -> Figure:
    axes = {"latency_ms": "latency, PyTorch float32 (ms)", "macs": "MACs per image"}
    axes |= {"weights_mb": "weights (MB)"}
    return plots.accuracy_against_cost(costs(), axes, "weights_mb", "Phantoms, n = 450")


def transfers() -> Figure:
    return plots.transfers(what_is_transferred(), "What the student of each method learns from")


def critical_difference() -> Figure:
    names = [f"method {letter}" for letter in "abcdefghijklmnopq"]
    scores = pd.DataFrame(numbers().normal(size=(5, 17)) + np.linspace(0, 4, 17), columns=names)
    return plots.critical_difference(
        ranking.mean_ranks(scores), ranking.nemenyi(scores), "Mean rank over 5 runs"
    )


def runtimes() -> Figure:
    names = ("PyTorch float32", "PyTorch bfloat16", "torch.compile", "ONNX Runtime float32")
    rows = [
        {"title": name, "model": model, "role": ROLES[model]}
        for name in names
        for model in (TEACHER, DISTILLED)
    ]
    table = spread(rows, "latency_ms", 5, 60, 2).rename(
        columns={"low": "latency_low", "high": "latency_high"}
    )
    table["images_per_second"] = 4000 / table["latency_ms"]
    table.loc[3, ["latency_ms", "images_per_second"]] = np.nan  # a runtime that failed
    return plots.runtimes(table, "Inference at 96 px")


def softened_targets() -> Figure:
    teacher, softened = np.array([0.15, 0.8, 0.05]), np.array([0.3, 0.45, 0.25])
    title = f"{TEACHER}: targets of one training image"
    image = photographs(1)[0]
    return plots.softened_targets(image, 0, teacher, softened, CLASSES, (0.35, 12.5), title)


FIGURES: dict[str, Callable[..., Figure]] = {name: globals()[name] for name in plots.__all__}


def texts(figure: Figure) -> list[Text]:
    """Every text that is drawn; matplotlib also keeps labels of ticks beyond the limits."""
    beyond = set()
    for one in (part for axes in figure.axes for part in (axes.xaxis, axes.yaxis)):
        low, high = sorted(one.get_view_interval())
        for tick in (*one.get_major_ticks(), *one.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    return [text for text in figure.findobj(Text) if text.get_visible() and text not in beyond]


def overlaps(figure: Figure) -> list[str]:
    """Pairs of texts that cover each other; slanted texts are left out, as only their frames are
    known."""
    FigureCanvasAgg(figure).draw()
    level = [text for text in texts(figure) if text.get_text() and text.get_rotation() % 90 == 0]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in level]
    boxes = [(text, box) for text, box in boxes if min(box.width, box.height) > 2]
    pairs = itertools.combinations(boxes, 2)
    return [f"{a} | {b}" for (a, one), (b, two) in pairs if one.overlaps(two)]


def draw(name: str, folder) -> Figure:
    return FIGURES[name](folder) if name == "image_pairs" else FIGURES[name]()


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_is_legible(name, tmp_path, recwarn):
    figure = draw(name, tmp_path)
    assert png(figure).std() > 1
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]
    if name != "shap_values":  # laid out by the library
        assert overlaps(figure) == []
    drawn = [axis for axis in figure.axes if axis.axison and not axis.images]
    assert not drawn or any(axis.get_xlabel() or axis.get_ylabel() for axis in drawn)


def test_a_role_decides_the_colour_whatever_the_label():
    looks = style.styles(["a", "b", "c"], {"a": "teacher", "b": "distilled", "c": "baseline"})
    assert [looks[name] for name in "abc"] == [style.ROLES[role] for role in style.ROLES]
    former = style.styles(["a teacher"], {"a teacher": "alone"})
    assert former["a teacher"] == style.ROLES["baseline"], "the key of stored results"
    table = pd.DataFrame({"model": ["a", "b", "a"], "role": ["teacher", "", "teacher"]})
    looks = style.model_styles(table)
    assert looks == {"a": style.ROLES["teacher"], "b": style.WITHOUT_ROLE[0]}


def test_two_teachers_differ_in_shade_and_two_models_without_roles_in_colour():
    looks = style.styles("ab", {"a": "teacher", "b": "teacher"})
    assert looks["a"] == style.ROLES["teacher"] and looks["b"].dash == looks["a"].dash
    assert sum(looks["b"].color) > sum(looks["a"].color)
    plain = style.model_styles(pd.DataFrame({"model": ["a", "b"]}))
    assert plain["a"] != plain["b"]


def test_a_wrong_or_missing_role_is_an_error():
    with pytest.raises(UnknownName, match="unknown role 'student'. .*teacher, distilled, baseline"):
        style.styles(["a"], {"a": "student"})
    with pytest.raises(ValueError, match="no role is given for 'b'"):
        style.styles(["a", "b"], {"a": "teacher"})


def test_awkward_values_are_drawn():
    """An empty class, an empty bin, one image, colour images, a full mask."""
    images = photographs(4)
    masks = {"organ": np.ones((4, 96, 96), bool), "lesion": np.zeros((4, 96, 96), bool)}
    counts = pd.DataFrame({"train": [5, 0], "test": [1, 1]}, index=["a", "a long class name"])
    for figure in (
        plots.samples(np.stack([images] * 3, -1), ["a"] * 3 + ["b"], masks),
        plots.class_balance(counts),
        plots.confusion({"x": [[0, 0], [1, 2]]}, ["a", "b"]),
        plots.reliability({"x": bins(0.5)[:1]}, {"x": 0.1}),
        plots.learning_curves({"x": history(0.9)[:1]}),
    ):
        assert png(figure).std() > 1


def test_the_marked_cell_of_a_grid_is_framed():
    table = pd.DataFrame({1.0: [0.9, None], 10.0: [0.95, 0.93]}, index=pd.Index([0.1, 0.7]))
    axis = plots.accuracy_grid(table, (0.7, 10.0)).axes[0]
    assert any(patch.get_xy() == (1, 1) for patch in axis.patches)


def test_a_curve_over_label_shares_has_its_values_and_bars():
    accuracy, gain = label_shares().axes
    lines = {each.get_label(): each.lines[0].get_ydata() for each in accuracy.containers}
    assert lines["baseline"].tolist() == [0.6, 0.7, 0.8, 0.9]
    (difference,) = gain.containers
    assert difference.lines[0].get_ydata().tolist() == pytest.approx([6, 4, 2, 0])
    bars = difference.lines[2][0].get_segments()
    assert [float(y) for y in bars[0][:, 1]] == pytest.approx([4, 8])
