"""What is stored of a folder's photographs and masks, which of them are left out, and what is said about it."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError, folder_dataset, folder_splits, shrink
from forec_jax.data.source import Example


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def picture(number, height=24, width=32):
    """A smooth picture, so that a JPEG of it loses little, and its label 0-2."""
    label = np.random.default_rng(number).integers(0, 3, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    return np.repeat((label * 80 + 10 + number)[..., None], 3, -1).astype(np.uint8), label.astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """p0 to p3 with masks, u0 and u1 without; p0 is val."""
    base = tmp_path / "PHOTOS"
    for k in range(4):
        image, label = picture(k)
        save(base / "images" / f"p{k}.png", image)
        save(base / "masks" / f"p{k}.png", label)
    for k in range(2):
        save(base / "unlabelled" / f"u{k}.png", picture(10 + k)[0])
    (base / "classes.toml").write_text('names = ["background", "cat", "dog"]\n')
    (base / "val.txt").write_text("p0\n")
    return base


@pytest.fixture
def load(folder, tmp_path):
    return lambda **options: folder_dataset(folder, tmp_path / "prepared", **options)


def example(data, name):
    split = "val" if name == "p0" else "train"
    return data.source(split)[data.source(split).ids.index(name)]


ORIENTATION = 0x0112


def save_turned(folder, orientation, height, width, mask):
    """p0 with an orientation tag and a mask."""
    (folder / "images" / "p0.png").unlink()
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    save(folder / "images" / "p0.jpg", picture(0, height, width)[0], exif=tag, quality=95)
    save(folder / "masks" / "p0.png", mask)


def test_masks_drawn_on_the_unturned_photograph_are_turned_where_that_is_said(load, folder):
    stored = picture(0)[1]
    save_turned(folder, 6, 24, 32, stored)
    with pytest.raises(
        DataError, match=r'the mask is 32x24, as is .*orientation tag \(6\).*set data\.folder\.masks_follow="file"'
    ):
        load()
    found = example(load(masks_follow="file"), "p0")
    np.testing.assert_array_equal(found.label, np.rot90(stored, -1))
    np.testing.assert_allclose(found.image[..., 0].astype(int), np.rot90(stored, -1) * 80 + 10, atol=12)
    save(folder / "masks" / "p0.png", np.rot90(stored, -1))
    np.testing.assert_array_equal(example(load(), "p0").label, np.rot90(stored, -1))
    with pytest.raises(DataError, match=r'as viewers show it: .*set data\.folder\.masks_follow="display"'):
        load(masks_follow="file")


@pytest.mark.parametrize(("orientation", "side"), [(3, 32), (6, 24)])
def test_a_turn_that_the_size_does_not_tell_is_named(load, folder, caplog, orientation, side):
    save_turned(folder, orientation, 24, side, picture(0, 24, side)[1])
    np.testing.assert_array_equal(example(load(), "p0").label, picture(0, 24, side)[1])
    assert "masks/p0.png: the photograph has an orientation tag, and its size does not tell" in caplog.text
    caplog.clear()
    turned = np.rot90(picture(0, 24, side)[1], 2 if orientation == 3 else -1)
    np.testing.assert_array_equal(example(load(masks_follow="file"), "p0").label, turned)
    assert "orientation" not in caplog.text


def test_masks_follow_the_display_or_the_file(load):
    with pytest.raises(DataError, match=r"data\.folder\.masks_follow='up' must be 'display' or 'file'"):
        load(masks_follow="up")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_large_photographs_are_stored_at_the_size_that_is_read(load, folder, kind):
    """The same as shrinking at every reading, but for the few grey levels that a JPEG loses twice."""
    image, label = picture(1, 160, 320)
    (folder / "images" / "p1.png").unlink()
    save(folder / "images" / f"p1.{kind}", image)
    save(folder / "masks" / "p1.png", label)
    whole, small = example(load(), "p1"), example(load(longest_side=64), "p1")
    expected = shrink(whole, 64)
    np.testing.assert_array_equal(small.label, expected.label)
    difference = np.abs(small.image.astype(int) - expected.image)
    assert (difference.max() if kind == "png" else difference.mean()) <= (0 if kind == "png" else 4)


def test_small_photographs_are_stored_as_they_are(load, folder):
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    save(folder / "unlabelled" / "u0.jpg", noise, quality=60)
    (folder / "unlabelled" / "u0.png").unlink()
    data = load(longest_side=32)
    with Image.open(folder / "unlabelled" / "u0.jpg") as file:
        expected = np.asarray(file)
    np.testing.assert_array_equal(example_without_label(data, "u0").image, expected)


def example_without_label(data, name) -> Example:
    source = data.source("train").without_labels()
    return source[source.ids.index(name)]


def test_copies_of_images_for_the_score_are_not_trained_on(load, folder, caplog):
    whole = (folder / "images" / "p0.png").read_bytes()
    (folder / "unlabelled" / "again.png").write_bytes(whole)
    (folder / "images" / "p3.png").write_bytes(whole)
    (folder / "unlabelled" / "u0.png").write_bytes((folder / "images" / "p1.png").read_bytes())
    for _ in range(2):  # packed, and found packed
        caplog.clear()
        data = load()
        assert set(data.source("train").ids) == {"p1", "p2", "u0", "u1"}
        assert data.source("val").ids == ("p0",)
        assert "2 images are copies of images that are for the score" in caplog.text
        assert f"{folder}/images/p3.png is a copy of {folder}/images/p0.png, of val" in caplog.text


def test_bad_files_are_skipped_aloud_where_that_is_asked_for(load, folder, caplog):
    for name in ("images/p1.png", "masks/p2.png", "unlabelled/u1.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(DataError, match=r"images/p1\.png: cannot be decoded"):
        load()
    data = load(on_corrupt="skip")
    assert data.source("train").ids == ("p3", "u0")
    assert all(f"{name}: cannot be decoded" in caplog.text for name in ("p1.png", "p2.png", "u1.png"))
    (folder / "images" / "p0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no image of val with a mask is left; repair the files that are named above"):
        load(on_corrupt="skip")


def test_val_only_grows_when_masks_are_added(load, folder, caplog):
    (folder / "val.txt").unlink()
    with caplog.at_level(logging.INFO):
        before = set(folder_splits(folder, 0.5)["val"])
    for k in range(20, 60):
        image, label = picture(k)
        save(folder / "images" / f"p{k}.png", image)
        save(folder / "masks" / f"p{k}.png", label)
    after = folder_splits(folder, 0.5)["val"]
    assert before == set(after).intersection({f"p{k}" for k in range(4)})
    assert len(after) > len(before)
    assert load(val_fraction=0.5).source("val").ids == after


def test_a_stored_val_stays(load, folder, caplog):
    (folder / "val.txt").write_text("p1\n")
    load(val_groups="folder")
    assert "data.folder.val_groups='folder' has no effect beside val.txt" in caplog.text
    data = load(val_ids=("p2", "p3"))
    assert data.source("val").ids == ("p2", "p3")
    assert set(data.source("train").ids) == {"p0", "p1", "u0", "u1"}
    (folder / "masks" / "p3.png").unlink()
    with pytest.raises(DataError, match="p3 of the stored val are gone, or have no mask any more; restore them"):
        load(val_ids=("p2", "p3"))


def test_frames_of_a_scene_are_on_one_side(load, folder, caplog):
    """Of a scene in val, frames without a mask are on no side."""
    (folder / "val.txt").unlink()
    for k in range(24):
        image, label = picture(20 + k)
        save(folder / "images" / f"scene{k % 6}" / f"{k}.png", image)
        if k < 18:
            save(folder / "masks" / f"scene{k % 6}" / f"{k}.png", label)
    with caplog.at_level(logging.INFO):
        data = load(val_groups="folder", val_fraction=0.5)
    sides = [{name.rpartition("/")[0] for name in data.source(split).ids} for split in ("train", "val")]
    assert sides[0]
    assert sides[1]
    assert sides[0].isdisjoint(sides[1])
    assert "without masks are of val's groups and not trained on" in caplog.text
    again = load(val_groups="folder", val_fraction=0.5, val_ids=data.source("val").ids)  # as a resumed run has it
    assert [again.source(split).ids for split in ("train", "val")] == [
        data.source(split).ids for split in ("train", "val")
    ]


def test_what_is_stored_is_the_label_and_not_the_mask(load, folder):
    """A colour mask is read by colour once."""
    (folder / "classes.toml").write_text(
        'names = ["a", "b", "c"]\ncolours = ["#000000", "#010101", "red"]\nvoid = "blue"\n'
    )
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[0], pixels[1], pixels[2] = 1, (255, 0, 0), (0, 0, 255)
    for k in range(4):
        save(folder / "masks" / f"p{k}.png", pixels)
    source = load().source("val")
    with Image.open(io.BytesIO(source.source.records[0]["mask"])) as stored:
        assert (stored.mode, [stored.getpixel((0, y)) for y in range(4)]) == ("L", [1, 2, 255, 0])
