"""Networks as ONNX files that a developer can use without this package: written, made int8, and
opened with checks."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.external_data_helper import uses_external_data
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from kdnb import files, provenance
from kdnb.explanations import registry
from kdnb.models import zoo
from kdnb.models.zoo import Classifier

FORMAT = "kdnb 1"
REQUIRED = (
    "format",
    "model",
    "classes",
    "image_size",
    "color",
    "input",
    "precision",
    "licence",
    "weights",
    "commit",
)


class NotOurs(files.UserError, ValueError):
    """A file that is no network of this package, or whose graph does not match its metadata; the
    message says what differs."""


@dataclass(frozen=True)
class Deployed:
    """An opened ONNX file: called with images ``(N, 3, S, S)`` float32 in [0, 1] it returns logits
    ``(N, K)``."""

    session: onnxruntime.InferenceSession
    classes: tuple[str, ...]
    image_size: int
    metadata: dict[str, str]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": np.asarray(images, np.float32)})[0]


def export(
    model: Classifier,
    path: str | Path,
    classes: Sequence[str],
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as one ONNX file with everything that using it needs; returns the path.

    Input ``images`` ``(N, 3, S, S)`` float32 in [0, 1] (the normalisation is part of the graph),
    output ``logits`` ``(N, len(classes))``, any N. The metadata hold classes, size, how images are
    read, licence and provenance; ``about`` adds to it (a data title, say). The model is left as it
    was. Raises ``ValueError`` when the classes are not the model's.
    """
    if len(classes) != model.num_classes:
        raise ValueError(
            f"{len(classes)} class names for a network of {model.num_classes} classes: {', '.join(classes)}"
        )
    device = model.mean.device
    example = torch.rand(2, 3, model.image_size, model.image_size)
    with registry.untouched(model), _quiet():
        model.to("cpu")
        batch = {0: torch.export.Dim("batch", min=1, max=65_536)}
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
        model.to(device)
    graph = program.model_proto
    _describe(
        graph,
        {
            "format": FORMAT,
            "model": model.name,
            "classes": json.dumps(list(classes), ensure_ascii=False),
            "image_size": str(model.image_size),
            "color": "RGB",
            "precision": "float32",
            "input": "read in mode color, three equal channels if that is L, stretched to image_size x image_size, divided by 255",
            "source": model.source,
            "licence": "code MIT; weights: as the licence of the data they were trained on. Research use only",
            "weights": zoo.checksum(model.network),
            "commit": str(provenance.collect()["commit"]),
            **(about or {}),
        },
    )
    return _write(graph, Path(path))


def quantise(path: str | Path, out: str | Path, images: Tensor) -> Path:
    """The same network in int8: static quantisation after training, ranges calibrated on ``images``
    ``(N, 3, S, S)`` in [0, 1].

    Weights channel by channel, activations symmetric where the library wants it; only convolutions
    and matrix products are quantised, with the arithmetic between them left in float32 (norms,
    gates and softmax lose most and weigh least), and so is the first convolution, which sees raw
    pixels, and the classifier. Metadata are kept; ``precision`` says int8.
    """
    opened, path = open(path), Path(path)
    size = min(16, len(images))
    images = images[
        : len(images) // size * size
    ].cpu()  # the library's histograms want batches of one size
    batches = iter([{"images": part.numpy().astype(np.float32)} for part in images.split(size)])

    class Reader(quantization.CalibrationDataReader):  # the library asks for this shape of object
        def get_next(self):
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        nodes = [
            node.name
            for node in onnx.load(prepared).graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
        ]
        quantization.quantize_static(
            prepared,
            made,
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=[nodes[0], nodes[-1]],
            calibrate_method=quantization.CalibrationMethod.Percentile,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"CalibPercentile": 99.99, "ActivationSymmetric": False},
        )
        graph = onnx.load(made)
    _describe(graph, opened.metadata | {"precision": f"int8, calibrated on {len(images)} images"})
    return _write(graph, Path(out))


def open(path: str | Path, threads: int | None = None) -> Deployed:  # noqa: A001 - onnx_export.open reads as what it does
    """Open a file that :func:`export` or :func:`quantise` wrote; raises :class:`NotOurs` when it is
    none or was changed.

    ``threads`` of one inference; torch's number by default.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; onnx_export.export writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    try:
        graph = onnx.load(path, load_external_data=False).graph
        if elsewhere := [tensor.name for tensor in graph.initializer if uses_external_data(tensor)]:
            raise NotOurs(
                f"{path} wants weights from other files ({elsewhere[0]}, {len(elsewhere)} in all): ours carry their own, "
                "and a file from elsewhere must not say what else is read"
            )
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except NotOurs:
        raise
    except (
        Exception
    ) as error:  # onnx and onnxruntime raise kinds of their own for each thing that can be wrong
        raise NotOurs(
            f"{path} cannot be read as ONNX: {str(error).splitlines()[0][:160]}"
        ) from None
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    if missing := [name for name in REQUIRED if name not in metadata]:
        raise NotOurs(
            f"{path} lacks metadata ({', '.join(missing)}): it was not written by kdnb, or was changed since"
        )
    (first, *others), (last, *_) = session.get_inputs(), session.get_outputs()
    try:
        size, classes = int(metadata["image_size"]), tuple(json.loads(metadata["classes"]))
    except ValueError as error:
        raise NotOurs(f"{path}: its metadata cannot be read ({error})") from None
    differs = [
        f"{what}: the graph has {found}, its metadata say {said}"
        for what, found, said in (
            ("format", metadata["format"], FORMAT),
            ("inputs", [first.name, *(o.name for o in others)], ["images"]),
            ("input shape", first.shape[1:], [3, size, size]),
            ("classes", last.shape[-1], len(classes)),
        )
        if found != said
    ]
    if differs:
        raise NotOurs(f"{path} does not match its metadata: " + "; ".join(differs))
    return Deployed(session, classes, size, metadata)


def _describe(graph: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    del graph.metadata_props[:]
    for name, value in metadata.items():
        graph.metadata_props.add(key=name, value=str(value))


def _write(graph: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(graph)
    with files.atomic(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return path


@contextlib.contextmanager
def _quiet():
    """The exporter and the quantiser print pages about things that nobody can act on."""
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
