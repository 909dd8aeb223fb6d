"""A trained network as a folder that others can use: weights, ONNX files, configuration, a script.

The configuration is timm's, so that ``timm.create_model("local-dir:<folder>")`` opens the folder
too where timm has the architecture; what this package needs beside it stands under ``kdnb``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdnb import files, provenance
from kdnb.deployment import onnx_export, recipe
from kdnb.deployment.onnx_export import COLOUR, Reading
from kdnb.models import zoo
from kdnb.models.zoo import Classifier

FORMAT = "kdnb release 1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ONNX, INT8 = "model.onnx", "model-int8.onnx"
PREDICT = '''\
"""Shares of the classes: python predict.py image.png …  Needs onnxruntime, numpy and Pillow."""
import json, pathlib, sys
import numpy as np, onnxruntime
from reading import read

session = onnxruntime.InferenceSession(pathlib.Path(__file__).with_name("model.onnx"))
about = session.get_modelmeta().custom_metadata_map
for path in sys.argv[1:]:
    logits = session.run(None, {"images": read(path, **json.loads(about["reading"]))})[0][0]
    shares = np.exp(logits - logits.max(), dtype=float) / np.exp(logits - logits.max()).sum()
    print(path, json.dumps(dict(zip(json.loads(about["classes"]), shares.round(4).tolist()))))
'''


class NotReleased(
    files.UserError,
    ValueError,
    code="KD605",
    way_out="write the folder anew with python -m kdnb.release",
):
    """A folder that :func:`write` did not write, or that was changed since."""


def write(
    model: Classifier,
    folder: str | Path,
    classes: Sequence[str],
    calibration: Tensor,
    reading: Reading = COLOUR,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write weights, configuration, both ONNX files and ``predict.py`` into ``folder``; returns it.

    ``calibration`` images ``(N, 3, S, S)`` in [0, 1] set the ranges of the int8 file; ``reading``
    says how image files were read; ``about`` goes into the metadata of the ONNX files (a data
    title, say). Raises ``ValueError`` when the classes are not the model's.
    """
    folder = Path(folder)
    onnx_export.export(model, folder / ONNX, classes, reading, about)
    onnx_export.quantise(folder / ONNX, folder / INT8, calibration)
    weights = {
        name: t.detach().cpu().contiguous() for name, t in model.network.state_dict().items()
    }
    with files.atomic(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    files.write_json(folder / CONFIG, _config(model, classes, reading))
    files.write_text(folder / "reading.py", inspect.getsource(recipe))
    files.write_text(folder / "predict.py", PREDICT)
    return folder


def _config(model: Classifier, classes: Sequence[str], reading: Reading) -> dict:
    """What timm reads, and under ``kdnb`` what :func:`load` reads."""
    timm_name, side = model.entry.timm_name, model.image_size
    known = timm.get_pretrained_cfg(timm_name) if timm_name else None
    sized = {"img_size": side} if known and known.fixed_input_size else {}
    return {
        "architecture": timm_name or model.name,
        "num_classes": model.num_classes,
        "label_names": list(classes),
        "model_args": sized,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [round(value, 4) for value in model.mean.flatten().tolist()],
            "std": [round(value, 4) for value in model.std.flatten().tolist()],
            **({"first_conv": known.first_conv, "classifier": known.classifier} if known else {}),
        },
        "kdnb": {
            "format": FORMAT,
            "version": str(provenance.collect()["packages"]["kdnb"]),
            "commit": str(provenance.collect()["commit"]),
            "model": model.name,
            "image_size": side,
            "weights": zoo.checksum(model.network),
            "color": reading.color,
            "low": reading.low,
            "high": reading.high,
        },
    }


def load(folder: str | Path) -> Classifier:
    """The network of a folder that :func:`write` wrote, ready to answer: images ``(N, 3, S, S)`` in
    [0, 1] to logits ``(N, K)``.

    Its classes are ``label_names`` in the folder's ``config.json``. Raises :class:`NotReleased`
    where a file is missing, is of another format, or holds other weights than the configuration
    says.
    """
    folder = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]:
        raise NotReleased(
            f"{folder} lacks {' and '.join(missing)}: python -m kdnb.release <dataset> writes such "
            "a folder, hf download <user>/<name> --local-dir <folder> fetches one"
        )
    config = files.read_json(folder / CONFIG)
    own = config.get("kdnb", {}) if isinstance(config, dict) else {}
    if own.get("format") != FORMAT:
        raise NotReleased(
            f"{folder / CONFIG} is of the format {own.get('format')!r}, this version of kdnb reads "
            f"{FORMAT!r}"
        )
    model = zoo.create(own["model"], config["num_classes"], own["image_size"])
    model.network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    if zoo.checksum(model.network) != own["weights"]:
        raise NotReleased(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} names: download or write "
            "the folder again"
        )
    return model.eval()
