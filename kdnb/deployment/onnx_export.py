"""Networks as ONNX files that a developer can use without this package: export, quantisation to
int8, and opening with checks."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdnb import device, extras, files, provenance
from kdnb.deployment import recipe
from kdnb.explanations import activations
from kdnb.models import capabilities, zoo
from kdnb.models.zoo import Classifier

onnx = extras.late("onnx")
external_data = extras.late("onnx.external_data_helper")
onnxruntime = extras.late("onnxruntime")
quantization = extras.late("onnxruntime.quantization")
preparation = extras.late("onnxruntime.quantization.shape_inference")

FORMAT = "kdnb 2"
LICENCE = "code MIT; weights: as the licence of the data they were trained on. Research use only"
REQUIRED = (
    "format",
    "model",
    "classes",
    "image_size",
    "color",
    "input",
    "reading",
    "recipe",
    "precision",
    "licence",
    "weights",
    "commit",
)


class NotOurs(
    files.UserError,
    ValueError,
    code="KD602",
    way_out="export the network again with notebook 06, and leave the file as it is",
):
    """A file that this package did not write, or whose graph does not match its metadata; the
    message lists the differences."""


@dataclass(frozen=True)
class Reading:
    """How image files were read for training.

    ``color`` is ``L`` or ``RGB``; ``low`` and ``high`` are the values of 16-bit and float images
    that became 0 and 255, None where each image has its own (see :mod:`kdnb.deployment.recipe`).
    ``from_file`` says that a DICOM file was read by the window in its header.
    """

    color: str = "RGB"
    low: float | None = None
    high: float | None = None
    from_file: bool = False

    def metadata(self, side: int) -> dict[str, str]:
        """Entries of an ONNX file for images of ``side`` pixels: a sentence, and the recipe as
        Python code with its arguments."""
        deep = (
            f"{self.low:g} becomes 0 and {self.high:g} becomes 255"
            if self.low is not None
            else "scaled between the 1st and 99th percentile of all but its extreme values"
        )
        if self.from_file:
            deep += "; a DICOM file, which Pillow does not open, by the window in its header"
        return {
            "color": self.color,
            "input": "a file that Pillow opens, its first frame, turned upright as EXIF says; "
            f"16-bit and float images to 8 bits ({deep}); transparent parts black; converted to "
            f"mode {self.color}; stretched to {side} x {side} (bilinear); three equal channels if "
            "that is L; divided by 255",
            "reading": json.dumps(
                {"side": side, "color": self.color, "low": self.low, "high": self.high}
            ),
            "recipe": inspect.getsource(recipe),
        }


COLOUR = Reading()


@dataclass(frozen=True)
class Deployed:
    """An opened ONNX file.

    Called with images ``(N, 3, S, S)`` float32 in [0, 1] it returns logits ``(N, K)``, or
    ``(N, K, S, S)`` of a network that segments.
    """

    session: object  # onnxruntime.InferenceSession
    classes: tuple[str, ...]
    image_size: int
    metadata: dict[str, str]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": np.asarray(images, np.float32)})[0]


def export(
    model: Classifier,
    path: str | Path,
    classes: Sequence[str],
    reading: Reading = COLOUR,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as one ONNX file with everything that using it needs; returns the path.

    Input ``images`` ``(N, 3, S, S)`` float32 in [0, 1] (the normalisation is part of the graph),
    output ``logits`` ``(N, len(classes))``, any N. The metadata hold classes, size, how images are
    read, licence and provenance; ``about`` adds to them (a data title, say). The model is left as
    it was. Raises ``ValueError`` when the classes are not the model's.
    """
    if len(classes) != model.num_classes:
        raise ValueError(
            f"{len(classes)} class names for a network of {model.num_classes} classes: "
            f"{', '.join(classes)}"
        )
    with activations.untouched(model), _quiet():
        graph = _graph(model)
    _describe(
        graph,
        {
            "format": FORMAT,
            "model": model.name,
            "classes": json.dumps(list(classes), ensure_ascii=False),
            "image_size": str(model.image_size),
            "precision": "float32",
            **reading.metadata(model.image_size),
            "source": model.source,
            "licence": LICENCE,
            "weights": zoo.checksum(model.network),
            "commit": str(provenance.collect()["commit"]),
            **(about or {}),
        },
    )
    return _write(graph, Path(path))


def _graph(model: Classifier) -> Any:
    """The exporter's graph for any number of images; the network is moved to the processor and
    back."""
    place = device.of(model)
    example = torch.rand(2, 3, model.image_size, model.image_size)
    batch = {0: torch.export.Dim("batch", min=1, max=65_536)}
    model.to("cpu")
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(batch,),
            verbose=False,
            optimize=True,
        )
    finally:
        model.to(place)
    return program.model_proto


def quantise(path: str | Path, out: str | Path, images: Tensor) -> Path:
    """Write the network of an exported file in int8, with the same metadata but ``precision``.

    Static quantisation after training, with ranges calibrated on ``images`` ``(N, 3, S, S)`` in [0,
    1]. Only convolutions and matrix products are quantised, weights channel by channel. Norms,
    gates and softmax stay in float32, since they lose most and weigh least; so do the first
    convolution, which sees raw pixels, and the classifier.
    """
    opened, size = open(path), min(16, len(images))
    # the library's histograms need batches of one size
    images = images[: len(images) // size * size].cpu()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        preparation.quant_pre_process(Path(path), prepared, skip_symbolic_shape=True)
        kinds = ["Conv", "Gemm", "MatMul"]
        nodes = [node.name for node in onnx.load(prepared).graph.node if node.op_type in kinds]
        quantization.quantize_static(
            prepared,
            made,
            _Batches(images.split(size)),
            per_channel=True,
            op_types_to_quantize=kinds,
            nodes_to_exclude=[nodes[0], nodes[-1]],
            calibrate_method=quantization.CalibrationMethod.Percentile,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"CalibPercentile": 99.99, "ActivationSymmetric": False},
        )
        graph = onnx.load(made)
    _describe(graph, opened.metadata | {"precision": f"int8, calibrated on {len(images)} images"})
    return _write(graph, Path(out))


class _Batches:
    """Calibration images in the form that the library reads."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = iter([{"images": part.numpy().astype(np.float32)} for part in parts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.parts, None)


def open(path: str | Path, threads: int | None = None) -> Deployed:  # noqa: A001 - onnx_export.open reads as what it does
    """Open a file that :func:`export` or :func:`quantise` wrote, with ``threads`` for one inference
    (torch's number by default; 0: the default of ONNX Runtime, all cores).

    Raises ``FileNotFoundError``, and :class:`NotOurs` for another or a changed file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; onnx_export.export writes it")
    session = _session(path, threads)
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    if missing := [name for name in REQUIRED if name not in metadata]:
        raise NotOurs(
            f"{path} lacks metadata ({', '.join(missing)}): it was not written by this version of "
            "kdnb, or was changed since"
        )
    try:
        size, classes = int(metadata["image_size"]), tuple(json.loads(metadata["classes"]))
    except ValueError as error:
        raise NotOurs(f"{path}: its metadata cannot be read ({error})") from None
    (first, *others), (last, *_) = session.get_inputs(), session.get_outputs()
    compared = {
        "format": (metadata["format"], FORMAT),
        "inputs": ([first.name, *(other.name for other in others)], ["images"]),
        "input shape": (first.shape[1:], [3, size, size]),
        "classes": (last.shape[1], len(classes)),
    }
    differences = [
        f"{name}: the graph has {found}, its metadata say {said}"
        for name, (found, said) in compared.items()
        if found != said
    ]
    if differences:
        raise NotOurs(f"{path} does not match its metadata: " + "; ".join(differences))
    return Deployed(session, classes, size, metadata)


def _session(path: Path, threads: int | None) -> Any:
    """ONNX Runtime on the processor; raises :class:`NotOurs` for what it cannot read."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    try:
        graph = onnx.load(path, load_external_data=False).graph
        if elsewhere := [
            tensor.name for tensor in graph.initializer if external_data.uses_external_data(tensor)
        ]:
            raise NotOurs(
                f"{path} wants weights from other files ({elsewhere[0]}, {len(elsewhere)} in all): "
                "ours carry their own, and a file from elsewhere must not name others to be read"
            )
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except NotOurs:
        raise
    # onnx and onnxruntime raise kinds of their own for each thing that can be wrong
    except Exception as error:
        raise NotOurs(
            f"{path} cannot be read as ONNX: {str(error).splitlines()[0][:160]}"
        ) from None


def _describe(graph: Any, metadata: Mapping[str, str]) -> None:
    del graph.metadata_props[:]
    for name, value in metadata.items():
        graph.metadata_props.add(key=name, value=str(value))


def _write(graph: Any, path: Path) -> Path:
    onnx.checker.check_model(graph)
    with files.atomic(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return path


@contextlib.contextmanager
def _quiet():
    """Silence the exporter and the quantiser, whose pages of output call for no action."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@capabilities.register("export", "exported")
def _can_be_exported(model: Classifier) -> None:
    """Export, open, and compare the answers; raises ``ValueError`` where they differ."""
    images = torch.rand(3, 3, model.image_size, model.image_size)
    classes = [f"class {number}" for number in range(model.num_classes)]
    with tempfile.TemporaryDirectory() as folder:
        deployed = open(export(model.eval(), Path(folder, "network.onnx"), classes))
        with torch.inference_mode():
            expected = model(images).numpy()
        gap = np.abs(deployed(images.numpy()) - expected).max()
    if not gap <= 1e-3 * max(1.0, np.abs(expected).max()):
        raise ValueError(f"ONNX Runtime answers otherwise than PyTorch, by {gap:.2g}")
