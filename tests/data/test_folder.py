import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from forec_jax import cli
from forec_jax.config import apply_variant, defaults
from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError, folder_dataset, one_against_rest, resolve_split
from forec_jax.data.decode import decode_image
from forec_jax.experiment import build, sources
from forec_jax.options import OptionError

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
CLASSES = 'names = ["background", "cat", "dog"]\n'
COLOURED = CLASSES + "colours = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]\nvoid = [255, 255, 255]\n"


def label_of(number, height=40, width=50):
    return np.random.default_rng(number).integers(0, 3, (height, width)).astype(np.uint8)


def save(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path):
    """Twelve images: five with colour masks, three without, four in unlabelled/."""
    base = tmp_path / "PHOTOS"
    for k in range(8):
        save(base / "images" / f"p{k}.jpg", np.full((40, 50, 3), 20 * k, np.uint8))
    for k in range(5):
        save(base / "masks" / f"p{k}.png", COLOURS[label_of(k)])
    for k in range(4):
        save(base / "unlabelled" / f"u{k}.webp", np.full((30, 30 + k, 3), 90, np.uint8))
    (base / "classes.toml").write_text(COLOURED)
    return base


@pytest.fixture
def load(photos, tmp_path):
    return lambda: folder_dataset(photos, tmp_path / "prepared")


def test_colour_masks_become_labels(load, photos):
    pixels = COLOURS[label_of(1)]
    pixels[3, 4] = 255
    save(photos / "masks" / "p1.png", pixels)
    data = load()
    masks = {source[i].id: source[i].label for source in map(data.source, ("val",)) for i in range(len(source))}
    train = data.source("train")
    masks |= {name: train[i].label for i, name in enumerate(train.ids) if name not in data.maskless}
    expected = label_of(1)
    expected[3, 4] = 255
    np.testing.assert_array_equal(masks["p1"], expected)
    for k in (0, 2, 3, 4):
        np.testing.assert_array_equal(masks[f"p{k}"], label_of(k))
    assert (data.classes, data.background_classes) == (("background", "cat", "dog"), (0,))
    assert data.palette == ((0, 0, 0), (255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("colours", [True, False])
def test_pixels_that_nobody_looked_at_are_for_the_teacher(load, photos, tmp_path, colours):
    """Scribbles: p1's first row is labelled, its second void, nobody looked at the others."""
    codes = np.full((40, 50), 7, np.uint8)
    codes[0], codes[1] = label_of(1)[0], 9
    if colours:
        palette = np.zeros((10, 3), np.uint8)
        palette[:3], palette[9], palette[7] = COLOURS, (255, 255, 255), (128, 128, 128)
        save(photos / "masks" / "p1.png", palette[codes])
        (photos / "classes.toml").write_text(COLOURED + "unlabelled = [128, 128, 128]\n")
    else:
        for k in range(5):
            save(photos / "masks" / f"p{k}.png", label_of(k))
        save(photos / "masks" / "p1.png", codes)
        (photos / "classes.toml").write_text(CLASSES + "void = 9\nunlabelled = 7\n")
    (photos / "val.txt").write_text("p0\n")
    data = load()
    train = sources.with_partial_labels(data.source("train"), "masks")
    label = train[train.ids.index("p1")].label
    np.testing.assert_array_equal(label[0], label_of(1)[0])
    assert (label[1] == IGNORE).all()
    assert (label[2:] == UNLABELLED).all()
    smaller = sources.with_partial_labels(data.source("train"), "1px")[train.ids.index("p1")].label
    assert (smaller < UNLABELLED).sum() == len(np.unique(label_of(1)[0]))  # a pixel of each class that it shows
    cats = one_against_rest(data, "cat").source("train")[train.ids.index("p1")].label
    np.testing.assert_array_equal(cats[0], label_of(1)[0] == 1)
    np.testing.assert_array_equal(cats[1:], label[1:])
    c = apply_variant(defaults(), "mean_teacher")
    c.data.partial = "masks"
    assert build.build_method(c, data.labels).partial_labels
    save(photos / "masks" / "p1.png", np.zeros((39, 50, 3), np.uint8) if colours else np.zeros((39, 50), np.uint8))
    with pytest.raises(DataError, match=r"p1\.png: the mask is 50x39, its image 50x40 pixels"):
        load()


@pytest.mark.parametrize("listed", [True, False])
def test_further_evaluation_lists_are_splits_and_never_trained_on(load, photos, listed):
    (photos / "val_night.txt").write_text("p1\n")
    if listed:
        (photos / "val.txt").write_text("p1\np2\n")
    data = load()
    assert data.source("val_night").ids == ("p1",)
    assert ("p1" in data.source("val").ids) == listed
    assert set(data.source("train").ids).isdisjoint({"p1", *data.source("val").ids})


def test_palette_and_one_bit_masks_are_read_by_colour_too(load, photos):
    """A palette's order is the drawing program's; its colours are the user's."""
    turned = Image.fromarray(2 - label_of(0))
    turned.putpalette(COLOURS[::-1].ravel().tolist())
    turned.save(photos / "masks" / "p0.png")
    (photos / "val.txt").write_text("p0\n")
    np.testing.assert_array_equal(load().source("val")[0].label, label_of(0))


def test_index_masks(load, photos):
    for k in range(5):
        save(photos / "masks" / f"p{k}.png", label_of(k))
    (photos / "classes.toml").write_text(CLASSES)
    (photos / "val.txt").write_text("p3\n")
    np.testing.assert_array_equal(load().source("val")[0].label, label_of(3))
    save(photos / "masks" / "p3.png", np.where(label_of(3) == 2, 9, label_of(3)).astype(np.uint8))
    with pytest.raises(DataError, match=r"p3\.png: the mask holds \[9\]; allowed are 0 to 2, and no void"):
        load()
    (photos / "classes.toml").write_text(CLASSES + "void = 9\n")
    assert (load().source("val")[0].label == np.where(label_of(3) == 2, 255, label_of(3))).all()


def test_images_without_masks_are_the_unlabelled_rest(load, caplog):
    with caplog.at_level(logging.INFO):
        data = load()
    (held_out,) = data.source("val").ids
    assert f"1 of the 5 images with masks are for evaluation and never trained on: {held_out}" in caplog.text
    assert data.maskless == {"p5", "p6", "p7", "u0", "u1", "u2", "u3"}
    pool = data.source("train").ids
    assert sorted([*pool, held_out]) == [f"p{k}" for k in range(8)] + [f"u{k}" for k in range(4)]

    def parts(labelled):
        return resolve_split(
            pool_ids=pool, validation_ids=data.source("val").ids, maskless=data.maskless, labelled=str(labelled)
        )

    split = parts("all")
    assert set(split.unlabelled) == data.maskless
    assert sorted([*split.labelled, held_out]) == [f"p{k}" for k in range(5)]
    assert set(parts("3:1").labelled) < set(split.labelled)
    with pytest.raises(DataError, match="pool of 4 images with masks"):
        parts("5:1")


def test_a_list_with_an_image_without_a_mask(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("a\nb\n")
    with pytest.raises(DataError, match=r"list\.txt: 1 id \(b\) is of the labelled part without a mask"):
        resolve_split(pool_ids=("a", "b"), maskless={"b"}, labelled=str(file))


def test_val_does_not_depend_on_images_without_masks(load, photos):
    before = load().source("val").ids
    save(photos / "unlabelled" / "another.png", np.zeros((9, 9, 3), np.uint8))
    assert load().source("val").ids == before


def test_lists_of_ones_own(load, photos, caplog):
    (photos / "val.txt").write_text("p1.jpg\nimages/p2.jpg masks/p2.png\n")
    data = load()
    assert list(data.source("val").ids) == ["p1", "p2"]
    assert len(data.source("train")) == 10
    (photos / "train.txt").write_text("p0\np3\np7\n")
    assert set(load().source("train").ids) == {"p0", "p3", "p7", "u0", "u1", "u2", "u3"}
    assert "3 images are on neither list and not used" in caplog.text


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "p0"}, "train.txt needs a val.txt"),
        ({"train": "p0\np1", "val": "p1"}, r"train\.txt: p1 are in a val\*\.txt too"),
        ({"val": "p6"}, r"val\.txt: p6 have no mask"),
        ({"val": "nobody"}, r"val\.txt: nobody are not in images/ or unlabelled/"),
        ({"val": "p0\np1\np2\np3\np4"}, "no image to train on has a mask"),
    ],
)
def test_bad_lists(load, photos, lists, message):
    for name, content in lists.items():
        (photos / f"{name}.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        load()


def test_folders_within_the_folders(load, photos):
    save(photos / "images" / "day" / "p0.png", np.zeros((5, 5, 3), np.uint8))
    save(photos / "masks" / "day" / "p0.png", COLOURS[np.ones((5, 5), np.uint8)])
    (photos / "val.txt").write_text("day/p0\n")
    assert (load().source("val")[0].label == 1).all()


def test_images_of_a_pixel_and_grey_ones_are_read(load, photos):
    save(photos / "unlabelled" / "dot.png", np.full((1, 1), 9, np.uint8))
    rest = load().source("train").without_labels()
    np.testing.assert_array_equal(rest[list(rest.ids).index("dot")].image, np.full((1, 1, 3), 9))


def test_photographs_are_turned_upright(load, photos):
    """Orientation 6: the first row of the file is the right-hand side of what viewers show."""
    stored = np.zeros((50, 40, 3), np.uint8)
    stored[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(photos / "images" / "p0.jpg", exif=exif)
    (photos / "val.txt").write_text("p0\n")
    example = load().source("val")[0]
    assert example.image.shape == (40, 50, 3)
    assert (example.image[:, 42:] > 200).all()
    assert (example.image[:, :40] < 50).all()
    np.testing.assert_array_equal(example.label, label_of(0))


def opaque(alpha):
    return np.dstack([np.full((40, 50, 3), 7, np.uint8), np.full((40, 50), alpha, np.uint8)])


@pytest.mark.parametrize("alpha", [255, 254])
def test_a_fourth_channel_is_dropped_aloud_where_it_holds_anything(load, photos, caplog, alpha):
    save(photos / "unlabelled" / "a.png", opaque(alpha))
    rest = load().source("train").without_labels()
    assert (rest[list(rest.ids).index("a")].image == 7).all()
    assert ("unlabelled/a.png: a fourth channel" in caplog.text) == (alpha < 255)


def png_of_16_bits(pixels):
    """A PNG of 16-bit colours u16[H,W,3], which Pillow reads but does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_keep_the_upper_8():
    pixels = np.array([[[0x0000, 0x01FF, 0xFFFF], [0x8000, 0x7FFF, 0x1234]]], np.uint16)
    np.testing.assert_array_equal(decode_image(png_of_16_bits(pixels), "a.png"), pixels >> 8)


@pytest.mark.parametrize(
    ("file", "pixels", "message"),
    [
        ("unlabelled/a.png", np.zeros((9, 9), np.uint16), r"a\.png: its values have 16 bits or more.*8-bit"),
        ("masks/p1.png", np.zeros((41, 50, 3), np.uint8), r"p1\.png: the mask is 50x41, its image 50x40"),
        ("images/p1.webp", np.zeros((9, 9, 3), np.uint8), r"p1\.jpg and .*p1\.webp have the same name, p1"),
        ("unlabelled/p1.jpg", np.zeros((9, 9, 3), np.uint8), r"images/p1\.jpg and .*unlabelled/p1\.jpg have the same"),
        ("masks/w1.png", np.zeros((9, 9, 3), np.uint8), r"1 masks have no image in images/ \(masks/w1\.png\)"),
        ("masks/p6.jpg", np.zeros((40, 50, 3), np.uint8), r"p6\.jpg: .* changes the values of a mask"),
    ],
)
def test_bad_files_are_named_before_the_training(load, photos, tmp_path, file, pixels, message):
    save(photos / file, pixels)
    for _ in range(2):  # what was refused must not count as prepared
        with pytest.raises(DataError, match=message):
            load()


def test_a_colour_that_is_no_classs(load, photos):
    pixels = COLOURS[label_of(2)]
    pixels[7, 11] = pixels[8, 0] = (255, 0, 1)
    save(photos / "masks" / "p2.png", pixels)
    with pytest.raises(
        DataError, match=r"p2\.png: the colour \(255, 0, 1\) at x=11, y=7 \(2 such pixels\) is no class's"
    ):
        load()


def test_masks_that_are_missing_or_too_few(load, photos):
    for k in range(1, 5):
        (photos / "masks" / f"p{k}.png").unlink()
    with pytest.raises(DataError, match="one image has a mask; draw another"):
        load()
    (photos / "masks" / "p0.png").unlink()
    with pytest.raises(DataError, match=r"masks: holds no mask; draw some"):
        load()
    (photos / "images").rename(photos / "pictures")
    with pytest.raises(DataError, match=r"images: no such folder; data\.root is"):
        load()


def test_other_files_are_passed_over_aloud(load, photos, caplog):
    (photos / "images" / "raw.heic").touch()
    (photos / "images" / ".DS_Store").touch()
    load()
    assert (
        "1 files are not .jpg, .jpeg, .jfif, .png, .webp, .bmp, .tif, .tiff, .gif and not used: raw.heic" in caplog.text
    )


def test_more_pixels_than_pillow_opens(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(DataError, match=r"big\.jpg: too many pixels .*; scale it down, or cut it into tiles"):
        decode_image((photos / "images" / "p0.jpg").read_bytes(), "big.jpg")


def config(photos, tmp_path, variant="forec", background=""):
    c = apply_variant(defaults(), variant)
    c.data.update({"name": "folder", "root": str(photos), "prepared": str(tmp_path / "p"), "background": background})
    c.model.encoder, c.model.resnet.width = "resnet18", 0.125
    return c


def test_only_foreground_tasks_ask_for_the_background(photos, tmp_path):
    (photos / "classes.toml").write_text(COLOURED.replace("background", "floor"))
    c = config(photos, tmp_path)
    labels = sources.build_dataset(c).labels
    build.build_method(config(photos, tmp_path, "reconstruction"), labels)
    with pytest.raises(OptionError, match=r'background = "NAME" into classes\.toml .* one of floor, cat, dog'):
        build.build_method(c, labels)
    assert sources.build_dataset(config(photos, tmp_path, background="floor, dog")).background_classes == (0, 2)
    with pytest.raises(OptionError, match=r"data\.background='sky': choose one of 'floor'"):
        sources.build_dataset(config(photos, tmp_path, background="sky"))
    (photos / "classes.toml").write_text(COLOURED.replace("background", "floor") + 'background = "dog"\n')
    assert sources.build_dataset(c).background_classes == (2,)


def test_prepare_names_the_splits(photos, tmp_path, capsys):
    assert cli.run(["prepare", "--dataset=folder", f"--source={photos}", f"--prepared={tmp_path / 'p'}"]) == 0
    assert capsys.readouterr().out == "train: 11 images\nval: 1 images\n"


def test_a_batch_has_masks_in_its_labelled_part_only(photos, tmp_path):
    c = config(photos, tmp_path)
    data = sources.build_training_data(c)
    ids = sources.build_streams(c, data).ids(0)
    assert set(ids["labelled"]) == set(data.split.labelled)
    assert set(ids["unlabelled"]) <= data.dataset.maskless


@pytest.mark.parametrize("variant", ["supervised", pytest.param("forec", marks=pytest.mark.slow)])
def test_a_folder_gets_predictions_in_two_commands(photos, tmp_path, monkeypatch, variant):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(photos / "unlabelled" / "dot.png", np.full((1, 1), 9, np.uint8))
    small = ["steps=2", "evaluate_every=2", "checkpoint_every=2", "data.crop=33", "eval.pictures=0", "eval.bucket=64"]
    small += ["model.encoder=unet", "model.unet.width=0.03125"]  # compiled in half of a ResNet's time
    options = [f"--config.{option}" for option in small]
    run = [
        "train",
        f"--config=configs/folder.py:{variant}",
        f"--config.data.root={photos}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert cli.run([*run, *options]) == 0
    predict = [
        "predict",
        f"--workdir={tmp_path / 'run'}",
        f"--images={photos / 'unlabelled'}",
        f"--out={tmp_path / 'out'}",
    ]
    assert cli.run(predict) == 0
    sizes = {}
    for file in (tmp_path / "out" / "index").iterdir():
        with Image.open(file) as index:
            sizes[file.stem] = index.size
            assert index.getpalette()[:9] == COLOURS.ravel().tolist()
    assert sizes == {"dot": (1, 1), "u0": (30, 30), "u1": (31, 30), "u2": (32, 30), "u3": (33, 30)}
