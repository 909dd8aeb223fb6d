"""The loop: teachers stay unchanged, an interrupted run ends where an uninterrupted one does,
several processes train the network that one trains, caches know what they hold."""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sample_method  # noqa: F401 - registers a method that uses every hook
import torch
from conftest import number_of, paint, study
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdnb import data, device, files
from kdnb.distillation import Method, create, hard_loss
from kdnb.distillation.base import Lesson
from kdnb.images.pixels import Augment
from kdnb.models import zoo
from kdnb.models.predict import predict
from kdnb.training import checkpoints, loop, schedule, teachers


def test_it_learns(mine):
    """Grey levels tell these classes apart: a few epochs must be enough, on images the loop never
    saw."""
    run = loop.fit(study(lr=0.003), mine, "resnet10t", create("hard"), 8)
    test = mine.pixels(32, "test")
    right = predict(run.model, test).argmax(1) == test.labels[test.rows].numpy()
    assert right.mean() > 0.9
    assert run.history["hard_loss"].iloc[-1] < run.history["hard_loss"].iloc[0]


def test_a_run_is_recorded_and_found_again(mine, monkeypatch, capsys):
    new = study(seed=1)
    runs = loop.train_teachers(new, mine)
    assert "loaded from" not in capsys.readouterr().out
    record = runs[0].record
    assert record["key"]["data"] == mine.checksum and record["epochs_run"] == 2
    assert record["weights"] == zoo.checksum(runs[0].model.network)
    assert {"commit", "packages", "hardware"} <= record["provenance"].keys()
    assert not list(runs[0].folder.glob("last*"))
    monkeypatch.setattr(loop, "Training", lambda *_: pytest.fail("trained a second time"))
    again = loop.train_teachers(new, mine)
    assert again[0].checksum == runs[0].checksum and "loaded from" in capsys.readouterr().out


def test_whatever_changes_the_weights_changes_the_folder(mine, monkeypatch):
    folders = []

    def note(folder):
        folders.append(folder)
        raise InterruptedError

    monkeypatch.setattr(loop.processes, "exclusive", note)
    for changes in (
        {},
        {"seed": 1},
        {"lr": 0.1},
        {"augment": False},
        {"image_size": 64},
        {"batch_size": 8},
        {"teacher_epochs": 3},
    ):
        with pytest.raises(InterruptedError):
            loop.train_teachers(study(**changes), mine)
    assert len(set(folders)) == 7


def killed_after(epochs, monkeypatch):
    """The loop dies right after an epoch was written down."""
    keep = loop.checkpoints.keep

    def keep_then_die(folder, model, optimizer, state, *rest):
        keep(folder, model, optimizer, state, *rest)
        if state.epoch == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoints, "keep", keep_then_die)


@pytest.mark.parametrize("method", ["hard", "hybrid", "fitnet", "dkd", "crd", "sample"])
def test_a_resumed_run_equals_an_uninterrupted_one(mine, home, monkeypatch, method, capsys):
    """Same schedule, sampler, augmentation and moments, projectors and memories: the weights agree
    to the last bit. Dropout included (kdfmv8)."""
    wanted = study(student="kdfmv8", student_epochs=3, method=method)
    trained = loop.train_teachers(wanted, mine)
    whole = loop.distil(wanted, mine, trained)
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            loop.distil(wanted, mine, trained)
    assert not (whole.folder / "run.json").exists()
    kept = load_file(whole.folder / "last.safetensors")
    own = {name for name in kept if name.startswith("method.")}
    expected = {"fitnet": {"method.regressors.0.weight", "method.regressors.0.bias"}}
    expected["crd"] = {
        f"method.{role}_{part}"
        for role in ("student", "teacher")
        for part in ("heads.0.weight", "heads.0.bias", "memories.0.bank", "memories.0.level")
    }
    assert own == expected.get(method, own) and bool(own) == (method in ("fitnet", "crd", "sample"))
    resumed = loop.distil(wanted, mine, trained)
    assert "resumes after epoch 2" in capsys.readouterr().out
    assert resumed.record["resumed_after_epoch"] == 2
    assert resumed.checksum == whole.checksum
    same = ["epoch", "lr", "loss", "val_loss", "val_balanced_accuracy"]
    pd.testing.assert_frame_equal(resumed.history[same], whole.history[same])
    if method == "crd":
        assert kept["method.student_memories.0.level"].isfinite()
    if method == "sample":
        assert kept["method.steps"] == 10 and kept["method.bank"].any(1).sum() == 72


def test_the_best_epoch_of_fitnet_is_one_that_trained_the_classifier(mine, monkeypatch):
    """However well stage 1 may score, and however long it lasts."""
    wanted = study(method="fitnet", teacher="kdfmv5", student_epochs=31)
    trained = loop.train_teachers(wanted, mine)
    scores = iter([0.9] * 15 + [0.1, 0.2, 0.3] + [0.1] * 20)
    monkeypatch.setattr(
        loop,
        "validation_scores",
        lambda *_: {"val_loss": 1.0, "val_accuracy": 0.0, "val_balanced_accuracy": next(scores)},
    )
    run = loop.distil(wanted, mine, trained)
    assert run.record["best_epoch"] == 18
    assert run.record["epochs_run"] == 18 + loop.Settings(1, 1, 1, 0).patience


def test_a_method_may_mix_labels_and_leave_images_out(mine, home):
    class Mixed(Method):
        """Half of a batch, each image mixed with the next."""

        name = "mixed"

        def change_batch(self, batch, student, generator):
            images, shares = batch.images[::2], torch.nn.functional.one_hot(batch.labels[::2], 3)
            return batch._replace(
                images=(images + images.roll(1, 0)) / 2,
                labels=(shares + shares.roll(1, 0)) / 2,
                rows=batch.rows[::2],
            )

        def loss(self, student, teachers, labels, rows):
            assert len(student.logits) == len(teachers[0].logits) == len(labels) == len(rows) <= 8
            return {"loss": hard_loss(student.logits, labels, self.class_weights)}

    wanted = study(augment=False)
    run = loop.fit(wanted, mine, "kdfmv5", Mixed(), 1, loop.train_teachers(wanted, mine))
    assert run.history["loss"].notna().all()
    assert not (home / "cache" / "answers").exists(), "the teacher saw other images"


def test_what_cannot_be_trained_is_refused_before_it_begins(mine, home):
    trained = loop.train_teachers(study(), mine)
    for method, name, given, words in (
        ("fitnet", zoo.SUPERNET, trained, "learn from logits only; fitnet needs more.*: hard, hyb"),
        ("hybrid", "kdfmv5", [], "hybrid needs a teacher, and kdfmv5 was given none"),
    ):
        with pytest.raises(ValueError, match=words):
            loop.fit(study(), mine, name, create(method), 1, given)
    with pytest.raises(ValueError, match="2 teacher_weights for 1 teachers"):
        loop.fit(study(), mine, "kdfmv5", create("hybrid", teacher_weights=[1, 2]), 1, trained)
    with pytest.raises(ValueError, match="resnet10t has .* layers to learn from"):
        loop.fit(study(), mine, "resnet10t", create("fitnet", hint_layer=4), 1, trained)


def test_a_run_killed_before_its_last_row_is_written_has_it_in_the_end(mine, monkeypatch):
    writes = iter(range(2))  # two tables of three

    def dies(folder, history, write=checkpoints.write_history):
        if next(writes, None) is None:
            raise KeyboardInterrupt
        write(folder, history)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write_history", dies)
        loop.fit(study(), mine, "resnet10t", create("hard"), 3)
    assert loop.fit(study(), mine, "resnet10t", create("hard"), 3).history["epoch"].tolist() == [
        1,
        2,
        3,
    ]


def test_the_scale_of_half_precision_gradients_survives_an_interruption(tmp_path):
    def parts():
        lesson = Lesson(zoo.create("resnet10t", 2, 32), create("hard"))
        optimizer = torch.optim.AdamW(lesson.parameters())
        return lesson, optimizer, torch.amp.GradScaler("cpu", init_scale=1024.0)

    lesson, optimizer, scaler = parts()
    scaler.scale(torch.tensor(torch.inf) * sum(p.sum() for p in lesson.parameters())).backward()
    scaler.step(optimizer)  # left out, and the scale is halved
    scaler.update()
    row = {"epoch": 1, "val_balanced_accuracy": 0.5, "val_loss": 1.0}
    state = checkpoints.State()
    checkpoints.keep(tmp_path, lesson, optimizer, state, state.add(row), scaler)
    other, moments, again = parts()
    checkpoints.restore(tmp_path, other, moments, again)
    assert again.state_dict() == scaler.state_dict() and again.get_scale() == 512


@pytest.mark.parametrize("augment", [True, False])
def test_the_teacher_stays_as_it_is(mine, augment):
    wanted = study(augment=augment)
    teachers = loop.train_teachers(wanted, mine)
    before = zoo.checksum(teachers[0].model.network)
    distilled = loop.distil(wanted, mine, teachers)
    assert zoo.checksum(teachers[0].model.network) == before  # batch-norm statistics too
    assert not teachers[0].model.training and all(
        p.grad is None for p in teachers[0].model.parameters()
    )
    assert not any(module._forward_hooks for module in teachers[0].model.modules())
    assert {"hard_loss", "soft_loss"} <= set(distilled.history.columns)
    assert distilled.record["key"]["teachers"] == [before]


@pytest.mark.parametrize(
    "name", ["vgg19_bn", "visformer_small", "autoformerv2_tiny", "densenet121"]
)
def test_a_frozen_teacher_gives_the_same_answers(name):
    """To the last bit, and the teacher itself stays float32."""
    teacher, images = (
        zoo.create(name, 3, 64).eval(),
        torch.rand(3, 3, 64, 64).contiguous(memory_format=torch.channels_last),
    )
    teacher.to(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        device.autocast("cpu"),
    ):
        assert torch.equal(teachers.frozen(teacher)(images).float(), teacher(images).float())
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_teacher_and_student_see_the_same_view(mine, monkeypatch):
    wanted = study(student_epochs=1)
    trained = loop.train_teachers(wanted, mine)
    taught, shown = [], []
    answer, forward = teachers.answer, zoo.KDFMV.forward
    monkeypatch.setattr(
        teachers,
        "answer",
        lambda teacher, images, *reads: taught.append(images) or answer(teacher, images, *reads),
    )

    def look(network, x):
        if network.training:
            shown.append(x.clone())
        return forward(network, x)

    monkeypatch.setattr(zoo.KDFMV, "forward", look)
    loop.distil(wanted, mine, trained)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in zoo.IMAGENET)
    assert len(taught) == len(shown) == 5
    for teacher_view, student_view in zip(taught, shown, strict=True):
        assert torch.allclose((teacher_view - mean) / std, student_view, atol=1e-5)


def test_fixed_views_ask_the_teacher_once(mine, home, monkeypatch):
    wanted = study(augment=False, student_epochs=3)
    trained = loop.train_teachers(wanted, mine)
    monkeypatch.setattr(teachers, "answer", lambda *_: pytest.fail("asked batch by batch"))
    calls, predict = [], teachers.predict
    monkeypatch.setattr(
        teachers, "predict", lambda model, *a: calls.append(model.name) or predict(model, *a)
    )
    loop.distil(wanted, mine, trained)
    assert calls == ["resnet10t"]
    assert len(list((home / "cache" / "answers").glob("*/fixed.safetensors"))) == 1


@pytest.mark.parametrize("augment", [True, False])
def test_features_of_a_teacher_are_read_batch_by_batch(mine, home, augment):
    """Only logits are kept on disk, and fixed views do not change that."""
    wanted = study(method="fitnet", augment=augment)
    run = loop.distil(wanted, mine, loop.train_teachers(wanted, mine))
    assert not (home / "cache" / "answers").exists()
    assert {"hint_loss", "hard_loss", "soft_loss"} <= set(run.history.columns)


def test_cached_soft_targets_are_the_teachers_answers_row_by_row(mine):
    trained = [run.model for run in loop.train_teachers(study(), mine)]
    table = teachers.fixed_logits(trained[0], mine, 32)
    assert table.shape == (len(mine.table), 3)
    images = mine.pixels(32)[[0, 5, 99]][0]
    found = teachers.answer(trained[0], images)
    assert torch.allclose(table[[0, 5, 99]], found.logits, atol=0.05)


def test_soft_targets_of_another_teacher_size_or_split_are_another_file(mine, folder, home):
    first, second = (zoo.create("resnet10t", 3, 32) for _ in range(2))
    for network, dataset, size in (
        (first, mine, 32),
        (second, mine, 32),
        (first, mine, 48),
        (first, data.load("folder", folder, split="group"), 32),
        (first, mine, 32),
    ):
        teachers.fixed_logits(network, dataset, size)
    assert len(list((home / "cache" / "answers").glob("*/fixed.safetensors"))) == 4


def test_distilled_student_and_baseline_start_from_the_same_weights_and_order(mine, monkeypatch):
    starts = []

    def note(lesson, dataset, settings, *rest):
        starts.append((zoo.checksum(lesson.student.network), dataclasses.astuple(settings)))
        raise InterruptedError

    trained = loop.train_teachers(study(), mine)
    monkeypatch.setattr(loop, "Training", note)
    for job in (
        lambda: loop.distil(study(), mine, trained),
        lambda: loop.distil(study(method="fitnet"), mine, trained),
        lambda: loop.train_baseline(study(), mine),
    ):
        with pytest.raises(InterruptedError):
            job()
    assert starts[0] == starts[1] == starts[2]


@pytest.mark.parametrize("method", ["hybrid", "fitnet", "attention_transfer", "crd"])
def test_several_teachers(mine, method):
    wanted = study(
        teacher="resnet10t+kdfmv8",
        teacher_weights=[3, 1],
        teacher_epochs=1,
        student_epochs=1,
        image_size=64,
        method=method,
    )
    trained = loop.train_teachers(wanted, mine)
    run = loop.distil(wanted, mine, trained)
    assert run.record["key"]["teachers"] == [teacher.checksum for teacher in trained]
    assert run.record["key"]["objective"]["teacher_weights"] == [3.0, 1.0]


@pytest.mark.parametrize("method", ["hybrid", "kd_fmv_as_released", "fitnet", "dkd", "rkd", "crd"])
def test_two_classes_and_a_last_batch_of_one(home, method):
    for split, count in (("train", 33), ("val", 4), ("test", 4)):
        for number in range(count):
            paint(
                home / "two" / split / "ab"[number % 2] / f"{number}.png", number_of(split, number)
            )
    two = data.load("folder", home / "two")
    wanted = study(method=method, teacher_epochs=1, student_epochs=1)
    run = loop.distil(wanted, two, loop.train_teachers(wanted, two))
    assert run.history["loss"].notna().all() and run.model.num_classes == 2


def test_validation_and_test_images_are_never_augmented_and_test_is_never_touched(
    mine, monkeypatch
):
    seen, got, fetch = [], [], Augment.__call__
    monkeypatch.setattr(
        Augment,
        "__call__",
        lambda self, images, views: seen.append(len(images)) or fetch(self, images, views),
    )
    original = data.Dataset.pixels

    def pixels(self, image_size, split=None, column="path"):
        got.append(split)
        return original(self, image_size, split, column)

    monkeypatch.setattr(data.Dataset, "pixels", pixels)
    loop.fit(study(), mine, "resnet10t", create("hard"), 1)
    assert sum(seen) == 72 and set(got) == {"train", "val"}


def test_it_stops_early_and_keeps_the_best(mine, monkeypatch):
    scores = iter([0.5, 0.9] + [0.1] * 50)
    monkeypatch.setattr(
        loop,
        "validation_scores",
        lambda *_: {"val_loss": 1.0, "val_accuracy": 0.0, "val_balanced_accuracy": next(scores)},
    )
    run = loop.fit(study(), mine, "kdfmv5", create("hard"), 40)
    assert (
        run.record["best_epoch"] == 2
        and run.record["epochs_run"] == 2 + loop.Settings(1, 1, 1, 0).patience
    )


def test_a_diverging_run_says_what_to_try(mine, monkeypatch):
    monkeypatch.setattr(schedule, "learning_rate", lambda *_: 1e30)
    with pytest.raises(FloatingPointError, match="-p lr"):
        loop.fit(study(), mine, "kdfmv5", create("hard"), 3)


def test_the_schedule_warms_up_and_ends_at_nothing():
    settings = loop.Settings(epochs=10, batch_size=1, lr=1.0, seed=0)
    rates = [schedule.learning_rate(step, 100, settings) for step in range(101)]
    assert (
        rates[0] == pytest.approx(0.1)
        and rates[9] == rates[10] == 1.0
        and rates[55] == pytest.approx(0.5)
    )
    assert rates[100] == pytest.approx(0, abs=1e-12) and all(
        a >= b for a, b in zip(rates[10:], rates[11:], strict=False)
    )


def test_rare_classes_weigh_more():
    weights = schedule.class_weights(torch.tensor([0, 0, 0, 1]), 2)
    assert weights.tolist() == pytest.approx([4 / 6, 2])
    assert schedule.class_weights(torch.tensor([0, 0]), 3)[2] > 0  # no image: no division by zero


def test_predictions_come_in_order_and_leave_the_mode_alone(mine):
    model = zoo.create("resnet10t", 3, 32).train()
    together = predict(model, mine.pixels(32, "test"), batch_size=64)
    assert model.training
    by_one = predict(
        model, mine.pixels(32, "test"), batch_size=1
    )  # a batch of one keeps its batch axis
    assert together.shape == by_one.shape == (27, 3)
    assert abs(together - by_one).max() < 0.05


@pytest.mark.parametrize(
    ("size", "parts", "left_out"),
    [
        (80, 1, 0),
        (81, 1, 1),
        (82, 1, 0),
        (1, 1, 0),
        (80, 2, 0),
        (83, 2, 3),
        (84, 2, 0),
        (87, 2, 1),
        (87, 4, 7),
        (95, 4, 3),
        (6, 2, 0),
    ],
)
def test_processes_share_every_batch_equally_and_take_an_image_once(size, parts, left_out):
    settings = loop.Settings(epochs=1, batch_size=16, lr=1.0, seed=3)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3 * 100_003)).tolist()
    each = [list(schedule.Batches(size, settings, part, parts)) for part in range(parts)]
    batches = [sum(pieces, []) for pieces in zip(*each, strict=True)]
    assert sum(batches, []) == order[: size - left_out] and all(
        len(batch) == 16 for batch in batches[:-1]
    )
    assert all(
        len(piece) * parts == len(batch)
        for pieces in each
        for piece, batch in zip(pieces, batches, strict=True)
    )
    assert len(schedule.Batches(size, settings, 0, parts)) == len(batches) and (
        size == 1 or len(each[0][-1]) >= 2
    )


@pytest.mark.parametrize(("size", "batch", "parts"), [(80, 15, 2), (80, 4, 4), (3, 16, 2)])
def test_a_batch_that_cannot_be_shared_equally_is_refused(size, batch, parts):
    with pytest.raises(
        ValueError,
        match=f"cannot be divided among {parts} processes.*that is a multiple of {parts}",
    ):
        schedule.Batches(size, loop.Settings(epochs=1, batch_size=batch, lr=1.0, seed=0), 0, parts)


LAUNCHED = """
import os
import sys

import sample_method  # registers a method that uses every hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdnb import device, files, models, training
from kdnb.distillation import create
from kdnb.images.pixels import Pixels
from kdnb.models import zoo
from kdnb.study import Study

# rounding to bfloat16 would hide what the tolerance is to show
device.precision = lambda *place: "no"
fetch, steps, fetched = Pixels.__getitems__, [], []
register_optimizer_step_post_hook(lambda *_: steps.append(1))
Pixels.__getitems__ = (
    lambda self, index: fetched.extend(self.rows[index].tolist()) or fetch(self, index)
)


def study(method):
    return Study(dataset="folder", data_root=sys.argv[1], teacher="kdfmv5", student="kdfmv5",
                 image_size=32, teacher_epochs=2, student_epochs=3, batch_size=16, augment=False,
                 method=method)


mine = study("hybrid").load_data()
steps.clear()  # the search for duplicates optimises too
(teacher,) = training.train_teachers(study("hybrid"), mine)
learnt = set(mine.pixels(32, "train").rows.tolist())
trained = [row for row in fetched if row in learnt]
test, found = mine.pixels(32, "test"), {"key": teacher.folder.name, "logits": {}, "history": {}}
for method in ("hybrid", "fitnet", "crd", "sample", "crckd"):
    run = training.distil(study(method), mine, [teacher])
    fetched.clear()
    found["logits"][method] = models.predict(run.model, test, batch_size=4).tolist()
    found["history"][method] = run.history.drop(columns="seconds").to_dict("list")
found |= {"processes": run.record["processes"], "steps": len(steps), "predicted": list(fetched)}
if found["processes"] > 1:  # a step leaves out some of a supernet's weights
    method = create("hard")
    found["supernet"] = training.fit(study("hard"), mine, models.SUPERNET, method, 1).checksum
process = os.environ.get("LOCAL_RANK", "single")
files.write_json(files.cache_dir() / f"{process}.json", [trained, found])
"""


def launched(folder, cache, *launcher):
    """What each process of a launch of that script has found."""
    script = files.write_text(cache / "launched.py", LAUNCHED)
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        cwd=files.ROOT,
        capture_output=True,
        text=True,
        timeout=1800,  # a cap for a machine that does much else
        env=os.environ
        | {
            "KDNB_CACHE": str(cache),
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": os.pathsep.join([str(files.ROOT), str(Path(__file__).parent)]),
        },
    )
    assert done.returncode == 0, done.stderr
    return [files.read_json(path) for path in sorted(cache.glob("*.json"))]


def test_two_processes_train_the_network_that_one_trains(folder, home):
    """As `accelerate launch` does on a machine with several GPUs, here with two CPU processes and
    networks without batch norm; with projectors, banks, views and a moving average too.

    Labels of unequal number and a short last batch: the mean of the two parts' losses would be
    another loss.
    """
    for path in sorted((folder / "train" / "dark").iterdir())[:12]:
        path.unlink()
    ((rows, single),) = launched(folder, home / "one")
    several = launched(
        folder, home / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"
    )
    (first_rows, first), (second_rows, second) = several
    assert first == second and (single["processes"], first["processes"]) == (1, 2)
    assert (first["key"], first["steps"]) == (single["key"], single["steps"])
    assert single["steps"] == (2 + 5 * 3) * 4  # epochs, batches
    assert sorted(first_rows + second_rows) == sorted(rows)
    assert len(rows) == 2 * len(set(rows)) == 2 * 60  # epochs, images
    test = data.load("folder", folder).pixels(32, "test").rows.tolist()
    assert first["predicted"] == single["predicted"] == test
    # the same sums in another order: float32 rounding, where a step more or another loss moves
    # logits by tenths
    for method, logits in single["logits"].items():
        assert np.allclose(first["logits"][method], logits, atol=1e-4), method
        one, two = (pd.DataFrame(run["history"][method]) for run in (single, first))
        pd.testing.assert_frame_equal(two, one, atol=1e-4)
    assert np.ptp(single["logits"]["hybrid"]) > 1


def test_a_full_disk_while_weights_are_saved_loses_one_epoch(mine, monkeypatch):
    def second_epoch(full):
        with monkeypatch.context() as patch, pytest.raises(files.DiskFull, match="KDNB_CACHE"):
            keep = checkpoints.keep

            def kept(folder, model, optimizer, state, *rest):
                with full() if state.epoch == 2 else nullcontext():
                    keep(folder, model, optimizer, state, *rest)

            patch.setattr(checkpoints, "keep", kept)
            loop.fit(study(), mine, "kdfmv5", create("hard"), 3)

    @contextmanager
    def output():
        def save_file(*_):
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", save_file)
            yield

    @contextmanager
    def met():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    whole = loop.fit(study(), mine, "kdfmv5", create("hard"), 3)
    shutil.rmtree(whole.folder)
    for full in (output, met):
        second_epoch(full)
        assert {path.suffix for path in whole.folder.iterdir()} == {".safetensors", ".csv"}
        assert pd.read_csv(whole.folder / "history.csv")["epoch"].tolist() == [1]
    resumed = loop.fit(study(), mine, "kdfmv5", create("hard"), 3)
    assert resumed.record["resumed_after_epoch"] == 1 and resumed.checksum == whole.checksum
