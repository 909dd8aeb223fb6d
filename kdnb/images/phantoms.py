"""The embedded default: synthetic images of four modalities with known lesions and masks, drawn
from a seed.

They let every notebook run anywhere and let explanations be measured against a known truth. They
are no medical evidence. Coordinates: ``u`` to the right and ``v`` downwards, both about -1 to 1,
after each patient's own pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from kdnb import files
from kdnb.images import grammar

VERSION = 2  # part of the folder's mark: raise it when a drawing or its report changes
SIZE = 128
SEED = 2025
PER_CLASS = {"Train": 400, "Val": 80, "Test": 120}
REPORTS = "reports.csv"  # beside the images: the columns path and report


@dataclass
class Phantom:
    """``image`` float in [0, 1], ``(H, W)`` or ``(H, W, 3)``; ``organ`` and ``lesion`` boolean
    ``(H, W)``."""

    image: np.ndarray
    organ: np.ndarray
    lesion: np.ndarray


class Canvas:
    """Random numbers, posed coordinates and brushes of one image; everything drawn follows from its
    generator."""

    def __init__(
        self,
        rng: np.random.Generator,
        size: int = SIZE,
        turn: float = 0.08,
        zoom: float = 0.08,
        shift: float = 0.07,
    ):
        self.rng, self.size = rng, size
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        v, u = np.meshgrid(axis, axis, indexing="ij")
        angle, scale = rng.uniform(-turn, turn), rng.uniform(1 - zoom, 1 + zoom)
        du, dv = rng.uniform(-shift, shift, 2)
        self.u = (np.cos(angle) * u + np.sin(angle) * v) / scale + du
        self.v = (np.cos(angle) * v - np.sin(angle) * u) / scale + dv
        self.edge = 2.5 / size

    def noise(self, sigma: float) -> np.ndarray:
        """A smooth random field, mean 0 and deviation 1; ``sigma`` in 128ths of the side."""
        field = gaussian_filter(
            self.rng.standard_normal((self.size, self.size)), sigma * self.size / 128, mode="wrap"
        )
        return (field - field.mean()) / (field.std() + 1e-9)

    def ellipse(
        self, cu: float, cv: float, ru: float, rv: float, angle: float = 0.0, ragged: float = 0.0
    ) -> np.ndarray:
        """A soft-edged ellipse in [0, 1]; ``ragged`` lets its outline wander."""
        u, v = self.u - cu, self.v - cv
        cos, sin = np.cos(angle), np.sin(angle)
        r = np.hypot((cos * u + sin * v) / ru, (cos * v - sin * u) / rv)
        if ragged:
            r = r + ragged * self.noise(5)
        return self.soft((1 - r) * min(ru, rv))

    def soft(self, distance: np.ndarray) -> np.ndarray:
        """1 where ``distance`` is positive, 0 where negative, smooth over about two pixels."""
        return 1 / (1 + np.exp(-np.clip(distance / self.edge, -30, 30)))

    def inside(self, mask: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
        """A random point ``(u, v)`` of a mask."""
        rows = np.flatnonzero(mask.ravel() > 0.5 + margin)
        row = self.rng.choice(rows)
        return float(self.u.ravel()[row]), float(self.v.ravel()[row])


def draw_cxr(canvas: Canvas, label: str) -> Phantom:
    """A chest: patchy bilateral opacities (COVID-like), one dense lobe (Non-COVID-like), or clear
    lungs."""
    # long: one picture, drawn from the background to the lesion
    c, rng = canvas, canvas.rng
    body = c.soft(0.92 + 0.06 * np.cos(3 * c.v) - np.abs(c.u)) * c.soft(
        c.v + 0.92 - 0.5 * np.clip(np.abs(c.u) - 0.2, 0, 1)
    )
    lungs = np.zeros_like(c.u)
    dome = 0.62 + rng.uniform(-0.06, 0.06)
    for side in (-1, 1):
        width = 0.33 + rng.uniform(-0.03, 0.03)
        taper = width * (0.80 + 0.22 * np.clip(c.v + 0.5, -0.6, 1))
        reach = np.hypot((c.u - side * (0.43 + 0.03 * c.v)) / taper, (c.v - 0.02) / 0.8)
        floor = dome - 0.22 * ((c.u - side * 0.35) ** 2) * 4 - c.v + 0.05 * (side < 0)
        lungs = np.maximum(lungs, c.soft((1 - reach) * width) * c.soft(floor))
    heart = c.ellipse(
        0.13 + rng.uniform(-0.03, 0.03), 0.34, 0.30 + rng.uniform(-0.04, 0.05), 0.30, 0.5
    )
    lungs = lungs * (1 - heart)
    spine = np.exp(-((c.u / 0.11) ** 2)) + 0.7 * np.exp(-(((c.u - 0.02) / 0.2) ** 2)) * c.soft(
        c.v + 0.6
    )
    slope = rng.uniform(0.5, 0.8)
    ribs = (
        np.sin(
            13 * (c.v + slope * (np.abs(c.u) - 0.3) ** 2 - 0.25 * np.abs(c.u)) + rng.uniform(0, 6)
        )
        ** 8
    )
    clavicle = np.exp(-(((c.v + 0.68 + 0.22 * np.abs(c.u)) / 0.035) ** 2)) * c.soft(
        np.abs(c.u) - 0.1
    )
    hilum = np.exp(-(((np.abs(c.u) - 0.2) / 0.16) ** 2 + ((c.v - 0.05) / 0.3) ** 2))
    vessels = np.clip(1 - np.abs(c.noise(4)) / 0.22, 0, 1) * np.exp(
        -(((np.abs(c.u) - 0.2) / 0.25) ** 2 + (c.v / 0.5) ** 2)
    )
    density = rng.uniform(0.16, 0.34)  # overall lung brightness varies more than any lesion adds
    image = 0.04 + body * (0.60 + 0.03 * c.noise(9) + 0.18 * spine + 0.02 * heart)
    image = image * (1 - lungs) + lungs * (density + 0.03 * c.noise(7))
    image += body * (0.07 * ribs * (0.4 + 0.6 * lungs) + 0.10 * clavicle) + lungs * (
        0.10 * hilum + 0.10 * vessels
    )
    lesion = np.zeros_like(c.u)
    if label == "COVID-like":
        for side in rng.permutation([-1, 1, -1, 1, -1, 1])[: rng.integers(4, 7)]:
            cu, cv = c.inside(lungs * c.soft(side * c.u) * c.soft(np.abs(c.u) - 0.38))
            spot = c.ellipse(
                cu,
                cv,
                rng.uniform(0.09, 0.17),
                rng.uniform(0.09, 0.20),
                rng.uniform(0, 3),
                ragged=0.28,
            )
            lesion = np.maximum(lesion, spot)
        haze = 0.20 + 0.05 * c.noise(1.6)  # ground glass with a fine mesh
    elif label == "Non-COVID-like":
        side, low = rng.choice([-1, 1]), rng.random() < 0.6
        cu, cv = (
            side * rng.uniform(0.36, 0.5),
            rng.uniform(0.25, 0.4) if low else rng.uniform(-0.45, -0.25),
        )
        lobe = c.ellipse(
            cu, cv, rng.uniform(0.22, 0.30), rng.uniform(0.22, 0.32), rng.uniform(0, 3), ragged=0.12
        )
        fissure = c.soft((c.v - cv + 0.12 + 0.3 * np.abs(c.u)) if low else (cv + 0.22 - c.v))
        lesion, haze = lobe * fissure, 0.24 + 0.03 * c.noise(6)  # dense and smooth
    else:
        haze = np.zeros_like(c.u)
    lesion = lesion * lungs
    # soft-tissue shadows over both lungs in every class: brightness alone tells nothing
    for side in (-1, 1):
        shadow = c.ellipse(side * rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.5), 0.38, 0.34)
        image += body * rng.uniform(0, 0.14) * gaussian_filter(shadow, 3 * c.size / 128)
    return Phantom(_film(c, image + lesion * haze), lungs > 0.5, lesion > 0.5)


def draw_brain(canvas: Canvas, label: str) -> Phantom:
    """A head: a ragged lesion inside (infiltrating), a round one on the surface (extra-axial), at
    the base (sellar), or none."""
    # long: one picture, drawn from the background to the lesion
    c, rng = canvas, canvas.rng
    wide = rng.uniform(0.66, 0.74)
    skull, brain = c.ellipse(0, 0, wide + 0.13, 0.93), c.ellipse(0, -0.02, wide, 0.80)
    folds = np.clip(1 - np.abs(c.noise(3.5)) / 0.35, 0, 1)
    rim = np.clip(np.hypot(c.u / wide, (c.v + 0.02) / 0.8), 0, 1) ** 3
    midline = np.exp(-((c.u / 0.02) ** 2)) * c.soft(-c.v)
    horns = np.zeros_like(c.u)
    for side in (-1, 1):
        horns = np.maximum(
            horns,
            c.ellipse(
                side * 0.15, -0.08, rng.uniform(0.06, 0.11), rng.uniform(0.22, 0.32), side * 0.35
            ),
        )
    base = c.ellipse(0, 0.62, 0.24, 0.16)
    white, grey = rng.uniform(0.40, 0.58), rng.uniform(0.28, 0.38)
    image = 0.02 + 0.75 * np.clip(skull - c.ellipse(0, -0.01, wide + 0.06, 0.86), 0, 1)
    image += brain * (
        white
        - (white - grey) * np.clip(0.8 * folds * (0.3 + rim) + 0.5 * rim, 0, 1)
        + 0.02 * c.noise(6)
    )
    image -= brain * (0.28 * horns + 0.15 * midline) + 0.12 * base * brain
    for _ in range(rng.integers(2, 5)):  # bright vessels in every class
        cu, cv = c.inside(brain)
        image += 0.3 * c.ellipse(cu, cv, 0.035, 0.035) * brain
    lesion, glow = np.zeros_like(c.u), rng.uniform(0.22, 0.34)
    if label == "infiltrating":
        cu, cv = c.inside(c.ellipse(0, -0.05, wide * 0.62, 0.52) * c.soft(np.abs(c.u) - 0.12))
        core = c.ellipse(
            cu, cv, rng.uniform(0.16, 0.25), rng.uniform(0.16, 0.25), rng.uniform(0, 3), ragged=0.25
        )
        dead = c.ellipse(cu, cv, 0.09, 0.09, ragged=0.3)
        lesion, image = core, image + core * (glow * (1 - 1.5 * dead) + 0.05 * c.noise(2))
    elif label == "extra-axial":
        # anywhere around the surface but the base, where the sellar class has its lesions
        angle = rng.uniform(-1.25 * np.pi, 0.25 * np.pi)
        size = rng.uniform(0.14, 0.22)
        cu, cv = (wide - 0.6 * size) * np.cos(angle), -0.02 + (0.80 - 0.6 * size) * np.sin(angle)
        lesion = c.ellipse(cu, cv, size, size, ragged=0.05) * brain
        image = image * (1 - 0.8 * lesion) + lesion * (0.8 * (white + glow))
    elif label == "sellar":
        cu, cv = rng.uniform(-0.10, 0.10), rng.uniform(0.52, 0.64)
        lesion = (
            c.ellipse(cu, cv, rng.uniform(0.10, 0.16), rng.uniform(0.10, 0.15), ragged=0.06) * brain
        )
        image = image * (1 - 0.8 * lesion) + lesion * (0.8 * (white + 0.9 * glow))
    return Phantom(_film(c, image), brain > 0.5, lesion > 0.5)


def draw_histology(canvas: Canvas, label: str) -> Phantom:
    """Stained tissue: rings of nuclei around a lumen (gland-forming), packed islands (solid nests),
    or loose septa (benign)."""
    # long: one picture, drawn from the background to the lesion
    c, rng = canvas, canvas.rng
    air = (
        c.soft((np.abs(c.noise(9)) - rng.uniform(0.8, 1.4)) * 0.1)
        if label == "benign"
        else np.zeros_like(c.u)
    )
    lesion, lumen, wall = np.zeros_like(c.u), np.zeros_like(c.u), np.zeros_like(c.u)
    for _ in range(
        {"gland-forming": rng.integers(3, 6), "solid nests": rng.integers(2, 5)}.get(label, 0)
    ):
        cu, cv = rng.uniform(-0.8, 0.8, 2)
        ru, rv, turn = *rng.uniform(0.26, 0.42, 2), rng.uniform(0, 3)
        island = c.ellipse(cu, cv, ru, rv, turn, ragged=0.12)
        lesion = np.maximum(lesion, island)
        if label == "gland-forming":
            hollow = c.ellipse(cu, cv, 0.55 * ru, 0.55 * rv, turn, ragged=0.12)
            lumen, wall = np.maximum(lumen, hollow), np.maximum(wall, island - hollow)
        else:
            wall = np.maximum(wall, island)
    if label != "benign":  # gaps in the stroma, as wide as the benign airspaces
        air = c.soft((np.abs(c.noise(9)) - rng.uniform(0.9, 1.6)) * 0.1) * (1 - lesion)
    crowd = {"gland-forming": 0.85, "solid nests": 0.75, "benign": 0.0}[label]
    nuclei = np.zeros_like(c.u)
    for _ in range(190):
        # the same number of nuclei in every class; where they lie is what differs
        home = wall if rng.random() < crowd and wall.max() > 0.6 else (1 - air) * (1 - lesion)
        cu, cv = c.inside(home)
        _stamp(
            c, nuclei, cu, cv, rng.uniform(0.028, 0.05), rng.uniform(0.6, 1.0), rng.uniform(0, 3)
        )
    nuclei = np.clip(nuclei, 0, 1) * (1 - lumen)
    void = np.clip(air + lumen, 0, 1)
    eosin, haematoxylin = rng.uniform(0.25, 0.55), rng.uniform(0.7, 1.2)
    pink, purple = (
        np.array([0.10, 0.85, 0.35]),
        np.array([1.0, 1.25, 0.45]),
    )  # absorbance of the two stains, RGB
    fibres = eosin * (0.8 + 0.25 * c.noise(2) + 0.2 * c.noise(7)) * (1 - void)
    absorbance = (
        np.clip(fibres, 0.02, None)[..., None] * pink + (haematoxylin * nuclei)[..., None] * purple
    )
    image = 0.96 * np.exp(-absorbance) + 0.012 * c.rng.standard_normal((c.size, c.size, 3))
    return Phantom(np.clip(image * rng.uniform(0.88, 1.04), 0, 1), void < 0.5, lesion > 0.5)


def draw_fundus(canvas: Canvas, label: str) -> Phantom:
    """A retina: veiled (hazy), with blots and exudates (haemorrhages), with a wide cup (large cup),
    or plain."""
    # long: one picture, drawn from the background to the lesion
    c, rng = canvas, canvas.rng
    side = rng.choice([-1, 1])
    retina = c.ellipse(0, 0, 0.92, 0.92)
    du, dv, disc_r = (
        side * rng.uniform(0.36, 0.48),
        rng.uniform(-0.08, 0.08),
        rng.uniform(0.15, 0.19),
    )
    disc = c.ellipse(du, dv, disc_r, disc_r * 1.1)
    ratio = rng.uniform(0.68, 0.80) if label == "large cup" else rng.uniform(0.25, 0.40)
    cup = c.ellipse(du, dv, disc_r * ratio, disc_r * 1.1 * ratio)
    macula = np.exp(-(((c.u + side * 0.12) ** 2 + c.v**2) / 0.03))
    vessels = np.zeros_like(c.u)
    for up in (-1, 1):
        for bend in (rng.uniform(0.5, 0.8), rng.uniform(1.1, 1.7), -rng.uniform(0.5, 1.0)):
            run = np.abs(c.u - du)
            sway = 0.05 * np.sin(9 * c.u + rng.uniform(0, 6))
            path = dv + up * bend * 0.75 * np.sqrt(run + 0.002) * (1 if bend > 0 else 0.6) + sway
            towards = c.soft((du - c.u) * side * (1 if bend > 0 else -1))
            width = 0.020 * np.exp(-0.7 * run) + 0.004
            vessels = np.maximum(vessels, np.exp(-(((c.v - path) / width) ** 2)) * towards)
    tone = rng.uniform(0.55, 0.85)
    red = tone * (0.95 - 0.25 * (c.u**2 + c.v**2)) + 0.03 * c.noise(8)
    image = np.stack([red, red * rng.uniform(0.42, 0.55), red * rng.uniform(0.16, 0.28)], -1)
    image *= (1 - 0.35 * macula)[..., None]
    image = _over(image, disc, np.array([1.0, 0.82, 0.50]) * min(1, tone + 0.22))
    image = _over(image, cup, np.array([1.0, 0.96, 0.80]) * min(1, tone + 0.28))
    image *= 1 - vessels[..., None] * np.array([0.35, 0.60, 0.55]) * (1 - 0.6 * cup[..., None])
    for _ in range(rng.integers(2, 6)):  # harmless pale spots in every class
        image = _over(
            image, 0.25 * c.ellipse(*c.inside(retina), 0.05, 0.05), np.array([0.9, 0.7, 0.4])
        )
    lesion = np.zeros_like(c.u)
    if label == "haemorrhages":
        blots, exudates = np.zeros_like(c.u), np.zeros_like(c.u)
        for number in range(rng.integers(14, 24)):
            target, r = (
                (exudates, rng.uniform(0.02, 0.035))
                if number % 3 == 0
                else (blots, rng.uniform(0.025, 0.06))
            )
            np.maximum(
                target,
                c.ellipse(
                    *c.inside(retina * (1 - disc)), r, r * rng.uniform(0.6, 1), 1.0, ragged=0.2
                ),
                out=target,
            )
        image = _over(
            _over(image, 0.8 * blots, np.array([0.30, 0.05, 0.04])),
            0.85 * exudates,
            np.array([0.95, 0.85, 0.45]),
        )
        lesion = np.maximum(blots, exudates)
    elif label == "large cup":
        lesion = cup
    elif label == "hazy":
        veil = np.array([0.62, 0.50, 0.36]) * tone / 0.7
        blurred = gaussian_filter(image, (2.6 * c.size / 128,) * 2 + (0,))
        image, lesion = 0.55 * blurred + 0.45 * veil, retina
    image = image * retina[..., None] + 0.012 * rng.standard_normal(image.shape)
    return Phantom(
        np.clip(image * rng.uniform(0.85, 1.1), 0, 1), retina > 0.5, (lesion * retina) > 0.5
    )


def _over(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    return image * (1 - mask[..., None]) + mask[..., None] * color


def _stamp(
    c: Canvas, image: np.ndarray, cu: float, cv: float, radius: float, round_: float, angle: float
) -> None:
    """A small ellipse drawn into its own neighbourhood only: hundreds of nuclei an image must stay
    cheap."""
    row, column = np.unravel_index(np.argmin((c.u - cu) ** 2 + (c.v - cv) ** 2), c.u.shape)
    reach = int(np.ceil(radius * c.size * 0.75)) + 1
    window = np.s_[
        max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
    ]
    u, v = c.u[window] - cu, c.v[window] - cv
    cos, sin = np.cos(angle), np.sin(angle)
    r = np.hypot((cos * u + sin * v) / radius, (cos * v - sin * u) / (radius * round_))
    image[window] = np.maximum(image[window], c.soft((1 - r) * radius * 0.8))


def _film(c: Canvas, image: np.ndarray) -> np.ndarray:
    """Exposure, contrast and noise of the acquisition, the same in every class."""
    gamma, gain = c.rng.uniform(0.8, 1.25), c.rng.uniform(0.85, 1.1)
    image = gain * np.clip(image, 0, 1) ** gamma + c.rng.uniform(-0.03, 0.05)
    return np.clip(image + 0.02 * c.rng.standard_normal(image.shape), 0, 1)


DRAWINGS: dict[str, Callable[[Canvas, str], Phantom]] = {
    "phantom_cxr": draw_cxr,
    "phantom_brain": draw_brain,
    "phantom_histology": draw_histology,
    "phantom_fundus": draw_fundus,
}


# whose words a phantom is described in
WORDS = {
    "phantom_cxr": "chest",
    "phantom_brain": "brain",
    "phantom_histology": "histology",
    "phantom_fundus": "fundus",
}


def _salt(name: str, label: str) -> int:
    """Another patient in every class, not the same one with and without a lesion."""
    return int(files.digest([name, label]), 16)


def draw(name: str, label: str, number: int, seed: int = SEED, size: int = SIZE) -> Phantom:
    """One phantom image; the same arguments give the same image on every machine."""
    rng = np.random.default_rng([seed, _salt(name, label), number])
    return DRAWINGS[name](Canvas(rng, size), label)


def describe(phantom: Phantom, name: str, label: str, number: int, seed: int = SEED) -> str:
    """The findings of a phantom in words; the same arguments give the same words."""
    vocabulary = grammar.VOCABULARIES[WORDS[name]]
    facts = grammar.of_masks(label, phantom.lesion, phantom.organ, vocabulary)
    return grammar.write(facts, vocabulary, (seed, _salt(name, label), number))


def ensure(name: str, classes: list[str], root: Path) -> Path:
    """The folder of a phantom dataset in COVID-QU-Ex's layout, drawn once (about ten seconds)."""
    root = root.resolve()  # a folder that several caches link to has one lock
    mark = root / "complete"
    wanted = files.digest([VERSION, SIZE, SEED, PER_CLASS])
    with files.lock(root):
        if mark.exists() and mark.read_text() == wanted:
            return root
        mark.unlink(missing_ok=True)
        jobs = [
            (split, label, number)
            for split, count in PER_CLASS.items()
            for label in classes
            for number in range(count)
        ]
        starts = dict(zip(PER_CLASS, np.cumsum([0, *PER_CLASS.values()]), strict=False))
        reports = []
        for split, label, number in tqdm(jobs, desc=f"drawing {name}", unit="img", leave=False):
            case = name, label, int(starts[split]) + number
            phantom, file = draw(*case), f"{split.lower()}_{number:04d}.png"
            _save(phantom, root / split / label, file)
            reports.append((f"{split}/{label}/images/{file}", describe(phantom, *case)))
        table = pd.DataFrame(reports, columns=["path", "report"])
        files.write_text(root / REPORTS, table.to_csv(index=False))
        files.write_text(mark, wanted)
    return root


def _save(phantom: Phantom, folder: Path, file: str) -> None:
    """The image and its masks, each in a folder of its kind."""
    arrays = {
        "images": phantom.image * 255,
        "organ masks": phantom.organ * 255.0,
        "lesion masks": phantom.lesion * 255.0,
    }
    for kind, array in arrays.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.rint(array))).save(folder / kind / file, compress_level=1)


def reports(root: Path) -> dict[str, str]:
    """The report of each image below ``root``, by its path there; none where no table is."""
    if not (root / REPORTS).exists():
        return {}
    return dict(pd.read_csv(root / REPORTS).itertuples(index=False))
