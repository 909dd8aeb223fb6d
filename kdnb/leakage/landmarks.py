"""Landmarks: small features in the same arrangement show one place in two different views.

Augmented sets hold twenty copies of one photograph, and now and then twenty more of a second
photograph that overlaps the first in another zoom, stain and frame. Whole images of the two hardly
correlate, their landmarks agree: SIFT features (Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94)
and one affine map for all of them (RANSAC, Fischler & Bolles 1981, doi:10.1145/358669.358692), both
OpenCV's. A few images stand for each group of copies.
"""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from kdnb import extras
from kdnb.leakage import registration

faiss = extras.late("faiss")

EACH = 3  # images that stand for a group
FEATURES = 200  # of an image at most
VOTES = 8  # nearest features of each feature, over all images
CANDIDATES = 10  # images with most votes that are looked at, for each image and its mirror image
RATIO = 0.8  # a match is kept when the next best is that much farther (Lowe 2004, section 7.1)
AGREEING = (
    12  # matches under one affine map; 8,222 pairs of unrelated histology tiles reach at most 5
)
REACH = 2.0  # pixels by which an agreeing match may be off
STRETCH = (0.4, 2.5)  # an affine map outside this is a coincidence

Features = tuple[np.ndarray, np.ndarray]  # places (n, 2) in pixels, descriptors (n, 128)


def same_place(thumbs: np.ndarray, group: np.ndarray, name: str = "images") -> pd.DataFrame:
    """The best pair of images of every two groups that show one place.

    ``thumbs`` grey uint8 ``(N, H, W)``, ``group`` numbers ``(N,)``. Columns first, second (rows),
    correlation of their detail in the common part, turn (degrees), zoom, mirrored, as
    :func:`kdnb.leakage.registration.register`.
    """
    rows = _stand_ins(group)
    views = [thumbs[rows], np.ascontiguousarray(thumbs[rows][:, :, ::-1])]
    features = [
        [_features(image) for image in view]
        for view in tqdm(views, desc=f"landmarks of {name}", leave=False)
    ]
    found = []
    for mirrored, first, second in tqdm(
        _candidates(features, group[rows]), desc=f"places of {name}", unit="pair", leave=False
    ):
        agreeing, matrix = _agree(features[mirrored][first], features[0][second])
        if agreeing >= AGREEING:
            turn, zoom = (
                math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])) % 360,
                math.sqrt(abs(np.linalg.det(matrix[:, :2]))),
            )
            alike = _correlation(views[mirrored][first], views[0][second], matrix)
            found.append((rows[first], rows[second], alike, turn, zoom, bool(mirrored), agreeing))
    table = pd.DataFrame(
        found, columns=["first", "second", "correlation", "turn", "zoom", "mirrored", "agreeing"]
    )
    ends = np.sort(group[table[["first", "second"]].to_numpy(int)], axis=1)
    best = table.assign(one=ends[:, 0], other=ends[:, 1]).sort_values(
        "agreeing", ascending=False, kind="stable"
    )
    return best.drop_duplicates(["one", "other"])[
        ["first", "second", "correlation", "turn", "zoom", "mirrored"]
    ]


def _stand_ins(group: np.ndarray) -> np.ndarray:
    """Rows of up to ``EACH`` images of each group, the same in every run."""
    shuffled = pd.Series(group).sample(frac=1, random_state=0)
    return np.sort(shuffled[shuffled.groupby(shuffled).cumcount() < EACH].index.to_numpy())


def _features(image: np.ndarray) -> Features:
    points, descriptors = cv2.SIFT_create(FEATURES, contrastThreshold=0.02).detectAndCompute(
        image, None
    )
    if descriptors is None:
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.float32)
    return np.array([point.pt for point in points], np.float32), descriptors


def _candidates(features: list[list[Features]], group: np.ndarray) -> list[tuple[int, int, int]]:
    """(mirrored, first, second): images of other groups in which most features of one, as it is or
    mirrored, have a near one.

    Each feature is looked up among all, so that the work does not grow with the square of the
    images.
    """
    owners = [
        np.repeat(np.arange(len(view)), [len(places) for places, _ in view]) for view in features
    ]
    known = np.concatenate([descriptors for _, descriptors in features[0]])
    if len(known) <= VOTES:
        return []
    cells = max(1, round(math.sqrt(len(known))))
    store = faiss.IndexIVFFlat(faiss.IndexFlatL2(known.shape[1]), known.shape[1], cells)
    store.cp.max_points_per_centroid = 64
    store.train(known)
    store.add(known)
    store.nprobe = 8
    pairs = []
    for mirrored, view in enumerate(features):
        near = store.search(np.concatenate([descriptors for _, descriptors in view]), VOTES)[1]
        votes = pd.DataFrame(
            {
                "feature": np.repeat(np.arange(len(near)), VOTES),
                "first": np.repeat(owners[mirrored], VOTES),
                "second": owners[0][near.ravel()],
            }
        )[near.ravel() >= 0]
        votes = votes[group[votes["first"]] != group[votes["second"]]].drop_duplicates(
            ["feature", "second"]
        )
        counts = (
            votes.groupby(["first", "second"]).size().sort_values(ascending=False, kind="stable")
        )
        best = counts.groupby(level="first").head(CANDIDATES)
        pairs.append([(mirrored, *pair) for pair in best.index])
    return list(itertools.chain(*pairs))


def _agree(one: Features, other: Features) -> tuple[int, np.ndarray]:
    """How many matched features lie under one affine map, and the map from the first image to the
    second, ``(2, 3)``."""
    none = 0, np.eye(2, 3)
    if min(len(one[0]), len(other[0])) < 4:
        return none
    nearest = [pair for pair in cv2.BFMatcher().knnMatch(one[1], other[1], k=2) if len(pair) == 2]
    matches = {}
    for match, next_best in nearest:
        rival = matches.get(match.trainIdx)
        if match.distance < RATIO * next_best.distance and (
            rival is None or match.distance < rival.distance
        ):
            matches[match.trainIdx] = match
    if len(matches) < 4:
        return none
    ends = (one[0][[match.queryIdx for match in matches.values()]], other[0][list(matches)])
    matrix, agreeing = cv2.estimateAffine2D(*ends, ransacReprojThreshold=REACH)
    if matrix is None:
        return none
    stretch = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return (
        (int(agreeing.sum()), matrix)
        if STRETCH[0] <= stretch[1] and stretch[0] <= STRETCH[1]
        else none
    )


def _correlation(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    size, back = first.shape[::-1], cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    laid = cv2.warpAffine(second, matrix, size, flags=back)
    common = cv2.warpAffine(np.full_like(second, 255), matrix, size, flags=back) == 255
    detail = [registration.detail(torch.from_numpy(image)[None] / 255) for image in (first, laid)]
    return float(registration.correlation(*detail, torch.from_numpy(common)[None].float()))
