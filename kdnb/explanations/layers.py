"""Layers of a network: average feature maps (KD-FMV), similarity of layers, linear probes."""

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
from kdnb.explanations.activations import untouched
from kdnb.explanations.inputs import check_images
from kdnb.models.zoo import Classifier

# their output looks like that of the layer before them
SKIPPED = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
# a convolution is shown after these
COMPLETING = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.BatchNorm2d)


def spatial_layers(model: Classifier, most: int | None = None) -> list[str]:
    """Names of the layers along the trunk whose output is a map, in order of computation, each
    after its normalisation and activation.

    Containers are opened, blocks are not: every convolution of ``kdfmv5``, every block of OFA-595,
    every stage of DenseNet121. At most ``most`` layers are given, evenly spaced, the last included.
    """
    network = model.network
    names = [n for n in _trunk(network) if not isinstance(network.get_submodule(n), SKIPPED)]
    blank = torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device)
    outputs = _outputs(model, blank, names)
    shapes = {name: output.shape for name, output in outputs.items() if output.ndim == 4}
    kept: list[str] = []
    for name in shapes:
        module = network.get_submodule(name)
        before = network.get_submodule(kept[-1]) if kept else None
        if (
            isinstance(before, nn.Conv2d | nn.BatchNorm2d)
            and isinstance(module, COMPLETING)
            and shapes[name] == shapes[kept[-1]]
        ):
            kept[-1] = name
        elif min(shapes[name][-2:]) > 1:
            kept.append(name)
    if most is None or len(kept) <= most:
        return kept
    return [kept[row] for row in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]


def _trunk(module: nn.Module, prefix: str = "") -> list[str]:
    """Modules along the trunk: the network and plain containers are opened."""
    plain = (nn.Sequential.forward, nn.Module.forward, nn.ModuleList.forward)
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        opened = isinstance(child, nn.Sequential | nn.ModuleList) and type(child).forward in plain
        found += _trunk(child, f"{path}.") if opened and len(list(child.children())) > 1 else [path]
    return found


def _outputs(model: Classifier, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of layers for images in [0, 1], in order of computation, as ``(N, C, h, w)`` where
    they are maps."""
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
    """Average feature map ``(N, h, w)`` of each layer, the mean over its channels, for images
    ``(N, 3, S, S)`` in [0, 1].

    KD-FMV, arXiv:2502.15959. Raises ``ValueError`` for images that do not fit the model.
    """
    found = _outputs(model, check_images(images, model), layers)
    return {name: found[name].float().mean(1).cpu().numpy() for name in layers}


def channel_means(
    model: Classifier, images: Tensor, layers: Sequence[str], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Channel means ``(N, C)`` of each layer for images ``(N, 3, S, S)`` in [0, 1]. Raises
    ``ValueError`` for images that do not fit the model."""
    images = check_images(images, model)
    parts = []
    for batch in images.split(batch_size):
        found = _outputs(model, batch, layers)
        parts.append({name: found[name].float().mean((2, 3)).cpu() for name in layers})
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in layers}


def cka(features: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations ``(N, C)`` and ``(N, D)`` of the same
    images: 1 for equal ones, NaN for a constant one.

    Kornblith et al. 2019, arXiv:1905.00414, equation 4, with the unbiased estimator of Song et al.
    2012, under which few images with many channels are not similar by themselves; it may fall a
    little below 0. Raises ``ValueError`` for fewer than four images or different numbers of images.
    """
    checks.shapes(features=(features, "N C"), other=(other, "N D"))
    first, second = (x @ x.T for x in (features.astype(np.float64), other.astype(np.float64)))
    scale = np.sqrt(max(_hsic(first, first), 0) * max(_hsic(second, second), 0))
    return float(_hsic(first, second) / scale) if scale > 0 else float("nan")


def _hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased Hilbert-Schmidt independence criterion of two kernels ``(N, N)``."""
    count = len(first)
    if count < 4:
        raise ValueError(f"similarity of layers needs 4 images or more, got {count}")
    first, second = (k - np.diag(np.diag(k)) for k in (first, second))
    both = np.trace(first @ second) + first.sum() * second.sum() / ((count - 1) * (count - 2))
    return (both - 2 * (first.sum(0) @ second.sum(1)) / (count - 2)) / (count * (count - 3))


def cka_gain(
    teacher: np.ndarray, distilled: np.ndarray, baseline: np.ndarray, groups: np.ndarray
) -> dict[str, float | int | None]:
    """CKA of the teacher with the distilled student minus its CKA with the baseline, with the 95 %
    interval of leaving out one group at a time: mean, low, high, n.

    ``teacher``, ``distilled`` and ``baseline`` are representations ``(N, C)`` of the same images,
    with any C each; ``groups`` ``(N,)`` number images that belong together. Raises ``ValueError``
    as :func:`cka`.
    """
    return jackknife(
        lambda rows: cka(teacher[rows], distilled[rows]) - cka(teacher[rows], baseline[rows]),
        groups,
    )


def cka_table(features: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> pd.DataFrame:
    """CKA of every layer of one network (row) with every layer of another (column); values are
    representations ``(N, C)`` of the same images. Raises ``ValueError`` as :func:`cka`."""
    return pd.DataFrame(
        {column: {row: cka(a, b) for row, a in features.items()} for column, b in other.items()}
    )


def linear_probes(
    train: dict[str, np.ndarray],
    train_labels: np.ndarray,
    test: dict[str, np.ndarray],
    test_labels: np.ndarray,
) -> pd.DataFrame:
    """Balanced accuracy, in [0, 1], of a linear model on each layer's channel means: columns layer,
    depth (0 first, 1 last), balanced_accuracy.

    ``train`` and ``test`` map layers to ``(N, C)`` with labels ``(N,)``; the model is fitted to the
    first and scored on the second (Alain & Bengio 2016, arXiv:1610.01644).
    """
    rows = []
    for number, layer in enumerate(train):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(train[layer], train_labels)
        score = balanced_accuracy(test_labels, model.predict(test[layer]))
        depth = number / max(1, len(train) - 1)
        rows.append({"layer": layer, "depth": depth, "balanced_accuracy": score})
    return pd.DataFrame(rows)
