"""The trained student of a dataset as a folder to hand over: ``python -m kdnb.release <dataset>``.

The folder holds the weights, ONNX files in float32 and int8, the configuration, a model card in the
format of the Hugging Face hub, a script that needs none of this package, and ``CITATION.cff``.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from kdnb import cells, files, parameters
from kdnb.data import Dataset
from kdnb.deployment import comparison, efficiency, onnx_export, release
from kdnb.models import predict
from kdnb.models.zoo import Classifier
from kdnb.report import card, citation, pages, results
from kdnb.report.results import Result
from kdnb.study import Study
from kdnb.training import checkpoints

CALIBRATION = 64  # training images that set the ranges of int8


class NothingToRelease(
    files.UserError,
    RuntimeError,
    code="KD805",
    way_out="run the notebook that the message names with the same parameters, then release again",
):
    """No result or no weights to hand over; the message says which notebook makes them."""


def main(arguments: list[str] | None = None) -> int:
    """Write the folder and say where it is; 1 where there is nothing to hand over."""
    options = _options(arguments)
    try:
        folder = write(options.dataset, parameters.given(options), options.out)
    except (files.UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"error: {error}: --out names a folder that may be written", file=sys.stderr)
        return 1
    pages.written(*sorted(path for path in folder.iterdir() if path.is_file()))
    print(f"to publish it, if the licence of the data allows: hf upload <user>/<name> {folder} .")
    return 0


def write(dataset: str, given: Mapping[str, object] | None = None, out: Path | None = None) -> Path:
    """Write the folder of the student that notebook 03 trained on a dataset; returns it.

    ``given`` parameters choose among several results; ``out`` is the folder, by default
    ``release/<dataset>`` beside the outputs. Raises :class:`NothingToRelease`, which says what to
    run first.
    """
    given = dict(given or {})
    result, integrity = chosen(dataset, given)
    model, data = _trained(result), _data(result, given)
    folder = out or files.outputs_dir().parent / "release" / data.spec.slug
    calibration = data.pixels(model.image_size).floats(data.sample("train", CALIBRATION))
    images = calibration.expand(-1, 3, -1, -1).contiguous()
    about = {"data": result.title}
    release.write(model, folder, data.classes, images, comparison.reading(data), about)
    measured, place = _measured(folder, data), files.shown(folder)
    described = card.write(result, integrity, data.spec, measured, place)
    files.write_text(folder / "README.md", str(described))
    entry = citation.model(card.title(result), data.spec)
    files.write_text(folder / "CITATION.cff", citation.as_yaml(entry))
    return folder


def chosen(dataset: str, given: Mapping[str, object]) -> tuple[Result, Result | None]:
    """The result of notebook 03 that a dataset and parameters name, and that of notebook 08 on the
    same networks, if there is one. Raises :class:`NothingToRelease` for none and for several."""
    whole = {"dataset": dataset, **given}
    study = Study.of(*cells.WINGS).from_parameters(whole)
    folder, root = study.outputs(), study.outputs_root
    every = {path: results.read(path, root) for path in sorted(folder.glob("distill-*.json"))}
    asked = [name for name in given if name not in ("data_root", "download", "split", "profile")]
    found = {
        path: each
        for path, each in every.items()
        if each and all(each.config.get(name) == getattr(study, name, None) for name in asked)
    }
    names = ", ".join(path.name for path in found or every)
    if not found:
        raise NothingToRelease(
            f"no such result of a distillation on {dataset} in {files.shown(folder)}"
            f"{f' (there are {names})' if names else ''}. Notebook 03 trains and tests a student: "
            f"{_command(whole)}"
        )
    if len(found) > 1:
        raise NothingToRelease(
            f"{files.shown(folder)} has several results: {names}. Choose one by its parameters, "
            "for example -p method kd_fmv -p student kdfmv5"
        )
    ((path, result),) = found.items()
    other = path.with_name(path.name.replace("distill-", "integrity-", 1))
    integrity = results.read(other, root) if other.exists() else None
    same = integrity and integrity.stored["data"]["checksum"] == result.stored["data"]["checksum"]
    return result, integrity if same else None


def _command(given: Mapping[str, object]) -> str:
    return "python -m kdnb.run 03 " + " ".join(
        f"-p {name} {value}" for name, value in given.items()
    )


def _trained(result: Result) -> Classifier:
    """The student of a result, from the cache. Raises :class:`NothingToRelease`."""
    stored = result.stored["results"]["training"]
    record = next(run for name, run in stored.items() if results.role(name) == "distilled")
    key, slug = record["key"], result.config["dataset"].replace(":", "-")
    name = f"{key['model']}-{key['objective']['method']}-{files.digest(key)}"
    folder = files.cache_dir() / "runs" / slug / name
    again = f"Notebook 03 trains it again: {card.command(result)}"
    if not (folder / "run.json").exists():
        raise NothingToRelease(
            f"the weights of {result.file} are not in {files.shown(folder)}: results are kept in "
            f"the repository, weights are not. {again}"
        )
    run = checkpoints.load(folder)
    if run.checksum != record["weights"]:
        raise NothingToRelease(
            f"{files.shown(folder)} holds other weights than those of {result.file}. {again}"
        )
    return run.model.cpu()


def _data(result: Result, given: Mapping[str, object]) -> Dataset:
    """The images of a result. Raises :class:`NothingToRelease` where others lie there now."""
    config = {name: v for name, v in result.config.items() if name in parameters.declared(Study)}
    here = {name: given[name] for name in ("data_root", "download") if name in given}
    data = Study(**config | here).load_data()
    if data.checksum != result.stored["data"]["checksum"]:
        raise NothingToRelease(
            f"the images of {data.title} or their split are not those of {result.file} (checksum "
            f"{data.checksum}, there {result.stored['data']['checksum']}): run notebook 03 on them"
        )
    return data


def _measured(folder: Path, data: Dataset) -> list[dict[str, object]]:
    """Size, agreement with PyTorch and accuracy on the test images of each file of the folder."""
    network = release.load(folder)
    pixels = data.pixels(network.image_size, "test")
    labels, expected = pixels.labels[pixels.rows].numpy(), predict(network, pixels)
    logits = {release.WEIGHTS: expected}
    for name in (release.ONNX, release.INT8):
        deployed = onnx_export.open(folder / name)
        logits[name] = efficiency.answers(functools.partial(_answers, deployed), pixels)
    return [
        {
            "file": name,
            "megabytes": (folder / name).stat().st_size / 1e6,
            "same": float((answer.argmax(1) == expected.argmax(1)).mean()),
            "accuracy": float((answer.argmax(1) == labels).mean()),
        }
        for name, answer in logits.items()
    ]


def _answers(deployed: onnx_export.Deployed, images: Tensor) -> np.ndarray:
    return deployed(images.numpy())


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kdnb.release", description=__doc__)
    parser.add_argument("dataset", help="a dataset that notebook 03 was run on")
    parameters.add_argument(parser, "a parameter of the run, where a dataset has several")
    parser.add_argument("--out", type=Path, help="the folder to write; default release/<dataset>")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
