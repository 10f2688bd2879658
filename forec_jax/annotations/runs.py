"""Masks that are written as text: run lengths, and small pictures."""

import base64
import binascii
from collections.abc import Sequence
from typing import Literal

import numpy as np

from forec_jax.annotations.drawn import Size
from forec_jax.data.imagefile import is_transparent, open_image
from forec_jax.data.source import DataError

_DIGITS = 7
"""Characters of a compressed number, 5 bits each: no image has more than 2^34 pixels."""


def counts_of_text(text: str, file: str) -> list[int]:
    """The run lengths that COCO's compressed form stands for.

    Each is written in characters from "0" (48) on, six bits each: five of the number, the lowest first, and one that says
    whether more follow; the last one's fifth bit is the sign. From the fourth number on the difference to the one before
    the last is written. Raises DataError for other characters and a number that is cut off or too long.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * _DIGITS:
            raise DataError(f"{file}: {character!r} has no place in compressed run lengths; export the mask anew")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << (shift - 4)
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number = shift = 0
    if shift:
        raise DataError(f"{file}: compressed run lengths are cut off; export the mask anew")
    return counts


def mask_of_runs(counts: Sequence[int], size: Size, order: Literal["rows", "columns"], file: str) -> np.ndarray:
    """bool[H,W] of run lengths, outside and inside in turn, that go along rows or down columns.

    Raises DataError where they do not make up `size`.
    """
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise DataError(f"{file}: run lengths do not add up to {size[1]}x{size[0]} pixels; export the mask anew")
    inside = np.arange(len(counts)) % 2 == 1
    pixels = np.repeat(inside, np.array(counts, np.int64))
    return pixels.reshape(size) if order == "rows" else pixels.reshape(size[::-1]).T


def mask_of_picture(text: str, file: str) -> np.ndarray:
    """bool[h,w] of an image file in base64: what is not black. Raises DataError where it cannot be read."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{file}: a mask is no base64 ({error}); export it anew") from error
    image = open_image(data, f"{file}, a mask in it").image
    if image.mode not in ("1", "L", "P") or is_transparent(image):
        raise DataError(f"{file}: a mask is in colours (mode {image.mode}); export it anew")
    return np.asarray(image) > 0


def placed(part: np.ndarray, left: int, top: int, size: Size) -> np.ndarray:
    """bool[H,W]: a mask bool[h,w] at its place in an image; what is outside is cut off."""
    mask = np.zeros(size, bool)
    rows = slice(max(top, 0), max(min(top + part.shape[0], size[0]), 0))
    columns = slice(max(left, 0), max(min(left + part.shape[1], size[1]), 0))
    if rows.start < rows.stop and columns.start < columns.stop:
        mask[rows, columns] = part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return mask
