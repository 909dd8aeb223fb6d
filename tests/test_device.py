"""One module says which device computes; networks stay where they are."""

import ast

import numpy as np
import pytest
import torch

from kdnb import data, device, files, training
from kdnb.explanations import registry
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.study import Study
from kdnb.training import batch_norm, processes

QUESTIONS = {"is_available", "is_bf16_supported", "is_mps_available", "_is_avx512_bf16_supported"}


def test_no_other_module_asks_which_devices_there_are():
    asked = {
        path.relative_to(files.ROOT).as_posix()
        for folder in ("kdnb", "benchmarks")
        for path in (files.ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in QUESTIONS
    }
    assert asked == {"kdnb/device.py"}


@pytest.mark.parametrize(
    ("kind", "bf16", "expected"),
    [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("mps", True, "no"), ("cpu", True, "bf16"),
     ("cpu", False, "no")],
)  # fmt: skip
def test_precision_is_what_the_hardware_is_fast_with(monkeypatch, kind, bf16, expected):
    asked = {}
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda **options: asked.update(options) or bf16
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device.precision(kind) == expected
    # T4 and P100 emulate it: for torch they "support" it
    assert asked == ({"including_emulation": False} if kind == "cuda" else {})


@pytest.mark.parametrize("found", ["fp16", "no"])
def test_training_scales_gradients_where_half_precision_is_used(monkeypatch, found):
    given = {}
    monkeypatch.setattr(device, "precision", lambda *place: found)
    monkeypatch.setattr(
        processes.Accelerator, "__init__", lambda self, **options: given.update(options)
    )
    processes.accelerator()
    assert given["mixed_precision"] == found  # accelerate scales for fp16, and only for it


@pytest.fixture
def other_devices(monkeypatch):
    """A machine with a GPU on which accelerate was told to use the processor: who asks torch in its
    place moves a network to a device that does not work here."""
    assert device.default().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_networks_stay_on_their_device(other_devices):
    model = zoo.create("resnet10t", 2, 32)
    images = torch.rand(8, 3, 32, 32)
    pixels = Pixels((255 * images).to(torch.uint8).numpy(), np.zeros(8, int))
    assert predict(model, pixels).shape == (8, 2)
    batch_norm.recalibrate(model, images)
    registry.explain(model, images[:1], "grad_cam")
    assert device.of(model).type == "cpu"


def test_the_second_epoch_finds_the_network_where_the_first_left_it(folder, monkeypatch):
    """Training on one device and validation on another would move the network between epochs."""
    moved, real = [], torch.nn.Module.to

    def to(module, *arguments, **options):
        moved.extend(
            torch.device(one).type for one in arguments if isinstance(one, str | torch.device)
        )
        return real(module, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    study = Study(
        dataset="folder", data_root=str(folder), teacher="resnet10t", student="resnet10t",
        image_size=32, teacher_epochs=2, batch_size=16, split="official",
    )  # fmt: skip
    (run,) = training.train_teachers(study, data.load("folder", folder, "official"))
    assert len(run.history) == 2 and device.of(run.model) == device.default()
    assert set(moved) == {device.default().type}


def test_pixels_move_to_a_gpu_only_and_only_where_there_is_room(monkeypatch):
    pixels = Pixels(np.zeros((4, 1, 8, 8), np.uint8), [0, 1, 0, 1], [2, 3])
    assert (
        pixels.moved_to(torch.device("cpu")) is pixels
        and pixels.moved_to(torch.device("mps")) is pixels
    )
    full = pixels.images.nbytes * 4 - 1, 80 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: full)
    assert pixels.moved_to(torch.device("cuda")) is pixels


def test_a_subset_keeps_the_labels_of_its_rows():
    pixels = Pixels(np.arange(4, dtype=np.uint8).repeat(64).reshape(4, 1, 8, 8), [5, 6, 7, 8])
    images, labels, rows = pixels.subset([3, 1])[range(2)]
    assert labels.tolist() == [8, 6] and rows.tolist() == [3, 1]
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([3.0, 1.0]) / 255)
    assert pixels.rows.tolist() == [0, 1, 2, 3]
