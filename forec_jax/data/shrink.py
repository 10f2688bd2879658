"""Large photographs at a size at which a network can see them whole."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from forec_jax.data.source import DataError, Dataset, Example, OneByOne, Source


def shrunk_size(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """Width and height (or height and width) with at most `longest_side` pixels a side, proportions kept; 0: as they are."""
    if not 0 < longest_side < max(height, width):
        return width, height
    factor = longest_side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def shrink(example: Example, longest_side: int) -> Example:
    """The example with at most `longest_side` pixels a side, its proportions kept; as it is where it has no more.

    The image is scaled bilinearly with anti-aliasing, the label to the nearest pixel.
    """
    height, width = example.image.shape[:2]
    if max(height, width) <= longest_side:
        return example
    size = shrunk_size(width, height, longest_side)
    image = Image.fromarray(example.image).resize(size, Image.Resampling.BILINEAR)
    label = None if example.label is None else shrunk_label(example.label, size[::-1])
    return example._replace(image=np.asarray(image), label=label)


def shrunk_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The label u8[H,W] at a height and width: each pixel is the nearest one's."""
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


@dataclass(frozen=True)
class _Shrunk(OneByOne):
    """A source of examples with at most `longest_side` pixels a side."""

    longest_side: int

    def __getitem__(self, index: int) -> Example:
        return shrink(self.source[index], self.longest_side)

    def without_labels(self) -> Source:
        """The same images, masks unopened."""
        return _Shrunk(self.source.without_labels(), self.longest_side)


def with_longest_side(dataset: Dataset, longest_side: int) -> Dataset:
    """The data set with images of at most so many pixels a side; as it is where `longest_side` is 0.

    Raises DataError for one that is negative.
    """
    if longest_side < 0:
        raise DataError(f"data.longest_side={longest_side} must be a number of pixels, or 0 for images as they are")
    if not longest_side:
        return dataset
    sources = {split: _Shrunk(source, longest_side) for split, source in dataset.sources.items()}
    return dataclasses.replace(dataset, sources=sources)
