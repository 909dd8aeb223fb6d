"""Teachers' answers on disk: the same to the last bit, shared by runs with the same views, bounded,
and never read when damaged."""

import os

import pytest
import torch
from conftest import study
from safetensors.torch import load_file

from kdnb import parameters
from kdnb.distillation import Method, create, hard_loss
from kdnb.training import answers, loop, teachers


class Embeddings(Method):
    """Labels, and a loss on the teacher's pooled features."""

    name, title, paper, taps, pooled = "embeddings", "", "", 1, True

    def loss(self, student, teachers, labels, rows=None):
        (features,) = teachers[0].features
        assert features.shape[2:] == (1, 1)
        hard = hard_loss(student.logits, labels, self.class_weights)
        return {"loss": hard + 0 * student.features[0].sum(), "size": features.square().mean()}


def counted(monkeypatch):
    """The batches that teachers are asked for, from now on."""
    asked, answer = [], teachers.answer
    monkeypatch.setattr(teachers, "answer", lambda *given: asked.append(given[1]) or answer(*given))
    return asked


def files_of(home):
    return sorted((home / "cache" / "answers").glob("*/epoch-*.safetensors"))


@pytest.mark.parametrize("method", [create("hybrid", alpha=0.3), Embeddings()])
def test_a_run_on_kept_answers_is_the_run_that_asked(mine, home, monkeypatch, method):
    wanted = study()
    trained = loop.train_teachers(wanted, mine)
    asked = counted(monkeypatch)

    monkeypatch.setenv(answers.LIMIT, "0")
    expected = loop.fit(wanted, mine, "kdfmv5", method, 2, trained)
    assert len(asked) == 10 and not files_of(home)
    expected.folder.rename(home / "expected")

    # another student, another number of epochs: the same views
    monkeypatch.delenv(answers.LIMIT)
    loop.fit(wanted, mine, "resnet10t", method, 3, trained)
    assert len(asked) == 25 and len(files_of(home)) == 3
    again = loop.fit(wanted, mine, "kdfmv5", method, 2, trained)
    assert len(asked) == 25, "a view was shown to the teacher twice"
    assert again.checksum == expected.checksum
    columns = [name for name in expected.history if name != "seconds"]
    assert again.history[columns].equals(expected.history[columns])


def test_other_options_share_answers_and_other_views_do_not(mine, home, monkeypatch):
    wanted = study()
    trained = loop.train_teachers(wanted, mine)
    asked = counted(monkeypatch)
    for alpha in (0.2, 0.5):
        for method in ("hybrid", "kd_fmv"):
            loop.fit(wanted, mine, "kdfmv5", create(method, alpha=alpha), 1, trained)
    assert len(asked) == 5 and len(files_of(home)) == 1
    for number, other in enumerate((study(seed=1), study(batch_size=8), study(image_size=40)), 2):
        loop.fit(other, mine, "kdfmv5", create("hybrid"), 1, trained)
        assert len(files_of(home)) == number
    other = loop.train_teachers(study(teacher="resnet10t", teacher_epochs=1), mine)
    loop.fit(wanted, mine, "kdfmv5", create("hybrid"), 1, [*trained, *other])
    assert len(files_of(home)) == 5, "the first of two teachers is known, the second is not"


def test_maps_and_images_of_a_methods_own_are_not_kept(mine, home):
    loop.distil(study(method="fitnet"), mine, loop.train_teachers(study(), mine))
    assert not (home / "cache" / "answers").exists()


ABOUT = {"key": {"teacher": "abc"}, "epoch": 3, "rows": "def"}


@pytest.fixture
def stored(home):
    path = answers.folder() / "net-1" / "epoch-0003.safetensors"
    tensors = [torch.randn(7, 3), torch.randn(7, 5, 1, 1)]
    answers.write(path, ABOUT, tensors)
    return path, tensors


def test_answers_come_back_as_they_were(stored):
    path, tensors = stored
    found = answers.read(path, ABOUT)
    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))
    assert answers.read(path.with_name("none.safetensors"), ABOUT) is None


@pytest.mark.parametrize("other", [{"key": {"teacher": "xyz"}}, {"epoch": 4}, {"rows": "fed"}])
def test_answers_of_something_else_are_not_read(stored, other):
    assert answers.read(stored[0], ABOUT | other) is None


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_half_written_answers_are_not_read(stored, size):
    path, content = stored[0], stored[0].read_bytes()
    path.write_bytes(content[:size])
    assert answers.read(path, ABOUT) is None


def test_a_flipped_bit_is_noticed(stored):
    path, content = stored[0], bytearray(stored[0].read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert answers.read(path, ABOUT) is None


def test_damaged_answers_are_made_anew(mine, home, monkeypatch):
    wanted = study()
    trained = loop.train_teachers(wanted, mine)
    expected = loop.fit(wanted, mine, "kdfmv5", create("hybrid"), 1, trained)
    expected.folder.rename(home / "expected")
    (path,) = files_of(home)
    before = load_file(path)["00"].clone()  # the file is mapped, not read
    path.write_bytes(path.read_bytes()[:-40])
    asked = counted(monkeypatch)
    again = loop.fit(wanted, mine, "kdfmv5", create("hybrid"), 1, trained)
    assert len(asked) == 5 and again.checksum == expected.checksum
    assert load_file(path)["00"].equal(before)


def test_the_folder_stays_below_its_limit(home, monkeypatch):
    def keep(folder, epoch, size=10_000):
        path = answers.folder() / folder / f"epoch-{epoch:04}.safetensors"
        if answers.make_room(size, path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
            os.utime(path, (epoch, epoch))
        return sorted(f"{p.parent.name}{int(p.stem[-4:])}" for p in answers.folder().rglob("*.s*"))

    monkeypatch.setenv(answers.LIMIT, "0.00003")  # 30,000 bytes: three files
    assert keep("a", 1) == ["a1"]
    keep("a", 2)
    assert keep("b", 3) == ["a1", "a2", "b3"]
    assert keep("b", 4) == ["a2", "b3", "b4"], "the oldest of another run goes"
    keep("b", 5)
    assert keep("b", 6) == ["b3", "b4", "b5"], "a run's own first epochs stay"
    monkeypatch.setenv(answers.LIMIT, "much")
    with pytest.raises(parameters.BadParameter, match="KDNB_ANSWERS_GB must be a number"):
        answers.limit()


def test_the_disk_used_is_printed_once_a_run(mine, capsys):
    trained = loop.train_teachers(study(), mine)
    capsys.readouterr()
    loop.fit(study(), mine, "kdfmv5", create("hybrid"), 2, trained)
    assert capsys.readouterr().out.count("answers of resnet10t: kept in") == 1
    loop.fit(study(), mine, "kdfmv5", create("kd_fmv"), 2, trained)
    printed = capsys.readouterr().out
    assert printed.count("read from") == 1 and "4 GB" in printed
