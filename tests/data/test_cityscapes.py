import numpy as np
import pytest
from PIL import Image

from forec_jax.config import load_config
from forec_jax.data import DataError, cityscapes_dataset, resolve_split
from forec_jax.data.datasets.cityscapes import LABEL_IDS, PALETTE
from forec_jax.experiment import sources

NAMES = {"train": ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313"), "val": ("ulm/ulm_000001_000019",)}
OFFICIAL = {7: 0, 8: 1, 11: 2, 13: 4, 17: 5, 19: 6, 26: 13, 28: 15, 31: 16, 33: 18}  # label id: training id


def save(file, label):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(label, np.uint8)).save(file)


@pytest.fixture
def tree(tmp_path):
    """Three images, each with all label ids from 0 to 33 and 255 in a row."""
    base = tmp_path / "cityscapes"
    for split, names in NAMES.items():
        for name in names:
            save(base / "leftImg8bit" / split / f"{name}_leftImg8bit.png", np.zeros((1, 35, 3)))
            save(base / "gtFine" / split / f"{name}_gtFine_labelIds.png", [[*range(34), 255]])
            save(base / "gtFine" / split / f"{name}_gtFine_color.png", np.zeros((1, 35, 3)))
    return base


def test_label_ids_become_training_ids(tree, tmp_path):
    data = cityscapes_dataset(tree, tmp_path / "prepared")
    label = data.source("train")[1].label[0]
    assert {i: int(label[i]) for i in OFFICIAL} == OFFICIAL
    assert (label != 255).sum() == len(LABEL_IDS) == len(PALETTE) == 19
    assert {int(k) for k in label} == {*range(19), 255}
    assert data.background_classes == (data.classes.index("road"),) == (0,)


def test_ids_are_those_of_the_published_lists(tree, tmp_path):
    data = cityscapes_dataset(tree, tmp_path / "prepared")
    assert list(data.source("val").ids) == ["ulm_000001_000019"]
    lines = tmp_path / "list.txt"
    lines.write_text("leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png\n")
    split = resolve_split(pool_ids=data.source("train").ids, labelled=str(lines))
    assert (split.labelled, split.unlabelled) == (("bochum_000000_000313",), ("aachen_000000_000019",))


def test_the_config_trains_on_it(tree, tmp_path):
    c = load_config(
        "configs/cityscapes.py:supervised",
        {
            "data.root": str(tree),
            "data.prepared": str(tmp_path / "prepared"),
            "data.labelled": "1:0",
            "batch.labelled": 1,
            "data.crop": 33,
        },
    )
    data = sources.build_training_data(c)
    batch = next(sources.build_streams(c, data).batches(0))
    assert batch.labelled.image.shape == (1, 33, 33, 3)
    assert (len(data.dataset.classes), len(data.validation)) == (19, 1)


def test_masks_of_training_ids(tree, tmp_path):
    for file in (tree / "gtFine").rglob("*_labelIds.png"):
        file.unlink()
    for split, names in NAMES.items():
        for name in names:
            save(tree / "gtFine" / split / f"{name}_gtFine_labelTrainIds.png", [[18] * 34 + [255]])
    label = cityscapes_dataset(tree, tmp_path / "prepared").source("val")[0].label
    assert label[0].tolist() == [18] * 34 + [255]
    save(tree / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_labelTrainIds.png", [[19] * 35])
    with pytest.raises(DataError, match=r"the mask holds \[19\]; allowed are 0 to 18 and 255"):
        cityscapes_dataset(tree, tmp_path / "prepared").source("val")[0]


def test_missing_parts(tree, tmp_path):
    with pytest.raises(DataError, match=r"leftImg8bit/train: no such folder; data\.root is"):
        cityscapes_dataset(tmp_path / "nowhere")
    (tree / "gtFine").rename(tree / "gtCoarse")
    with pytest.raises(DataError, match=r"gtFine/train: holds no CITY/\*_gtFine_labelIds\.png"):
        cityscapes_dataset(tree)
    for file in (tree / "leftImg8bit" / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"leftImg8bit/val: holds no CITY"):
        cityscapes_dataset(tree)
