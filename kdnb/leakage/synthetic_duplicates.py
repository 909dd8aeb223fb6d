"""Synthetic duplicates: copies of phantoms with a known origin, which measure the detector.

For a real set, the origins that others published take their place.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageOps
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import pair_confusion_matrix
from tqdm.auto import tqdm

from kdnb import files
from kdnb.images import phantoms

VERSION = 1


def _recoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def _cropped(image: Image.Image) -> Image.Image:
    edge = round(0.02 * image.width)  # 2 % off the left and the top, back to the old size
    return image.crop((edge, edge, image.width, image.height)).resize(
        image.size, Image.Resampling.BILINEAR
    )


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "copy": lambda image: image,
    "recoded": _recoded,
    "cropped": _cropped,
    "mirrored": ImageOps.mirror,
    "upside-down": ImageOps.flip,
    "turned-90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned-17": lambda image: image.rotate(17, Image.Resampling.BILINEAR),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
}


def plant(
    name: str,
    labels: Sequence[str],
    each: int,
    ways: Sequence[str] = tuple(WAYS),
    root: Path | None = None,
) -> Path:
    """Draw ``each`` phantoms of every class and add one copy of each in every way of ``ways``.

    ``name`` is a phantom of the catalogue, ``labels`` some of its classes, ``ways`` names of
    :data:`WAYS`. The files are ``<class>/<number>-<way>.png``, 128×128 px, below ``root`` (default:
    a folder of the cache); they are drawn once. Returns the root, to be loaded as dataset
    ``folder``. Raises ``UnknownName`` for an unknown way.
    """
    ways = [files.lookup(way, WAYS, "way to copy an image") for way in ways]
    mark = files.digest([VERSION, phantoms.VERSION, name, list(labels), each, ways])
    root = Path(root) if root else files.cache_dir() / "synthetic_duplicates" / f"{name}-{mark}"
    with files.lock(root):
        if not (root / "complete").exists():
            todo = [(label, number) for label in labels for number in range(each)]
            for count, (label, number) in enumerate(
                tqdm(todo, desc="drawing duplicates", unit="img", leave=False, disable=each < 50)
            ):
                drawn = phantoms.draw(
                    name, label, 10_000 + count
                )  # not one of the phantom's own numbers
                image = Image.fromarray(np.uint8(np.clip(drawn.image, 0, 1) * 255))
                (root / label).mkdir(parents=True, exist_ok=True)
                image.save(root / label / f"{number:04d}-original.png")
                for way in ways:
                    WAYS[way](image).save(root / label / f"{number:04d}-{way}.png")
            files.write_text(root / "complete", mark)
    return root


def origins(table: pd.DataFrame) -> np.ndarray:
    """The number of the phantom that each row of an index table shows, ``(N,)``."""
    return pd.factorize(
        table["path"].str.rsplit("-", n=1).str[0].str.replace(r"-(upside|turned)$", "", regex=True)
    )[0]


def published(root: Path, table: pd.DataFrame) -> np.ndarray | None:
    """Published origins ``(N,)`` from ``groups.csv`` beside the images, or None without that file.

    The file has the columns class, file and group; LC25000-clean (Batchkala et al. 2024) publishes
    one for LC25000. It scores the detector and is never used by it. An image that it does not name
    is its own origin.
    """
    path = Path(root) / "groups.csv"
    if not path.exists():
        return None
    stated = pd.read_csv(path, dtype=str)
    known = dict(
        zip(
            stated["class"] + "/" + stated["file"],
            stated["class"] + "/" + stated["group"],
            strict=True,
        )
    )
    names = table["path"].str.split("/").str[-2:].str.join("/")
    return pd.factorize(names.map(known).fillna(table["path"]))[0]


def score(origin: np.ndarray, group: np.ndarray, labels: Sequence[str]) -> dict[str, object]:
    """How well the detector's groups agree with the true origins, both ``(N,)`` numbers.

    ``recall`` is the share of pairs of one origin that are in one group, ``precision`` the share of
    pairs in one group that have one origin, both in [0, 1]. ``adjusted_rand`` is 1 for equal groups
    and 0 for chance (Hubert & Arabie 1985), over all images and by class of ``labels`` ``(N,)``.
    """
    (_, false), (missed, right) = pair_confusion_matrix(origin, group)
    frame = pd.DataFrame({"origin": origin, "group": group, "label": np.asarray(labels)})
    by_class = {
        label: float(adjusted_rand_score(part["origin"], part["group"]))
        for label, part in frame.groupby("label")
    }
    return {
        "recall": float(right / max(1, right + missed)),
        "precision": float(right / max(1, right + false)),
        "adjusted_rand": float(adjusted_rand_score(origin, group)),
        "adjusted_rand_by_class": by_class,
    }
