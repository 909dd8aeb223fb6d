"""The detector against synthetic duplicates, and the parts it is made of."""

import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import number_of, paint
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from kdnb import data
from kdnb.images import index, phantoms
from kdnb.images.catalogue import DATASETS
from kdnb.leakage import detector, fingerprints, landmarks, registration, synthetic_duplicates

# of each phantom a fifth has copies, in all ways; the rest stand alone and must stay so
EACH, ALONE = 6, 34


def scored(name, root):
    """Recall of planted copies and precision of the links found, with the way each missed copy was
    made."""
    labels = list(DATASETS[name].classes)
    synthetic_duplicates.plant(name, labels, EACH, root=root)
    for count, label in enumerate(labels):
        for number in range(ALONE):
            image = phantoms.draw(name, label, 20_000 + count * ALONE + number).image
            Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255)).save(
                root / label / f"alone{number}-original.png"
            )
    found = index.build(DATASETS["folder"], root)
    seen = detector.find(found, name)
    origin, group = synthetic_duplicates.origins(found.table), seen.groups(found.table)
    original = found.table["path"].str.endswith("-original.png")
    home = pd.Series(group[original], index=origin[original])
    copies = found.table[~original]
    recalled = home.loc[origin[copies.index]].to_numpy() == group[copies.index]
    where = dict(zip(found.table["path"], origin, strict=True))
    right = seen.links["first"].map(where) == seen.links["second"].map(where)
    return recalled.mean(), right.mean(), copies["path"][~recalled].tolist(), seen


@pytest.mark.parametrize("name", ["phantom_cxr", "phantom_histology"])
def test_planted_copies_are_found_and_nothing_else(home, name):
    recall, precision, missed, seen = scored(name, home / "data" / "planted")
    assert len(seen.links) >= EACH * len(synthetic_duplicates.WAYS)
    assert recall >= 0.98, missed
    assert precision >= 0.98, seen.links


def test_the_search_is_done_once(home, monkeypatch):
    for seed in range(12):
        paint(home / "flat" / "ab"[seed % 2] / f"{seed}.png", seed)
    found = index.build(DATASETS["folder"], home / "flat")
    first = detector.find(found, "flat")
    monkeypatch.setattr(detector, "detect", lambda *arguments: pytest.fail("looked again"))
    assert detector.find(found, "flat").facts == first.facts and first.links.empty
    assert len(set(first.groups(found.table))) == 12


def test_blank_and_single_images_are_no_trouble(home):
    for number in range(3):
        Image.new("L", (40, 40), 80 * number).save(
            paint(home / "flat" / "a" / f"{number}.png", number)
        )
    Image.new("L", (40, 40), 0).save(home / "flat" / "a" / "again.bmp")
    paint(home / "flat" / "b" / "other.png", 4)
    found = index.build(DATASETS["folder"], home / "flat")
    links, facts = detector.detect(found.root, found.table)
    assert links[["kind", "correlation"]].to_numpy().tolist() == [["same pixels", 1.0]]
    links, _ = detector.detect(found.root, found.table.head(1))
    assert links.empty and list(links) == detector.COLUMNS


def test_patients_and_copies_of_copies_form_one_group():
    table = pd.DataFrame(
        {
            "path": list("abcdef"),
            "patient": ["p", "", "p", "", "", ""],
            "sha256": list("112345"),
            "label": "x",
        }
    )
    links = pd.DataFrame({"first": ["c", "gone"], "second": ["d", "a"]})
    group = detector.Leakage(links, {}).groups(table)
    assert group[0] == group[1] == group[2] == group[3] and len(set(group)) == 3


def test_conflicts_name_both_labels(home):
    for label in ("ill", "well"):
        for number in range(4):
            paint(home / "flat" / label / f"{number}.png", number_of(label, number))
    image = Image.open(home / "flat" / "ill" / "1.png")
    image.save(home / "flat" / "well" / "other.bmp")  # other bytes, same pixels, other label
    image.save(
        home / "flat" / "ill" / "again.tif"
    )  # a chain: the first and the last of it are no neighbours
    loaded = data.load("folder", home / "flat", "group")
    both = {"ill/1.png", "ill/again.tif", "well/other.bmp"}
    assert not both & set(loaded.table["path"]), "neither learnt from nor tested on, by rule"
    listed = loaded.index.problems.query("problem == 'label conflict'")
    assert set(listed["path"]) == both and "(well); all left out" in " ".join(listed["detail"])


def test_hashes_are_those_of_the_library():
    """All eight orientations, bit for bit; only exact ties at the median may fall either way."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (20, 32, 32), dtype=np.uint8)
    ours = fingerprints.hash_all(small)
    for image, views in zip(small, ours, strict=True):
        turned = [
            view
            for base in (image, image.T)
            for view in (base, base[:, ::-1], base[::-1], base[::-1, ::-1])
        ]
        for bits, view in zip(views, turned, strict=True):
            library = np.packbits(
                imagehash.phash(Image.fromarray(np.ascontiguousarray(view))).hash.ravel()
            )
            assert (bits == library).all()


def test_close_hashes_are_all_that_counting_bits_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    bits[30:, 0] = bits[:30, 3] ^ np.uint8(1)  # eight bits apart: too far
    bits[40:, 0, 1:] = bits[10:30, 3, 1:]  # one bit apart in the fourth orientation
    apart = np.bitwise_count(bits[:, None] ^ bits[None, :, :1]).sum(-1).min(2)
    expected = {
        tuple(sorted(pair))
        for pair in np.argwhere(apart < detector.HASH_BITS).tolist()
        if pair[0] != pair[1]
    }
    steps = detector._close_hashes(bits)
    assert {tuple(pair) for step in steps for pair in step.tolist()} == expected and len(
        expected
    ) == 20


@pytest.mark.parametrize(
    ("copies", "looked_at"), [(False, slice(60, 121)), (True, slice(400, 436))]
)
def test_where_all_images_are_alike_only_the_nearest_are_compared(monkeypatch, copies, looked_at):
    """30 images of one hash make 435 pairs: all are looked at only if the first of them were
    copies."""
    thumbs = np.zeros((30, fingerprints.THUMB, fingerprints.THUMB), np.uint8)
    known = fingerprints.Fingerprints(["x"] * 30, thumbs, thumbs[:, :32, :32], None)
    steps = detector._close_hashes(np.zeros((30, 8, 8), np.uint8))
    seen = []

    def compare(thumbs, pairs, limits):
        seen.extend(pairs.tolist())
        found = (
            pairs[:1] if copies else pairs[:0]
        )  # one a step: it joins two images, the other pairs stay open
        return {
            "first": found[:, 0],
            "second": found[:, 1],
            "correlation": np.ones(len(found)),
            "turn": np.zeros(len(found)),
            "zoom": np.ones(len(found)),
            "mirrored": np.zeros(len(found), bool),
        }

    monkeypatch.setattr(detector, "_copies", compare)
    count, links = detector.confirm(
        known, np.zeros((30, 8, 8), np.uint8), [steps], {"limit": 0.9, "doubt": 0.5}, "alike"
    )
    assert count == len(seen) == len({tuple(pair) for pair in seen}) and len(links) == (
        len(steps) if copies else 0
    )
    assert looked_at.start <= count < looked_at.stop


@pytest.mark.parametrize(
    ("turn", "zoom", "mirrored"),
    [(0, 1.0, False), (33, 1.0, False), (200, 1.2, True), (120, 0.85, False)],
)
def test_registration_recovers_what_was_done(turn, zoom, mirrored):
    one = Image.fromarray(
        np.uint8(phantoms.draw("phantom_cxr", "COVID-like", 7).image * 255)
    ).resize((fingerprints.THUMB,) * 2)
    half, reach = fingerprints.THUMB / 2, fingerprints.THUMB / 2 / zoom
    other = one.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if mirrored else one
    other = other.rotate(turn, Image.Resampling.BICUBIC)
    box = (half - reach, half - reach, half + reach, half + reach)
    other = other.transform(other.size, Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)
    thumbs = np.stack([np.asarray(one), np.asarray(other)])
    found = registration.register(thumbs, np.array([[0, 1]])).iloc[0]
    assert found["mirrored"] == mirrored and found["zoom"] == pytest.approx(
        1 / zoom, rel=0.08
    )  # one step of the log-polar radius
    assert abs((found["turn"] - (turn if not mirrored else -turn) + 180) % 360 - 180) < 2
    assert found["correlation"] > (0.9 if zoom == 1 else 0.6)


def test_a_stretched_copy_needs_the_second_look():
    image = phantoms.draw("phantom_histology", "benign", 3).image.mean(-1)
    one = Image.fromarray(np.uint8(image * 255)).resize((fingerprints.THUMB,) * 2)
    wide = one.resize((round(1.3 * fingerprints.THUMB), fingerprints.THUMB))
    edge = (wide.width - fingerprints.THUMB) // 2
    thumbs = np.stack(
        [
            np.asarray(one),
            np.asarray(wide.crop((edge, 0, edge + fingerprints.THUMB, fingerprints.THUMB))),
        ]
    )
    first = registration.register(thumbs, np.array([[0, 1]]))
    second = registration.refine(thumbs, first, 0.7)
    assert first["correlation"].item() < 0.8 < 0.9 < second["correlation"].item()


def test_correlation_of_nothing_is_zero():
    blank, mask = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    assert registration.correlation(blank, torch.rand(1, 8, 8), mask).item() == 0


def tissue(seed, side=320):
    """A texture of blobs of many sizes, uint8 ``(side, side)``."""
    noise = np.random.default_rng(seed).standard_normal((side, side))
    sum_ = sum(gaussian_filter(noise, sigma) * sigma for sigma in (1.5, 3, 6))
    return Image.fromarray(np.uint8(np.clip(128 + 70 * sum_, 0, 255)))


def photograph(slide, left, top, width):
    return slide.crop((left, top, left + width, top + width)).resize(
        (136, 136), Image.Resampling.BICUBIC
    )


def copies(photo, count):
    return [
        photo.rotate(29 * number, Image.Resampling.BICUBIC).crop((20, 20, 116, 116))
        for number in range(count)
    ]


def test_overlapping_photographs_of_an_augmented_set_are_one_group(home):
    slides = [tissue(seed) for seed in range(4)]
    first, second = (
        photograph(slides[0], 0, 0, 136),
        ImageOps.mirror(photograph(slides[0], 30, 24, 165)),
    )
    photos = [first, second, *(photograph(slide, 40, 40, 136) for slide in slides[1:])]
    for number, photo in enumerate(photos):
        for copy, image in enumerate(copies(photo, 14)):
            image.save(paint(home / "set" / "ab"[number % 2] / f"{number}-{copy:02}.png", 0))
    found = index.build(DATASETS["folder"], home / "set")
    seen = detector.find(found, "set")
    photo = found.table["path"].str.extract(r"/(\d)-")[0].astype(int)
    group = pd.Series(seen.groups(found.table))
    assert group.groupby(photo).nunique().eq(1).all()
    homes = group.groupby(photo).first()
    assert homes[0] == homes[1] and homes.nunique() == len(photos) - 1
    places = seen.links[seen.links["kind"] == "same place"]
    assert len(places) == 1 and places["correlation"].item() > 0.5


def test_patients_of_an_augmented_set_stay_apart(home):
    """Ribs and lungs agree between any two chests: landmarks alone once joined half of these."""
    root = synthetic_duplicates.plant(
        "phantom_cxr", list(DATASETS["phantom_cxr"].classes), 20, root=home / "data" / "planted"
    )
    found = index.build(DATASETS["folder"], root)
    groups = detector.find(found, "chests").groups(found.table)
    score = synthetic_duplicates.score(
        synthetic_duplicates.origins(found.table), groups, found.table["label"]
    )
    assert score["precision"] >= 0.99 and score["recall"] >= 0.98


def test_landmarks_of_blank_images_are_no_trouble():
    blank = np.zeros((4, 96, 96), np.uint8)
    assert landmarks.same_place(blank, np.arange(4)).empty
    mixed = np.concatenate([blank, np.asarray(tissue(0, 96))[None]])
    assert landmarks.same_place(mixed, np.arange(5)).empty


def test_published_origins_score_the_groups(tmp_path):
    paths = ["set/a/1.png", "set/a/2.png", "set/a/3.png", "set/b/1.png", "set/b/2.png"]
    table = pd.DataFrame({"path": paths, "label": list("aaabb")})
    assert synthetic_duplicates.published(tmp_path, table) is None
    (tmp_path / "groups.csv").write_text(
        "class,file,group\na,1.png,7\na,2.png,7\nb,1.png,7\nb,9.png,7\n"
    )
    origin = synthetic_duplicates.published(tmp_path, table)
    assert origin[0] == origin[1] and len(set(origin)) == 4, (
        "one group a class and number; who is not named stands alone"
    )
    perfect = synthetic_duplicates.score(origin, np.array([5, 5, 1, 2, 3]), table["label"])
    assert perfect["recall"] == perfect["precision"] == perfect["adjusted_rand"] == 1
    joined = synthetic_duplicates.score(origin, np.array([5, 5, 5, 2, 2]), table["label"])
    assert joined["recall"] == 1 and joined["precision"] == 0.25 and joined["adjusted_rand"] < 0.5
    assert set(joined["adjusted_rand_by_class"]) == {"a", "b"}
    assert synthetic_duplicates.score(origin, np.arange(5), table["label"])["recall"] == 0
