"""Handcrafted features of grey images: texture (GLCM, LBP), frequency bands, wavelet energies.

The families of R11 (arXiv:2101.07866); the paper leaves their settings open, those here are ours.
To add a family, add one entry to ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from kdnb import checks, extras

pywt = extras.late("pywt")

VERSION = 1  # raise it when a family computes something else: kept features are then made anew
LEVELS = 32  # grey levels of a co-occurrence matrix
DISTANCES = (1, 2, 4)  # pixels
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "entropy")
PATTERNS = ((8, 1), (16, 2))  # points and radius in pixels of local binary patterns
BANDS = 8  # rings of spatial frequency, from 0 to half a cycle a pixel
SCALES = 3  # levels of the wavelet transform
ORIENTATIONS = ("horizontal", "vertical", "diagonal")


@dataclass(frozen=True)
class Family:
    """One family of features: ``compute`` takes grey images ``(N, S, S)`` uint8 and returns a value
    for each of ``names``, ``(N, F)``."""

    title: str
    source: str
    names: tuple[str, ...]
    compute: Callable[[np.ndarray], np.ndarray]


def glcm(images: np.ndarray) -> np.ndarray:
    """Properties of the grey-level co-occurrence matrix of images ``(N, S, S)`` uint8, ``(N, 15)``.

    32 grey levels; distances of 1, 2 and 4 pixels; symmetric; each property is the mean over four
    angles. Entropy is in nats; the correlation of a constant image is 1. Haralick et al. 1973,
    doi:10.1109/TSMC.1973.4309314, through scikit-image. Raises ``ValueError`` for another shape.
    """
    checks.shapes(images=(images, "N S S"))
    return np.stack([_glcm(image) for image in images // (256 // LEVELS)])


def _glcm(image: np.ndarray) -> np.ndarray:
    matrix = graycomatrix(image, DISTANCES, ANGLES, LEVELS, symmetric=True, normed=True)
    values = [graycoprops(matrix, name).mean(1) for name in PROPERTIES]
    return np.stack(values, axis=1).ravel()


def lbp(images: np.ndarray) -> np.ndarray:
    """Histograms of rotation-invariant uniform local binary patterns of images ``(N, S, S)`` uint8,
    ``(N, 28)``, fractions.

    8 points at 1 pixel and 16 points at 2 pixels; the last bin of each holds the non-uniform
    patterns. Pixels whose circle leaves the image do not count. Ojala et al. 2002,
    doi:10.1109/TPAMI.2002.1017623, through scikit-image. Raises ``ValueError`` for another shape.
    """
    checks.shapes(images=(images, "N S S"))
    return np.stack([np.concatenate([_lbp(image, *p) for p in PATTERNS]) for image in images])


def _lbp(image: np.ndarray, points: int, radius: int) -> np.ndarray:
    codes = local_binary_pattern(image, points, radius, "uniform").astype(int)
    codes = codes[radius:-radius, radius:-radius]
    return np.bincount(codes.ravel(), minlength=points + 2) / codes.size


def fft(images: np.ndarray) -> np.ndarray:
    """Share of the power spectrum of images ``(N, S, S)`` in 8 rings of spatial frequency, and the
    total power: ``(N, 9)``.

    With the mean removed and the transform F, the share of the ring b is
    Σ_{k in b} |F(k)|² / Σ_k |F(k)|²; rings are equally wide, from 0 to 0.5 cycles a pixel, and the
    last one takes the corners beyond. The last feature is log(1 + variance). The shares of a
    constant image are 0. Raises ``ValueError`` for another shape.
    """
    checks.shapes(images=(images, "N S S"))
    side = images.shape[-1]
    centred = images - images.mean((1, 2), keepdims=True, dtype=np.float64)
    power = np.abs(np.fft.fft2(centred)) ** 2
    power[:, 0, 0] = 0  # of the mean, up to rounding
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    ring = np.minimum((frequency * 2 * BANDS).astype(int), BANDS - 1)
    energy = power.reshape(len(images), -1) @ np.eye(BANDS)[ring.ravel()]
    total = energy.sum(1, keepdims=True)
    shares = np.divide(energy, total, out=np.zeros_like(energy), where=total > 1e-6)
    return np.hstack([shares, np.log1p(total / side**4)])


def wavelets(images: np.ndarray) -> np.ndarray:
    """Energies of the details of a Haar wavelet transform of images ``(N, S, S)``, ``(N, 9)``:
    log(1 + mean square) for 3 scales, the finest first, and 3 orientations.

    Periodic at the borders. Mallat 1989, doi:10.1109/34.192463, through PyWavelets. Raises
    ``ValueError`` for another shape.
    """
    checks.shapes(images=(images, "N S S"))
    _, *details = pywt.wavedec2(
        images.astype(np.float64), "haar", mode="periodization", level=SCALES, axes=(1, 2)
    )
    squares = [np.square(part).mean((1, 2)) for scale in details[::-1] for part in scale]
    return np.log1p(np.stack(squares, axis=1))


FAMILIES: dict[str, Family] = {
    "glcm": Family(
        "grey-level co-occurrence",
        "Haralick et al. 1973",
        tuple(f"{name} at {d} px" for d in DISTANCES for name in PROPERTIES),
        glcm,
    ),
    "lbp": Family(
        "local binary patterns",
        "Ojala et al. 2002",
        tuple(f"{p} points, bin {n}" for p, _ in PATTERNS for n in range(p + 2)),
        lbp,
    ),
    "fft": Family(
        "rings of the power spectrum",
        "Fourier transform",
        (*(f"ring {n + 1}" for n in range(BANDS)), "power"),
        fft,
    ),
    "wavelets": Family(
        "Haar wavelet energies",
        "Mallat 1989",
        tuple(f"scale {n + 1} {o}" for n in range(SCALES) for o in ORIENTATIONS),
        wavelets,
    ),
}
