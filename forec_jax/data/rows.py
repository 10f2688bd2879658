"""Data sets that hold encoded images and masks in the rows of a table, as their libraries give them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from forec_jax.data.classfile import CLASS_FILE, EXAMPLE, read_classes
from forec_jax.data.decode import decode_image, decode_mask
from forec_jax.data.rules import ColourRule, MaskRule
from forec_jax.data.source import DataError, Dataset, Example, Labels, dataset_of


class Row(NamedTuple):
    """An encoded image and its mask."""

    image: bytes
    mask: bytes | None  # None: it has none


class Rows(Protocol):
    """The rows of a split. It can be pickled, for processes that read images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """Row `index`. Raises DataError where it cannot be read."""
        ...

    def without_mask(self) -> Collection[int]:
        """The rows that have none."""
        ...


@dataclass(frozen=True)
class RowSource:
    """The rows of a split, decoded when they are read; an id is the split and the row's number."""

    rows: Rows
    split: str
    name: str  # of the data set, for messages
    rule: MaskRule | ColourRule
    labels: bool = True

    @property
    def ids(self) -> Sequence[str]:
        """The rows' names, in their order."""
        return tuple(self._id(index) for index in range(len(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        name, row = self._id(index), self.rows[index]
        where = f"{self.name}, {name}"
        image = decode_image(row.image, where)
        if not self.labels:
            return Example(name, image)
        if row.mask is None:
            raise DataError(f"{where}: has no mask; keep it out of the labelled part")
        return Example(name, image, decode_mask(row.mask, f"{where}, its mask", image.shape, self.rule))

    def without_labels(self) -> "RowSource":
        """The same images, masks unopened."""
        return replace(self, labels=False)

    def maskless(self) -> frozenset[str]:
        """The ids of the rows without a mask."""
        return frozenset(self._id(index) for index in self.rows.without_mask())

    def _id(self, index: int) -> str:
        return f"{self.split}/{index:06d}"


def rows_dataset(kind: str, name: str, class_file: str, splits: Mapping[str, Rows]) -> Dataset:
    """The data set of some rows, whose masks mean what a class file says. Raises DataError as reading that does."""
    said = read_classes(_class_file(kind, class_file))
    sources = {split: RowSource(rows, split, name, said.rule) for split, rows in splits.items()}
    maskless = frozenset().union(*(source.maskless() for source in sources.values()))
    return dataset_of(kind, Labels(said.names, said.palette, said.background), sources, maskless)


def rows_labels(kind: str, class_file: str) -> Labels:
    """The classes that a class file says."""
    said = read_classes(_class_file(kind, class_file))
    return Labels(said.names, said.palette, said.background)


def _class_file(kind: str, given: str) -> Path:
    if not given:
        raise DataError(
            f"data.{kind}.classes is empty: the set does not say what its masks mean; write a {CLASS_FILE}, and name "
            f"it there; such as\n{EXAMPLE}"
        )
    return Path(given).expanduser()
