"""Explanations cached on disk batch by batch, so that an interrupted run continues where it was."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from kdnb import files, provenance
from kdnb.explanations.base import Explanation
from kdnb.explanations.registry import definition, explain
from kdnb.models.zoo import Classifier, checksum

VERSION = 5  # of the stored maps: raise it when a method computes something else
BATCH = 16


def explain_cached(
    model: Classifier, images: Tensor, method: str, targets: np.ndarray, **options: object
) -> Explanation:
    """As :func:`explain` for images ``(N, 3, S, S)`` in [0, 1] and ``targets`` ``(N,)``, with every
    batch stored in the cache. Raises what :func:`explain` raises.

    The key holds weights, layer, images, classes, options, and the machine, on whose arithmetic the
    last digits depend.
    """
    key = [
        VERSION,
        checksum(model.network),
        model.image_size,
        model.cam_layer,
        method,
        {k: _checksum(v) if isinstance(v, Tensor) else v for k, v in options.items()},
        provenance.hardware(),
    ]
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        classes = np.asarray(targets)[start : start + BATCH].tolist()

        def work(batch=batch, classes=classes):
            found = explain(model, batch, method, classes, batch_size=BATCH, **options)
            arrays = {"maps": found.maps, "targets": found.targets}
            if found.effective_channels is not None:
                arrays["effective_channels"] = found.effective_channels
            return arrays

        name = f"{model.name}-{method}-{files.digest([*key, _checksum(batch), classes])}.npz"
        parts.append(files.remembered(files.cache_dir() / "maps" / name, work))
    names = [name for name in parts[0] if name != "definition"]  # stored by an earlier version
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return Explanation(method=method, definition=definition(model, method, **options), **arrays)


def _checksum(images: Tensor) -> str:
    return hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
