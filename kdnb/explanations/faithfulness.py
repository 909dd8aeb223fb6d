"""Faithfulness: does the prediction depend on the pixels that a map marks?

Written here because Quantus fails with current versions of numpy on several of these measures; ROAD
comes from pytorch-grad-cam. Maps are ``(N, H, W)``; for signed methods pass
``Explanation.evidence``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam.metrics.road import ROADCombined
from torch import Tensor

from kdnb import checks, device, files
from kdnb.explanations.activations import untouched
from kdnb.explanations.inputs import check_images
from kdnb.explanations.maps import rank_pixels
from kdnb.models.zoo import Classifier

FILLS = ("blur", "mean")


def filled(images: Tensor, fill: str = "blur") -> Tensor:
    """Images ``(N, C, H, W)`` without content, from which removed pixels are taken.

    ``fill`` is ``blur`` (Gaussian, standard deviation a tenth of the side) or ``mean`` (the image's
    mean colour). Raises ``UnknownName`` for another.
    """
    files.lookup(fill, FILLS, "fill")
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    sigma = images.shape[-1] / 10
    reach = min(int(2.5 * sigma), images.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1.0, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, [reach] * 4, mode="reflect")
    wide = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(wide, kernel.transpose(2, 3), groups=images.shape[1])


def curves(
    model: Classifier,
    images: Tensor,
    maps: np.ndarray,
    targets: np.ndarray,
    steps: int = 32,
    fill: str = "blur",
    batch_size: int = 256,
) -> dict[str, np.ndarray]:
    """Probability of the target class while the most relevant pixels are removed (``deletion``) or
    restored (``insertion``).

    ``images`` ``(N, 3, S, S)`` in [0, 1], ``maps`` ``(N, S, S)``, ``targets`` ``(N,)``. Each curve
    is ``(N, steps + 1)``, in [0, 1], over shares 0 to 1 of the pixels: x_t = x⊙(1 − M_t) + b⊙M_t
    with M_t the top share t and b the filled image (Petsiuk et al. 2018, arXiv:1806.07421,
    algorithm 1). Raises ``ValueError`` for shapes that do not fit or ``steps`` below 1.
    """
    images = check_images(images, model)
    _check_shapes(images, maps, targets)
    checks.within(1, maps[0].size, steps=steps)
    base = filled(images, fill)
    ranks = np.argsort(rank_pixels(maps), axis=1).reshape(maps.shape)
    shares = np.round(np.linspace(0, 1, steps + 1) * maps[0].size)
    classes = torch.as_tensor(targets, device=images.device)
    found = {}
    with untouched(model), torch.inference_mode():
        for name, start, end in (("deletion", images, base), ("insertion", base, images)):
            parts = []
            for rows in torch.arange(len(images)).split(max(1, batch_size // (steps + 1))):
                # numpy reads a tensor of one index as a scalar, which would drop the batch axis
                cut = ranks[rows.numpy()][:, None] < shares[None, :, None, None]
                cut = torch.from_numpy(cut).to(images.device)[:, :, None]
                mixed = torch.where(cut, end[rows][:, None], start[rows][:, None])
                p = _probabilities(model, mixed.flatten(0, 1)).view(len(rows), steps + 1, -1)
                index = classes[rows].view(-1, 1, 1).expand(-1, steps + 1, 1)
                parts.append(p.gather(2, index).squeeze(2))
            found[name] = torch.cat(parts).cpu().numpy()
    return found


def _probabilities(model: Classifier, images: Tensor) -> Tensor:
    """Probabilities ``(N, K)``, in mixed precision where that is fast: one curve needs thousands of
    images."""
    with device.autocast(images.device):
        return model(images.contiguous(memory_format=torch.channels_last)).float().softmax(-1)


def area(curve: np.ndarray) -> np.ndarray:
    """Area ``(N,)`` under curves ``(N, steps + 1)`` over [0, 1], by the trapezoidal rule."""
    return np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)


def _check_shapes(images: Tensor, maps: np.ndarray, targets: np.ndarray) -> None:
    checks.shapes(images=(images, "N C H W"), maps=(maps, "N H W"), targets=(targets, "N"))


def confidence_change(
    model: Classifier, images: Tensor, maps: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """Average drop and increase in confidence, each ``(N,)``, when the image is multiplied by its
    map.

    ``images`` ``(N, 3, S, S)`` in [0, 1], ``maps`` ``(N, S, S)``, ``targets`` ``(N,)``.
    ``average_drop`` is max(0, Y − O) / Y, ``increase`` is 1 where O > Y, with Y and O the class's
    probabilities for the image and for image ⊙ map, the map scaled to [0, 1] (Chattopadhay et al.
    2018, arXiv:1710.11063, section 4). Raises ``ValueError`` for shapes that do not fit.
    """
    images = check_images(images, model)
    _check_shapes(images, maps, targets)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    scaled = ((maps - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
    masked = images * torch.from_numpy(scaled).to(images.device)[:, None]
    with untouched(model), torch.inference_mode():
        classes = torch.as_tensor(targets, device=images.device).view(-1, 1)
        whole, part = (
            model(x).softmax(1).gather(1, classes)[:, 0].cpu().numpy() for x in (images, masked)
        )
    return {
        "average_drop": np.maximum(0, whole - part) / np.maximum(whole, 1e-12),
        "increase": (part > whole).astype(float),
    }


def road(
    model: Classifier,
    images: Tensor,
    maps: np.ndarray,
    targets: np.ndarray,
    percentiles: Sequence[int] = (50,),
) -> np.ndarray:
    """ROAD ``(N,)``, in [-0.5, 0.5]: half the difference between the class's probability when the
    least and when the most relevant pixels are imputed; 0 is chance.

    ``images`` ``(N, 3, S, S)`` in [0, 1], ``maps`` ``(N, S, S)``, ``targets`` ``(N,)``. Imputation
    leaves no trace of the mask's shape (Rong et al. 2022, arXiv:2202.00449). Raises ``ValueError``
    for shapes that do not fit.
    """
    images = check_images(images, model)
    _check_shapes(images, maps, targets)
    # ranks have no ties, so that a percentile removes exactly its share of the pixels
    ranks = 1 - np.argsort(rank_pixels(maps), axis=1).reshape(maps.shape) / maps[0].size
    scores = [lambda output, target=int(target): output.softmax(-1)[target] for target in targets]
    torch.manual_seed(0)  # the library adds a little noise to imputed pixels
    with untouched(model):

        def predict(batch):  # the library imputes on the device of the images it is given
            return model(batch.to(images.device))

        measure = ROADCombined(list(percentiles))
        return np.asarray(measure(images.cpu(), ranks.astype(np.float32), scores, predict))
