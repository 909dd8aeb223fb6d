"""What a network cannot do is said before anything is trained."""

import pytest
import torch
from torch import nn

from kdnb import files, models
from kdnb.deployment import onnx_export  # noqa: F401 - registers "export"
from kdnb.models import capabilities, maps, zoo


def test_a_network_that_can_do_all_passes_and_is_tried_once(home, monkeypatch):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    models.check("resnet10t", 3, 64, ("train", "explain", "export"))
    assert torch.equal(torch.rand(2), expected)  # a study's random numbers stay as they were
    monkeypatch.setattr(zoo, "create", None)
    models.check("resnet10t", 3, 64, ("train", "explain", "export"))


def test_the_sentence_says_what_fails_and_what_works(home, monkeypatch):
    def no_map(*arguments):
        raise maps.NoMap("no layer gives a map")

    monkeypatch.setattr(maps, "choose", no_map)
    with pytest.raises(capabilities.Unsuitable) as caught:
        models.check("resnet10t", 3, 32, ("explain",))
    message = str(caught.value)
    assert "resnet10t at 32 px cannot be explained (resnet10t at 32 px: no layer gives" in message
    assert "It can be trained, " in message and "exported" in message.split("It can be")[1]
    assert caught.value._render_traceback_()  # one sentence in a notebook


class Pair(nn.Module):
    """Answers with two tensors while it is trained, as networks with a second head do."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 2, 8)

    def forward(self, x):
        logits = self.network(x).mean((2, 3))
        return (logits, logits) if self.training else logits


def test_other_answers_than_logits_cannot_be_trained_on(home, monkeypatch):
    entry = zoo._zoo_timm("resnet10t", ("",), "made")
    pair = zoo.Classifier("pair", Pair(), 2, 32, entry)
    monkeypatch.setattr(zoo, "create", lambda *arguments: pair)
    with pytest.raises(capabilities.Unsuitable, match="cannot be trained .*not answer with logits"):
        models.check("pair", 2, 32)


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [
        ("inception_v3", 64, "the nearest sizes it takes: 80 px"),
        ("visformer_small", 65, "64 px or"),
    ],
)
def test_a_size_that_a_network_cannot_take_names_those_it_can(home, name, size, hint):
    for attempt in (lambda: zoo.create(name, 2, size), lambda: models.check(name, 2, size)):
        with pytest.raises(zoo.BadSize, match=f"{name} cannot take images of {size} px; .*{hint}"):
            attempt()


def test_a_need_that_no_wing_has_registered_is_an_error(home, monkeypatch):
    monkeypatch.delitem(capabilities.CAPABILITIES, "export")
    with pytest.raises(files.UnknownName, match="once kdnb.deployment.onnx_export is imported"):
        models.check("resnet10t", 2, 64, ("export",))
    with pytest.raises(files.UnknownName, match="Did you mean 'explain'"):
        models.check("resnet10t", 2, 64, ("explian",))
