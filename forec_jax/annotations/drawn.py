"""What annotation files say: images, and the shapes that were drawn on them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""


class NothingDrawn(ValueError):
    """A shape that covers no pixel. The message says why in a few words."""


class Shape(NamedTuple):
    """One object of an image."""

    label: str | None  # the class; None: its pixels are void
    mask: Callable[[Size], np.ndarray]  # bool[H,W] for an image of a size; raises DataError or NothingDrawn
    layer: int = 0  # shapes of higher layers cover those of lower ones
    points: np.ndarray | None = None  # f64[n,2], x and y of its outline, where it has one


class Annotated(NamedTuple):
    """An image and what was drawn on it."""

    names: tuple[str, ...]  # what its file may be called, the likeliest first: paths below the folder of the images
    size: Size | None  # as the annotations state it
    shapes: tuple[Shape, ...]
    file: str  # what messages about it name


class Annotations(NamedTuple):
    """What a reader found."""

    classes: tuple[str, ...]  # in the order of the file, or else of the alphabet
    images: tuple[Annotated, ...]
