"""A student to hand over: the folder says what it holds, opens again, and gives the same answers,
here, in timm and in a process that has none of this package."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import FOLDERS, paint_folder, study

from kdnb import data, deployment, files, parameters, release, training
from kdnb.deployment import onnx_export
from kdnb.deployment import release as folders
from kdnb.models import zoo
from kdnb.report import card, pages, results
from kdnb.study import Study


@pytest.fixture(scope="module")
def lab(searched, taught, tmp_path_factory):
    """Results of notebook 03 on the tree of ``folder``, as it writes them, and what was released:
    home, parameters that choose the result, data, trio, result file, released folder."""
    home = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(home / name.removeprefix("KDNB_").lower()))
        shutil.copytree(searched, home / "cache" / "leakage")
        shutil.copytree(taught, home / "cache" / "runs")
        root = paint_folder(home / "mine")
        chosen = study(student="resnet10t", method="kd_fmv", data_root=str(root))
        mine = chosen.load_data()
        trio = training.trio(chosen, mine)
        name = "distill-resnet10t-resnet10t-kd_fmv"
        path = pages.save(chosen, mine, name, trio.test(mine).stored())
        given = {"data_root": str(root), "teacher": "resnet10t"}
        folder = release.write("folder", given)
        yield SimpleNamespace(**{**locals(), "study": chosen})


def test_the_folder_opens_again_with_the_same_answers(lab):
    folder, again = lab.folder, deployment.load(lab.folder)
    assert folder == lab.home / "release" / "folder"
    assert zoo.checksum(again.network) == lab.trio.distilled.checksum
    pixels = lab.mine.pixels(32, "test")
    images = pixels.floats(pixels.rows).expand(-1, 3, -1, -1).contiguous()
    with torch.inference_mode():
        expected = lab.trio.distilled.model(images)
        # trained weights lie in memory as channels_last, which sums in another order
        torch.testing.assert_close(again(images), expected, rtol=1e-5, atol=1e-5)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(theirs((images - again.mean) / again.std), again(images))
    deployed, small = (onnx_export.open(folder / name) for name in (folders.ONNX, folders.INT8))
    np.testing.assert_allclose(deployed(images.numpy()), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert (small(images.numpy()).argmax(1) == expected.numpy().argmax(1)).mean() > 0.9
    assert deployed.classes == small.classes == lab.mine.classes
    assert (folder / folders.INT8).stat().st_size < 0.4 * (folder / folders.ONNX).stat().st_size
    said = predicted_elsewhere(folder, lab.mine)
    shares = expected.softmax(1)[: len(said)].numpy()
    assert len(said) == 6
    assert np.allclose([list(each.values()) for each in said], shares, atol=1e-3)
    assert list(said[0]) == list(lab.mine.classes)


def predicted_elsewhere(folder, dataset):
    """What predict.py prints for six test images, run where this package cannot be imported."""
    rows = dataset.pixels(32, "test").rows[:6].tolist()
    paths = [str(dataset.index.root / dataset.table["path"].iloc[row]) for row in rows]
    # a name without a module in sys.modules cannot be imported
    code = (
        "import runpy, sys; sys.modules |= dict.fromkeys(('kdnb', 'torch', 'timm', 'pandas'));"
        "sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0] + '/predict.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *paths], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[line.index("{") :]) for line in done.stdout.splitlines()]


def test_the_script_has_ten_lines():
    lines = [line for line in folders.PREDICT.splitlines() if line]
    assert len(lines) == 10 and lines[0].startswith('"""')


def test_the_card_holds_the_numbers_of_the_result_file(lab):
    stored = files.read_json(lab.path)
    score = stored["results"]["distilled"]
    text = (lab.folder / "README.md").read_text()
    found = huggingface_hub.ModelCard(text).data
    by_type = {each.metric_type: each for each in found.eval_results}
    assert set(by_type) == {hub for hub, _ in card.MEASURES.values()}
    for key, (hub, _) in card.MEASURES.items():
        assert by_type[hub].metric_value == pytest.approx(score[key], abs=1e-6)
        interval = by_type[hub].metric_args
        assert [interval["low"], interval["high"]] == score["intervals"][key]
    assert by_type["accuracy"].dataset_args["checksum"] == stored["data"]["checksum"]
    assert found.pipeline_tag == "image-classification"
    for word in ("Intended use: research", "hf upload", "## Limits", "## Shortcuts", "split: "):
        assert word.lower() in text.lower()
    assert "kdnb.run 08 -p dataset folder" in text  # it was not run on these networks
    assert "{{" not in text and "{%" not in text
    entry = yaml.safe_load((lab.folder / "CITATION.cff").read_text())
    assert entry["references"][0]["title"] == "kdnb"


@pytest.mark.parametrize(
    ("dataset", "licence", "modality"),
    [
        ("medmnist:breastmnist", {"license": "cc-by-4.0"}, "breast ultrasound"),
        ("brain_tumor", {"license": "other", "license_name": "that-of-the-data"}, "brain MRI"),
    ],
)
def test_the_card_names_licence_and_modality_of_the_data(lab, dataset, licence, modality):
    result, spec = results.read(lab.path, lab.path.parents[1]), data.describe(dataset)
    written = card.write(result, None, spec, [], "release")
    found = written.data.to_dict()
    assert {name: found.get(name) for name in licence} == licence
    assert f"classifies images ({modality}) into" in str(written)


def test_shortcuts_come_from_the_result_of_notebook_08(lab):
    row = {"model": "distilled resnet10t", "view": "border only", "balanced_accuracy": 0.61}
    whole = row | {"view": "whole image", "low": 0.8, "high": 0.9}
    stored = {"views": [row | {"low": 0.5, "high": 0.7}, whole], "forests": []}
    name = lab.path.stem.replace("distill-", "integrity-")
    pages.save(lab.study, lab.mine, name, stored)
    result, integrity = release.chosen("folder", lab.given)
    found = card.shortcuts(result, integrity)
    assert "border only 0.61" in found["shortcuts"] and "whole" not in found["shortcuts"]
    stored["views"][0]["low"] = 0.2  # includes chance
    pages.save(lab.study, lab.mine, name, stored)
    found = card.shortcuts(*release.chosen("folder", lab.given))
    lab.path.with_name(f"{name}.json").unlink()
    assert "no part" in found["shortcuts"].lower()


def test_what_is_missing_is_answered_with_a_notebook(lab, capsys, monkeypatch):
    assert release.main(["brain_tumor"]) == 1
    assert "python -m kdnb.run 03 -p dataset brain_tumor" in capsys.readouterr().err
    assert release.main(["brain_tumour"]) == 1
    assert "Did you mean 'brain_tumor'" in capsys.readouterr().err
    words = [word for name, value in lab.given.items() for word in ("-p", name, str(value))]
    assert release.main(["folder", *words, "-p", "method", "dkd"]) == 1
    assert "there are distill-resnet10t-resnet10t-kd_fmv.json" in capsys.readouterr().err
    monkeypatch.setenv("KDNB_CACHE", str(lab.home / "other"))
    assert release.main(["folder", *words]) == 1
    said = capsys.readouterr().err
    assert "weights are not" in said and "kdnb.run 03 -p dataset folder" in said


def test_the_command_of_a_card_trains_the_same_again():
    root = files.ROOT / "outputs"
    name = "brain_tumor/distill-densenet121-kdfmv5-kd_fmv.json"
    words = card.command(results.read(root / name, root)).split()
    assert words[:4] == ["python", "-m", "kdnb.run", "03"]
    given = dict(zip(words[5::3], map(parameters.literal, words[6::3]), strict=True))
    again, stored = Study(**given).config(), files.read_json(root / name)["config"]
    assert given.items() >= {"teacher_epochs": 6, "image_size": 64, "method": "kd_fmv"}.items()
    for each in ("teacher", "student", "alpha", "temperature", "batch_size", "student_epochs"):
        assert again[each] == stored[each]


def test_several_results_are_told_apart_by_parameters(lab):
    stored, other = files.read_json(lab.path), "distill-resnet10t-resnet10t-dkd.json"
    stored["config"]["method"] = "dkd"
    files.write_json(lab.path.with_name(other), stored)
    with pytest.raises(release.NothingToRelease, match="several results: .*dkd.json.*kd_fmv.json"):
        release.chosen("folder", lab.given)
    found, _ = release.chosen("folder", lab.given | {"method": "dkd"})
    assert found.config["method"] == "dkd"
    lab.path.with_name(other).unlink()


def test_other_images_are_refused(lab, tmp_path):
    root = shutil.copytree(lab.root, tmp_path / "mine")
    next((root / "test" / "dark").iterdir()).unlink()
    with pytest.raises(release.NothingToRelease, match="not those of"):
        release.write("folder", lab.given | {"data_root": str(root)})


def test_other_folders_are_refused(lab, tmp_path):
    with pytest.raises(folders.NotReleased, match="lacks config.json and model.safetensors"):
        deployment.load(tmp_path)
    copy = shutil.copytree(lab.folder, tmp_path / "copy")
    config = files.read_json(copy / "config.json")
    for changed, message in (({"format": "kdnb 9"}, "format"), ({"weights": "0"}, "weights")):
        files.write_json(copy / "config.json", config | {"kdnb": config["kdnb"] | changed})
        with pytest.raises(folders.NotReleased, match=message):
            deployment.load(copy)
