"""A segmentation set of TensorFlow Datasets, by name; TensorFlow is not needed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets

from forec_jax.data.rows import Row, rows_dataset, rows_labels
from forec_jax.data.source import DataEntry, DataError, Dataset
from forec_jax.options import option


@dataclass(frozen=True)
class Options:
    """Which set, and where in it images and masks are."""

    name: str = option("", "its name, as in the catalogue: NAME, NAME/CONFIG or NAME:VERSION")
    folder: str = option("", "where prepared sets lie, or go; empty: ~/tensorflow_datasets")
    image: str = option("image", "the feature with the images")
    mask: str = option("segmentation_mask", "the feature with the masks")
    train: str = option("train", 'the split to train on, or a part, as "train[:80%]"')
    val: str = option("test", "the split for the score")
    classes: str = option("", "a class file that says what the masks mean (docs/data.md)")


@dataclass(frozen=True)
class _Rows:
    """A split of TFDS, whose images are left encoded."""

    records: Any
    options: Options

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Row:
        try:
            record = self.records[index]
            return Row(bytes(record[self.options.image]), bytes(record[self.options.mask]) or None)
        except Exception as error:  # TFDS, array_record and protobuf each have their own
            raise DataError(
                f"{self.options.name}, record {index}: cannot be read ({error}); prepare it anew"
            ) from error

    def without_mask(self) -> Collection[int]:
        """Every record has one."""
        return ()


def tfds_dataset(o: Options) -> Dataset:
    """The set that the options name, which TFDS downloads and prepares where it is not there; splits train and val.

    Raises DataError, naming it, where it cannot be loaded, or has no such split or feature.
    """
    if not o.name:
        raise DataError("data.tfds.name is empty: set it to a name of TFDS's catalogue")
    return rows_dataset("tfds", o.name, o.classes, {"train": _rows(o, o.train), "val": _rows(o, o.val)})


def _rows(o: Options, split: str) -> _Rows:
    raw = {name: tensorflow_datasets.decode.SkipDecoding() for name in (o.image, o.mask)}
    folder = Path(o.folder).expanduser() if o.folder else None
    try:
        records = tensorflow_datasets.data_source(o.name, split=split, data_dir=folder, decoders=raw)
    except Exception as error:  # of the catalogue, of the network, of a set's own
        raise DataError(f"data.tfds.name={o.name}, split {split!r}: cannot be loaded ({error})") from error
    return _Rows(records, o)


ENTRY = DataEntry("tfds", Options, lambda place, o: tfds_dataset(o), lambda root, o: rows_labels("tfds", o.classes))
