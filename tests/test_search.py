"""The search for a student: genes, fronts, budgets, determinism, resuming, the latency table."""

import itertools
import os
import signal
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdnb import data
from kdnb.deployment import efficiency, latency, search
from kdnb.distillation import create
from kdnb.models import ofa, zoo
from kdnb.models.ofa import LARGEST, OFA595_CHOICE, SMALLEST, Choice
from kdnb.study import Study
from kdnb.training import loop


@pytest.mark.parametrize(
    "choice",
    [SMALLEST, LARGEST, OFA595_CHOICE, *ofa.random_choices(4)],
    ids=lambda choice: choice.name,
)
def test_genes_spell_subnets(choice):
    genes = search._encode(choice)
    assert (
        genes.shape == (45,)
        and genes.min() >= 0
        and genes.max() <= 2
        and search._decode(genes) == choice
    )


def blocks(choice):
    return [pair for stage in choice.stages for pair in stage]


def quality(choice):
    """A made accuracy: wide kernels help, expansion does not; so the best subnets are known."""
    return 0.5 + sum(kernel for kernel, _ in blocks(choice)) / 400


def size(choice):
    return float(sum(kernel * expansion for kernel, expansion in blocks(choice)))


def test_evolution_finds_what_is_good_and_is_the_same_for_a_seed():
    found = search.evolve(quality, size, population=24, generations=30, seed=1)
    again = search.evolve(quality, size, population=24, generations=30, seed=1)
    other = search.evolve(quality, size, population=24, generations=30, seed=2)
    pd.testing.assert_frame_equal(found, again)
    assert set(found["name"]) != set(other["name"])
    front = found[found["front"]]
    assert front["cost"].is_monotonic_increasing and front["accuracy"].is_monotonic_increasing
    for row in found.itertuples():  # nothing that was seen beats the front
        assert not ((front["accuracy"] < row.accuracy) & (front["cost"] > row.cost)).any()
    assert {SMALLEST.name, LARGEST.name, OFA595_CHOICE.name} <= set(found["name"])
    best = search.pick(found, size(OFA595_CHOICE))
    assert quality(best) > quality(OFA595_CHOICE) and size(best) <= size(OFA595_CHOICE)
    random = ofa.random_choices(24 * 30, seed=5)
    within = [quality(choice) for choice in random if size(choice) <= size(OFA595_CHOICE)]
    assert quality(best) >= max(within)


def test_a_budget_that_nothing_meets_names_the_cheapest():
    table = search.front_of(
        {SMALLEST.name: (0.7, 3.0), LARGEST.name: (0.9, 9.0), OFA595_CHOICE.name: (0.6, 5.0)}
    )
    assert table["front"].tolist() == [True, False, True]
    assert search.pick(table, 9.0) == LARGEST and search.pick(table, 8.9) == SMALLEST
    assert search.default_budget(table, reference=5.0) == 3.0  # half would meet nothing
    assert search.default_budget(table, reference=9.0) == 4.5
    with pytest.raises(search.NoSuchStudent, match=f"cheapest found is {SMALLEST.name} with 3 ms"):
        search.pick(table, 2.0)


def operations(module, shape, runtime="onnx"):
    """In place of a clock: a number that really is a sum over blocks."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(shape))
    return lambda seconds: counter.get_total_flops() / 1e6 + 0.01


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A table of operations, and those of some whole subnets: what the table adds up can be checked
    to the digit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(latency, "ready", operations)
        table = latency.latency_table(64, 3)
        patch.setattr(latency, "ready", None)  # measured once: now it is read
        assert latency.latency_table(64, 3) == table
    return table


def test_the_latency_table_adds_up_blocks(calm, monkeypatch):
    monkeypatch.setattr(latency, "ready", operations)
    assert len(calm.blocks) == 5 * 2 * 9 and 0.9 < calm.scale < 1.1
    some = ofa.random_choices(5, seed=9)
    ratios, reference = latency.measure(some, 64, 3)
    assert np.isclose(reference, calm.reference_ms)
    found = latency.agreement([calm(choice) for choice in some], ratios * reference)
    assert (
        found["latency_mape"] < 0.02
        and np.isclose(found["kendall_tau"], 1)
        and found["subnets"] == 5
    )
    assert calm(SMALLEST) < calm(OFA595_CHOICE) < calm(LARGEST)


def test_costs(calm):
    for kind in ("latency", "macs", "parameters"):
        price = search.cost_of(kind, 64, 3, calm)
        assert price(SMALLEST) < price(OFA595_CHOICE) < price(LARGEST)
    assert search.cost_of("parameters", 64, 3)(OFA595_CHOICE) == 7_598_928 + 1537 * 3
    with pytest.raises(ValueError, match="unknown cost 'latencies'. Did you mean 'latency'"):
        search.cost_of("latencies", 64, 3)


def test_a_machine_that_slows_down_does_not_change_a_ratio(monkeypatch):
    clock = itertools.count(1)

    def slower_and_slower(module, shape, runtime="onnx"):
        return lambda seconds: module.cost * (1 + 0.001 * next(clock))

    monkeypatch.setattr(latency, "ready", slower_and_slower)

    def net(cost):
        made = torch.nn.Identity()
        made.cost = cost
        return made

    ratios, reference = latency.compare(
        [lambda cost=cost: net(cost) for cost in (1.0, 2.0, 3.0)], net(2.0), 64
    )
    assert np.allclose(ratios, [0.5, 1.0, 1.5], rtol=2e-3) and reference > 2.0


def test_agreement_by_hand():
    found = latency.agreement(np.array([1.1, 2.0, 2.7]), np.array([1.0, 2.0, 3.0]))
    assert np.isclose(found["latency_mape"], (0.1 + 0 + 0.1) / 3) and np.isclose(
        found["kendall_tau"], 1
    )


@pytest.mark.parametrize("runtime", latency.RUNTIMES)
def test_a_block_is_really_measured(runtime):
    block = LARGEST.blocks()[3]
    run = latency.ready(ofa.Residual(block, False), (1, block.inner, 8, 8), runtime)
    assert 0 < run(0.02) < 1000
    with pytest.raises(ValueError, match="unknown runtime 'onix'. Did you mean 'onnx'"):
        latency.ready(torch.nn.Identity(), (1, 3, 8, 8), "onix")


def test_timing_is_that_of_efficiency(monkeypatch):
    timing = efficiency.Timing(7.0, 6.0, 8.0, 3)
    monkeypatch.setattr(efficiency, "latency", lambda run, x, seconds, threads, least: timing)
    assert latency.ready(torch.nn.Identity(), (1, 3, 8, 8), "eager")(0.2) == 7.0


def test_a_supernet_is_trained_searched_and_its_student_tuned(home, folder):
    study = Study(dataset="folder", data_root=str(folder), profile="smoke", image_size=64)
    mine = data.load("folder", folder)
    run = loop.fit(study, mine, zoo.SUPERNET, create("hard"), 2)
    assert len(run.history) == 2 and run.record["key"]["model"] == zoo.SUPERNET
    judge = search.SubnetEvaluator(run.model, mine)
    before = zoo.checksum(run.model.network)
    assert 0 <= judge(SMALLEST) <= 1 and zoo.checksum(run.model.network) == before
    again = search.SubnetEvaluator(run.model, mine)
    again.model = None  # a search that goes on asks nothing twice
    assert again(SMALLEST) == judge(SMALLEST)
    student = search.extract(run.model, SMALLEST, judge.calibration)
    assert student.name == SMALLEST.name and not student.training
    tuned = loop.fit(study, mine, SMALLEST.name, create("hard"), 1, start=student.network)
    assert tuned.record["key"]["start"] == zoo.checksum(student.network) != tuned.checksum
    assert np.isclose(tuned.record["key"]["settings"]["lr"], 1e-4)


@pytest.fixture
def judge(folder, monkeypatch):
    """Makes judges that know every answer at once and count who is asked; what is tested is what
    they keep."""
    asked, mine, model = [], data.load("folder", folder), zoo.create("kdfmv5", 3, 32)

    def predict(choice, pixels):
        asked.append(choice.name)
        return np.random.default_rng(zlib.crc32(choice.name.encode())).random((len(pixels), 3))

    monkeypatch.setattr(search, "extract", lambda model, choice, calibration: choice)
    monkeypatch.setattr(search, "predict", predict)
    return lambda: search.SubnetEvaluator(model, mine), asked


def _child(work):
    """The number of a process of its own that does some work (not with torch, whose threads no fork
    survives)."""
    number = os.fork()
    if not number:
        try:
            work()
        finally:
            os._exit(1)
    return number


def test_a_search_that_is_killed_goes_on(judge, monkeypatch, tmp_path):
    make, asked = judge
    whole = search.evolve(make(), size, population=8, generations=4)
    wanted = set(asked)
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "killed"))
    doomed, predict = make(), search.predict

    def dies(choice, pixels):
        if len(asked) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict(choice, pixels)

    def search_and_die():
        asked.clear()
        search.predict = dies
        search.evolve(doomed, size, population=8, generations=4)

    assert os.waitstatus_to_exitcode(os.waitpid(_child(search_and_die), 0)[1]) == -signal.SIGKILL
    asked.clear()
    pd.testing.assert_frame_equal(search.evolve(make(), size, population=8, generations=4), whole)
    assert len(asked) == len(wanted) - 20 and len(set(asked)) == len(asked)


def test_judges_at_one_file_lose_no_answer(judge):
    make, asked = judge
    choices = ofa.random_choices(45, seed=3)
    early, judges = make(), [make() for _ in range(3)]
    children = [
        _child(lambda own=own, part=part: [own(choice) for choice in part])
        for own, part in zip(judges, (choices[::3], choices[1::3], choices[2::3]), strict=True)
    ]
    for child in children:
        os.waitpid(child, 0)
    late = make()
    assert [early(choice) for choice in choices] == [late(choice) for choice in choices]
    assert not asked, "every answer was on disk"


@pytest.mark.parametrize(("calls", "left", "blocks"), [(50, 90 + 6, 180 - 50), (94, 3, 0)])
def test_a_latency_table_that_is_killed_goes_on(home, monkeypatch, calls, left, blocks):
    """90 blocks are prepared once and measured twice, then four networks two at a time beside a
    reference."""
    prepared, measured = [], []

    def ready(module, shape, runtime="onnx"):
        def run(seconds):
            measured.append(isinstance(module, ofa.Residual))
            return sum(each.numel() for each in module.parameters()) / 1e6 + shape[-1] / 1e3

        prepared.append(shape)
        return run

    def dies(*arguments):
        if len(prepared) == calls:
            raise KeyboardInterrupt
        return ready(*arguments)

    monkeypatch.setattr(latency, "TOGETHER", 2)
    monkeypatch.setattr(latency, "ready", dies)
    with pytest.raises(KeyboardInterrupt):
        latency.latency_table(64, 3, whole=2)
    assert not list((home / "cache").rglob("latency/*.json"))
    prepared.clear()
    measured.clear()
    monkeypatch.setattr(latency, "ready", ready)
    resumed = latency.latency_table(64, 3, whole=2)
    assert len(prepared) == left and sum(measured) == blocks
    assert not list((home / "cache").rglob("*.part"))
    monkeypatch.setenv("KDNB_CACHE", str(home / "other"))
    assert latency.latency_table(64, 3, whole=2) == resumed


def test_names_of_subnets_are_students():
    assert Study(student=SMALLEST.name).student == SMALLEST.name
    with pytest.raises(ValueError, match="latency_budget_ms must lie"):
        Study.of(search.SearchParameters)(latency_budget_ms=-1.0)
    with pytest.raises(ValueError, match="unknown runtime"):
        Study.of(search.SearchParameters)(runtime="tensorrt")
    assert Choice.parse(SMALLEST.name) == SMALLEST
