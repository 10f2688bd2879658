"""What a data set is: named sources of examples that are read at random, one example at a time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from forec_jax.options import at_least, option

log = logging.getLogger(__name__)

RGB = tuple[int, int, int]


class DataError(ValueError):
    """Input that cannot be used. The message names the file (or the option) and what to do about it."""


class Labels(NamedTuple):
    """What a model needs to know of the data set it was trained on."""

    classes: tuple[str, ...]
    palette: tuple[RGB, ...]  # one colour a class
    background_classes: tuple[int, ...]  # what FOrec reconstructs as zero; () where that is not known


@dataclass(frozen=True)
class DatasetOptions:
    """Which data set, and how its images are seen."""

    name: str = option(
        "", "the data set: shapes, voc, camvid, cityscapes, sunrgbd, huggingface, tfds, or folder (your own images)"
    )
    root: str = option("", "voc: the folder that holds VOC2012/; otherwise the data set's own folder (docs/data.md)")
    prepared: str = option("", "where prepared records go; empty: the user's cache folder")
    background: str = option("", '"class,class": what FOrec takes as background; empty: the data set\'s own choice')
    classes: str = option("", '"class,class": these alone, all others are background; empty: every class')
    longest_side: int = option(
        0, "larger images are scaled down to it first, in predictions too; 0: images as they are", at_least(0)
    )
    on_change: Literal["raise", "warn"] = option(
        "raise", 'a run goes on where images or masks are no longer what it began with: "raise", or "warn"'
    )


class Example(NamedTuple):
    """One image with what is known about it."""

    id: str
    image: np.ndarray  # u8[H,W,3]
    label: np.ndarray | None = None  # u8[H,W], 255 where void; None where masks are absent or must not be seen
    tags: np.ndarray | None = None  # f32[K], 1 where the class is in the image; only from `WithTags`
    confidence: np.ndarray | None = None  # u8[H,W], of the label, in 255ths; only from `WithPseudoLabels`


class Source(Protocol):
    """Examples by index. Reading an index twice gives the same example; reading from several threads is safe."""

    @property
    def ids(self) -> Sequence[str]:
        """The examples' names, in the order of the listing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Example `index`. Raises DataError, naming the file, where it cannot be read."""
        ...

    def without_labels(self) -> "Source":
        """The same images with `label=None`; no mask is opened or decoded through this view."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes and, by split name, its sources."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]  # one colour a class
    sources: Mapping[str, Source]
    background_classes: tuple[int, ...] = (0,)  # what FOrec reconstructs as zero; () where that is not known
    maskless: frozenset[str] = frozenset()  # ids of images without a mask, which can only be used without labels
    sums: Mapping[str, str] = field(default_factory=dict)  # of an id's image and what its mask says, where known
    fixed: bool = False  # whether an id has always the same image and mask

    @property
    def labels(self) -> Labels:
        """Its classes, colours and background."""
        return Labels(self.classes, self.palette, self.background_classes)

    def source(self, split: str) -> Source:
        """The source of a split. Raises DataError with the names there are."""
        if split not in self.sources:
            near = next((name for name in self.sources if name.endswith(f"_{split}")), None)
            meant = f"; did you mean {near}?" if near else ";"
            raise DataError(f"{self.name} has no split {split!r}{meant} it has: {', '.join(self.sources)}")
        return self.sources[split]

    def scored(self, split: str) -> Source:
        """The images of a split that have masks, which alone can be scored. Raises DataError where none has."""
        source = self.source(split)
        ids = [name for name in source.ids if name not in self.maskless]
        if not ids:
            raise DataError(f"{self.name}: no image of {split} has a mask to be scored by; add masks, or use predict")
        if len(ids) < len(source):
            log.warning(
                "%d of the %d images of %s have no mask and are not scored", len(source) - len(ids), len(source), split
            )
        return source if len(ids) == len(source) else select(source, ids)


def dataset_of(
    name: str,
    labels: Labels,
    sources: Mapping[str, Source],
    maskless: frozenset[str] = frozenset(),
    sums: Mapping[str, str] | None = None,
) -> Dataset:
    """A data set with these labels."""
    return Dataset(name, labels.classes, labels.palette, sources, labels.background_classes, maskless, sums or {})


class Place(NamedTuple):
    """Where a data set's files are, and how they are read."""

    root: Path
    prepared: Path | None = None  # where they are packed; None: the user's cache
    longest_side: int = 0  # larger images are scaled down to it, by those that pack images; 0: none
    on_corrupt: Literal["raise", "skip"] = "raise"  # what packing does about files that cannot be used
    val_ids: tuple[str, ...] | None = None  # the validation images of a run that is there; None: as the data set says


class DataEntry(NamedTuple):
    """All that the library must know of a data set."""

    name: str  # what data.name may be, and of its options, data.NAME
    options: type  # frozen dataclass of `option` fields
    load: Callable[[Place, Any], Dataset]  # where it is, options
    labels: Callable[[Path, Any], Labels]  # data.root, options -> its labels; no image is opened
    holds: str = ""  # what the folder data.root holds; "" for a data set that needs none


@dataclass(frozen=True)
class Subset:
    """Some examples of a source, in the order of `indices`."""

    source: Source
    indices: tuple[int, ...]

    @property
    def ids(self) -> Sequence[str]:
        """The chosen examples' names."""
        ids = self.source.ids
        return tuple(ids[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.indices[index]]

    def without_labels(self) -> "Subset":
        """The same images, masks unopened."""
        return Subset(self.source.without_labels(), self.indices)


def select(source: Source, ids: Sequence[str]) -> Subset:
    """The examples named `ids`, in that order. Raises DataError for a name that the source does not have."""
    index_of = {name: index for index, name in enumerate(source.ids)}
    unknown = [name for name in ids if name not in index_of]
    if unknown:
        raise DataError(f"{len(unknown)} ids are not in the source, the first: {unknown[:3]}")
    return Subset(source, tuple(index_of[name] for name in ids))


@dataclass(frozen=True)
class OneByOne:
    """A source made of another: example i is made of the other's example i, by the subclass's `__getitem__`."""

    source: Source

    @property
    def ids(self) -> Sequence[str]:
        """The examples' names."""
        return self.source.ids

    def __len__(self) -> int:
        return len(self.source)

    def without_labels(self) -> Source:
        """The same images, masks unopened."""
        return self.source.without_labels()


@dataclass(frozen=True)
class WithTags(OneByOne):
    """A view for weak supervision: examples carry image-level tags and no mask.

    `tags` gives the classes of each id. Without it the tags are taken from the whole image's mask, to simulate
    image-level annotation on a data set that has masks.
    """

    num_classes: int
    tags: Mapping[str, Sequence[int]] | None = None

    def __getitem__(self, index: int) -> Example:
        if self.tags is None:
            example = self.source[index]
            if example.label is None:
                raise DataError(f"{example.id}: tags come from the mask, and it has none; give `tags` by id instead")
            present = set(np.unique(example.label).tolist())
        else:
            example = self.source.without_labels()[index]
            if example.id not in self.tags:
                raise DataError(f"{example.id} has no tags; add its classes, or leave it out of the tagged stream")
            present = set(self.tags[example.id])
        tags = np.array([k in present for k in range(self.num_classes)], np.float32)
        return Example(example.id, example.image, None, tags)

    def without_labels(self) -> "WithTags":
        """This view: it has no masks."""
        return self
