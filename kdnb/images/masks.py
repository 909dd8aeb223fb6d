"""Masks: which file is a mask of which image, and what is odd about it."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from kdnb.images import read, scan
from kdnb.images.scan import Place, Problem

KINDS = ("mask", "organ_mask")  # lesion, organ
Masks = dict[str, dict[str, list[str]]]  # files by kind and image
# x_mask.png, x_mask_1.png, x-lung-mask.png, x_segmentation.png, x_seg.nii.gz, x_gt.png, "x (mask)"
BESIDE = re.compile(
    r"(?P<image>.+?)[ _.\-(]+(?:masks?|segmentations?|seg|gt|ground[ _-]?truth|annotations?)\)?"
    r"(?:[ _.-]?\(?(?P<number>\d+)\)?)?",
    re.IGNORECASE,
)
MOST = 0.5  # a lesion that covers more of the image than this may be drawn inverted


@dataclass(frozen=True)
class Pairing:
    """Images, their masks (several files an image where a mask is drawn in parts), and masks that
    belong to no image as problems."""

    images: list[Place]
    masks: Masks
    problems: list[Problem]

    @property
    def all_masks(self) -> list[str]:
        """Every file that looks like a mask, with an image or without."""
        return [*files_of(self.masks), *(path for path, _, _ in self.problems)]


def files_of(masks: Masks) -> list[str]:
    """The files of masks of all kinds and images."""
    return [name for by_image in masks.values() for names in by_image.values() for name in names]


def pair(found: Sequence[Place], outer: bool = True) -> Pairing:
    """Tell images from masks, and give each mask to its image.

    A mask belongs to the image with the same split, the same folders (those of masks and of
    pictures aside) and the same name (``_mask`` and the like aside), and to no other. ``outer``
    allows the tree of masks to lack the folders that all images share.
    """
    images, drawn = [], []
    stems = {_key(place, read.stem(place.path)) for place in found if place.kind == "image"}
    for place in found:
        match = BESIDE.fullmatch(read.stem(place.path)) if place.kind == "image" else None
        kind = _kind(match["image"]) if match else ""
        known = match and any(_key(place, name) in stems for name in _owners(match["image"]))
        if place.kind != "image":
            drawn.append(place)
        # without a number it is a mask even if its image is missing
        elif match and kind and (known or not match["number"]):
            drawn.append(dataclasses.replace(place, kind=kind))
        else:
            images.append(place)
    return _joined(images, drawn, outer)


def _kind(before: str) -> str:
    """The kind of mask by the words before ``mask`` in a file name; none for ``with_mask``."""
    said = set(scan.words(before)[-1:])
    if said & scan.NEGATIONS:
        return ""
    return "organ_mask" if said & scan.ORGAN else "mask"


def _owners(before: str) -> list[str]:
    """Names that the image of a mask may have: ``a_lung`` of ``a_lung_mask``, then ``a``."""
    said = scan.words(before)[-1:]
    shorter = re.sub(r"[ _.\-(]+[^\W\d_]+$", "", before)
    also = set(said) & (scan.ORGAN | scan.LESION) and shorter and shorter != before
    return [before, shorter] if also else [before]


def _key(place: Place, stem: str, skip: int = 0) -> tuple:
    return place.split, place.folds, place.levels[skip:], stem.casefold()


def _joined(images: list[Place], drawn: list[Place], outer: bool) -> Pairing:
    front = scan.without_outer(images)[0] if outer and images else ()
    shared = len(front)
    known: dict[tuple, list[Place]] = defaultdict(list)
    for place in images:
        known[_key(place, read.stem(place.path), shared)].append(place)
    masks: Masks = {kind: defaultdict(list) for kind in KINDS}
    problems = []
    for place in drawn:
        skip = shared if place.levels[:shared] == front else 0
        stem = read.stem(place.path)
        match = BESIDE.fullmatch(stem)
        names = [stem, *_owners(match["image"])] if match else [stem]
        at = [known.get(_key(place, name, skip), []) for name in names]
        owners = next((some for some in at if some), [])
        if len(owners) == 1:
            masks[place.kind][owners[0].path].append(place.path)
        else:
            problems.append(_orphan(place, owners))
    return Pairing(images, masks, problems)


def _orphan(place: Place, owners: list[Place]) -> Problem:
    if owners:
        names = ", ".join(one.path for one in owners[:3])
        return place.path, "mask of several images", f"fits {names}: name it in a table (-p labels)"
    return (
        place.path,
        "mask without an image",
        "no image with its name in the same folders: name it in a table (-p labels, column mask)",
    )


def as_stated(pairing: Pairing, stated: dict[str, dict[str, str]]) -> Pairing:
    """The pairing with the masks that a table states (by kind and path) in place of those found."""
    masks = {
        kind: {
            read.frame_of(path)[0]: [read.frame_of(name)[0] for name in names.split(read.SEVERAL)]
            for path, names in by_path.items()
        }
        for kind, by_path in stated.items()
    }
    used, named = {*files_of(masks)}, {path for path, _, _ in pairing.problems}
    problems = [problem for problem in pairing.problems if problem[0] not in used]
    problems += [
        (name, "mask without an image", "the table names it for none")
        for name in sorted({*pairing.all_masks} - used - named)
    ]
    return Pairing(pairing.images, masks, problems)


def usable(masks: Masks, facts: dict[str, dict | tuple]) -> tuple[Masks, list[Problem]]:
    """Masks that can be read and fit their image, and problems for the others.

    ``facts`` are of every file as :func:`kdnb.images.read.inspect` gives them.
    """
    kept: Masks = {kind: {} for kind in KINDS}
    problems = []
    for kind, owners in masks.items():
        for image, names in owners.items():
            whole = facts.get(image)
            for name in names:
                fact = facts[name]
                if isinstance(fact, tuple):
                    problems.append((name, f"bad mask: {fact[0]}", fact[1]))
                elif not isinstance(whole, dict):
                    problems.append((name, "mask without an image", f"{image} cannot be used"))
                elif problem := _misfit(whole, fact):
                    problems.append((name, *problem))
                    if problem[0].startswith("mask of another size"):
                        kept[kind].setdefault(image, []).append(name)
                else:
                    kept[kind].setdefault(image, []).append(name)
    return kept, problems


def _misfit(image: dict, mask: dict) -> tuple[str, str] | None:
    """(problem, detail) where a mask's size is not that of its image."""
    size, other = (image["width"], image["height"]), (mask["width"], mask["height"])
    if image["frames"] != mask["frames"]:
        return (
            "mask of another shape",
            f"{mask['frames'] or 1} slices, its image {image['frames'] or 1}",
        )
    if size == other:
        return None
    sizes = f"{other[0]}×{other[1]}, its image {size[0]}×{size[1]}"
    if abs(size[0] * other[1] - size[1] * other[0]) > 0.02 * size[0] * other[1]:
        return "mask of another shape", f"{sizes}: the image is used without it"
    return "mask of another size", f"{sizes}: stretched to the image"


def left_out(masks: Masks, images: Collection[str], named: Collection[str]) -> list[Problem]:
    """Problems for masks whose image is none of ``images``, but for those ``named`` already."""
    return [
        (name, "mask of an image left out", image)
        for by_image in masks.values()
        for image, names in by_image.items()
        for name in names
        if image not in images and name not in named
    ]


def odd(table: pd.DataFrame, covered: dict[str, float]) -> tuple[list[Problem], list[str]]:
    """Lesion masks that are empty, full, or cover more than half of the image: problems for the few
    in a class, a note where most of the class is so.

    ``table`` has the columns label and mask, ``covered`` the share of foreground by what stands in
    the column mask.
    """
    problems, notes = [], []
    drawn = table[table["mask"] != ""]
    share = drawn["mask"].map(covered)
    kinds = {
        "empty mask": (share == 0, "no pixel is marked"),
        "full mask": (share == 1, "every pixel is marked"),
        "more than half is lesion": ((share > MOST) & (share < 1), "drawn inverted?"),
    }
    for problem, (wrong, detail) in kinds.items():
        for label, some in drawn.groupby("label", sort=False):
            here = some[wrong[some.index]]
            if 2 * len(here) > len(some):
                notes.append(f"{label}: {len(here):,} of {len(some):,} masks: {problem} ({detail})")
            else:
                problems += [(name, problem, detail) for name in here["mask"]]
    return problems, notes
