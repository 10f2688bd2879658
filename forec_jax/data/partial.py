"""Partly labelled images: "Partial Labels Full Dataset" of ReCo (Liu et al., ICLR 2022, section 4)."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data.source import DataError, Example, OneByOne, Source
from forec_jax.options import option

_SHARE = re.compile(r"(?:1px|(?P<percent>\d+(?:\.\d+)?)%)(?::(?P<seed>\d+))?")
Rounding = Literal["up", "down"]

_REACH = 2  # pixels by which a 5x5 dilation grows to each side


@dataclass(frozen=True)
class PartialOptions:
    """How much of a mask is seen."""

    partial: str = option(
        "", 'of a class in an image: "1px", "5%" (grown from it), "masks" (what they hold); empty: all of it'
    )
    partial_rounding: Rounding = option(
        "up", 'of a share of a class\'s pixels to the whole number that is grown to: "up", or "down" (ReCo\'s)'
    )


def parse_partial(text: str) -> tuple[Fraction, int]:
    """The share of each class's pixels (0: one pixel) and the seed that "1px", "5%" or "5%:SEED" say.

    Raises ValueError for anything else, and for a percentage outside (0, 100].
    """
    match = _SHARE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is neither '1px' nor a percentage such as '5%' (with a seed: '5%:1'), nor 'masks'")
    seed = int(match["seed"] or 0)
    if match["percent"] is None:
        return Fraction(0), seed
    share = Fraction(match["percent"]) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{text!r}: the percentage must be above 0 and at most 100")
    return share, seed


@dataclass(frozen=True)
class PartialLabels(OneByOne):
    """A source of which a part of each mask is shown: the rest of its pixels is UNLABELLED, and void stays void.

    In each image, each class starts at one of its pixels and grows to a share of its pixels (0: that pixel alone). An
    image's labels follow from the seed and its id, and those of a larger share contain those of a smaller one.
    """

    share: Fraction
    seed: int
    rounding: Rounding = "up"

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if example.label is None:
            raise DataError(f"{example.id} has no mask to take labels from; add one, or leave it out of data.labelled")
        return example._replace(
            label=partial_label(example.label, self.share, f"{self.seed}:{example.id}", self.rounding)
        )


@dataclass(frozen=True)
class KnownLabels:
    """Images of which some are labelled in part, each with what is known of its pixels: UNLABELLED where nothing is."""

    images: Source
    labelled: Source  # with partial labels

    @property
    def ids(self) -> Sequence[str]:
        """The examples' names."""
        return self._ids

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        return tuple(self.images.ids)  # of a part of a data set they are put together anew at each call

    def __getitem__(self, index: int) -> Example:
        place = self._places.get(self.ids[index])
        if place is not None:
            return self.labelled[place]
        example = self._unseen[index]
        return example._replace(label=np.full(example.image.shape[:2], UNLABELLED, np.uint8))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.labelled.ids)}

    @cached_property
    def _unseen(self) -> Source:
        return self.images.without_labels()

    def without_labels(self) -> Source:
        """The same images, masks unopened."""
        return self._unseen


def partial_label(label: np.ndarray, share: Fraction, name: str, rounding: Rounding = "up") -> np.ndarray:
    """u8[H,W] with the part of u8[H,W] that is shown; `name` fixes the first pixels."""
    shown = np.where(label == IGNORE, label, UNLABELLED).astype(np.uint8)
    for k in np.unique(label[label < UNLABELLED]).tolist():
        rows, columns = np.nonzero(label == k)
        target = len(rows) * share
        wanted = math.ceil(target) if rounding == "up" else math.floor(target)
        grown = grow(rows, columns, _first_pixel(f"{name}:{k}", len(rows)), wanted)
        shown[rows[grown], columns[grown]] = k
    return shown


def _first_pixel(name: str, count: int) -> int:
    """One of `count` pixels: the SHA-256 of the name, so that it depends on no library's random numbers."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()) % count


def grow(rows: np.ndarray, columns: np.ndarray, first: int, wanted: int) -> np.ndarray:
    """bool[n]: which of a class's n pixels are shown.

    From the pixel `first`, a 5x5 square dilates until it covers as many of the class's pixels as are wanted. It is not
    held back by the class's border: after t dilations it is the square of 2t pixels to each side of the first one,
    in which parts of the class that do not touch count as well, so that it always ends.
    """
    distance = np.maximum(np.abs(rows - rows[first]), np.abs(columns - columns[first]))
    dilations = -(-distance // _REACH)
    covered = np.cumsum(np.bincount(dilations))  # after 0, 1, ... dilations; the last is the whole class
    enough = int(np.searchsorted(covered, wanted))
    shown: np.ndarray = dilations <= enough
    return shown
