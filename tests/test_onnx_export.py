"""ONNX files: the answers of PyTorch for every network of the zoo, all that a developer needs
inside, strange files refused."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from kdnb import files
from kdnb.deployment import onnx_export
from kdnb.images import pixels, read
from kdnb.models import ofa, zoo

CLASSES = ("a", "b", "<c>")
SIZE = 64
GREY = onnx_export.Reading("L", 200, 3800)


def lively(name):
    """A network with batch statistics and a head that lets logits differ: a constant answer would
    prove nothing."""
    torch.manual_seed(0)
    model = zoo.create(name, 3, SIZE)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()
        for _ in range(2):
            model(torch.rand(8, 3, SIZE, SIZE))
        model.eval()
        for _ in range(
            3
        ):  # the head is scaled until its answers spread as those of a trained network do
            head.weight.mul_(2 / model(torch.rand(8, 3, SIZE, SIZE)).std(0).mean().clamp(min=1e-12))
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    model = lively("resnet10t")
    path = onnx_export.export(
        model, tmp_path_factory.mktemp("onnx") / "small.onnx", CLASSES, GREY, {"data": "made"}
    )
    return model, path


# exporting these takes half a minute each; vgg19 is vgg19_bn without its norms
LONG = ("vgg19_bn", "autoformerv2_tiny", "dual_stream")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in (*zoo.ZOO, ofa.SMALLEST.name)
        if name != "vgg19"
    ],
)
def test_answers_equal_pytorch(name, tmp_path):
    model = lively(name)
    before = zoo.checksum(model.network)
    deployed = onnx_export.open(onnx_export.export(model, tmp_path / "x.onnx", CLASSES))
    images = torch.rand(3, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = model(images).numpy()
    assert expected.std() > 0.05
    assert np.abs(deployed(images.numpy()) - expected).max() < 1e-4 * max(
        1.0, np.abs(expected).max()
    )
    assert deployed(images[:1].numpy()).shape == (1, 3)
    assert zoo.checksum(model.network) == before and not model.training


def test_the_file_says_all_that_using_it_needs(small):
    model, path = small
    deployed = onnx_export.open(path)
    assert deployed.classes == CLASSES and deployed.image_size == SIZE
    about = deployed.metadata
    assert (
        about["model"] == "resnet10t"
        and about["data"] == "made"
        and about["weights"] == zoo.checksum(model.network)
    )
    assert (
        json.loads(about["classes"]) == list(CLASSES)
        and "licence" in about
        and "255" in about["input"]
    )
    assert not list(path.parent.glob("*.data"))  # one file, nothing beside it


def test_it_runs_without_this_package(small):
    _, path = small
    code = (
        "import sys, json, numpy as np, onnxruntime as ort\n"
        f"s = ort.InferenceSession({str(path)!r}); m = s.get_modelmeta().custom_metadata_map\n"
        "n = int(m['image_size']); x = np.zeros((2, 3, n, n), np.float32)\n"
        "print(s.run(None, {'images': x})[0].shape, json.loads(m['classes'])[2])\n"
        "assert not {'torch', 'kdnb'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=path.parent
    )
    assert done.returncode == 0 and done.stdout.split() == ["(2,", "3)", "<c>"], done.stderr


def test_int8_is_small_and_close(small, tmp_path):
    model, path = small
    images = torch.rand(32, 3, SIZE, SIZE)
    made = onnx_export.quantise(path, tmp_path / "int8.onnx", torch.cat([images, images[:3]]))
    deployed = onnx_export.open(made)
    assert made.stat().st_size < 0.4 * path.stat().st_size
    assert (
        deployed.metadata["precision"] == "int8, calibrated on 32 images"
        and deployed.classes == CLASSES
    )
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.corrcoef(deployed(images.numpy()).ravel(), expected.ravel())[0, 1] > 0.98
    kinds = {node.op_type for node in onnx.load(made).graph.node}
    assert "QuantizeLinear" in kinds


def test_int8_keeps_the_metadata(small, tmp_path):
    made = onnx_export.quantise(small[1], tmp_path / "int8.onnx", torch.rand(4, 3, SIZE, SIZE))
    before, after = (onnx_export.open(path).metadata for path in (small[1], made))
    assert after == before | {"precision": "int8, calibrated on 4 images"}
    assert before["color"] == "L" and "200 becomes 0 and 3800 becomes 255" in before["input"]
    assert json.loads(before["reading"]) == {"side": SIZE, "color": "L", "low": 200, "high": 3800}


def images_of_every_mode(folder):
    """Image files of each mode that a file can have, some of them turned by EXIF."""
    rng = np.random.default_rng(0)
    deep = rng.integers(200, 3800, (40, 50)).astype(np.uint16)
    deep[0, :5] = 65535  # a burnt-in marker
    colour = Image.fromarray(rng.integers(0, 256, (40, 50, 4), dtype=np.uint8), "RGBA")
    made = {
        "i16.png": Image.fromarray(deep),
        "i32.tif": Image.fromarray(deep.astype(np.int32)),
        "float.tif": Image.fromarray(deep.astype(np.float32) / 7),
        "rgba.png": colour,
        "la.png": colour.convert("LA"),
        "palette.png": colour.convert("RGB").quantize(16),
        "rgb.bmp": colour.convert("RGB"),
        "grey.png": colour.convert("L"),
        "bits.png": colour.convert("1"),
        "cmyk.jpg": colour.convert("CMYK"),
        "constant.tif": Image.fromarray(np.full((9, 9), 700, np.uint16)),
    }
    transparent = made["palette.png"].copy()
    transparent.info["transparency"] = 3
    made["see-through.gif"] = transparent
    for name, image in made.items():
        image.save(folder / name)
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        colour.convert("RGB").save(folder / f"turned{number}.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("color", ["L", "RGB"])
@pytest.mark.parametrize("limits", [(None, None), (200, 3800)])
def test_the_recipe_in_the_file_reads_an_image_as_training_did(tmp_path, color, limits):
    about = onnx_export.Reading(color, *limits).metadata(32)
    namespace = {}
    exec(about["recipe"], namespace)  # what a developer does with the file's text
    for path in images_of_every_mode(tmp_path):
        found = namespace["read"](path, **json.loads(about["reading"]))
        trained = pixels.read_image(path, 32, color, rule=read.Rule(*limits))
        expected = torch.div(torch.from_numpy(trained.copy()), 255.0).expand(3, -1, -1).numpy()
        assert found.dtype == np.float32 and np.array_equal(found[0], expected), path.name


def test_the_window_of_a_dicom_header_is_stated():
    stated = {way: onnx_export.Reading("L", from_file=way).metadata(32) for way in (True, False)}
    assert "DICOM file" in stated[True]["input"] and "DICOM" not in stated[False]["input"]
    assert stated[True]["reading"] == stated[False]["reading"]  # the recipe opens files of Pillow


def test_the_recipe_is_the_cell_of_the_notebook():
    recipe = onnx_export.COLOUR.metadata(32)["recipe"]
    code = recipe[recipe.index("import numpy") :].strip()
    cells = json.loads((files.ROOT / "notebooks" / "06_efficiency.ipynb").read_text())["cells"]
    assert code in ["".join(cell["source"]) for cell in cells]
    assert "kdnb" not in code


def changed(path, out, **metadata):
    graph = onnx.load(path)
    for entry in list(graph.metadata_props):
        if entry.key in metadata:
            value = metadata[entry.key]
            graph.metadata_props.remove(entry)
            if value is not None:
                graph.metadata_props.add(key=entry.key, value=value)
    onnx.save(graph, out)
    return out


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": '["a", "b"]'}, "classes: the graph has 3, its metadata say 2"),
        ({"classes": "a, b"}, "cannot be read"),
        ({"image_size": "96"}, "input shape: the graph has .*64.*, its metadata say .*96"),
        ({"licence": None}, "lacks metadata .licence"),
        ({"format": "kdnb 99"}, "format"),
    ],
)
def test_a_file_that_does_not_match_its_metadata_is_refused(small, tmp_path, metadata, message):
    with pytest.raises(onnx_export.NotOurs, match=message):
        onnx_export.open(changed(small[1], tmp_path / "changed.onnx", **metadata))


def test_other_files_are_refused(small, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(small[1].read_bytes()[:2000])
    with pytest.raises(onnx_export.NotOurs, match="cannot be read as ONNX"):
        onnx_export.open(broken)
    with pytest.raises(FileNotFoundError, match="onnx_export.export writes it"):
        onnx_export.open(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="2 class names for a network of 3 classes"):
        onnx_export.export(small[0], tmp_path / "x.onnx", ("a", "b"))


def test_a_training_model_is_left_training(tmp_path):
    model = lively("resnet10t").train()
    before = zoo.checksum(model.network)
    onnx_export.export(model, tmp_path / "x.onnx", CLASSES)
    assert model.training and zoo.checksum(model.network) == before
