"""The pixel cache and the batches: built once, whole or not at all; every image augmented with
parameters of its own."""

import multiprocessing

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image

from kdnb import data, files
from kdnb.images import pixels


def test_the_cache_holds_every_image_in_order(folder):
    dataset = data.load("folder", folder)
    found = dataset.pixels(40)
    assert found.images.dtype == torch.uint8 and found.images.shape == (126, 1, 40, 40)
    for row in (0, 57, 125):
        expected = np.asarray(Image.open(folder / dataset.table["path"].iloc[row]))
        assert (found.images[row, 0].numpy() == expected).all()


def test_the_second_time_no_image_is_read(folder, monkeypatch):
    dataset = data.load("folder", folder)
    dataset.pixels(32)
    monkeypatch.setattr(
        pixels, "read_image", lambda *_: pytest.fail("read an image that is cached")
    )
    assert len(dataset.pixels(32, "test")) == 27


def test_a_crash_half_way_leaves_nothing(folder, home, monkeypatch):
    dataset, read = data.load("folder", folder), pixels.read_image
    calls = iter(range(60))

    def dies(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pixels, "read_image", dies)
        with pytest.raises(KeyboardInterrupt):
            dataset.pixels(32)
    assert not list((home / "cache" / "pixels").glob("*.npy")) and not list(
        (home / "cache" / "pixels").glob(".*.npy")
    )
    assert dataset.pixels(32).images.float().std() > 0


def _open(root):
    return int(data.load("folder", root).pixels(48).images.sum())


def test_two_processes_at_once_build_one_file(folder, home):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_open, [folder, folder])
    assert sums[0] == sums[1] > 0
    assert len(list((home / "cache" / "pixels").glob("*.npy"))) == 1


def test_a_changed_image_changes_the_file(folder, home):
    data.load("folder", folder).pixels(32)
    paint(folder / "train" / "dark" / "1.png", 31337, 10)
    data.load("folder", folder).pixels(32)
    assert len(list((home / "cache" / "pixels").glob("*.npy"))) == 2


def test_an_edited_mask_is_read_anew_and_the_images_are_not(folder, home):
    path = folder / "train" / "dark" / "lesion masks" / "1.png"
    path.parent.mkdir()

    def masks(white):
        Image.fromarray(np.full((40, 40), 255 * white, np.uint8)).save(path)
        dataset = data.load("folder", folder)
        dataset.pixels(32)
        return dataset.pixels(32, column="mask").images[
            dataset.table["path"].tolist().index("train/dark/1.png")
        ]

    assert (masks(1) == 255).all()
    assert (masks(0) == 0).all()
    stored = [file.name for file in (home / "cache" / "pixels").glob("*.npy")]
    assert (
        sum("-path-" in name for name in stored) == 1
        and sum("-mask-" in name for name in stored) == 2
    )


def test_the_key_of_an_images_cache_is_what_it_was(folder, home):
    table = data.load("folder", folder).table
    pixels.cache(folder, table, 32, "L", "mine")
    key = files.digest([table["path"].tolist(), table["sha256"].tolist(), "path"])
    assert (home / "cache" / "pixels" / f"mine-path-32-L-{key}.npy").exists()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "I;16", "I", "F", "CMYK"])
def test_every_mode_becomes_eight_bits(tmp_path, mode):
    ramp = np.tile(np.linspace(0, 1, 64), (64, 1))
    path = tmp_path / ("a.tif" if mode in ("F", "I", "CMYK") else "a.png")
    if mode == "I;16":
        image = Image.fromarray((ramp * 4000).astype(np.uint16))
    elif mode == "I":
        image = Image.fromarray((ramp * 70000).astype(np.int32))
    elif mode == "F":
        image = Image.fromarray((ramp * 3 - 1).astype(np.float32))
    else:
        image = Image.fromarray((ramp * 255).astype(np.uint8)).convert(mode)
    image.save(path)
    grey = pixels.read_image(path, 32, "L")
    assert grey.shape == (1, 32, 32) and grey.dtype == np.uint8
    assert grey[0, :, :4].mean() < 40 and grey[0, :, -4:].mean() > 215
    assert pixels.read_image(path, 32, "RGB").shape == (3, 32, 32)


def test_masks_stay_binary_and_rows_without_one_are_zero(folder):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    (folder / "train" / "dark" / "lesion masks").mkdir()
    Image.fromarray(mask).save(folder / "train" / "dark" / "lesion masks" / "1.png")
    dataset = data.load("folder", folder)
    masks = dataset.pixels(64, column="mask").images
    row = dataset.table.index[dataset.table["path"] == "train/dark/1.png"][0]
    assert set(masks[row].unique().tolist()) == {0, 255}
    assert masks.sum() == masks[row].sum() > 0


def test_an_epoch_meets_every_image_once_with_its_label(folder):
    dataset = data.load("folder", folder)
    train = dataset.pixels(32, "train")
    seen, labels = [], []
    for images, target, rows in train.batches(10, shuffle=True):
        assert images.dtype == torch.float32 and images.shape[1:] == (3, 32, 32)
        assert images.min() >= 0 and images.max() <= 1
        seen += rows.tolist()
        labels += target.tolist()
    assert sorted(seen) == sorted(train.rows.tolist()) and seen != sorted(seen)
    assert labels == dataset.labels[seen].tolist()
    orders = [
        [r for _, _, rows in train.batches(10, True, seed) for r in rows.tolist()]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_every_image_of_a_batch_is_augmented_its_own_way():
    images = torch.rand(1, 3, 48, 48).expand(16, -1, -1, -1).contiguous()
    views = pixels.Augment(hflip=True, vflip=True)(images)
    assert views.shape == images.shape and views.min() >= 0 and views.max() <= 1
    for i in range(16):
        for j in range(i):
            assert (views[i] - views[j]).abs().mean() > 0.01


def test_augmentation_follows_its_generator():
    images = torch.rand(4, 3, 32, 32)
    first, second, third = (
        pixels.Augment()(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_without_strength_augmentation_changes_nothing():
    images = torch.rand(4, 3, 33, 32)
    still = pixels.Augment(degrees=0, translate=0, scale=0, brightness=0, contrast=0)
    assert torch.allclose(still(images), images, atol=1e-5)


def test_ten_degrees_are_degrees():
    bar = torch.zeros(64, 1, 65, 65)
    bar[:, :, 30:35] = 1
    alone = {"translate": 0, "scale": 0, "brightness": 0, "contrast": 0}
    edge = pixels.Augment(degrees=10, **alone)(bar, torch.Generator().manual_seed(0))[:, 0, :, 62]
    middle = (edge * torch.arange(65.0)[:, None].T).sum(1) / edge.sum(1)
    # 30 px from the centre ten degrees lift the bar by 5.3 px; ten radians or 0.2 degrees would not
    assert 4.5 <= (middle - 32).abs().max() <= 5.5


def test_grey_images_expanded_to_three_channels_stay_cheap_and_equal():
    grey = torch.rand(5, 1, 32, 32)
    expanded = pixels.Augment()(grey.expand(-1, 3, -1, -1), torch.Generator().manual_seed(0))
    copied = pixels.Augment()(grey.repeat(1, 3, 1, 1), torch.Generator().manual_seed(0))
    assert torch.allclose(expanded, copied, atol=1e-6) and expanded.stride(1) == 0
