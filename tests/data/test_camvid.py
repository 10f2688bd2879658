import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError, camvid_dataset

SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.fixture
def tree(tmp_path):
    """SegNet's layout with one image a split; masks have road at the left, void at the right."""
    base = tmp_path / "CamVid"
    for split, name in {"train": "a", "val": "b", "test": "c"}.items():
        (base / split).mkdir(parents=True)
        (base / f"{split}annot").mkdir()
        Image.new("RGB", (6, 4), (9, 8, 7)).save(base / split / f"{name}.png")
        Image.fromarray(np.full((4, 6), (3, 3, 3, 10, 11, 11), np.uint8)).save(base / f"{split}annot" / f"{name}.png")
    return base


def test_segnets_layout(tree, tmp_path):
    data = camvid_dataset(tree, tmp_path / "prepared")
    assert {split: list(source.ids) for split, source in data.sources.items()} == {
        "train": ["a"],
        "val": ["b"],
        "test": ["c"],
    }
    assert data.source("val")[0].label[0].tolist() == [3, 3, 3, 10, 255, 255]
    assert (len(data.classes), data.classes[3], data.classes[10]) == (11, "road", "bicyclist")
    assert (data.palette[3], data.background_classes) == ((128, 64, 128), (3,))


def test_a_training_image_without_a_mask_is_unlabelled(tree, tmp_path):
    Image.new("RGB", (6, 4)).save(tree / "train" / "d.jpg")
    data = camvid_dataset(tree, tmp_path / "prepared")
    assert data.maskless == {"d"}
    assert data.source("train").without_labels()[1].image.shape == (4, 6, 3)


def test_missing_parts_and_repeated_names(tree, tmp_path):
    Image.new("RGB", (6, 4)).save(tree / "train" / "b.png")
    with pytest.raises(DataError, match=r"train/b\.png and .*val/b\.png have the same name, b"):
        camvid_dataset(tree, tmp_path / "prepared")
    (tree / "valannot" / "b.png").unlink()
    (tree / "valannot").rmdir()
    with pytest.raises(DataError, match=r"valannot: no such folder; data\.root is"):
        camvid_dataset(tree, tmp_path / "prepared")
    for file in (tree / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train: holds no image"):
        camvid_dataset(tree, tmp_path / "prepared")


@pytest.mark.skipif(not (SHARED / "data" / "CamVid").is_dir(), reason="no CamVid here; set FOREC_SHARED")
def test_the_real_camvid(tmp_path):
    data = camvid_dataset(SHARED / "data" / "CamVid", tmp_path)
    assert {split: len(source) for split, source in data.sources.items()} == {"train": 367, "val": 101}
    assert not data.maskless
    heights: dict[int, list[float]] = {}
    for index in range(0, 367, 40):
        example = data.source("train")[index]
        assert example.image.shape == (360, 480, 3)
        for k in np.unique(example.label):
            heights.setdefault(int(k), []).append(np.argwhere(example.label == k)[:, 0].mean())
    assert set(heights) <= {*range(11), 255}
    sky, building, road = (np.mean(heights[data.classes.index(name)]) for name in ("sky", "building", "road"))
    assert sky < building < road  # the order of the classes: from the top of the picture to the bottom
