"""Images on disk: the catalogue, phantoms and their findings in words, the index of a
tree, pixels, splits."""

from kdnb.images.catalogue import DATASETS
from kdnb.images.phantoms import draw
from kdnb.images.pixels import Augment, Pixels

__all__ = ["Augment", "DATASETS", "Pixels", "draw"]
