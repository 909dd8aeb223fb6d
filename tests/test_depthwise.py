"""Our depthwise convolution is torch's: values, gradients, and in a whole network."""

import pytest
import torch
from torch import nn

from kdnb.models import ofa, zoo
from kdnb.models.depthwise import DepthwiseConv2d


def both(kernel, stride, sides, dtype=torch.float64, channels=6):
    """Output and gradients (input, weight) of ours and of torch's layer with the same weights."""
    torch.manual_seed(0)
    ours = DepthwiseConv2d(channels, kernel, stride).to(dtype)
    theirs = nn.Conv2d(
        channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
    ).to(dtype)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, channels, *sides, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.backward(
            torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        )
        yield out.detach(), given.grad, layer.weight.grad


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (9, 6), (16, 16)])
def test_values_and_gradients_are_those_of_torch(kernel, stride, sides):
    for ours, theirs in zip(*both(kernel, stride, sides), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_rounds_no_worse_than_torch():
    exact = next(both(5, 1, (8, 8)))[2]
    ours, theirs = (found[2].double() for found in both(5, 1, (8, 8), torch.bfloat16))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


def test_a_frozen_layer_and_a_frozen_input_get_no_gradient():
    layer = DepthwiseConv2d(4, 5).train()
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_training_step_of_ofa595_is_the_same_with_torchs_layers(precision):
    network = zoo.create("ofa595", 3, 64).train()
    plain = ofa.OFA(3)
    for module in plain.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    plain.load_state_dict(network.network.state_dict(), strict=True)
    x = torch.rand(8, 3, 64, 64)
    answers, slopes = [], []
    for each in (network.network, plain.train()):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            out = each(x)
        out.float().square().sum().backward()
        answers.append(out.detach().float())
        slopes.append(torch.cat([value.grad.flatten() for value in each.parameters()]))
    loose = {"rtol": 0.05, "atol": 0.05} if precision else {}
    torch.testing.assert_close(*answers, **loose)
    assert torch.cosine_similarity(*slopes, dim=0) > (0.98 if precision else 0.99999)
