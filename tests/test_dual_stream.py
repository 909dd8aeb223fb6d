"""The dual-stream network: graph, pooling, ablations, sizes, published weights of its streams."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdnb.models import capabilities, zoo
from kdnb.models.dual_stream import AttentionPool, DualStream, NeighbourGraph


def test_neighbours_by_hand():
    """Four tokens in the plane: each is joined to the one in the nearest direction."""
    graph = NeighbourGraph(2, neighbours=1)
    tokens = torch.tensor([[[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [-0.2, 3.0]]])
    expected = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    assert torch.equal(graph.adjacency(tokens), expected[None].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_has_neighbours_other_than_itself(dtype):
    graph = NeighbourGraph(5, neighbours=3)
    tokens = torch.randn(2, 9, 5, dtype=dtype)
    found = graph.adjacency(tokens)
    assert torch.allclose(found.sum(-1), torch.ones(2, 9)) and not found.diagonal(0, 1, 2).any()
    assert ((found > 0).sum(-1) >= 3).all()
    order = torch.randperm(9)
    assert torch.allclose(
        graph(tokens.float())[:, order], graph(tokens.float()[:, order]), atol=1e-5
    )


def test_equal_tokens_are_all_neighbours_and_few_tokens_are_enough():
    found = NeighbourGraph(4, neighbours=2).adjacency(torch.ones(1, 5, 4))
    assert torch.allclose(found, (1 - torch.eye(5))[None] / 4)
    assert NeighbourGraph(4).adjacency(torch.randn(1, 4, 4)).shape == (1, 4, 4)


def test_half_precision_does_not_change_the_neighbours():
    graph, tokens = NeighbourGraph(16), torch.randn(1, 30, 16) * 0.01 + 1
    plain = graph.adjacency(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(graph.adjacency(tokens), plain)
        assert torch.isfinite(graph(tokens)).all()


def test_attention_is_a_mean_with_weights():
    pool, tokens = AttentionPool(3), torch.randn(2, 4, 3)
    shares = pool.score(tokens).softmax(1)
    assert torch.allclose(pool(tokens), (shares * tokens).sum(1)) and pool(tokens).shape == (2, 3)
    torch.nn.init.zeros_(pool.score[2].weight)
    assert torch.allclose(pool(tokens), tokens.mean(1), atol=1e-6)


@pytest.mark.parametrize("size", [64, 96, 224])
def test_an_image_of_any_multiple_of_32_has_one_region_for_16_pixels(size):
    model = zoo.create("dual_stream", 3, size).eval()
    kept = []
    model.network.regions.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.inference_mode():
        assert model(torch.rand(1, 3, size, size)).shape == (1, 3)
    assert kept[0].shape == (1, size // 16, size // 16, 384)


def test_each_part_can_be_left_out():
    with torch.device("meta"):
        whole, no_graph, no_attention = (
            {name.split(".")[0] for name, _ in zoo.resolve(name).build(2, 64).named_parameters()}
            for name in ("dual_stream", "dual_stream_no_graph", "dual_stream_no_attention")
        )
    assert whole - no_graph == {"graph"} and whole - no_attention == {"pool"}


def test_the_graph_decides_something():
    torch.manual_seed(0)
    network = DualStream(2, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        with_graph = network(images)
        network.graph = torch.nn.Identity()
        assert not torch.allclose(with_graph, network(images), atol=1e-4)


def test_other_sizes_are_refused_with_the_nearest():
    with pytest.raises(zoo.BadSize, match="72 px; the nearest sizes it takes: 64 px or 96 px"):
        zoo.create("dual_stream", 2, 72)


def test_it_can_be_trained_and_started_from_published_weights(home):
    """Tests of explanations and of the export run on every network of the zoo."""
    capabilities.check("dual_stream", 2, 64, ("train", "pretrained"))


def test_the_student_of_the_paper_works_by_name(home):
    capabilities.check("tiny_vit_5m_224", 2, 64, ("train",))


def test_streams_start_from_published_weights(home):
    """Files of both streams in the weights folder, at the size of their training."""
    torch.manual_seed(1)
    entry = zoo.resolve("dual_stream")
    states = {}
    for part, name in entry.parts:
        native = timm.create_model(name)
        states[part] = native.state_dict()
        (home / "weights").mkdir(exist_ok=True)
        save_file(native.state_dict(), home / "weights" / f"{name}.safetensors")
    network = zoo.create("dual_stream", 2, 64, pretrained=True).network
    for part, key in (
        ("swin", "layers.0.blocks.0.mlp.fc1.weight"),
        ("vit", "blocks.3.attn.qkv.bias"),
    ):
        assert torch.equal(network.get_submodule(part).state_dict()[key], states[part][key])
