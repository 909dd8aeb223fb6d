"""The elastic supernet: counts, extraction, shared weights, names of subnets, published
checkpoints, the sandwich rule."""

import pytest
import torch

from kdnb.distillation import Seen, create, soft_targets
from kdnb.models import ofa, ofa_checkpoints, zoo
from kdnb.models.ofa import LARGEST, OFA595_CHOICE, SMALLEST, Choice, Supernet

CHOICES = [SMALLEST, LARGEST, OFA595_CHOICE, *ofa.random_choices(3, seed=3)]


@pytest.fixture(scope="module")
def trained():
    """A supernet whose matrices, norms and statistics are not those of its birth, so that every
    slice matters."""
    torch.manual_seed(0)
    supernet = Supernet(5)
    with torch.no_grad():
        for matrix in supernet.matrices.values():
            matrix.add_(0.1 * torch.randn_like(matrix))
        for module in supernet.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    supernet.train()
    for _ in range(8):
        supernet.run(LARGEST, torch.rand(8, 3, 64, 64))
    return supernet.eval()


def test_counts_are_the_published_ones():
    supernet = Supernet(1000)
    assert zoo.count_parameters(supernet) == 10_715_752
    assert zoo.count_parameters(supernet.whole) == 10_701_632
    assert zoo.count_parameters(supernet.extract(SMALLEST)) == 4_602_456
    assert zoo.count_parameters(supernet.extract(OFA595_CHOICE)) == 9_135_928
    assert zoo.count_macs(OFA595_CHOICE.name) == zoo.count_macs("ofa595") == 512_861_680


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_an_extracted_subnet_answers_as_it_did_in_place(trained, choice):
    x = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        alone, inside = trained.extract(choice)(x), trained.run(choice, x)
    assert torch.allclose(alone, inside, atol=1e-5) and alone.std() > 1e-3
    assert not torch.allclose(alone, trained(x), atol=1e-3) or choice == LARGEST


def test_a_small_kernel_is_the_transformed_centre_of_the_large_one(trained):
    place, block = 5, trained.whole.blocks[5]
    large = block.mobile_inverted_conv.depth_conv.conv.weight
    five = (large[:, :, 1:-1, 1:-1].flatten(1) @ trained.matrices[f"{place}_7to5"].T).view(
        -1, 1, 5, 5
    )
    three = (five[:, :, 1:-1, 1:-1].flatten(1) @ trained.matrices[f"{place}_5to3"].T).view(
        -1, 1, 3, 3
    )
    choice = Choice(((((7, 6),) * 4), ((3, 4), (7, 6)), *LARGEST.stages[2:]))
    found = trained.weights(choice)["blocks.5.mobile_inverted_conv.depth_conv.conv.weight"]
    assert torch.allclose(found, three[: len(found)], atol=1e-6) and len(found) == 128


def test_depth_keeps_the_first_blocks_of_a_stage():
    assert SMALLEST.places() == [0, 1, 2, 5, 6, 9, 10, 13, 14, 17, 18] and LARGEST.places() == list(
        range(21)
    )


def test_training_runs_the_sandwich_and_reaches_every_weight():
    torch.manual_seed(0)
    supernet = Supernet(3).train()
    before = {name: value.clone() for name, value in supernet.whole.named_buffers()}
    logits = supernet(torch.rand(4, 3, 64, 64))
    assert logits.shape == (16, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in supernet.whole.parameters())
    moved = [
        name
        for name, value in supernet.whole.named_buffers()
        if not torch.equal(value, before[name])
    ]
    assert len(moved) == len(before)
    with torch.no_grad():  # a narrower subnet leaves no trace in the statistics of the largest
        now = {name: value.clone() for name, value in supernet.whole.named_buffers()}
        supernet.run(SMALLEST, torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, now[name]) for name, value in supernet.whole.named_buffers())
    supernet.eval()
    with torch.inference_mode():
        assert torch.allclose(
            supernet(torch.ones(1, 3, 64, 64)),
            supernet.run(LARGEST, torch.ones(1, 3, 64, 64)),
            atol=1e-6,
        )


def test_the_sandwich_loss_by_hand():
    torch.manual_seed(0)
    logits, labels, rows = (
        torch.randn(8, 3, requires_grad=True),
        torch.tensor([0, 2]),
        torch.tensor([5, 7]),
    )
    hybrid, hard, teachers = create("hybrid"), create("hard"), [Seen(torch.randn(2, 3))]

    def loss(method, part, teachers):
        return method.loss(Seen(part), teachers, labels, rows)["loss"]

    with_teacher = soft_targets.sandwich(hybrid, Seen(logits), teachers, labels, rows)["loss"]
    by_hand = sum(loss(hybrid, part, teachers) for part in logits.split(2)) / 4
    assert torch.isclose(with_teacher, by_hand)
    without = soft_targets.sandwich(hard, Seen(logits), [], labels, rows)["loss"]
    first, *rest = logits.split(2)
    largest = [Seen(first.detach())]
    by_hand = loss(hard, first, []) + sum(loss(hybrid, part, largest) for part in rest)
    assert torch.isclose(without, by_hand / 4)
    (pull,) = torch.autograd.grad(without, logits)
    (own,) = torch.autograd.grad(loss(hard, first, []) / 4, logits)
    # the largest learns from labels alone: the subnets that learn from it do not pull at it
    assert torch.allclose(pull[:2], own[:2])
    one = soft_targets.sandwich(hybrid, Seen(logits[:2]), teachers, labels, rows)
    assert torch.equal(one["loss"], loss(hybrid, logits[:2], teachers))


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_names_spell_subnets_and_build_students(choice):
    assert Choice.parse(choice.name) == choice
    model = zoo.create(choice.name, 3, 64)
    assert zoo.count_parameters(model.network) == zoo.count_parameters(
        ofa.OFA(3, blocks=choice.blocks())
    )
    assert model.cam_layer in dict(model.network.named_modules())


@pytest.mark.parametrize(
    "name",
    [
        "ofa-33",
        "ofa-335433-54543653-76563354-36567634-363",
        "ofa-9999-3333-3333-3333-3333",
        "ofa-x",
    ],
)
def test_bad_names_tell_how_they_are_spelt(name):
    with pytest.raises(ValueError, match="stage|subnet"):
        zoo.create(name, 3, 64)


def published_names(supernet):
    """The supernet's tensors under the names of the published file."""
    state = {}
    for name, value in supernet.whole.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks" and parts[1] != "0" and parts[-2] in ("conv", "bn"):
            parts.insert(-1, parts[-2])
        state[".".join(parts)] = value
    for name, value in supernet.matrices.items():
        place, kind = name.split("_")
        state[f"blocks.{place}.mobile_inverted_conv.depth_conv.conv.{kind}_matrix"] = value
    return {"state_dict": state}


def test_the_published_supernet_loads_strictly(trained):
    state = published_names(trained)
    names = state["state_dict"]
    assert "blocks.1.mobile_inverted_conv.depth_conv.conv.conv.weight" in names
    assert "blocks.1.mobile_inverted_conv.inverted_bottleneck.bn.bn.running_mean" in names
    assert (
        "blocks.0.mobile_inverted_conv.depth_conv.conv.weight" in names
        and "first_conv.conv.weight" in names
    )
    loaded = ofa_checkpoints.supernet_from_state_dict(state).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.run(SMALLEST, x), trained.run(SMALLEST, x))
    other = ofa_checkpoints.supernet_from_state_dict(state, num_classes=2)
    assert other.whole.classifier.linear.out_features == 2
    del names["blocks.7.mobile_inverted_conv.depth_conv.conv.7to5_matrix"]
    with pytest.raises(ofa_checkpoints.CheckpointMismatch, match="missing matrices.7_7to5"):
        ofa_checkpoints.supernet_from_state_dict(state)
