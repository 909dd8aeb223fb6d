"""Where maps are read: layers of every kind of network, and no layer whose cells lie elsewhere."""

import pytest
import torch
from torch import nn

from kdnb.explanations import activations, layers, registry
from kdnb.models import maps, zoo

SIZE = 64


@pytest.mark.parametrize(
    ("name", "layer", "cells"),
    [
        ("vit_tiny_patch16_224", "blocks.11.norm1", 4),  # a class token from the start
        ("xcit_nano_12_p16_224", "blocks.11.norm1", 4),  # a class token that comes late
        ("pit_ti_224", "transformers.1.blocks", 4),  # stages that return tuples
        ("hrnet_w18_small", "incre_modules.1", 8),  # stages that return lists
        ("hiera_tiny_224", "blocks.2", 8),  # tokens sorted by mask unit
    ],
)
def test_every_kind_of_network_is_explained(name, layer, cells):
    model = zoo.create(name, 3, SIZE).eval()
    images = torch.rand(1, 3, SIZE, SIZE)
    assert model.cam_layer == layer
    assert activations.features(model, images).shape[2:] == (cells, cells)
    found = registry.explain(model, images, "score_cam", channels=4).maps
    assert found.shape == (1, SIZE, SIZE) and found.std() > 0
    assert registry.explain(model, images, "grad_cam").maps.shape == (1, SIZE, SIZE)
    shown = layers.spatial_layers(model)
    assert all(one.ndim == 3 for one in layers.average_maps(model, images, shown).values())


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if not name.startswith("vgg")])
def test_the_layers_of_the_zoo_hold_what_is_measured_of_others(name):
    model = zoo.create(name, 2, SIZE).eval()
    found = maps.measure(zoo.ZOO[name].build(2, SIZE), SIZE, [model.cam_layer])[model.cam_layer]
    assert found.serves
    kept = []
    model.cam_module().register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.inference_mode():
        model(torch.rand(1, 3, SIZE, SIZE))
    assert torch.equal(model.cam_reshape(kept[0]), found.reading(kept[0], model.network))


class Tokens(nn.Module):
    """Patches of 8 px as tokens in a given order, a class token before them if wanted, and a head
    on their mean or on the class token alone."""

    def __init__(self, order=lambda grid: grid, token=False):
        super().__init__()
        self.patches, self.order, self.token = nn.Conv2d(3, 12, 8, 8), order, token
        self.num_prefix_tokens = int(token)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 2)

    def forward(self, x):
        tokens = self.order(self.patches(x)).flatten(2).transpose(1, 2)
        if self.token:
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        tokens = self.last(tokens)
        return self.head(tokens[:, 0] if self.token else tokens.mean(1))


def test_tokens_in_the_order_of_rows_are_a_map():
    layer = maps.measure(Tokens(), SIZE)["last"]
    assert layer.serves and layer.cells == 8 and layer.reading.layout == "NTC"


@pytest.mark.parametrize(
    "order",
    [
        lambda grid: grid.transpose(2, 3),
        lambda grid: grid.flip(3),
        lambda grid: grid.flatten(2)[..., torch.randperm(64, generator=torch.manual_seed(0))],
        lambda grid: grid.unflatten(2, (2, 4)).unflatten(4, (2, 4)).transpose(3, 4),  # windows
    ],
)
def test_tokens_in_another_order_are_none(order):
    layer = maps.measure(Tokens(order), SIZE)["last"]
    assert layer.reached == 1 and not layer.placed


def test_cells_that_do_not_reach_the_logits_are_passed_over():
    found = maps.measure(Tokens(token=True), SIZE)
    assert found["last"].placed and found["last"].reached == 0
    assert found["last"].reading == maps.Reading("NTC", 1)
    assert maps.choose(found, ["last"]) == "patches"


def test_without_any_map_an_error_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))
    with pytest.raises(maps.NoMap, match="no layer gives a map"):
        maps.choose(maps.measure(flat, SIZE))


def test_measuring_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.measured.cache_clear()
    zoo.measured("resnet10t", SIZE)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_a_student_learns_from_the_deepest_map_of_a_convolutional_network(name):
    """At 64 px a cell of it sees nearly the whole image, so that it is no place to explain."""
    model = zoo.create(name, 2, 64)
    assert model.cam_layers[0] == model.entry.cam_layers[0] != model.cam_layer
