"""Networks for inference, with their batch norms folded into the convolutions before them."""

import copy

import pytest
import torch
from torch import nn

from kdnb.models import zoo
from kdnb.models.folding import folded


def images(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(network: nn.Module) -> nn.Module:
    """The network with statistics and scales that are not those of a new batch norm."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("ofa595", 0),
        ("vgg19_bn", 0),
        ("resnet18", 0),
        ("tf_efficientnet_lite0", 0),
        ("mobilenetv3_small_050", 0),
        ("regnety_002", 0),
        ("densenet121", 62),  # a batch norm comes before most of its convolutions
    ],
)
def test_the_logits_are_the_same(name, left):
    network = trained(zoo.create(name, 3, 64).network).double()
    before = copy.deepcopy(network.state_dict())
    expected, found = network(images().double()), folded(network, images(1).double())
    assert found is not network and norms(found) == left < norms(network)
    assert torch.allclose(found(images().double()), expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_weights_that_are_not_folded_are_shared():
    network = trained(zoo.create("resnet18", 3, 64).network)
    assert folded(network, images(1)).fc.weight is network.fc.weight


@pytest.mark.parametrize("name", ["kdfmv5", "visformer_small"])
def test_a_network_without_such_pairs_answers_as_before(name):
    network = trained(zoo.create(name, 3, 64).network)
    given = images()
    assert torch.allclose(folded(network, images(1))(given), network(given), rtol=1e-4, atol=1e-4)
    assert name != "kdfmv5" or folded(network, images(1)) is network


class Twice(nn.Module):
    """A convolution whose output is read by a batch norm and by something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + self.norm(x)).mean((2, 3)))


class Shared(Twice):
    """A convolution that runs twice."""

    def forward(self, x):
        x = self.norm(self.conv(x)) + self.conv(x.flip(3))
        return self.head(x.mean((2, 3)))


class Scaled(nn.Conv2d):
    """A convolution that standardises its weights when it runs, as some of timm's do."""

    def forward(self, x):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Standardised(Twice):
    def __init__(self):
        super().__init__()
        self.conv = Scaled(3, 4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Twice, Shared, Standardised])
def test_a_network_that_would_answer_otherwise_is_not_folded(kind):
    network = trained(kind())
    assert folded(network, images(1)) is network
