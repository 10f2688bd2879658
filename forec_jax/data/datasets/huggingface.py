"""An image-segmentation set of the Hugging Face hub, or a folder that `datasets` wrote."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forec_jax.data.rows import Row, rows_dataset, rows_labels
from forec_jax.data.source import DataEntry, DataError, Dataset
from forec_jax.options import option

_LOST = "the set holds paths of images, and not the images; store it by save_to_disk or push_to_hub"


@dataclass(frozen=True)
class Options:
    """Which set, and where in it images and masks are."""

    name: str = option("", "OWNER/NAME on the hub, or a folder: of save_to_disk, or of Parquet files")
    subset: str = option("", "its configuration, where it has several")
    revision: str = option("", "a commit or tag of the hub's; empty: the newest")
    image: str = option("image", "the column of the images")
    mask: str = option("label", "the column of the masks; a row may have none")
    train: str = option("train", 'the split to train on; of the hub\'s also a part, as "train[:80%]"')
    val: str = option("validation", "the split for the score")
    classes: str = option("", "a class file that says what the masks mean (docs/data.md)")


@dataclass(frozen=True)
class _Rows:
    """A split of `datasets`, whose images are left encoded."""

    table: Any
    options: Options

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        row = self.table[index]
        image, mask = row[self.options.image], row[self.options.mask]
        if image is None or image["bytes"] is None or (mask is not None and mask["bytes"] is None):
            raise DataError(f"{self.options.name}, row {index}: {_LOST if image else 'has no image; remove it'}")
        return Row(image["bytes"], None if mask is None else mask["bytes"])

    def without_mask(self) -> Collection[int]:
        """The rows whose mask is null."""
        null = self.table.with_format("arrow")[self.options.mask]
        return [index for index, value in enumerate(null) if not value.is_valid]


def huggingface_dataset(o: Options) -> Dataset:
    """The set that the options name; splits train and val. No code of the set's is run.

    Raises DataError, naming it, where it cannot be loaded, or has no such split or column.
    """
    if not o.name:
        raise DataError("data.huggingface.name is empty: set it to OWNER/NAME on the hub, or to a folder")
    splits = {"train": _rows(o, o.train), "val": _rows(o, o.val)}
    return rows_dataset("huggingface", o.name, o.classes, splits)


def _rows(o: Options, split: str) -> _Rows:
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.name=huggingface: pip install 'forec-jax[datasets]'") from error
    try:
        table = _table(datasets, o, split)
        if missing := {o.image, o.mask}.difference(table.column_names):
            raise DataError(
                f"{o.name}: has no column {', '.join(sorted(missing))}, but {', '.join(table.column_names)}; set "
                "data.huggingface.image and data.huggingface.mask"
            )
        for column in (o.image, o.mask):
            table = table.cast_column(column, datasets.Image(decode=False))
    except DataError:
        raise
    except Exception as error:  # of the hub, of Arrow, of the network
        raise DataError(f"data.huggingface.name={o.name}, split {split!r}: cannot be loaded ({error})") from error
    return _Rows(table.select_columns([o.image, o.mask]), o)


def _table(datasets: Any, o: Options, split: str) -> Any:
    folder = Path(o.name).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(folder))[split]
    name = str(folder) if folder.is_dir() else o.name
    return datasets.load_dataset(name, o.subset or None, split=split, revision=o.revision or None)


ENTRY = DataEntry(
    "huggingface",
    Options,
    lambda place, o: huggingface_dataset(o),
    lambda root, o: rows_labels("huggingface", o.classes),
)
