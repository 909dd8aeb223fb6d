"""Where a dataset lies on this machine, and how it comes there when it does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdnb import checks, files
from kdnb.images import phantoms
from kdnb.images.catalogue import PARTS, DatasetSpec

KAGGLE = Path("/kaggle/input")  # where Kaggle's own notebooks mount datasets, read-only
LARGER = 3  # a download this many times the size that the catalogue tells is not what it tells


class DatasetMissing(
    files.UserError,
    FileNotFoundError,
    code="KD101",
    way_out="put the images where the message says, name another folder with -p data_root or "
    "KDNB_DATA, or let -p download True fetch a public set; phantom_cxr needs no files",
):
    """The images are not on this machine; the message tells what to get from where and where to put
    it."""


def locate(spec: DatasetSpec, data_root: str | Path | None = None, download: bool = False) -> Path:
    """The folder that holds a dataset's images; phantoms and MedMNIST sets are laid out there
    first."""
    if spec.synthetic:
        return phantoms.ensure(spec.name, list(spec.classes), files.cache_dir() / spec.name)
    if spec.name.startswith("medmnist:"):
        return _unpack_medmnist(
            spec, Path(data_root) if data_root else files.data_dir() / "medmnist", download
        )
    if spec.name == "folder" and not data_root:
        raise DatasetMissing(
            "dataset 'folder' needs data_root, the folder that holds your classes: "
            "-p data_root /path/to/images\n"
            f"Expected layout: {spec.layout}"
        )
    root = Path(data_root).expanduser() if data_root else files.data_dir() / spec.slug
    if not root.is_absolute():
        root = next(
            (base / root for base in (Path.cwd(), files.ROOT) if (base / root).is_dir()),
            root.resolve(),
        )
    if not root.is_dir():
        if not data_root and (found := mounted(spec)):
            print(f"{spec.name} is read from {found}")
            return found
        if download:
            return fetch(spec, root)
        raise DatasetMissing(_how_to_get(spec, root, f"{spec.name} is not at {root}."))
    return root


def mounted(spec: DatasetSpec) -> Path | None:
    """The folder where a Kaggle notebook mounts this dataset, or else its newest whole version in
    kagglehub's cache (``KAGGLEHUB_CACHE``, by default ``~/.cache/kagglehub``); None for neither."""
    if not spec.kaggle:
        return None
    owner, name = spec.kaggle.split("/")
    mounts = [KAGGLE / name, KAGGLE / "datasets" / owner / name]
    if here := next(filter(Path.is_dir, mounts), None):
        return here
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    versions = [
        # kagglehub marks each version that it has unpacked to the end: 3.complete
        mark.with_suffix("")
        for mark in (cache / "datasets" / owner / name / "versions").glob("*.complete")
        if mark.stem.isdigit() and mark.with_suffix("").is_dir()
    ]
    return max(versions, key=lambda path: int(path.name), default=None)


def fetch(spec: DatasetSpec, root: str | Path | None = None) -> Path:
    """Download a public dataset from Kaggle with a progress bar, and return its folder; see
    :func:`kdnb.data.fetch`."""
    if not spec.kaggle:
        raise ValueError(f"{spec.name} is not a download: {spec.source}.")
    root = Path(root) if root else files.data_dir() / spec.slug
    whole = root.resolve()  # the folder may be a link to a larger disk
    part = whole.with_name(whole.name + ".part")
    with files.lock(root):
        if not root.is_dir() or not any(root.iterdir()):  # else another process was first
            try:
                _bring(spec, part)
                files.put_in_place(part, whole)
            except (
                Exception
            ) as error:  # no network, no such host, refused, quota: kagglehub raises many kinds
                reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
                raise DatasetMissing(
                    _how_to_get(spec, root, f"{spec.name} could not be downloaded ({reason}).")
                ) from None
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return root


def _bring(spec: DatasetSpec, folder: Path) -> None:
    """Download and unpack into ``folder``, and look at what came: raises ``ValueError`` for what is
    much larger than published, or holds links or other special files.

    kagglehub unpacks whatever came. Archives stay inside their folder on Python 3.11.13, 3.12.11
    and later (CVE-2025-4517).
    """
    import kagglehub

    # left by a killed process; kagglehub goes on in no folder that holds something
    shutil.rmtree(folder, ignore_errors=True)
    kagglehub.dataset_download(spec.kaggle, output_dir=str(folder))
    size, limit = 0, LARGER * spec.size_gb * 1e9
    for path in folder.rglob("*"):
        fact = path.lstat()
        name = path.relative_to(folder)
        if path.is_symlink() or (path.is_file() and fact.st_nlink > 1):
            raise ValueError(f"{name} is a link: it may lead anywhere")
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name} is neither a file nor a folder")
        size += fact.st_size
    if size > limit:
        raise ValueError(f"it holds {size / 1e9:.3g} GB, where {spec.size_gb:g} GB are published")


def _how_to_get(spec: DatasetSpec, root: Path, reason: str) -> str:
    if not spec.kaggle:
        return f"{reason} {spec.source}; expected layout: {spec.layout}"
    return (
        f"{reason}\n  download:  {spec.source}  (about {spec.size_gb:g} GB; "
        f"{spec.total:,} images; licence: {spec.licence})\n"
        f"  unpack to: {root}  (or set KDNB_DATA to the folder that holds {spec.slug}/)\n"
        f"  so that it looks like:  {spec.layout.splitlines()[0]}\n"
        f'  on Kaggle: "Add input", {spec.kaggle}; it is found where Kaggle mounts it\n'
        "  with a network, this does it:  -p download True   or   kdnb.data.fetch"
        f'("{spec.name}"); a copy in kagglehub\'s cache is found too'
    )


def _unpack_medmnist(spec: DatasetSpec, folder: Path, download: bool) -> Path:
    """Lay a MedMNIST file out as the ``<split>/<class>/*.png`` tree that every dataset here is read
    from."""
    import medmnist
    from PIL import Image
    from tqdm.auto import tqdm

    file = spec.name.removeprefix("medmnist:")
    flag, _, size = file.partition("_")
    root = files.cache_dir() / spec.slug
    builder = getattr(medmnist, medmnist.INFO[flag]["python_class"])
    with files.lock(root):
        if (root / "complete").exists():
            return root
        folder.mkdir(parents=True, exist_ok=True)
        for split in PARTS:
            try:
                data = builder(
                    split=split, root=str(folder), download=download, size=int(size or 28)
                )
            # not there, not reachable, damaged, or pickled objects, which numpy may not open
            except Exception as error:
                path = folder / f"{file}.npz"
                reason = (
                    f"cannot be read from {path} ({error}); delete it first"
                    if path.exists()
                    else f"is not at {path}"
                )
                raise DatasetMissing(
                    f"{spec.name} {reason}.\n  download:  {spec.source}\n"
                    f"  put it to: {folder}\n  with a network, this does it:  -p download True"
                ) from error
            numbers = data.labels.reshape(-1).astype(int)
            checks.labels(numbers, len(spec.classes), f"labels of {file}")
            for row, (array, label) in enumerate(
                zip(tqdm(data.imgs, desc=f"{file} {split}", leave=False), numbers, strict=True)
            ):
                path = root / split / list(spec.classes)[label] / f"{row:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
        files.write_text(root / "complete", "")
    return root
