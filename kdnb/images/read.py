"""Files to grey levels: formats that Pillow reads, DICOM, NIfTI; one rule for images deeper than 8
bits; masks."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from kdnb import extras
from kdnb.images.source import Source

nibabel = extras.late("nibabel")
pydicom = extras.late("pydicom")
pixels_of = extras.late("pydicom.pixels")

LARGEST = 80_000_000  # pixels of one image; larger ones are named, not decoded
VOXELS = 2**30  # of one volume or film
ORIENTATION = 0x0112  # the EXIF tag that says how a picture is to be turned
GREY = ("L", "1", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes without colour
DEEP = tuple(mode for mode in GREY if mode[0] in "IF")  # more than 8 bits: scaled by a rule
DICOM, NIFTI = (".dcm", ".dicom", ".ima"), (".nii", ".nii.gz")
# formats that Pillow opens through another program, or that are documents and films
NOT_OURS = {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".wmf", ".emf", ".fli", ".flc", ".hdf", ".h5"}
SAMPLE = 512  # values of a deep image from which the range of a whole set is found
SEVERAL = "|"  # between the files of a mask that is drawn in parts


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes of image files, in lower case: Pillow's, DICOM's and NIfTI's."""
    Image.init()
    opened = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    return frozenset({*opened, ".jpe", ".jfif", *DICOM, *NIFTI} - NOT_OURS)


def suffix(name: str) -> str:
    """The suffix in lower case; ``.nii.gz`` is one."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix


def stem(name: str) -> str:
    """The last part of a name without its suffix and frame: ``a/b.nii.gz#3`` gives ``b``."""
    last = frame_of(name)[0].rsplit("/", 1)[-1]
    return last[: len(last) - len(suffix(last))]


def frame_of(name: str) -> tuple[str, int | None]:
    """The file and the frame that a row's path names: ``scan.dcm#12`` is frame 12 of scan.dcm."""
    found = re.fullmatch(r"(.+)#(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


# --- grey levels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How values of images with more than 8 bits become grey levels 0 to 255.

    ``low`` and ``high`` are fixed limits in the file's units; without them each image is scaled
    between its own percentiles, or, with ``from_file``, by the window that its DICOM header states.
    """

    low: float | None = None
    high: float | None = None
    from_file: bool = False

    @property
    def sentence(self) -> str:
        """The rule in words, for reports and for whoever reads an exported network's input."""
        own = (
            "between the 1st and 99th percentile of its values, the lowest and the highest left out"
        )
        if self.low is not None:
            return (
                f"16-bit and float images: {self.low:g} becomes 0, {self.high:g} becomes 255, "
                "linear in between, clipped outside"
            )
        first = "by the window in the DICOM header; without one, " if self.from_file else ""
        return f"16-bit and float images: each scaled {first}{own}, linear, clipped outside"


PER_IMAGE = Rule()


def limits(values: np.ndarray) -> tuple[float, float]:
    """1st and 99th percentile of values that are neither the lowest nor the highest.

    Padding has the lowest value and a burnt-in marker the highest; neither says anything about the
    anatomy. Where little is left without them, all values count.
    """
    flat = np.asarray(values, dtype=np.float32).ravel()
    low, high = float(flat.min()), float(flat.max())
    inside = flat[(flat > low) & (flat < high)]
    for some in (inside, flat):
        if len(some) * 10 >= len(flat):
            first, last = np.percentile(some, (1, 99))
            if last > first:
                return float(first), float(last)
    return low, high


def to_uint8(
    values: np.ndarray, rule: Rule = PER_IMAGE, window: tuple[float, float] | None = None
) -> np.ndarray:
    """Deep values of any shape as uint8 of that shape, by a rule.

    ``window`` is (low, high) as the file's header states it.
    """
    values = np.asarray(values, dtype=np.float32)
    if rule.low is not None and rule.high is not None:
        low, high = rule.low, rule.high
    elif rule.from_file and window is not None:
        low, high = window
    else:
        low, high = limits(values)
    scaled = (values - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def rule_of(source: Source, samples: list[np.ndarray]) -> Rule:
    """The rule that a reader chose; ``samples`` are values of every deep image of the set."""
    if source.window is not None:
        centre, width = source.window
        return Rule(centre - width / 2, centre + width / 2)
    if source.intensity == "set" and samples:
        return Rule(*(float(f"{limit:.6g}") for limit in limits(np.concatenate(samples))))
    return Rule(from_file=source.intensity == "file")


# --- decoding ------------------------------------------------------------------------------------


def _open(source: Path | io.BytesIO) -> Image.Image:
    """Pillow's image, which refuses a damaged file also where a library (WeasyPrint does) has told
    Pillow to fill what is missing with grey."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    return Image.open(source)


def decode(path: Path, rule: Rule = PER_IMAGE) -> Image.Image:
    """One image in memory, upright, with 8 bits a channel and no transparency.

    ``path`` may end in ``#<frame>``. The first frame of an animation or of a TIFF stack is read.
    """
    file, frame = frame_of(str(path))
    if kind := _medical(Path(file)):
        values, window, inverted = kind.frame(file, frame or 0)
        if values.dtype != np.uint8:
            values = to_uint8(values, rule, window)
        return Image.fromarray(255 - values if inverted else values)
    with _open(path) as image:
        # cameras store pictures as the sensor lay, and say how to turn them
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in DEEP:  # Pillow would clip, not scale
            return Image.fromarray(to_uint8(np.asarray(image), rule))
        if image.mode == "P" or "A" in image.mode:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        image.load()
        return image


def decode_mask(path: Path) -> Image.Image:
    """The foreground of a mask file as a picture of mode ``L`` with the values 0 and 255."""
    return Image.fromarray(np.uint8(255) * _foreground(path))


def _foreground(path: Path) -> np.ndarray:
    """Whatever is not background, ``(H, W)`` boolean.

    Background is 0, black or transparent. Colours, palettes and label maps count by being another
    value. Soft edges and the ripples of JPEG are cut at half the mask's value.
    """
    file, frame = frame_of(str(path))
    if kind := _medical(Path(file)):
        values = kind.frame(file, frame or 0)[0]
        return values.reshape(*values.shape[:2], -1).any(-1)
    with _open(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        lossy = image.format in ("JPEG", "MPO", "JPEG2000", "WEBP")
        if image.mode in DEEP:
            return np.asarray(image) != 0
        colours = np.asarray(image.convert("RGBA"))
    values = colours[..., :3].max(-1) * (colours[..., 3] > 0)
    highest, inked = int(values.max(initial=0)), values[values > 0]
    if highest >= 128 and (inked > 0.9 * highest).mean() >= 0.5:
        return values > highest / 2
    return values > (16 if lossy else 0)


# --- looking at a file before it is used ---------------------------------------------------------


def inspect(path: Path, mask: bool = False) -> dict | tuple[str, str]:
    """Width, height, mode and SHA-256 of an image decoded to its last row, or (problem, detail).

    Further keys: ``frames`` (of a volume or film; None for one image), ``blank`` (frames of one
    value), ``pages`` (of a TIFF stack), ``sample`` (values of a deep image), ``patient`` (a number
    for a DICOM file's patient), and with ``mask`` ``covered``, the share of the foreground (a list
    where there are frames, one a frame).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file", "a folder, pipe, device or socket"  # reading one may never end
        data = path.read_bytes()
    except OSError as error:
        return denied(error)
    if not data:
        return "empty file", "zero bytes"
    try:
        kind = _medical(path)
        facts = kind.facts(path) if kind else _facts(data)
        if isinstance(facts, dict) and mask:
            facts["covered"] = _covered(path, facts["frames"])
    except Image.DecompressionBombError as error:  # Pillow does not even open it
        return "too large", str(error)
    except Image.UnidentifiedImageError:
        return "not an image", "no image format that Pillow knows"
    except extras.MissingExtra as error:
        return "needs a package", str(error)
    # a decoder may raise anything on hostile bytes: the file is named, the rest goes on
    except Exception as error:
        truncated = isinstance(error, OSError | SyntaxError | EOFError)
        return (
            "truncated or damaged" if truncated else "unreadable",
            f"{type(error).__name__}: {str(error)[:120]}",
        )
    if isinstance(facts, tuple):
        return facts
    return facts | {"sha256": hashlib.sha256(data).hexdigest()}


def _facts(data: bytes) -> dict | tuple[str, str]:
    with _open(io.BytesIO(data)) as image:
        width, height, mode = *image.size, image.mode
        # a few kilobytes may claim gigabytes: looked at before anything is decoded
        if width * height > LARGEST:
            return "too large", f"{width:,} x {height:,} pixels; the limit is {LARGEST:,}"
        image.load()
        sample = None
        if mode in DEEP:
            values = np.asarray(image)
            if mode == "F" and not np.isfinite(values).all():
                return "not finite", "holds NaN or infinity"
            sample = _sampled(values)
        if image.getexif().get(ORIENTATION, 1) >= 5:  # lies on its side; decode turns it
            width, height = height, width
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    return _described(width, height, mode, sample, pages=pages)


def _described(width: int, height: int, mode: str, sample: np.ndarray | None, **more) -> dict:
    facts = {"width": width, "height": height, "mode": mode, "sample": sample}
    return facts | {"frames": None, "blank": (), "pages": 1, "patient": ""} | more


def _sampled(values: np.ndarray) -> np.ndarray:
    flat = np.asarray(values, dtype=np.float32).ravel()
    return flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE]


def _covered(path: Path, frames: int | None) -> float | list[float]:
    """The share of the foreground, of each frame where there are frames."""
    if frames is None:
        return float(_foreground(path).mean())
    return [float(_foreground(Path(f"{path}#{frame}")).mean()) for frame in range(frames)]


def denied(error: OSError) -> tuple[str, str]:
    """(problem, detail) of a file or folder that the system does not hand out."""
    if isinstance(error, PermissionError):
        return (
            "no permission",
            "this account may not read it: chmod -R u+rX on its folder, or ask its owner",
        )
    if isinstance(error, FileNotFoundError):
        return "missing file", "nothing is there, or a link to nowhere"
    if error.errno == errno.ELOOP:
        return "missing file", "a link that leads back to itself"
    return "unreadable", f"{type(error).__name__}: {error.strerror}; copy it anew"


# --- DICOM and NIfTI -----------------------------------------------------------------------------


def is_dicom(path: Path) -> bool:
    """Whether a file of any name starts as a DICOM file does."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _medical(path: Path) -> type[Dicom] | type[Nifti] | None:
    """The reader of a file that Pillow does not know, by its suffix; without one by its content."""
    last = suffix(path.name)
    if last in NIFTI:
        return Nifti
    if last in DICOM or (last not in suffixes() and is_dicom(path)):
        return Dicom
    return None


class Dicom:
    """DICOM through pydicom: slope and intercept applied, colours as RGB, MONOCHROME1 turned."""

    @staticmethod
    def facts(path: Path) -> dict | tuple[str, str]:
        """What :func:`inspect` tells of a file."""
        header = pydicom.dcmread(path, force=suffix(path.name) in DICOM, stop_before_pixels=False)
        if "PixelData" not in header:
            what = header.get("Modality", "") or "no modality stated"
            return "no pixels", f"a DICOM file without an image ({what})"
        frames = int(header.get("NumberOfFrames", 1) or 1)
        width, height = int(header.Columns), int(header.Rows)
        if width * height > LARGEST or width * height * frames > VOXELS:
            return "too large", f"{width:,} x {height:,} pixels in {frames:,} frames"
        values, blank = None, []
        for frame in range(frames):
            values = Dicom._values(header, frame)
            if values.min() == values.max():
                blank.append(frame)
        if values.dtype != np.uint8 and not np.isfinite(values).all():
            return "not finite", "holds NaN or infinity"
        mode = "RGB" if values.ndim == 3 else {np.uint8: "L"}.get(values.dtype.type, "F")
        identity = str(header.get("PatientID", "") or "").strip()
        return _described(
            width,
            height,
            mode,
            _sampled(values) if mode == "F" else None,
            frames=frames if frames > 1 else None,
            blank=tuple(blank) if frames > 1 else (),
            # a number in place of what may name a person
            patient=hashlib.sha256(identity.encode()).hexdigest()[:10] if identity else "",
        )

    @staticmethod
    def frame(path: str, number: int) -> tuple[np.ndarray, tuple[float, float] | None, bool]:
        """Values of one frame, the window that the header states as (low, high), and whether high
        values are dark."""
        header = _dicom_header(path, Path(path).stat().st_mtime_ns)
        window = None
        if "WindowCenter" in header and "WindowWidth" in header:
            centre, width = (
                float(np.atleast_1d(np.asarray(header[tag].value, dtype=float))[0])
                for tag in ("WindowCenter", "WindowWidth")
            )
            if width > 0:
                window = (centre - width / 2, centre + width / 2)
        values = Dicom._values(header, number)
        return values, window, header.get("PhotometricInterpretation") == "MONOCHROME1"

    @staticmethod
    def _values(header, number: int) -> np.ndarray:
        values = pixels_of.pixel_array(header, index=number)
        colour = header.get("PhotometricInterpretation", "")
        if colour == "PALETTE COLOR":
            values = pixels_of.apply_color_lut(values, header)
            return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
        if values.ndim == 3:
            return values if values.dtype == np.uint8 else np.uint8(values >> 8)
        scaled = pixels_of.apply_modality_lut(values, header)
        # a slope of 1 and an intercept of 0 change nothing: 8 bits stay 8 bits
        if values.dtype == np.uint8 and np.array_equal(scaled, values):
            return values
        return np.asarray(scaled, dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _dicom_header(path: str, changed: int):
    return pydicom.dcmread(path, force=suffix(path) in DICOM)


class Nifti:
    """NIfTI through nibabel, turned to the standard axes; the slices of the coarsest axis, axial
    where all are alike, seen as radiologists see them."""

    @staticmethod
    def facts(path: Path) -> dict | tuple[str, str]:
        """What :func:`inspect` tells of a file."""
        shape = tuple(size for size in nibabel.load(path).shape if size > 1)
        if len(shape) not in (2, 3):
            return "not a volume", f"{len(shape)} dimensions {shape}: save each volume by itself"
        if np.prod(shape) > VOXELS:
            return "too large", f"{' x '.join(map(str, shape))} voxels"
        slices = _nifti_slices(str(path), path.stat().st_mtime_ns)
        if not np.isfinite(slices).all():
            return "not finite", "holds NaN or infinity"
        height, width = slices.shape[1:]
        flat = slices.reshape(len(slices), -1)
        blank = tuple(np.flatnonzero(flat.min(1) == flat.max(1)).tolist())
        several = len(slices) > 1
        return _described(
            width,
            height,
            "F",
            _sampled(slices),
            frames=len(slices) if several else None,
            blank=blank if several else (),
        )

    @staticmethod
    def frame(path: str, number: int) -> tuple[np.ndarray, None, bool]:
        """Values of one slice; NIfTI knows no window and no inverted greys."""
        return _nifti_slices(path, Path(path).stat().st_mtime_ns)[number], None, False


@functools.lru_cache(maxsize=4)
def _nifti_slices(path: str, changed: int) -> np.ndarray:
    """All slices, float32 ``(N, H, W)``."""
    image = nibabel.as_closest_canonical(nibabel.squeeze_image(nibabel.load(path)))
    values = image.get_fdata(dtype=np.float32)
    if values.ndim == 2:
        return values[None, ::-1, ::-1].transpose(0, 2, 1)
    spacing = np.asarray(image.header.get_zooms()[:3])
    axis = int(spacing.argmax()) if spacing.max() > 1.5 * np.median(spacing) else 2
    # right, anterior and superior grow along the axes; seen with them at the left and at the top
    flipped = values[::-1, ::-1, ::-1] if axis != 0 else values[:, ::-1, ::-1]
    slices = np.moveaxis(flipped, axis, 0)
    slices = slices[::-1] if axis != 0 else slices
    return np.ascontiguousarray(slices.transpose(0, 2, 1))
