"""What each layer holds: average feature maps (paper B), likeness of layers, and where in depth
classes come apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from kdnb import checks
from kdnb.evaluation.metrics import balanced_accuracy
from kdnb.evaluation.statistics import jackknife
from kdnb.explanations.registry import check_images, untouched
from kdnb.models.zoo import Classifier

# they change nothing that a map of a layer would show, or stand for the layer before them
SKIPPED = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
AFTERWARDS = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.BatchNorm2d,
)  # finish a convolution


def spatial_layers(model: Classifier, most: int | None = None) -> list[str]:
    """Names of the layers along the trunk whose output is a map, in order of computation, each
    after its activation.

    Containers are opened, blocks are not: every convolution of ``kdfmv5``, every block of OFA-595,
    every stage of DenseNet121. ``most`` keeps so many of them, evenly spaced, the last always.
    """
    names = [
        name
        for name in _trunk(model.network)
        if not isinstance(model.network.get_submodule(name), SKIPPED)
    ]
    shapes = {
        name: output.shape
        for name, output in _outputs(model, _blank(model), names).items()
        if output.ndim == 4
    }
    kept: list[str] = []
    for name in shapes:
        finished = kept and isinstance(
            model.network.get_submodule(kept[-1]), nn.Conv2d | nn.BatchNorm2d
        )
        if (
            finished
            and isinstance(model.network.get_submodule(name), AFTERWARDS)
            and shapes[name] == shapes[kept[-1]]
        ):
            kept[-1] = name  # a convolution is shown after its norm and activation
        elif min(shapes[name][-2:]) > 1:
            kept.append(name)
    if most is None or len(kept) <= most:
        return kept
    return [kept[row] for row in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]


def _trunk(module: nn.Module, prefix: str = "") -> list[str]:
    """Modules along the trunk: the network and plain containers are opened."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        opened = isinstance(child, nn.Sequential | nn.ModuleList) and type(child).forward in (
            nn.Sequential.forward,
            nn.Module.forward,
            nn.ModuleList.forward,
        )
        found += _trunk(child, f"{path}.") if opened and len(list(child.children())) > 1 else [path]
    return found


def _blank(model: Classifier) -> Tensor:
    return torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)


def _outputs(model: Classifier, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of layers for images in [0, 1], as ``(N, C, h, w)`` where they are maps, in order of
    computation."""
    kept: dict[str, Tensor] = {}
    with untouched(model), torch.inference_mode():
        for name in names:
            model.network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: (
                    kept.update({name: output}) if isinstance(output, Tensor) else None
                )
            )
        model(images)
    return {name: model.cam_reshape(output, name) for name, output in kept.items()}


def average_maps(model: Classifier, images: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Average feature map of each layer, ``(N, h, w)``: the mean over its channels (KD-FMV,
    arXiv:2502.15959)."""
    images = check_images(images, model)
    found = _outputs(model, images, layers)
    return {name: found[name].float().mean(1).cpu().numpy() for name in layers}


def pooled(
    model: Classifier, images: Tensor, layers: Sequence[str], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Channel means ``(N, C)`` of each layer for images ``(N, 3, S, S)``."""
    images = check_images(images, model)
    parts = [
        {name: _outputs(model, some, layers)[name].float().mean((2, 3)).cpu() for name in layers}
        for some in images.split(batch_size)
    ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in layers}


def cka(features: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations ``(N, C)`` and ``(N, D)`` of the same
    images; 1 is alike.

    Kornblith et al. 2019, arXiv:1905.00414, equation 4, with the unbiased estimator of Song et al.
    2012, so that few images and many channels do not look alike by themselves: it may fall a little
    below 0. NaN for a constant representation.
    """
    checks.shapes(features=(features, "N C"), other=(other, "N D"))
    first, second = (x @ x.T for x in (features.astype(np.float64), other.astype(np.float64)))
    scale = np.sqrt(max(_hsic(first, first), 0) * max(_hsic(second, second), 0))
    return float(_hsic(first, second) / scale) if scale > 0 else float("nan")


def _hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased Hilbert-Schmidt independence of two kernels ``(N, N)``; needs four images or more."""
    count = len(first)
    if count < 4:
        raise ValueError(f"similarity of layers needs 4 images or more, got {count}")
    first, second = (k - np.diag(np.diag(k)) for k in (first, second))
    both = np.trace(first @ second) + first.sum() * second.sum() / ((count - 1) * (count - 2))
    return (both - 2 * (first.sum(0) @ second.sum(1)) / (count - 2)) / (count * (count - 3))


def handed_on(
    teacher: np.ndarray, distilled: np.ndarray, alone: np.ndarray, groups: np.ndarray
) -> dict[str, float | int | None]:
    """How much more alike the teacher the distilled student's layer is than the lone student's:
    difference of CKA with interval.

    Representations ``(N, C)`` of the same images, of any widths; ``groups`` ``(N,)`` number images
    that belong together.
    """
    return jackknife(
        lambda rows: cka(teacher[rows], distilled[rows]) - cka(teacher[rows], alone[rows]), groups
    )


def similarity(features: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> pd.DataFrame:
    """CKA of every layer of one network (rows) with every layer of another (columns)."""
    return pd.DataFrame(
        {column: {row: cka(a, b) for row, a in features.items()} for column, b in other.items()}
    )


def probe(
    train: dict[str, np.ndarray],
    train_labels: np.ndarray,
    test: dict[str, np.ndarray],
    test_labels: np.ndarray,
) -> pd.DataFrame:
    """Balanced accuracy of a linear model on each layer's channel means: rows layer, depth (0 to
    1), balanced_accuracy.

    Alain & Bengio 2016, arXiv:1610.01644. Trained on training images, scored on test images.
    """
    rows = []
    for number, layer in enumerate(train):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(
            train[layer], train_labels
        )
        score = balanced_accuracy(test_labels, model.predict(test[layer]))
        rows.append(
            {"layer": layer, "depth": number / max(1, len(train) - 1), "balanced_accuracy": score}
        )
    return pd.DataFrame(rows)
