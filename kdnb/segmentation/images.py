"""Images whose target is a mask: a dataset that hands out both, and says which images it left
out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from kdnb import files
from kdnb.data import Dataset
from kdnb.images import index  # noqa: F401 - types of a dataset's fields
from kdnb.images.catalogue import DatasetSpec  # noqa: F401
from kdnb.images.pixels import Pixels
from kdnb.leakage import detector  # noqa: F401
from kdnb.leakage.relatives import Patients  # noqa: F401
from kdnb.models import capabilities
from kdnb.parameters import BadParameter
from kdnb.segmentation.settings import TARGETS
from kdnb.study import Study


class MaskedPixels(Pixels):
    """Rows of a pixel cache with a mask in place of the label.

    ``self[rows]`` gives ``(images (B, 3, S, S) float32, masks (B, S, S) int8, rows (B,))``; a
    mask is 1 where the target is, 0 elsewhere. ``masks`` are ``(N, 1, S, S)``, 0 or 255.
    """

    def __init__(self, images: np.ndarray, masks: np.ndarray, rows: Sequence[int] | None = None):
        super().__init__(images, np.zeros(len(images), int), rows)
        self.labels = torch.from_numpy((masks[:, 0] > 127).astype(np.int8))


@dataclass(frozen=True, repr=False)
class MaskedDataset(Dataset):
    """The images of a dataset that have a mask of the target; its classes are those of a pixel.

    ``target`` is ``lesion`` or ``organ``; ``left_out`` the paths of images without a mask;
    ``copy`` how the files differ from the published set.
    """

    target: str = "lesion"
    left_out: tuple[str, ...] = ()
    copy: str = ""

    @property
    def caveat(self) -> str:
        """How these files differ from the published set, whatever part of them is used."""
        return self.copy

    @property
    def classes(self) -> tuple[str, ...]:
        """What a pixel can be, in label order."""
        return ("background", self.target)

    @property
    def column(self) -> str:
        """The column of the index that names the masks."""
        return TARGETS[self.target]

    @cached_property
    def checksum(self) -> str:
        """Names images, splits and the content of the masks together (12 hexadecimal digits)."""
        held = self.table[["path", "split", f"{self.column}_sha256"]].values.tolist()
        return files.digest([self.index.checksum, held])

    @property
    def finding(self) -> str:
        """The relatives in other parts, as of any dataset, and the images that were left out."""
        if not self.left_out:
            return super().finding
        return (
            f"{super().finding}; {len(self.left_out):,} images without a mask are left out, "
            f"{self.left_out[0]} for example"
        )

    def counts(self) -> pd.DataFrame:
        """Images by label of the image (rows) and split (columns)."""
        parts = ["train", "val", "test"]
        table = pd.crosstab(self.table["label"], self.table["split"])
        return table.reindex(columns=parts, fill_value=0)

    def pixels(self, image_size: int, split: str | None = None, column: str = "path") -> Pixels:
        """Rows of one split (all by default), images with their masks; another ``column`` is handed
        out as by any dataset."""
        plain = super().pixels(image_size, split, column)
        if column != "path":
            return plain
        masks = super().pixels(image_size, None, self.column)
        return MaskedPixels(plain.images.numpy(), masks.images.numpy(), plain.rows.numpy())

    @property
    def labels(self) -> np.ndarray:
        """Zeros ``(N,)``: an image has no class here."""
        return np.zeros(len(self.table), int)

    def truth(self, image_size: int, split: str = "test") -> np.ndarray:
        """Boolean masks ``(n, S, S)`` of a split, in the order of :meth:`pixels`."""
        pixels = self.pixels(image_size, split)
        return pixels.labels[pixels.rows].numpy().astype(bool)


def load(study: Study) -> MaskedDataset:
    """The study's dataset with the masks of its target.

    Raises :class:`~kdnb.parameters.BadParameter` where no image has a mask, or none that marks a
    pixel, in one part of the split; images without a mask are left out and named.
    """
    for name in (*study.teachers, study.student):
        capabilities.check(name, 2, study.image_size, ("segment",))
    most = {"group": study.per_group, "label": study.per_class}
    return masked(study.read(), study.target, most)


def masked(
    dataset: Dataset, target: str, most: Mapping[str, int | None] | None = None
) -> MaskedDataset:
    """The images of a dataset with a mask of ``target`` (``lesion`` or ``organ``), and at ``most``
    so many training and validation images of a ``group`` and then of a ``label``, evenly spaced in
    the table's order.

    Raises :class:`~kdnb.parameters.BadParameter` as :func:`load` does.
    """
    column = TARGETS[files.lookup(target, TARGETS, "target")]
    table = dataset.table
    drawn = table[column] != ""
    if not drawn.any():
        other = [name for name, kind in TARGETS.items() if table[kind].ne("").any()]
        hint = f"it has masks of another target: -p target {other[0]}" if other else _HOW
        raise BadParameter(f"{dataset.title} has no {target} mask: {hint}")
    chosen, used = table[drawn], dataset.split
    for kind, count in (most or {}).items():
        if count:
            chosen = _thinned(chosen, kind, count)
            used += f"; at most {count} training or validation images of a {_WORDS[kind]}"
    given = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    rest = tuple(table.loc[~drawn, "path"])
    about = {"target": target, "left_out": rest, "copy": dataset.caveat}
    found = MaskedDataset(**given | {"table": chosen.reset_index(drop=True), "split": used} | about)
    refuse_empty(found, ("train", "val", "test"))
    _refuse_one_patient(found)
    return found


_HOW = (
    "put x_mask.png beside x.png, or masks of the same names into a folder masks, or name them in "
    "a table (-p labels, column mask)"
)

_WORDS = {"group": "patient", "label": "class"}  # columns of the table


def _thinned(table: pd.DataFrame, column: str, most: int) -> pd.DataFrame:
    """At most ``most`` rows of each value of a column outside the test set, evenly spaced."""
    kept = []
    for (split, _), rows in table.groupby(["split", column], sort=False):
        count = len(rows) if split == "test" else min(most, len(rows))
        kept.append(rows.index[np.linspace(0, len(rows) - 1, count).round().astype(int)])
    return table.loc[np.sort(np.concatenate(kept))]


SMALL = 64  # pixels a side at which masks are looked at


def _refuse_one_patient(dataset: MaskedDataset) -> None:
    """Raise where all test images with a target are of one group: no interval could be given."""
    groups = dataset.groups("test")[dataset.truth(SMALL).any((1, 2))]
    if len(np.unique(groups)) < 2:
        raise BadParameter(
            f"{dataset.title}: all {len(groups):,} test images with a {dataset.target} are of one "
            "patient (or group of copies), and intervals need two: choose another -p split, or add "
            "patients"
        )


def refuse_empty(dataset: MaskedDataset, parts: Sequence[str]) -> None:
    """Raise :class:`~kdnb.parameters.BadParameter` where all masks of a part of the split are
    empty: nothing could be learnt, or measured, there."""
    for split in parts:
        masks = dataset.truth(SMALL, split)
        if not masks.any():
            raise BadParameter(
                f"{dataset.title}: none of the {len(masks):,} {dataset.target} masks of the "
                f"{split} images marks a pixel. Is 0 the background, and are these the right masks "
                "(-p target, -p split)?"
            )
