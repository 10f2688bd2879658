import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError, sunrgbd_dataset


@pytest.fixture
def tree(tmp_path):
    """Three train and two test images; labels are void, wall (1) and bag (37), the last test image has none."""
    base = tmp_path / "SUN_RGBD"
    for part, count in {"train": 3, "test": 2}.items():
        (base / "image" / part).mkdir(parents=True)
        (base / "label37" / part).mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (3, 2), (number, 0, 0)).save(base / "image" / part / f"img-{number:06}.jpg")
            mask = Image.fromarray(np.full((2, 3), (0, 1, 37), np.uint8))
            mask.save(base / "label37" / part / f"img37labels-{number:06}.png")
    (base / "label37" / "test" / "img37labels-000002.png").unlink()
    return base


def test_images_and_labels_meet_by_their_number(tree, tmp_path):
    data = sunrgbd_dataset(tree, tmp_path / "prepared")
    train, val = data.source("train"), data.source("val")
    assert set(train.ids) | set(val.ids) == {*(f"train/{i:06}" for i in (1, 2, 3)), "test/000001", "test/000002"}
    assert (len(val), data.maskless) == (2, {"test/000002"})
    assert not set(train.ids) & set(val.ids)
    assert val[0].label.tolist() == [[255, 0, 36]] * 2
    assert (len(data.classes), data.classes[0], data.classes[36], len(set(data.palette))) == (37, "wall", "bag", 37)


def test_a_val_list_is_taken(tree, tmp_path):
    (tree / "val.txt").write_text("train/000002\ntest/000001\n")
    assert sunrgbd_dataset(tree, tmp_path / "prepared").source("val").ids == ("train/000002", "test/000001")
    (tree / "val.txt").write_text("test/000002\n")
    with pytest.raises(DataError, match=r"val\.txt: test/000002 are not in image/, or have no label"):
        sunrgbd_dataset(tree, tmp_path / "prepared")


def test_two_files_of_one_number_are_an_error(tree, tmp_path):
    file = sorted((tree / "image" / "train").iterdir())[0]
    file.with_suffix(".png").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=rf"{file.stem}\.jpg and {file.stem}\.png have the same number"):
        sunrgbd_dataset(tree, tmp_path / "prepared")


def test_missing_folders_and_names_without_a_number(tree, tmp_path):
    (tree / "image" / "train" / "first.jpg").touch()
    with pytest.raises(DataError, match=r"first\.jpg: the name does not end in the image's number"):
        sunrgbd_dataset(tree, tmp_path / "prepared")
    with pytest.raises(DataError, match=r"image/train: no such folder; data\.root is"):
        sunrgbd_dataset(tmp_path, tmp_path / "prepared")
