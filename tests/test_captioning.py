"""Reports: what the grammar writes is read back, captioners resume exactly, truth is counted by
hand."""

import math
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FOLDERS
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from kdnb import captioning, files, training
from kdnb.captioning import attention, grammar, networks, scores, texts
from kdnb.images import phantoms
from kdnb.images.catalogue import DATASETS
from kdnb.images.grammar import COUNTS, SIZES, VOCABULARIES, Facts
from kdnb.parameters import BadParameter
from kdnb.study import Study

CHEST = VOCABULARIES["chest"]
CLASSES = tuple(DATASETS["phantom_cxr"].classes)


# --- grammar and reader --------------------------------------------------------------------------


@some.composite
def anything_known(draw):
    """A vocabulary and facts in its words."""
    vocabulary = VOCABULARIES[draw(some.sampled_from(sorted(VOCABULARIES)))]
    if draw(some.integers(0, 4)) == 0:
        return vocabulary, Facts()
    sides, zones = vocabulary.sides, vocabulary.zones
    parts = (vocabulary.kinds, sides, zones, SIZES, COUNTS)
    chosen = [draw(some.sampled_from(sorted(part))) for part in parts]
    return vocabulary, Facts(*chosen, certain=draw(some.booleans()))


@settings(max_examples=300, deadline=None)
@given(anything_known(), some.integers(0, 2**31), some.integers(0, 9))
def test_what_is_written_is_read_back(known, seed, writer):
    vocabulary, facts = known
    text = grammar.write(facts, vocabulary, (seed, writer))
    assert text == grammar.write(facts, vocabulary, (seed, writer))
    assert grammar.read(text, vocabulary) == facts.stated(vocabulary), text
    assert text[0].isupper() and text.endswith(".") and "  " not in text
    place = grammar.span(text, vocabulary, "kind")
    assert (place is None) == (facts.kind == "")
    if place:
        word = text[slice(*place)].lower()
        assert any(word in pair for pair in vocabulary.kinds[facts.kind])


def test_facts_have_many_wordings():
    facts = Facts("consolidation", "left", "lower", "small", "two")
    assert len({grammar.write(facts, CHEST, (seed,)) for seed in range(200)}) > 100
    assert len({grammar.write(Facts(), CHEST, (seed,)) for seed in range(50)}) > 5


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("No consolidation.", {"consolidation": "absent"}),
        ("Consolidation cannot be excluded on the left.", "possible left"),
        ("Consolidation in the left lung, no dense opacity", "present left"),
        ("Bilateral pneumonia of the heart", {"side": "both"}),
        ("Dense opacities on both lungs", "present both"),
        ("Consolidation in the left lung without effusion", "present left"),
        ("Abnormal chest, consolidation on the left", "present left"),
        (
            "Consolidation in the left lung and no hazy opacity",
            {"consolidation": "present", "side": "left", "ground-glass opacity": "absent"},
        ),
        ("left left consolidation consolidation", "present left"),
        ("", {}),
    ],
)
def test_the_reader_takes_any_text(text, stated):
    if isinstance(stated, str):
        said, side = stated.split()
        stated = {"consolidation": said, "side": side}
    assert grammar.read(text, CHEST) == stated


def test_facts_of_masks_by_hand():
    organ, lesion = np.zeros((90, 90), bool), np.zeros((90, 90), bool)
    organ[:, 10:80] = True
    lesion[70:85, 15:30] = lesion[70:85, 32:40] = True  # two parts, below, in the image's left
    found = grammar.of_masks("Non-COVID-like", lesion, organ, CHEST)
    assert found == Facts("consolidation", "right", "lower", "small", "two", certain=False)
    brain = grammar.of_masks("sellar", lesion, organ, VOCABULARIES["brain"])
    assert (brain.side, brain.size) == ("right", "medium")
    assert (
        grammar.of_masks("gland-forming", lesion, organ, VOCABULARIES["histology"]).side == "left"
    )
    assert grammar.of_masks("Normal-like", lesion, organ, CHEST) == Facts()
    assert grammar.of_masks("COVID-like", lesion & False, organ, CHEST) == Facts()
    with pytest.raises(ValueError, match="organ must be"):
        grammar.of_masks("COVID-like", lesion, organ[:50], CHEST)


# --- scores --------------------------------------------------------------------------------------


def test_truth_is_counted_by_hand():
    known = "Two small consolidations in the left lung in the lower zone. No hazy opacity."
    said = "Possible large consolidation in the left lung. Hazy opacities are seen."
    found = scores.facts_of(said, known, CHEST)
    # true: left; possible is not present, and no contradiction; large and hazy contradict
    assert found == {"stated": 4, "true": 1, "known": 6, "contradictions": 2}
    perfect = scores.facts_of(known, known, CHEST)
    assert perfect == {"stated": 6, "true": 6, "known": 6, "contradictions": 0}


def test_measures_of_the_same_and_of_other_words():
    known = [grammar.write(Facts(), CHEST, (n,)) for n in range(6)]
    known += [
        grammar.write(Facts("consolidation", "left", zone, "small", "two"), CHEST, (n,))
        for n, zone in enumerate([*CHEST.zones, *CHEST.zones])
    ]
    ones = np.ones((1, len(known)), np.float32)
    same = scores.Scores(known, known, CHEST)(ones)
    for name in ("bleu4", "rouge_l", "precision", "recall", "f1"):
        assert same[name] == pytest.approx(1), name
    assert same["contradictions"] == 0 and same["cider"] > 5
    none = scores.Scores(["xyz"] * len(known), known, CHEST)(ones)
    assert all(none[name] == 0 for name in ("bleu4", "rouge_l", "cider", "precision", "f1"))


def test_bleu_is_that_of_sacrebleu_for_the_whole_corpus():
    import sacrebleu

    rng = np.random.default_rng(0)
    words = ["a", "b", "c"]
    pairs = [[" ".join(rng.choice(words, rng.integers(5, 12))) for _ in range(20)] for _ in "12"]
    sums = np.sum([scores.ngrams(*pair) for pair in zip(*pairs, strict=True)], axis=0)
    wanted = sacrebleu.corpus_bleu(pairs[0], [pairs[1]], tokenize="none", smooth_method="none")
    assert 100 * scores.bleu(sums[None].astype(float))[0] == pytest.approx(wanted.score)


def test_intervals_and_differences_hold_the_values():
    known = [grammar.write(Facts("consolidation", s, "upper", "small", "two"), CHEST, (n,))
             for n, s in enumerate(["left", "right"] * 10)]  # fmt: skip
    labels, groups = np.zeros(20, int), np.arange(20)
    given = {"right": known, "other": scores.another_image(known, groups, 1)}
    found = scores.evaluate(given, known, CHEST, labels, groups)
    assert (found["low"] <= found["value"] + 1e-6).all()
    assert (found["value"] <= found["high"] + 1e-6).all()
    (gap,) = scores.differences(given, "other", known, CHEST, labels, groups).to_dict("records")
    assert gap["label"] == "right − other" and 0 < gap["low"] <= gap["difference"] <= gap["high"]
    assert "bleu4" not in scores.table(found) and list(scores.table(found).index) == [*given]
    assert set(scores.evaluate(given, known, None, labels, groups)["measure"]) == {
        "bleu4", "rouge_l", "cider"
    }  # fmt: skip


def test_another_image_is_never_of_the_same_patient():
    for count in (2, 3, 10):
        groups = np.arange(3 * count) // 3
        own = [str(group) for group in groups]
        other = scores.another_image(own, groups)
        assert set(other) <= set(own) and other == scores.another_image(own, groups)
        assert all(a != b for a, b in zip(own, other, strict=True))
    with pytest.raises(ValueError, match="two groups.*-p split"):
        scores.another_image(["a", "b"], np.zeros(2))


def test_captioners_are_compared_with_chance_and_with_each_other():
    known = [grammar.write(Facts("consolidation", s, "upper", "small", "two"), CHEST, (n,))
             for n, s in enumerate(["left", "right"] * 10)]  # fmt: skip
    groups, half = np.arange(20), known[:10] + known[9:19]
    controls = {captioning.comparison.ALONE: [""] * 20, captioning.comparison.CHANCE: [""] * 20}
    large = {"probe": half, "encoder_lora": known, "all": half}
    given = large, {"small": half, "small, taught": known}, controls
    found = captioning.gaps(*given, known, CHEST, np.zeros(20, int), groups)
    assert list(found["measure"].unique()) == ["f1", "rouge_l"]
    rows = found[found["measure"] == "f1"].set_index("label")["difference"]
    assert {"all − report of another image", "small − decoder alone"} <= set(rows.index)
    assert rows["encoder_lora − probe"] == rows["small, taught − small"] > rows["all − probe"]
    assert rows["encoder_lora − all"] == rows["encoder_lora − probe"]
    words = captioning.gaps(*given, known, None, np.zeros(20, int), groups)
    assert list(words["measure"].unique()) == ["rouge_l"]


def test_a_word_is_predicted_from_the_position_before_it(known):
    tokens, text = known[3], known[2].texts[0]
    steps = torch.arange(40.0)[:, None, None].expand(40, 2, 2)
    places = tokens.positions(text, (0, len(text.split()[0])))
    found = attention._at_word(steps, text, tokens, (0, len(text.split()[0])))
    assert found.unique().item() == np.mean([place - 1 for place in places])
    assert not attention._at_word(steps, text, tokens, None).any()


# --- losses --------------------------------------------------------------------------------------


def test_alpha_weighs_the_reports_and_the_rest_the_teacher(known):
    study, tokens = known[0], torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0]])
    torch.manual_seed(0)
    logits, answers = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    study = replace(study, alpha=0.9, temperature=2.0)
    hard = captioning.training.networks.token_loss(logits, tokens)
    soft = captioning.training.token_soft_loss(logits, answers, tokens, 2.0)
    found = captioning.training._pair_loss(logits, answers, tokens, study)
    assert found.item() == pytest.approx((0.9 * hard + 0.1 * soft).item(), rel=1e-6)
    assert captioning.training._pair_loss(logits, None, tokens, study) == hard


def test_losses_of_tokens_in_closed_form():
    tokens = torch.tensor([[1, 5, 2, 0]])
    flat = torch.zeros(1, 4, 8)
    assert float(networks.token_loss(flat, tokens)) == pytest.approx(math.log(8))
    sure = flat.clone()
    sure[0, 0, 5] = sure[0, 1, 2] = 50.0  # what stands on padding does not count
    sure[0, 2, 7] = 50.0
    assert float(networks.token_loss(sure, tokens)) == pytest.approx(0, abs=1e-6)
    soft = captioning.training.token_soft_loss
    assert float(soft(sure, sure, tokens)) == pytest.approx(0, abs=1e-6)
    # KL of a sure teacher from a flat student is log 8, times T²
    assert float(soft(flat, 40 * sure, tokens, 2.0)) == pytest.approx(4 * math.log(8), abs=1e-4)


# --- reports of images ---------------------------------------------------------------------------


def draw(root, each=10, size=32, text=None):
    """Chest phantoms as images of one's own, with masks beside them and a table with reports."""
    rows = []
    for label in CLASSES:
        for number in range(each):
            found = phantoms.draw("phantom_cxr", label, number, size=size)
            name = f"{label}_{number}.png"
            paths = {"": found.image * 255, "_mask": found.lesion * 255}
            for end, array in paths.items():
                path = root / f"{name[:-4]}{end}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.uint8(array)).save(path)
            facts = grammar.of_masks(label, found.lesion, found.organ, CHEST)
            report = grammar.write(facts, CHEST, (number,)) if text is None else text
            split = (["train"] * 5 + ["val", "test"])[number % 7]
            row = {"image": name, "label": label, "caption": report, "split": split}
            rows.append(row | {"mask": f"{name[:-4]}_mask.png" if found.lesion.any() else ""})
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("drawn") / "chest", each=14)


def of(root, **changes):
    """A study of images with reports, as small as it may be."""
    small = {"dataset": "folder", "data_root": str(root), "labels": "labels.csv",
             "split": "official", "teacher": "resnet10t", "student": "resnet10t",
             "image_size": 32, "teacher_epochs": 1, "student_epochs": 1, "batch_size": 16,
             "text_epochs": 3, "caption_epochs": 3, "vocabulary": "chest"}  # fmt: skip
    return Study.of(captioning.CaptionParameters)(**small | changes)


@pytest.fixture(scope="module")
def known(drawn, tmp_path_factory):
    """Dataset, reports, tokens, trained encoder and decoder of images of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(tmp_path_factory.mktemp("known")))
        study = of(drawn)
        mine = study.load_data()
        reports = captioning.load(study, mine)
        tokens = captioning.Tokens(reports.of(reports.rows(mine, "train")))
        encoder = training.train_teachers(study, mine)[0]
        writer = captioning.pretrain(study, mine, reports, tokens)
        yield study, mine, reports, tokens, encoder, writer


def test_a_captioner_has_one_encoder(known, drawn):
    study, mine = known[:2]
    assert captioning.encoder(study, mine).checksum == known[4].checksum
    with pytest.raises(BadParameter, match="one encoder, and the study has 2 teachers"):
        captioning.encoder(of(drawn, teacher="resnet10t+kdfmv5"), mine)


def test_a_table_states_reports(home, drawn):
    mine = of(drawn).load_data()
    stated = pd.read_csv(drawn / "labels.csv").set_index("image")["caption"]
    assert mine.table["report"].tolist() == [stated[path] for path in mine.table["path"]]
    found = captioning.load(of(drawn), mine)
    assert found.source == "the table of labels" and found.vocabulary is CHEST and not found.facts
    assert captioning.load(of(drawn, vocabulary=None), mine).vocabulary is None
    assert set(captioning.table(found, mine, captioning.Tokens(found.texts))["reports"]) == {6, 30}


def test_phantoms_write_their_facts_the_same_each_time(few_phantoms):
    study = Study.of(captioning.CaptionParameters)()
    mine = study.load_data()
    found = captioning.load(study, mine)
    assert found.source == "written from the masks (synthetic)" and not found.left_out
    assert found == captioning.load(study, mine)
    for text, facts, label in zip(found.texts, found.facts, mine.table["label"], strict=True):
        assert grammar.read(text, CHEST) == facts.stated(CHEST)
        assert facts.kind == CHEST.labels.get(label, "")
    with pytest.raises(captioning.NoReports, match="words of the chest: leave vocabulary out"):
        captioning.load(Study.of(captioning.CaptionParameters)(vocabulary="brain"), mine)
    again = captioning.reworded(found)
    assert sum(a != b for a, b in zip(again, found.texts, strict=True)) > len(again) / 2


def test_bad_reports_are_named(home, tmp_path, capsys):
    one = of(draw(tmp_path / "one", text="Normal chest."))
    with pytest.raises(captioning.NoReports, match="1 different wordings .'Normal chest.'"):
        captioning.load(one, one.load_data())
    table = pd.read_csv(tmp_path / "one" / "labels.csv")
    table.drop(columns="caption").to_csv(tmp_path / "one" / "labels.csv", index=False)
    with pytest.raises(captioning.NoReports, match="has no reports: state them in a table"):
        captioning.load(one, one.load_data())
    some_missing = of(draw(tmp_path / "some"))
    table = pd.read_csv(tmp_path / "some" / "labels.csv")
    table.loc[3, "caption"] = "  "
    table.to_csv(tmp_path / "some" / "labels.csv", index=False)
    found = captioning.load(some_missing, mine := some_missing.load_data())
    name = table["image"][3]
    assert found.left_out == (name,)
    assert f"1 of 30 images have no report and are left out: {name}" in capsys.readouterr().out
    assert not (mine.table["path"].iloc[found.rows(mine, "train")] == name).any()
    table.loc[table["split"] == "test", "caption"] = ""
    table.to_csv(tmp_path / "some" / "labels.csv", index=False)
    with pytest.raises(captioning.NoReports, match="no test image .* has a report"):
        captioning.load(some_missing, some_missing.load_data())


def test_parameters_are_refused_by_name(home):
    for wrong in ({"tune": "lara"}, {"vocabulary": "chests"}):
        with pytest.raises(files.UnknownName, match="Did you mean"):
            of(home, **wrong)
    with pytest.raises(BadParameter, match="probe, last, lora, encoder_lora, all"):
        of(home, tune="+")
    with pytest.raises(BadParameter, match="caption_epochs must"):
        of(home, caption_epochs=0)


def test_texts_of_a_file_and_of_the_archive(tmp_path):
    (tmp_path / "a.txt").write_text("Clear lungs.\n\nA  nodule.\n")
    assert texts.corpus(str(tmp_path / "a.txt")) == ("Clear lungs.", "A nodule.")
    (tmp_path / "1.xml").write_text(
        '<r><AbstractText Label="FINDINGS">Clear &amp; dry.</AbstractText>'
        '<AbstractText Label="IMPRESSION">Normal.</AbstractText><AbstractText Label="X"/></r>'
    )
    with tarfile.open(tmp_path / "r.tgz", "w:gz") as archive:
        archive.add(tmp_path / "1.xml", "ecgen/1.xml")
    assert texts.corpus(str(tmp_path / "r.tgz")) == ("Clear & dry. Normal.",)
    for wrong in ("none.txt", "empty.txt"):
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(captioning.NoReports, match="corpus"):
            texts.corpus(str(tmp_path / wrong))


def test_tokens_give_texts_back():
    tokens = captioning.Tokens(["A ground-glass opacity, left.", "Two dense opacities: right!"])
    text = "a ground-glass opacity; two opacities, left."
    assert tokens.decode(tokens.encode([text, "x"])) == [text, "x"]
    span = (text.index("opacities"), text.index("opacities") + 9)
    ids = tokens.encode([text])[0, tokens.positions(text, span)]
    assert tokens.decode(ids[None]) == ["opacities"]
    assert captioning.Tokens(["b", "a"]).checksum == captioning.Tokens(["a", "b"]).checksum


# --- captioners ----------------------------------------------------------------------------------


MOVED = {
    "probe": set(),
    "last": {"writer"},
    "lora": set(),
    "encoder_lora": {"encoder"},
    "all": {"encoder", "writer"},
}


def test_each_tune_trains_what_it_says(known):
    study, mine, reports, tokens, encoder, writer = known
    counts, trained = {}, {}
    for tune in captioning.TUNES:
        run = captioning.caption(study, mine, reports, tokens, encoder, writer, tune)
        model, trained[tune] = run.model, run
        before = _before(encoder, writer)
        now = {_plain(name): value for name, value in model.state_dict().items()}
        assert before.keys() <= now.keys()
        moved = {name for name, value in before.items() if not torch.equal(now[name], value)}
        assert {name.split(".")[0] for name in moved} == MOVED[tune]
        assert not any("running" in name for name in moved), "statistics of batch norms stay"
        counts[tune] = run.record["trained_parameters"]
        assert run.record["parameters"] >= counts[tune]
    assert counts["probe"] < counts["lora"] < counts["last"] < counts["all"]
    layer = trained["lora"].model.writer.size
    assert counts["lora"] - counts["probe"] == layer.layers * networks.RANK * 4 * layer.width
    own = networks.parameters_of([encoder.model])
    assert counts["encoder_lora"] - counts["lora"] == own < counts["all"] - counts["lora"]
    written, _ = captioning.write(trained["all"], mine, tokens, [0, 1, 2])
    alone, _ = captioning.write(trained["all"], mine, tokens, [1])
    assert written[1] == alone[0], "a report does not depend on its batch"


def _plain(name):
    """The name of a weight without what the low-rank updates add to it."""
    return name.replace("base_model.model.", "").replace("base_layer.", "")


def _before(encoder, writer):
    parts = {"encoder": encoder.model, "writer": writer.model}
    return {f"{part}.{n}": v for part, own in parts.items() for n, v in own.state_dict().items()}


@pytest.mark.parametrize("stage", ["writer", "taught"])
def test_a_resumed_run_equals_an_uninterrupted_one(known, monkeypatch, stage):
    """Killed after the first of three epochs, dropout included: the weights agree to the last
    bit."""
    study, mine, reports, tokens, encoder, writer = known
    given = study, mine, reports, tokens
    taught = captioning.caption(*given, encoder, writer, "probe") if stage == "taught" else None

    def train():
        if stage == "writer":
            return captioning.pretrain(study, mine, reports, tokens, "small")
        return captioning.caption(*given, encoder, writer, "all", taught)

    whole = train()
    weights = {name: value.clone() for name, value in whole.model.state_dict().items()}
    (whole.folder / "run.json").unlink()
    (whole.folder / "best.safetensors").unlink()
    keep = captioning.training.checkpoints.keep_parts
    with monkeypatch.context() as patch:
        patch.setattr(captioning.training.checkpoints, "keep_parts", _then_die(keep))
        with pytest.raises(KeyboardInterrupt):
            train()
    again = train()
    assert again.checksum == whole.checksum
    assert all(torch.equal(value, weights[n]) for n, value in again.model.state_dict().items())
    assert again.history["val_loss"].tolist() == whole.history["val_loss"].tolist()


def _then_die(keep):
    def keep_then_die(folder, parts, optimizer, state, *rest):
        keep(folder, parts, optimizer, state, *rest)
        raise KeyboardInterrupt

    return keep_then_die


def test_a_finished_run_is_loaded_and_every_choice_names_it(known, monkeypatch):
    study, mine, reports, tokens, encoder, writer = known
    first = captioning.caption(study, mine, reports, tokens, encoder, writer, "probe")
    monkeypatch.setattr(captioning.training.Fitting, "run", None)
    again = captioning.caption(study, mine, reports, tokens, encoder, writer, "probe")
    assert again.checksum == first.checksum
    other = replace(reports, texts=reports.texts[::-1])
    for changed in ({"batch_size": 8}, {"caption_epochs": 2}, {"seed": 1}):
        given = of(study.data_root, **changed), mine, reports, tokens, encoder, writer
        with pytest.raises(TypeError, match="NoneType"):
            captioning.caption(*given, "probe")
    with pytest.raises(TypeError, match="NoneType"):
        captioning.caption(study, mine, other, tokens, encoder, writer, "probe")


def test_attention_is_a_share_of_the_image_and_measured_against_the_mask(known):
    study, mine, reports, tokens, encoder, writer = known
    run = captioning.caption(study, mine, reports, tokens, encoder, writer, "probe")
    coded = tokens.encode(reports.texts[:3])
    maps = captioning.training.Maps(run.model.encoder, mine.pixels(32), True)(torch.arange(3))
    shared = attention.shares(run.model, maps, coded)
    assert shared.shape == (*coded.shape, *run.model.grid)
    assert torch.allclose(shared.sum((2, 3)), torch.ones(coded.shape), atol=1e-5)
    rows = reports.rows(mine, "test")
    seen, found, masks = captioning.looked_at(run, mine, reports, tokens, rows)
    assert set(found) == {*attention.ATTRIBUTES, attention.EVERY} and masks.any((1, 2)).all()
    assert {"Normal-like"}.isdisjoint(mine.table["label"].iloc[seen])
    groups = mine.table["group"].to_numpy()[seen]
    table = captioning.measured(found, masks, groups).set_index(["word", "measure"])["mean"]
    assert table["kind", "area"] == pytest.approx(masks.mean((1, 2)).mean())
    assert table["kind", "mass − area"] == pytest.approx(
        table["kind", "mass"] - table["kind", "area"]
    )
    assert captioning.measured({}, None, groups).empty
    assert captioning.words(reports, seen, "kind")[0]
    assert captioning.words(reports, seen, attention.EVERY)[0] == ""
    unread = replace(reports, vocabulary=None)
    assert captioning.looked_at(run, mine, unread, tokens, rows)[1] == {}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("['Chest CT shows  opacities. ']", "Chest CT shows opacities."),
        ("['The model's predictions']", "The model's predictions"),
        ('["One.", "Two."]', "One. Two."),
        ("['A sentence that was cut", "A sentence that was cut"),
        ("a [first] finding\nand 'another'", "a [first] finding and 'another'"),
        ("[1] a reference", "[1] a reference"),
    ],
)
def test_a_list_that_was_written_as_text_is_read_without_its_brackets(written, read):
    assert texts._plain(written) == read
