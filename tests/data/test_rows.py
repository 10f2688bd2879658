"""Sets of Hugging Face's `datasets` and of TensorFlow Datasets, made here by these libraries."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from forec_jax.data import DataError
from forec_jax.data.datasets import huggingface
from forec_jax.data.datasets import tfds as ours

datasets = pytest.importorskip("datasets")

CLASSES = 'names = ["background", "cat", "dog"]\nvoid = 255\n'


def image(number):
    return np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)


def mask(number):
    return np.random.default_rng(number).choice(np.array([0, 1, 2, 255], np.uint8), (5, 7))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.toml").write_text(CLASSES)
    return str(tmp_path / "classes.toml")


def table(numbers, bare=()):
    columns = {"image": [png(image(k)) for k in numbers]}
    columns["label"] = [None if k in bare else png(mask(k)) for k in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features)


def check(dataset):
    """Rows 0 to 2 are for training, rows 3 and 4 for the score."""
    assert (dataset.classes, dataset.background_classes) == (("background", "cat", "dog"), (0,))
    train, val = dataset.source("train"), pickle.loads(pickle.dumps(dataset.source("val")))
    assert (train.ids, val.ids) == (("train/000000", "train/000001", "train/000002"), ("val/000000", "val/000001"))
    for source, numbers in ((train, range(3)), (val, (3, 4))):
        for index, number in enumerate(numbers):
            np.testing.assert_array_equal(source.without_labels()[index].image, image(number))
            if source.ids[index] not in dataset.maskless:
                np.testing.assert_array_equal(source[index].label, mask(number))


@pytest.fixture
def saved(tmp_path):
    both = datasets.DatasetDict({"train": table(range(3), bare=(1,)), "validation": table((3, 4))})
    both.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_a_set_of_the_hubs_library(saved, classes):
    dataset = huggingface.huggingface_dataset(huggingface.Options(name=saved, classes=classes))
    check(dataset)
    assert dataset.maskless == {"train/000001"}
    with pytest.raises(DataError, match=r"saved, train/000001: has no mask; keep it out of the labelled part"):
        dataset.source("train")[1]


def test_parquet_files_and_parts_of_a_split(tmp_path, classes, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    table(range(5)).to_parquet(tmp_path / "files" / "train.parquet")
    options = huggingface.Options(name=str(tmp_path / "files"), train="train[:3]", val="train[3:]", classes=classes)
    check(huggingface.huggingface_dataset(options))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"val": "test"}, "split 'test': cannot be loaded"),
        ({"mask": "annotation"}, r"has no column annotation, but image, label; set data\.huggingface\.image"),
        ({"classes": ""}, r"data\.huggingface\.classes is empty: the set does not say what its masks mean"),
        ({"name": ""}, r"data\.huggingface\.name is empty"),
    ],
)
def test_what_is_missing_is_named(saved, classes, given, says):
    options = huggingface.Options(**{"name": saved, "classes": classes} | given)
    with pytest.raises(DataError, match=says):
        huggingface.huggingface_dataset(options)


class _Animals(tfds.core.GeneratorBasedBuilder):
    """A set as those of TFDS's catalogue."""

    name = "animals"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = {"image": tfds.features.Image(), "segmentation_mask": tfds.features.Image(shape=(None, None, 1))}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._rows(range(3)), "test": self._rows((3, 4))}

    def _generate_examples(self):
        raise AssertionError

    def _rows(self, numbers):
        for key, k in enumerate(numbers):
            files = [io.BytesIO(png(pixels)["bytes"]) for pixels in (image(k), mask(k))]
            yield key, dict(zip(("image", "segmentation_mask"), files, strict=True))


def test_a_set_of_tfds(tmp_path, classes):
    _Animals(data_dir=tmp_path / "sets", file_format="array_record").download_and_prepare()
    options = ours.Options(name="animals", folder=str(tmp_path / "sets"), classes=classes)
    check(ours.tfds_dataset(options))
    with pytest.raises(DataError, match=r"data\.tfds\.name=animals, split 'nothing': cannot be loaded"):
        ours.tfds_dataset(ours.Options(name="animals", folder=options.folder, classes=classes, val="nothing"))
    with pytest.raises(DataError, match=r"data\.tfds\.name=animols.*cannot be loaded"):
        ours.tfds_dataset(ours.Options(name="animols", folder=options.folder, classes=classes))
