"""Large photographs at a size at which a network can see them whole."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from forec_jax.data.source import DataError, Dataset, Example, Source


def shrink(example: Example, longest_side: int) -> Example:
    """The example with at most `longest_side` pixels a side, its proportions kept; as it is where it has no more.

    The image is scaled bilinearly with anti-aliasing, the label to the nearest pixel.
    """
    height, width = example.image.shape[:2]
    if max(height, width) <= longest_side:
        return example
    factor = longest_side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = Image.fromarray(example.image).resize(size, Image.Resampling.BILINEAR)
    label = None if example.label is None else Image.fromarray(example.label).resize(size, Image.Resampling.NEAREST)
    return example._replace(image=np.asarray(image), label=None if label is None else np.asarray(label))


@dataclass(frozen=True)
class Shrunk:
    """A source of examples with at most `longest_side` pixels a side."""

    source: Source
    longest_side: int

    @property
    def ids(self) -> Sequence[str]:
        """The examples' names."""
        return self.source.ids

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return shrink(self.source[index], self.longest_side)

    def without_labels(self) -> Source:
        """The same images, masks unopened."""
        return Shrunk(self.source.without_labels(), self.longest_side)


def with_longest_side(dataset: Dataset, longest_side: int) -> Dataset:
    """The data set with images of at most so many pixels a side; as it is where `longest_side` is 0.

    Raises DataError for one that is negative.
    """
    if longest_side < 0:
        raise DataError(f"data.longest_side={longest_side} must be a number of pixels, or 0 for images as they are")
    if not longest_side:
        return dataset
    sources = {split: Shrunk(source, longest_side) for split, source in dataset.sources.items()}
    return dataclasses.replace(dataset, sources=sources)
