"""Nearest neighbours of many vectors, by faiss."""

from __future__ import annotations

import math

import numpy as np

from kdnb import extras

faiss = extras.late("faiss")


def store(base: np.ndarray) -> object:
    """A faiss index of vectors, float32 ``(N, D)``, to be searched by Euclidean distance.

    A large set is kept in cells of some 200 vectors; eight of them are looked into, whatever the
    set's size.
    """
    cells = max(1, min(len(base) // 40, round(math.sqrt(len(base)) / 2)), len(base) // 200)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(base.shape[1]), base.shape[1], cells)
    index.train(base)
    index.add(base)
    index.nprobe = 8
    return index
