import io
import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError, voc_dataset
from forec_jax.data.datasets.voc import CLASSES, voc_palette
from forec_jax.data.decode import MaskRule, decode_image, decode_mask
from forec_jax.data.prepared import default_prepared

LISTS = {"train": ["a1", "a2"], "train_aug": ["a1", "a2", "s1", "s2"], "val": ["v1"]}
SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def save_mask(file, label, mode="P"):
    mask = Image.fromarray(label)
    if mode == "P":
        mask.putpalette([value for colour in voc_palette(256) for value in colour])
    mask.save(file)


@pytest.fixture
def devkit(tmp_path):
    """A VOCdevkit of five small images; image `x`'s mask is class 1 at the left, 15 at the right, void between."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for split, names in LISTS.items():
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for k, name in enumerate(sorted({name for names in LISTS.values() for name in names})):
        Image.new("RGB", (50 + k, 40), (40 * k, 100, 200)).save(base / "JPEGImages" / f"{name}.jpg")
        label = np.full((40, 50 + k), 255, np.uint8)
        label[:, :20], label[:, 30:] = 1, 15
        save_mask(base / "SegmentationClassAug" / f"{name}.png", label)
    return base.parent


@pytest.fixture
def base(devkit):
    return devkit / "VOC2012"


@pytest.fixture
def load(devkit, tmp_path):
    return lambda: voc_dataset(devkit, tmp_path / "prepared")


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "prepared").iterdir() if not path.name.endswith(".lock"))


def test_splits_follow_the_lists(load):
    data = load()
    assert {split: list(source.ids) for split, source in data.sources.items()} == LISTS
    assert [data.source("train_aug")[i].id for i in range(4)] == LISTS["train_aug"]
    assert (data.name, data.background_classes, len(data.classes)) == ("voc", (0,), 21)


def test_an_example_is_what_the_files_say(load, base):
    example = load().source("train_aug")[3]
    np.testing.assert_array_equal(example.image, np.asarray(Image.open(base / "JPEGImages" / "s2.jpg")))
    np.testing.assert_array_equal(example.label, np.asarray(Image.open(base / "SegmentationClassAug" / "s2.png")))
    assert (example.image.dtype, example.label.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(example.label)) == {1, 15, 255}


def test_an_image_on_two_lists_is_stored_once(load, tmp_path):
    load()
    import tensorflow_datasets as tfds

    (name,) = folders(tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "prepared" / name)
    assert builder.info.splits["pool"].num_examples == 5
    assert builder.as_data_source("pool")[0]["image"].shape == (40, 50, 3)  # anyone's TFDS reads it


def test_it_is_prepared_once_and_anew_when_the_source_changes(load, base, tmp_path, caplog):
    load()
    first = folders(tmp_path)
    stamp = (tmp_path / "prepared" / first[0] / "dataset_info.json").stat().st_mtime_ns
    assert load().source("val")[0].label.shape == (40, 54)
    assert folders(tmp_path) == first
    assert (tmp_path / "prepared" / first[0] / "dataset_info.json").stat().st_mtime_ns == stamp

    save_mask(base / "SegmentationClassAug" / "v1.png", np.full((40, 54), 7, np.uint8))
    with caplog.at_level(logging.WARNING):
        changed = load()
    assert (changed.source("val")[0].label == 7).all()
    assert len(folders(tmp_path)) == 2
    assert "another listing" in caplog.text

    (base / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("s2\n")
    assert list(load().source("train_aug").ids) == ["s2"]
    assert load().source("train_aug")[0].id == "s2"
    assert len(folders(tmp_path)) == 3


def test_two_at_once_prepare_one_folder(load, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        examples = list(pool.map(lambda _: load().source("train")[1].id, range(3)))
    assert examples == ["a2"] * 3
    assert len(folders(tmp_path)) == 1


def test_an_interrupted_preparation_leaves_nothing(load, base, tmp_path, monkeypatch):
    image = base / "JPEGImages" / "s1.jpg"
    read = Path.read_bytes

    def interrupted(file):
        if file == image:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert folders(tmp_path) == []
    assert len(load().source("train")) == 2


def test_a_read_only_source_is_only_read(load, base):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in base.rglob("*"))
    load().source("train")[0]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in base.rglob("*")) == before


def test_a_copy_for_a_worker_reads_too(load):
    source = load().source("train")
    source[0]
    assert pickle.loads(pickle.dumps(source))[1].id == "a2"


def test_masks_fall_back_to_the_original_folder(load, base):
    (base / "SegmentationClassAug").rename(base / "SegmentationClass")
    assert load().source("train")[0].label is not None


def test_the_other_name_of_the_augmented_list(load, base):
    lists = base / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").rename(lists / "trainaug.txt")
    assert len(load().source("train_aug")) == 4
    (lists / "trainaug.txt").unlink()
    with pytest.raises(DataError, match="no split 'train_aug'; it has: train, val"):
        load().source("train_aug")


def test_an_image_without_a_mask_serves_without_labels_only(load, base):
    (base / "SegmentationClassAug" / "s1.png").unlink()
    source = load().source("train_aug")
    assert source.without_labels()[2].image.shape == (40, 52, 3)
    with pytest.raises(DataError, match=r"s1\.jpg: has no mask; add one"):
        source[2]


def test_the_unlabelled_view_never_opens_a_mask(load, base):
    (base / "SegmentationClassAug" / "a1.png").write_bytes(b"not a mask")
    source = load().source("train")
    assert source.without_labels()[0].label is None
    with pytest.raises(DataError, match=r"SegmentationClassAug/a1\.png: cannot be decoded"):
        source[0]


def test_a_truncated_image_is_named(load, base):
    file = base / "JPEGImages" / "a2.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"JPEGImages/a2\.jpg: cannot be decoded .*; replace the file"):
        load().source("train")[1]


@pytest.mark.parametrize(
    ("label", "mode", "message"),
    [
        (np.zeros((30, 50), np.uint8), "P", r"a1\.png: the mask is 50x30, its image 50x40"),
        (np.full((40, 50), 21, np.uint8), "P", r"a1\.png: the mask holds \[21\]; allowed are 0 to 20 and 255"),
        (np.full((40, 50, 3), (128, 0, 0), np.uint8), "RGB", r"a1\.png: the mask's mode is RGB; save class indices"),
        (np.zeros((40, 50), bool), "1", r"a1\.png: the mask's mode is 1"),
    ],
)
def test_bad_masks(load, base, label, mode, message):
    save_mask(base / "SegmentationClassAug" / "a1.png", label, mode)
    with pytest.raises(DataError, match=message):
        load().source("train")[0]


def test_grey_masks_and_grey_images_are_read(load, base):
    save_mask(base / "SegmentationClassAug" / "a1.png", np.full((40, 50), 3, np.uint8), "L")
    Image.new("L", (50, 40), 9).save(base / "JPEGImages" / "a1.jpg")
    example = load().source("train")[0]
    assert example.image.shape == (40, 50, 3)
    assert (example.label == 3).all()


def test_missing_folders_lists_and_files(load, base, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/VOC2012: no such folder; data\.root is"):
        voc_dataset(tmp_path / "nowhere")
    (base / "JPEGImages" / "s2.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages/s2\.jpg is missing"):
        load()
    lists = base / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("")
    with pytest.raises(DataError, match=r"train_aug\.txt: the list is empty"):
        load()
    (lists / "val.txt").unlink()
    with pytest.raises(DataError, match=r"\['val'\] have no list"):
        load()


def test_a_prepared_folder_that_cannot_be_written(devkit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .* data\.prepared"):
        voc_dataset(devkit, tmp_path / "file")


def test_a_prepared_folder_that_was_tampered_with(load, base, tmp_path):
    load()
    (name,) = folders(tmp_path)
    (tmp_path / "prepared" / name).rename(tmp_path / "old")
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("a2\na1\n")
    load()
    (name,) = folders(tmp_path)
    for file in (tmp_path / "prepared" / name).iterdir():
        file.unlink()
    for file in (tmp_path / "old").iterdir():
        file.rename(tmp_path / "prepared" / name / file.name)
    with pytest.raises(DataError, match="record 0 is not a2; delete the folder"):
        load().source("train")[0]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_prepared_folder_that_was_cut_short_is_named(load, tmp_path, share):
    load()
    (folder,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    (records,) = folder.glob("*.array_record*")
    records.write_bytes(records.read_bytes()[: int(share * records.stat().st_size)])
    with pytest.raises(DataError, match=rf"{folder.name}: record \d+ cannot be read .*delete the folder"):
        list(load().source("train"))


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_prepared() == tmp_path / "forec_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_prepared() == tmp_path / ".cache" / "forec_jax"


def test_the_palette_is_vocs():
    assert voc_palette(256)[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert voc_palette(256)[15] == (192, 128, 128)  # person
    assert voc_palette(256)[255] == (224, 224, 192)  # void


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_rule_can_have_other_void_values():
    label = decode_mask(encoded(np.array([[0, 10, 11]], np.uint8)), "m.png", (1, 3, 3), MaskRule(11, void=(11, 255)))
    assert label.tolist() == [[0, 10, 255]]
    with pytest.raises(DataError, match="255 classes"):
        MaskRule(255)


def test_bytes_that_are_no_image():
    with pytest.raises(DataError, match=r"x\.jpg: cannot be decoded"):
        decode_image(b"", "x.jpg")


@pytest.mark.skipif(not (SHARED / "data" / "VOCdevkit").is_dir(), reason="no VOCdevkit here; set FOREC_SHARED")
def test_a_real_part_of_voc(tmp_path):
    data = voc_dataset(SHARED / "data" / "VOCdevkit", tmp_path)
    assert {split: len(source) for split, source in data.sources.items()} == {
        "train": 311,
        "train_aug": 3357,
        "val": 321,
    }
    for source in data.sources.values():
        for index in range(0, len(source), 40):
            example = source[index]
            assert example.image.shape[:2] == example.label.shape
            assert set(np.unique(example.label)) <= {*range(len(CLASSES)), 255}
