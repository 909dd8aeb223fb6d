"""How an exported network's images are read, in Pillow and numpy alone.

The text of this file travels in the metadata of every ONNX file (key ``recipe``): run it, then call
``read(path, **json.loads(metadata["reading"]))``. It gives the bytes that training saw.
"""

import numpy as np
from PIL import Image, ImageOps


def limits(values):
    """1st and 99th percentile of the values, the lowest and the highest value left out."""
    flat = np.asarray(values, np.float32).ravel()
    inside = flat[(flat > flat.min()) & (flat < flat.max())]
    for some in (inside, flat):  # all values, where a tenth or less lies in between
        if len(some) * 10 >= len(flat):
            low, high = np.percentile(some, (1, 99))
            if high > low:
                return float(low), float(high)
    return float(flat.min()), float(flat.max())


def read(path, side, color, low=None, high=None):
    """An image file as float32 (1, 3, side, side) in [0, 1], for the input ``images``."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)  # upright, as the camera says
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits: to 0 ... 255
        values = np.asarray(image, np.float32)
        first, last = limits(values) if low is None else (low, high)
        scaled = (values - np.float32(first)) * np.float32(255 / max(last - first, 1e-6))
        image = Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    elif image.mode == "P" or "A" in image.mode:  # what is transparent is black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert(color).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
