"""Files from elsewhere run no code, read nothing beside them, and write nothing outside their folder."""

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from test_models import Evil

from kdnb import checkpoints, data, files, models, onnx_export


def test_weights_from_other_files_are_not_read(tmp_path):
    model = models.create("kdfmv5", 3, 32).eval()
    path = onnx_export.export(model, tmp_path / "in" / "honest.onnx", ["a", "b", "c"])
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10_000_000)
    graph = onnx.load(path)
    tensor = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", str(len(tensor.raw_data)))):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(onnx_export.NotOurs, match="wants weights from other files"):
        onnx_export.open(path)


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"\x80\x04K\x01.", b"<html>", bytes(range(256)) * 40])
def test_rubbish_named_onnx_is_named(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(onnx_export.NotOurs, match="x.onnx"):
        onnx_export.open(tmp_path / "x.onnx")


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "hf_hub:somebody/model", "local-dir:/etc", "../../etc/passwd", "a/b"])
def test_a_checkpoint_cannot_name_code_from_the_network(home, name):
    """What a run's record calls its network is looked up here, never fetched or imported."""
    folder = home / "cache" / "runs" / "x"
    files.write_json(folder / "run.json", {"key": {"model": name, "classes": ["a", "b"], "image_size": 32}})
    save_file({"w": torch.zeros(1)}, folder / "best.safetensors")
    with pytest.raises(files.UnknownName, match="unknown model"):
        checkpoints.load(folder)


def test_a_pickle_in_place_of_safetensors_is_refused(home, tmp_path):
    folder = home / "cache" / "runs" / "x"
    files.write_json(folder / "run.json", {"key": {"model": "kdfmv5", "classes": ["a", "b"], "image_size": 32}})
    torch.save({"network": Evil()}, folder / "best.safetensors")
    with pytest.raises(Exception, match="[Hh]eader"):
        checkpoints.load(folder)
    torch.save(Evil(), home / "evil.pt")
    with pytest.raises(Exception, match="weights_only|Unsupported"):
        torch.load(home / "evil.pt", weights_only=True)


def test_an_archive_of_objects_is_no_dataset(home):
    """MedMNIST comes as ``.npz``, a format that can hold pickles: numpy is not allowed to open them."""
    folder = home / "data" / "medmnist-pneumoniamnist"
    folder.mkdir(parents=True)
    evil = np.array([Evil()], dtype=object)
    np.savez(folder / "pneumoniamnist.npz", **{f"{part}_{kind}": evil for part in ("train", "val", "test")
                                               for kind in ("images", "labels")})  # fmt: skip
    with pytest.raises((ValueError, data.DatasetMissing)):
        data.load("medmnist:pneumoniamnist")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_dataset_cannot_name_a_folder_outside(home, name):
    with pytest.raises(ValueError):
        data.load(name)
    with pytest.raises(ValueError):
        data.load(f"medmnist:{name}")
    assert not list(home.rglob("outside*"))


def test_nothing_of_ours_unpickles_or_evaluates():
    """One look at the source for what runs code from data; a new use has to be argued for here."""
    words = ("pickle.load", "np.load(", "torch.load(", "eval(", "exec(", "yaml.load(", "extractall(", "shell=True", "__import__(")
    allowed = {"allow_pickle=False", "weights_only=True", ".eval(", "literal_eval("}
    for path in (files.ROOT / "kdnb").glob("*.py"):
        for line in path.read_text().splitlines():
            if any(word in line for word in words):
                assert any(word in line for word in allowed), f"{path.name}: {line.strip()}"
