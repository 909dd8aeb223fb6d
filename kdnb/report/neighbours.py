"""Related systems with controls of their own: what is known of each, what is compared, and where
the result files of notebooks 11 to 14 hold the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kdnb import files
from kdnb.captioning import Captioner
from kdnb.classical.handcrafted import FAMILIES
from kdnb.report.results import Result, setting
from kdnb.segmentation import LimitTrainedMasks

FEATURES = "python -m kdnb.run 12 -p dataset covid_ct"
LABELS = "python -m kdnb.run 11 -p dataset brain_tumor -p label_shares 0.05+0.15+0.3"
NETWORKS = "tf_efficientnet_lite0+tf_efficientnet_lite2"
# how much of 11 was run: what is compared at one share does not depend on the others
EXTENT = ("label_shares", "positive_shares")
CLAIMED = 0.15  # share of the labels in the claim of R13


class PcaSvc:
    """Principal components of the features of several networks, joined in a support vector machine;
    arXiv:2501.17160.

    Ours: networks that are at hand with their weights in place of VGG16, DenseNet121 and
    MobileNetV2, components that explain 95 % of the variance of each, equal weight of the networks,
    and C by cross-validation of whole groups inside the training images.
    """

    title, paper = (
        "joined components of several networks, support vector machine",
        ("arXiv:2501.17160"),
    )
    idea = (
        "Networks that were trained on other images describe each image; a support vector machine "
        "learns the classes from their joined principal components."
    )
    equation = r"k(x, x') = \exp(-\gamma \| x - x' \|^2)"
    reported, reported_on = "an accuracy of 98.93 %", "chest CT of COVID-19"
    command = f"{FEATURES} -p features {NETWORKS}"


class DeepHandcrafted:
    """Features of a network beside handcrafted texture in a support vector machine;
    arXiv:2101.07866.

    Ours: settings of co-occurrence, binary patterns, spectrum and wavelets; equal weight of the
    network and of all handcrafted features.
    """

    title, paper = "features of a network and handcrafted texture", "arXiv:2101.07866"
    idea = (
        "Texture that is written down by hand may hold what a network misses; a support vector "
        "machine learns from both."
    )
    equation = r"k(x, x') = \exp(-\gamma \| x - x' \|^2)"
    reported = "an accuracy of 0.988, against 0.983 of the network and 0.963 of the texture"
    reported_on = "chest X-rays of COVID-19"
    command = f"{FEATURES} -p features teacher+handcrafted"


class Ensemble:
    """The mean answer of several networks, whose attributions are looked at; arXiv:2006.02570.

    Ours: networks and image size of the study in place of five networks at 512 px, and an audit
    that measures the six attributions.
    """

    title, paper = "mean answer of several networks, six attributions", "arXiv:2006.02570"
    idea = "Networks that err on different images err less together."
    equation = r"p(y \mid x) = \frac{1}{M} \sum_m p_m(y \mid x)"
    reported = "a micro-F1 of 0.89, against 0.66 to 0.875 of its members"
    reported_on = "chest X-rays of COVID-19"
    command = f"{FEATURES} -p teacher {NETWORKS}"


class Acid:
    """Batches drawn from larger ones by what the student can still learn from a reference;
    arXiv:2411.18674.

    Ours: losses of single images in place of joint draws by a contrastive loss, without
    augmentation; draws without replacement; the study's teacher as the reference.
    """

    title, paper = "batches that a reference chooses", "arXiv:2411.18674"
    idea = (
        "A step learns from the images of a larger batch on which the student is wrong and a "
        "reference is not."
    )
    equation = r"p \propto e^{s / \tau} \\ s = \ell_{student} - \ell_{reference}"
    reported = (
        "as good with fewer images that are learnt from, and better together with distillation"
    )
    reported_on = "pairs of natural images and texts"
    command = LABELS


SYSTEMS = {
    "pca_svc": PcaSvc,
    "deep_handcrafted": DeepHandcrafted,
    "ensemble": Ensemble,
    "acid": Acid,
    LimitTrainedMasks.name: LimitTrainedMasks,
    "captioner": Captioner,
}


@dataclass(frozen=True)
class Wanted:
    """A comparison: ``subject`` minus ``against``, both roles of :data:`ROLES`, in the files of a
    ``kind``; ``words`` name what it is compared with."""

    statement: str
    kind: str
    subject: str
    against: str
    words: str
    rule: str = "gain"
    quantity: str = "balanced accuracy"


# of notebook 14: two captioners, what is claimed, and the words for the second; the paper's own
# question first
CAPTIONERS = (
    (
        *("encoder_lora", "probe", "With encoder and low-rank updates trained,"),
        "the query transformer alone",
    ),
    (
        *("encoder_lora", "all", "With encoder and low-rank updates trained,"),
        "encoder and decoder trained as a whole",
    ),
    (
        *("small, taught", "small", "With a large captioner as its teacher (ours), a small one's"),
        "the small captioner without a teacher",
    ),
)
COMPARISONS = {
    "pca_svc": (
        Wanted(
            "It classifies better than the best of its networks alone",
            *("features", "all networks", "one network", "one network in the same machine"),
        ),
        Wanted(
            "It classifies better than a machine that sees no shapes",
            *("features", "all networks", "statistics"),
            "statistics of grey values and sizes",
        ),
        Wanted(
            "It classifies better than a machine that sees the border of the image only",
            *("features", "all networks", "border", "the outer border alone"),
        ),
        Wanted(
            "It classifies better than the colour mode of the files",
            *("features", "all networks", "colour mode", "the colour mode of the files alone"),
        ),
    ),
    "deep_handcrafted": (
        Wanted(
            "It classifies better than the networks' features alone",
            *("features", "all parts", "networks", "the networks' features alone"),
        ),
        Wanted(
            "It classifies better than the texture alone",
            *("features", "all parts", "handcrafted", "handcrafted features alone"),
        ),
        Wanted(
            "It classifies better than a machine that sees the border of the image only",
            *("features", "all parts", "border", "the outer border alone"),
        ),
        Wanted(
            "It classifies better than the colour mode of the files",
            *("features", "all parts", "colour mode", "the colour mode of the files alone"),
        ),
    ),
    "ensemble": (
        Wanted(
            "It classifies better than the best of its members",
            *("features", "mean of members", "best member", "its best member"),
        ),
        Wanted(
            "A student that it teaches classifies better than alone",
            *("features", "taught by members", "untaught", "the same student without a teacher"),
        ),
    ),
    "acid": (
        Wanted(
            "It learns more than from as many images drawn at random",
            *("labels", "acid", "random", "random batches, equal images"),
        ),
        Wanted(
            "It learns more than from random images at equal cost",
            *("labels", "acid", "random of equal cost", "random batches, equal cost"),
        ),
    ),
    "self_training": (
        Wanted(
            "With 15 % of the labels it is as good as all labels",
            *("labels", "self-training", "all labels", "all labels, no teacher"),
            "no loss",
        ),
        Wanted(
            "It is better than 15 % of the labels alone",
            *("labels", "self-training", "few labels", "the same labels, no teacher"),
        ),
    ),
    LimitTrainedMasks.name: (
        Wanted(
            "It segments better than with one teacher of all patients",
            *("masks", LimitTrainedMasks.name, "one_teacher", "one teacher of all patients"),
            quantity="Dice",
        ),
        Wanted(
            "It segments better than without a teacher",
            *("masks", LimitTrainedMasks.name, "hard", "no teacher"),
            quantity="Dice",
        ),
    ),
    "captioner": (
        *(
            Wanted(f"{statement} {more}", kind, subject, against, words, quantity=quantity)
            for subject, against, statement, words in CAPTIONERS
            for kind, more, quantity in (
                ("reports", "reports are truer", "F1 of facts"),
                ("captions", "words are closer to the reference", "ROUGE-L"),
            )
        ),
    ),
    "aucm": (
        Wanted(
            "It orders the images better where positives are rarest",
            *("areas", "AUC margin", "weighted cross-entropy", "weighted cross-entropy"),
            quantity="AUC",
        ),
    ),
}


def _parts(result: Result, learnt: bool) -> list[str]:
    rows = result.stored["results"]["features"]
    return [row["part"] for row in rows if (row["part"] not in FAMILIES) == learnt]


def _pipeline(result: Result, name: str) -> tuple[dict, str] | None:
    found = result.stored["results"]["pipelines"].get(f"{name} alone")
    return (found, "") if found else None


def _all_networks(result: Result) -> tuple[dict, str] | None:
    """The joined networks; none where there is one network, which is joined with nothing."""
    several, crafted = len(_parts(result, True)) > 1, _parts(result, False)
    if not several:
        return None
    return _pipeline(result, "all networks" if crafted else "all parts")


def _one_network(result: Result) -> tuple[dict, str] | None:
    found = [_pipeline(result, name) for name in _parts(result, True)]
    best = max((each[0] for each in found if each), key=lambda own: own["validated"], default=None)
    if best is None:
        return None
    return best, f"{' '.join(best['parts'])} is the best of its networks in cross-validation"


def _networks(result: Result) -> tuple[dict, str] | None:
    return _all_networks(result) or _one_network(result)


def _both(result: Result) -> tuple[dict, str] | None:
    if not (_parts(result, True) and _parts(result, False)):
        return None
    return _pipeline(result, "all parts")


def _handcrafted(result: Result) -> tuple[dict, str] | None:
    crafted = _parts(result, False)
    return _pipeline(result, "handcrafted" if len(crafted) > 1 else "".join(crafted))


def _network(result: Result, name: str) -> tuple[dict, str] | None:
    found = result.stored["results"]["networks"].get(name)
    return (found, "") if found else None


def _best_member(result: Result) -> tuple[dict, str] | None:
    held = result.stored["results"]["networks"]
    members = {n: v for n, v in held.items() if n.split()[0] in ("teacher", "student")}
    if len(members) < 2:
        return None
    name = max(members, key=lambda each: members[each]["balanced_accuracy"])
    return members[name], f"{name} is its best member on the test images, which favours it"


def _shared(result: Result, method: str, every: bool) -> tuple[dict, str] | None:
    share = 1 if every else CLAIMED
    for row in result.stored["results"].get("shares", []):
        if (row["method"], row["share"]) == (method, share):
            return row, "" if every else f"{share:.0%} of the labels"
    return None


def _shortcut(result: Result, name: str) -> tuple[dict, str] | None:
    found = result.stored["results"]["shortcuts"].get(f"{name} only")
    return (found, "") if found else None


def _curated(result: Result, name: str) -> tuple[dict, str] | None:
    rows = {row["name"]: row for row in result.stored["results"].get("curated", [])}
    return (rows[name], "") if name in rows else None


ROLES: dict[str, Callable[[Result], tuple[dict, str] | None]] = {
    "all networks": _all_networks,
    "one network": _one_network,
    "networks": _networks,
    "all parts": _both,
    "handcrafted": _handcrafted,
    "statistics": lambda result: _shortcut(result, "statistics"),
    "border": lambda result: _shortcut(result, "border"),
    "colour mode": lambda result: _shortcut(result, "colour mode"),
    "mean of members": lambda result: _network(result, "mean of probabilities"),
    "best member": _best_member,
    "taught by members": lambda result: _network(result, "taught by the ensemble"),
    "untaught": lambda result: _network(result, "no teacher, same views"),
    "acid": lambda result: _curated(result, "hard, acid"),
    "random": lambda result: _curated(result, "hard, random"),
    "random of equal cost": lambda result: _curated(result, "hard, random, equal cost"),
    "self-training": lambda result: _shared(result, "self_training", False),
    "few labels": lambda result: _shared(result, "hard", False),
    "all labels": lambda result: _shared(result, "hard", True),
}


PIPELINES = {"all networks", "one network", "networks", "all parts", "handcrafted"}


def fixed(result: Result, role: str) -> bool:
    """Whether a role is a pipeline on features that no seed changes: those of published networks
    and of formulas. The seeds of such a pipeline draw the folds of its cross-validation only."""
    return role in PIPELINES and "teacher" not in result.config["features"].split("+")


def cells(found: Iterable[Result], kind: str) -> list[list[Result]]:
    """Result files of a kind on published sets that differ in the seed only, each with its seeds in
    order."""
    groups: dict[str, dict[int, Result]] = {}
    for result in found:
        if result.kind != kind or result.synthetic or result.config["dataset"] == "folder":
            continue
        same = {k: v for k, v in setting(result.config).items() if k not in EXTENT}
        key = [same, result.stored["data"]["checksum"], result.training]
        groups.setdefault(files.digest(key), {})[result.config["seed"]] = result
    return [[runs[seed] for seed in sorted(runs)] for runs in groups.values()]
