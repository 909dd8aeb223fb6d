"""Registration of one image on another: turn, zoom, mirror, shift, stretch; then correlation.

Turn and zoom about the centre are shifts of the log-polar image, found as the peak of a correlation
of band-passed maps (after Reddy & Chatterji 1996, doi:10.1109/83.506761). Ours because scikit-image
registers one pair at a time, and a set needs 100,000. Black surroundings are ignored, because
cameras cut all retinas to the same disc. Coordinates are half sides from the centre.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.ndimage import minimum_filter
from torch import Tensor

SIDE = 64  # pixels a side on which two images are compared
RADII, ANGLES, INNER, OUTER = 32, 128, 0.10, 0.98  # the log-polar grid; radii in half sides
BLACK = 0.06  # grey values up to this are no tissue
STEP = math.log(OUTER / INNER) / (RADII - 1)
LEGS, STEPS = 4, 15  # of the ascent in a second look
STALLED = 0.1  # a pair that came no nearer to 1 in a leg than by this part of the way is given up


def log_polar(thumbs: np.ndarray) -> Tensor:
    """Grey values on rings about the centre, float16 ``(N, RADII, ANGLES)``: a turn shifts one
    axis, a zoom the other."""
    radius = torch.exp(torch.arange(RADII) * STEP + math.log(INNER))[:, None]
    angle = (torch.arange(ANGLES) * 2 * math.pi / ANGLES)[None]
    grid = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    maps = [
        F.grid_sample(_floats(part), grid.expand(len(part), -1, -1, -1), align_corners=False)[
            :, 0
        ].half()
        for part in np.array_split(thumbs, max(1, len(thumbs) // 256))
    ]
    return torch.cat(maps)


def _seen(images: np.ndarray) -> Tensor:
    """Grey values and, as a second channel, 1 but for black surroundings and their edge."""
    grey = _floats(images)
    lit = (F.avg_pool2d(grey, 3, 1, 1) > BLACK).numpy()
    lit = minimum_filter(
        lit, size=15, axes=(2, 3), mode="nearest"
    )  # its time does not grow with the window, torch's does
    return torch.cat([grey, torch.from_numpy(lit).float()], 1)


def _floats(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 255


def register(thumbs: np.ndarray, pairs: np.ndarray, batch: int = 64) -> pd.DataFrame:
    """Turn, zoom, mirror and shift the second image of each pair onto the first, and correlate.

    ``thumbs`` are grey uint8 ``(N, H, H)``, ``pairs`` rows of it ``(M, 2)``. Returns the columns
    first, second, correlation of the detail (in [-1, 1], on the common part of both inscribed
    discs, 0 where one is blank), turn (degrees), zoom, mirrored.
    """
    answers = []
    for part in np.array_split(pairs, max(1, math.ceil(len(pairs) / batch))):
        if len(part):
            answers.append(_register(thumbs, part))
    columns = ["correlation", "turn", "zoom", "mirrored"]
    values = np.concatenate(answers) if answers else np.empty((0, 4))
    frame = pd.DataFrame(values, columns=columns)
    return pd.DataFrame({"first": pairs[:, 0], "second": pairs[:, 1]}).join(
        frame.astype({"mirrored": bool})
    )


def _register(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    first, second = pairs[:, 0], pairs[:, 1]
    turn, zoom, mirrored = _turn_and_zoom(
        log_polar(thumbs[first]).float(), log_polar(thumbs[second]).float()
    )
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    fixed = F.grid_sample(
        _seen(thumbs[first]),
        torch.stack([u, v], -1).expand(len(pairs), -1, -1, -1),
        align_corners=False,
    )
    (fixed, lit), moving = (detail(fixed[:, 0]), fixed[:, 1] > 0.5), _seen(thumbs[second])
    cos, sin = (torch.cos(turn) / zoom)[:, None, None], (torch.sin(turn) / zoom)[:, None, None]
    flip = torch.where(mirrored, -1.0, 1.0)[:, None, None]
    inside = torch.hypot(u, v) < 0.96

    def moved(shift):
        x, y = u + shift[:, 0, None, None], v + shift[:, 1, None, None]
        across, down = cos * x + sin * y, cos * y - sin * x
        grid = torch.stack([across, down * flip], -1)
        image = F.grid_sample(moving, grid, padding_mode="border", align_corners=False)
        return detail(image[:, 0]), (
            inside & lit & (image[:, 1] > 0.5) & (torch.hypot(across, down) < 0.96)
        ).float()

    image, common = moved(torch.zeros(len(pairs), 2))
    shift = _peak(fixed * common, image * common)
    image, common = moved(shift * 2 / SIDE)
    degrees = torch.rad2deg(turn) % 360
    return (
        torch.stack([correlation(fixed, image, common), degrees, zoom, mirrored.float()], 1)
        .double()
        .numpy()
    )


def _peak(fixed: Tensor, moving: Tensor, reach: int = 5) -> Tensor:
    """Shift ``(B, 2)`` in pixels at the peak of the cross-correlation of images ``(B, H, H)``.

    A copy that was cropped at one side is shifted; ``reach`` pixels are searched.
    """
    spectra = torch.fft.rfft2(fixed).conj() * torch.fft.rfft2(moving)
    cross = torch.fft.irfft2(spectra, s=(SIDE, SIDE))
    width = 2 * reach + 1
    near = torch.roll(cross, (reach, reach), (1, 2))[:, :width, :width].flatten(1).argmax(1)
    return torch.stack([near % width, near // width], 1) - reach


def refine(
    thumbs: np.ndarray, measured: pd.DataFrame, limit: float, batch: int = 64
) -> pd.DataFrame:
    """Go on from :func:`register` with any affine map (stretch, shear, shift), by gradient ascent
    on the correlation.

    Some published copies are stretched by half, LC25000's among them. Same columns; turn and zoom
    stay those of the start. Below ``limit`` a pair that hardly rises any more is given up early.
    """
    parts = [measured.iloc[start : start + batch] for start in range(0, len(measured), batch)]
    values = [_refine(thumbs, part, limit) for part in parts]
    return measured.assign(
        correlation=np.concatenate(values) if values else measured["correlation"]
    )


def _refine(thumbs: np.ndarray, part: pd.DataFrame, limit: float) -> np.ndarray:
    matrix, going = _start(part), torch.arange(len(part))
    seen = [_seen(thumbs[part[end].to_numpy()]) for end in ("first", "second")]
    full, half = (
        [F.interpolate(image, size=(side, side), mode="area") for image in seen]
        for side in (SIDE, SIDE // 2)
    )
    full[0], half[0] = _prepared(full[0], 0.8), _prepared(half[0], 1.0)
    for _ in range(LEGS):
        matrix[going], before, after = _climb(matrix[going], *(image[going] for image in half))
        going = going[(after >= limit) | (after - before >= STALLED * (1 - before))]
        if not len(going):
            break
    return _overlay(matrix, *full, 0.8).double().numpy()


def _prepared(fixed: Tensor, fine: float) -> Tensor:
    """A :func:`_seen` image with its detail in place of grey values: the one that stays is filtered
    once."""
    return torch.stack([detail(fixed[:, 0], fine), fixed[:, 1]], 1)


def _start(part: pd.DataFrame) -> Tensor:
    """Affine maps ``(B, 2, 3)`` of the turns, zooms and mirrorings that :func:`register` found."""
    turn, zoom = (
        torch.tensor(part[name].to_numpy(), dtype=torch.float32) for name in ("turn", "zoom")
    )
    flip = torch.where(torch.tensor(part["mirrored"].to_numpy()), -1.0, 1.0)
    cos, sin, none = (
        torch.cos(turn.deg2rad()) / zoom,
        torch.sin(turn.deg2rad()) / zoom,
        torch.zeros_like(zoom),
    )
    return torch.stack([cos, sin, none, -sin * flip, cos * flip, none], 1).view(-1, 2, 3)


def _climb(matrix: Tensor, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One leg of the ascent: the better maps, and the correlations ``(B,)`` at its begin and near
    its end."""
    matrix, values = matrix.clone().requires_grad_(), []
    ascent = torch.optim.Adam([matrix], lr=0.015, maximize=True)
    for _ in range(STEPS):
        values.append(_overlay(matrix, fixed, moving, 1.0))
        ascent.zero_grad()
        values[-1].sum().backward()
        ascent.step()
    return matrix.detach(), values[0].detach(), values[-1].detach()


def _overlay(matrix: Tensor, fixed: Tensor, moving: Tensor, fine: float) -> Tensor:
    """Correlation ``(B,)`` of a :func:`_prepared` image with a :func:`_seen` one moved by the maps
    ``(B, 2, 3)``."""
    grid = F.affine_grid(matrix, list(moving.shape), align_corners=False)
    moved = F.grid_sample(moving, grid, padding_mode="border", align_corners=False)
    common = (
        (fixed[:, 1] > 0.5) & (moved[:, 1].detach() > 0.5) & (grid.detach().abs().amax(-1) < 0.97)
    )
    return correlation(fixed[:, 0], detail(moved[:, 0], fine), common.float())


def _turn_and_zoom(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn (radians), zoom and mirroring ``(B,)`` that bring ``other`` nearest to ``one``, from the
    peak of their correlation."""
    spectra = [
        torch.fft.rfft2(maps - maps.mean((1, 2), keepdim=True), s=(2 * RADII, ANGLES))
        * _band(2 * RADII, ANGLES, 0.6, 4.0)
        for maps in (one, other, torch.roll(other.flip(2), 1, 2))
    ]
    reach, rows, best = 6, torch.arange(len(one)), None
    overlap = (RADII / (RADII - torch.arange(-reach, reach + 1).abs()))[
        :, None
    ]  # fewer rings meet at a large zoom
    for mirrored in (False, True):
        map_ = torch.fft.irfft2(spectra[0] * spectra[1 + mirrored].conj(), s=(2 * RADII, ANGLES))
        map_ = torch.cat([map_[:, -reach:], map_[:, : reach + 1]], 1) * overlap
        height, place = map_.flatten(1).max(1)
        radius, angle = place // ANGLES, place % ANGLES
        # parabola through the peak and its neighbours: a fraction of a step
        fine_angle = _vertex(*(map_[rows, radius, (angle + k) % ANGLES] for k in (-1, 0, 1)))
        inner = radius.clamp(1, 2 * reach - 1)
        fine_radius = _vertex(*(map_[rows, inner + k, angle] for k in (-1, 0, 1))) * (
            inner == radius
        )
        found = (
            height,
            (angle + fine_angle) * (2 * math.pi / ANGLES),
            torch.exp((radius - reach + fine_radius) * STEP),
        )
        found = *found, torch.full_like(height, float(mirrored))
        if best is not None:
            found = tuple(
                torch.where(found[0] > best[0], new, old)
                for new, old in zip(found, best, strict=True)
            )
        best = found
    return best[1], best[2], best[3] > 0


def _vertex(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    return (0.5 * (left - right) / (left - 2 * middle + right - 1e-9)).clamp(-1, 1)


def _band(height: int, width: int, fine: float, coarse: float) -> Tensor:
    """Transfer function of a difference of two Gaussians (sigmas in samples) for ``rfft2`` of
    ``(height, width)``."""
    square = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2
    return torch.exp(-2 * math.pi**2 * fine**2 * square) - torch.exp(
        -2 * math.pi**2 * coarse**2 * square
    )


def detail(images: Tensor, fine: float = 0.8) -> Tensor:
    """Detail of ``(B, H, H)`` between ``fine`` and 3 pixels, strong edges held down: one bright
    outline must not speak for all."""
    side = images.shape[-1]
    found = torch.fft.irfft2(torch.fft.rfft2(images) * _band(side, side, fine, 3.0), s=(side, side))
    return found / (found.abs() + found.abs().mean((1, 2), keepdim=True) + 1e-3)


def correlation(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation ``(B,)`` over a mask; 0 where it leaves less than a tenth of the
    square, or no detail."""
    count = mask.sum((1, 2))
    one, other = (
        (x - ((x * mask).sum((1, 2)) / count.clamp(min=1))[:, None, None]) * mask
        for x in (one, other)
    )
    size = (
        ((one**2).sum((1, 2)) * (other**2).sum((1, 2))).clamp(min=1e-8).sqrt()
    )  # no root of zero: its slope is infinite
    return (one * other).sum((1, 2)) / size * ((size > 1.5e-4) & (count > 0.1 * mask[0].numel()))
