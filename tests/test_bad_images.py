"""Hostile and broken image files: each is used as it should be or named, none stops the index, none
is used silently wrong."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import number_of
from PIL import Image, ImageFile

from kdnb import data
from kdnb.images import read

SIDE = 24


def scene(seed: int = 0, side: int = SIDE) -> Image.Image:
    """A picture that differs in every corner, so that turning or mirroring it shows."""
    rng = np.random.default_rng(seed)
    grey = np.add.outer(np.linspace(0, 120, side), np.linspace(0, 90, side)) + rng.integers(
        0, 20, (side, side)
    )
    grey[: side // 3, : side // 3] = 240
    return Image.fromarray(grey.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size and holds no pixels of it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def turned(orientation: int) -> tuple[Image.Image, bytes]:
    """An upright scene, and the bytes of a JPEG that lies as an EXIF tag says."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright, exif = scene(orientation, 32), Image.Exif()
    exif[0x0112] = orientation
    return upright, encoded(upright.transpose(undo[orientation]), "JPEG", exif=exif, quality=95)


def good() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files that look odd and are fine: name → (bytes, grey values they must be read as)."""
    plain, found = scene(), {}
    grey = np.asarray(plain)
    for orientation in range(2, 9):
        upright, raw = turned(orientation)
        found[f"exif{orientation}.jpg"] = raw, np.asarray(upright)
    wide = Image.fromarray(grey.astype(np.uint16) * 200 + 1000)
    inside = grey[(grey > grey.min()) & (grey < grey.max())]
    low, high = np.percentile(inside, (1, 99))
    stretched = ((grey.astype(float) - low) * 255 / (high - low)).clip(0, 255)
    found["sixteen.png"] = encoded(wide, "PNG"), stretched
    found["sixteen.tif"] = encoded(wide, "TIFF"), stretched
    found["float.tif"] = encoded(Image.fromarray(grey.astype(np.float32) / 7), "TIFF"), stretched
    found["cmyk.jpg"] = encoded(plain.convert("RGB").convert("CMYK"), "JPEG", quality=95), grey
    found["cmyk.tif"] = encoded(plain.convert("RGB").convert("CMYK"), "TIFF"), grey
    found["palette.png"] = encoded(plain.convert("P"), "PNG"), grey
    found["palette.gif"] = encoded(plain.convert("P"), "GIF"), grey
    hole = np.zeros_like(grey)
    hole[:, SIDE // 2 :] = 255
    see_through = Image.merge("LA", (plain, Image.fromarray(hole)))
    found["alpha.png"] = encoded(see_through, "PNG"), np.where(hole, grey, 0)
    found["alpha.webp"] = (
        encoded(see_through.convert("RGBA"), "WEBP", lossless=True),
        np.where(hole, grey, 0),
    )
    frames = [scene(n).convert("P") for n in (1, 2, 3)]
    for kind, suffix in (("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp")):
        first = frames[0] if kind == "GIF" else frames[0].convert("RGB")
        rest = frames[1:] if kind == "GIF" else [f.convert("RGB") for f in frames[1:]]
        lossless = {"lossless": True} if kind == "WEBP" else {}
        found[f"animated.{suffix}"] = (
            encoded(first, kind, save_all=True, append_images=rest, **lossless),
            np.asarray(scene(1)),
        )
    found["one_bit.png"] = (
        encoded(plain.point(lambda v: 255 * (v > 100)).convert("1"), "PNG"),
        255 * (grey > 100),
    )
    found["dot.png"] = encoded(Image.new("L", (1, 1), 77), "PNG"), np.full((1, 1), 77)
    found["strip.png"] = encoded(Image.new("L", (20000, 2), 55), "PNG"), np.full((2, 20000), 55)
    found["jpeg_named.png"] = encoded(plain, "JPEG", quality=95), grey
    found["png_named.jpg"] = encoded(plain, "PNG"), grey
    found["UPPER.PNG"] = encoded(plain, "PNG"), grey
    found["Lunge größer 肺 \u202e.png"] = encoded(plain, "PNG"), grey
    found["spaces and 'quotes' \" & ; $x.png"] = encoded(plain, "PNG"), grey
    found["-p.png"] = encoded(plain, "PNG"), grey
    found["n" * 251 + ".png"] = encoded(plain, "PNG"), grey
    return found


def broken() -> dict[str, bytes]:
    """Files that must be named as problems."""
    found = {
        "empty.png": b"",
        "zeros.jpg": bytes(4000),
        "text.png": b"patient,label\n1,2\n" * 40,
        "page.jpg": b"<html><script>x</script>",
        "script.png": b"#!/bin/sh\nexit 1\n",
        "hollow.png": png_header(500, 500),
        "bomb.png": png_header(60000, 60000),
        "wide_bomb.png": png_header(100_000_000, 1),
    }
    picture = scene(7, 64)
    kinds = {
        "PNG": "png",
        "JPEG": "jpg",
        "BMP": "bmp",
        "TIFF": "tif",
        "WEBP": "webp",
        "GIF": "gif",
        "PPM": "pgm",
    }
    for kind, suffix in kinds.items():
        raw = encoded(picture.convert("P") if kind == "GIF" else picture, kind)
        for number, share in enumerate(np.linspace(0.02, 0.9, 24)):
            found[f"cut{number:02d}.{suffix}"] = raw[: max(1, int(share * len(raw)))]
    for number in range(20):
        noise = (
            np.random.default_rng(number_of("noise", number))
            .integers(0, 256, 500, dtype=np.uint8)
            .tobytes()
        )
        found[f"noise{number:02d}.png"] = b"\x89PNG\r\n\x1a\n" + noise if number % 2 else noise
    values = np.ones((16, 16), np.float32)
    for name, value in (("nan.tif", np.nan), ("inf.tif", np.inf)):
        values[3, 3] = value
        found[name] = encoded(Image.fromarray(values), "TIFF")
    return found


# names that no UTF-8 table holds, or that break one of its rows: name as the disk has it → name as
# the problems tell it
UNREADABLE = {
    b"gr\xf6\xdfer.png": r"gr\udcf6\udcdfer.png",
    b"line\nbreak.png": r"line\nbreak.png",
    b"back\rhome.png": r"back\rhome.png",
    b"both\r\n.png": r"both\r\n.png",
    b"escape\x1b[31m.png": r"escape\x1b[31m.png",
    b"delete\x7f.png": r"delete\x7f.png",
}


def refuse(patch: pytest.MonkeyPatch) -> None:
    """What a locked file or folder answers to one who is not root: root, who runs these tests, is
    never refused."""
    listing, facts, content = os.scandir, Path.stat, Path.read_bytes

    def denied(call, name):
        def ask(path, *arguments, **options):
            if name in Path(os.fsdecode(path)).parts:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return ask

    patch.setattr(os, "scandir", denied(listing, "unlisted"))
    patch.setattr(Path, "stat", denied(facts, "no_entry.png"))
    patch.setattr(Path, "read_bytes", denied(content, "secret.png"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    home = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(home / "cache"))
        root = home / "mine"
        for split, count in (("train", 4), ("test", 2)):
            for label in ("a", "b"):
                (root / split / label).mkdir(parents=True)
                for n in range(count):
                    scene(number_of(split, label, n)).save(root / split / label / f"plain{n}.png")
        folder = root / "train" / "a"
        for name, raw in broken().items():
            (folder / name).write_bytes(raw)
        for name, (raw, _) in good().items():
            (folder / name).write_bytes(raw)
        (folder / "dangling.png").symlink_to(folder / "nowhere.png")
        (folder / "circle").symlink_to(folder)
        (folder / "myself.png").symlink_to("myself.png")
        (folder / "ping.png").symlink_to("pong.png")
        (folder / "pong.png").symlink_to("ping.png")
        (folder / "a_folder.png").mkdir()
        os.mkfifo(folder / "pipe.png")
        (folder / "notes.txt").write_text("not an image")
        for name in UNREADABLE:
            scene(number_of(name)).save(folder / os.fsdecode(name), "PNG")
        for name in ("unlisted/1.png", "no_entry.png", "secret.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            scene(number_of(name)).save(folder / name)
        latin = root / "train" / os.fsdecode(b"gr\xfcn")
        latin.mkdir()
        scene(number_of("latin")).save(latin / "inside.png")
        with pytest.MonkeyPatch.context() as locked:
            refuse(locked)
            loaded = data.load("folder", root)
        yield loaded


def test_the_corpus_is_large():
    assert len(broken()) + len(good()) >= 200


def test_every_broken_file_is_named_and_none_is_used(corpus):
    used = {path.rsplit("/", 1)[-1] for path in corpus.table["path"]}
    named = {path.rsplit("/", 1)[-1] for path in corpus.index.problems["path"]}
    for name, raw in broken().items():
        if name in used:
            # a cut that took only trailing bytes no pixel needs: then every pixel must be there
            image = np.asarray(
                read.decode(corpus.index.root / "train" / "a" / name).convert("L"), float
            )
            whole = np.asarray(scene(7, 64), float)
            assert image.shape == whole.shape and np.abs(image - whole).mean() < 6, (
                f"{name} ({len(raw)} bytes) is used wrong"
            )
        else:
            assert name in named, f"{name} vanished"
    assert {
        "dangling.png",
        "pipe.png",
        "notes.txt",
        "empty.png",
        "bomb.png",
        "wide_bomb.png",
        "nan.tif",
    } <= named - used
    reasons = corpus.index.problems.set_index(
        corpus.index.problems["path"].str.rsplit("/", n=1).str[-1]
    )["problem"]
    assert (
        reasons["bomb.png"] == "too large"
        and reasons["nan.tif"] == "not finite"
        and reasons["empty.png"] == "empty file"
    )
    assert len(corpus.index.problem_counts()) >= 5


@pytest.mark.parametrize("name", good())
def test_odd_files_are_read_as_they_look(corpus, name):
    rows = corpus.table[corpus.table["path"].str.endswith("/" + name)]
    wanted = good()[name][1]
    kept = corpus.index.problems
    if rows.empty:  # byte-identical twins are settled into one row, by name
        assert kept["path"].str.endswith("/" + name).any(), f"{name} vanished"
    found = np.asarray(read.decode(corpus.index.root / "train" / "a" / name).convert("L"), float)
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 6
    if len(rows):
        assert (rows["width"].iloc[0], rows["height"].iloc[0]) == wanted.shape[::-1]


@pytest.mark.parametrize("name", UNREADABLE.values())
def test_a_name_that_no_table_holds_is_told_escaped(corpus, name):
    rows = corpus.index.problems.query("path == @wanted", local_dict={"wanted": "train/a/" + name})
    assert rows["problem"].tolist() == ["unreadable name"] and "rename" in rows["detail"].iloc[0]


def test_names_that_no_table_holds_are_not_used_and_spoil_no_other_row(corpus):
    rows = corpus.index.problems
    assert rows.loc[rows["path"].str.endswith("inside.png"), "path"].tolist() == [
        r"train/gr\udcfcn/inside.png"
    ]
    assert (rows["problem"] == "unreadable name").sum() == len(UNREADABLE) + 1
    assert corpus.classes == ("a", "b"), "a folder without a readable name is no class"
    rows.to_csv(io.BytesIO(), index=False)  # surrogates raise here
    for table in (rows, corpus.table):
        assert not table["path"].str.contains(r"[\x00-\x1f\x7f\ud800-\udfff]").any()
    assert corpus.table["sha256"].str.fullmatch("[0-9a-f]{64}").all(), "a row was split"


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("unlisted", "no permission", "chmod"),
        ("no_entry.png", "no permission", "chmod"),
        ("secret.png", "no permission", "chmod"),
        ("myself.png", "missing file", "back to itself"),
        ("ping.png", "missing file", "back to itself"),
        ("pong.png", "missing file", "back to itself"),
        ("dangling.png", "missing file", "nowhere"),
        ("pipe.png", "not a file", "pipe"),
    ],
)
def test_what_the_system_keeps_back_is_named_with_the_way_out(corpus, name, problem, hint):
    rows = corpus.index.problems.query("path == @wanted", local_dict={"wanted": "train/a/" + name})
    assert rows["problem"].tolist() == [problem] and hint in rows["detail"].iloc[0]
    assert not corpus.table["path"].str.startswith("train/a/" + name).any()


def test_a_root_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "unlisted").mkdir()
    refuse(monkeypatch)
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="no permission"):
        data.load("folder", tmp_path / "unlisted")


def test_a_file_is_used_once_it_may_be_read(folder, monkeypatch):
    """A change of rights changes neither size nor time of a file: the stored index must not outlive
    it."""
    allowed, locked = os.access, str(folder / "train" / "dark" / "1.png")
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "access",
            lambda path, mode, **options: str(path) != locked and allowed(path, mode, **options),
        )
        before = data.load("folder", folder).index
    assert (
        before.problems["problem"].tolist() == ["no permission"] and len(before.table) == 3 * 42 - 1
    )
    after = data.load("folder", folder).index
    assert after.problems.empty and len(after.table) == 3 * 42


def with_masks(folder, raw: bytes, name: str = "1.png") -> data.Dataset:
    """Three dark images of the tree have lesion masks: two good ones, and the given bytes for
    ``1.png``."""
    masks = folder / "train" / "dark" / "lesion masks"
    masks.mkdir(exist_ok=True)
    for good_name in ("2.png", "3.png"):
        scene(number_of(good_name), 40).save(masks / good_name)
    (masks / name).write_bytes(raw)
    return data.load("folder", folder)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (encoded(scene(1, 64), "PNG")[:-300], "truncated or damaged"),
        (png_header(60000, 60000), "too large"),
        (png_header(10000, 9000), "too large"),
        (b"", "empty file"),
        (b"x,y\n1,2\n", "not an image"),
    ],
    ids=["truncated", "bomb", "large", "empty", "text"],
)
def test_a_bad_mask_is_named_and_its_image_used_without_it(folder, raw, problem):
    loaded = with_masks(folder, raw)
    rows = loaded.index.problems
    assert rows["problem"].tolist() == [f"bad mask: {problem}"] and rows["path"].tolist() == [
        "train/dark/lesion masks/1.png"
    ]
    assert len(loaded.table) == 3 * 42
    masks = loaded.table.set_index("path")["mask"]
    assert (
        masks["train/dark/1.png"] == ""
        and masks["train/dark/2.png"] == "train/dark/lesion masks/2.png"
    )
    filled = loaded.pixels(32, column="mask").images.amax((1, 2, 3)).numpy() > 0
    assert loaded.table["path"][filled].tolist() == ["train/dark/2.png", "train/dark/3.png"]


def test_a_mask_that_is_mended_is_used(folder):
    assert len(with_masks(folder, b"").index.problems) == 1
    mended = with_masks(folder, encoded(scene(1, 40), "PNG"))
    assert mended.index.problems.empty and mended.table["mask"].ne("").sum() == 3


def test_all_that_is_used_fits_the_cache(corpus):
    array = corpus.pixels(32)
    assert len(array) == len(corpus.table) and array.images.float().std() > 1


def test_a_damaged_file_is_named_also_where_a_library_lets_pillow_fill_it(tmp_path, monkeypatch):
    """WeasyPrint sets the flag for the whole process when it is imported."""
    whole = encoded(scene(), "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert read.inspect(tmp_path / "cut.png")[0] == "truncated or damaged"
