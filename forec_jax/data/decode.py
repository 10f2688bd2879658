"""Encoded image and mask files to arrays, with errors that name the file."""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE
from forec_jax.data.source import DataError

_FORBIDDEN = 254  # stands for a value that no mask may hold; class indices end below it


@dataclass(frozen=True)
class MaskRule:
    """What the pixels of a mask file may be: a class index below `num_classes`, or one of `void`."""

    num_classes: int
    void: tuple[int, ...] = (IGNORE,)  # these values are read as IGNORE

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= _FORBIDDEN:
            raise DataError(f"{self.num_classes} classes do not fit a mask of bytes; use 1 to {_FORBIDDEN}")

    @cached_property
    def table(self) -> np.ndarray:
        """u8[256], the label of each pixel value."""
        table = np.full(256, _FORBIDDEN, np.uint8)
        table[: self.num_classes] = np.arange(self.num_classes)
        table[list(self.void)] = IGNORE
        return table


def decode_image(data: bytes, file: str) -> np.ndarray:
    """The image u8[H,W,3] encoded in `data`. Raises DataError, naming `file`, where it is broken."""
    return np.asarray(open_image(data, file).convert("RGB"))


def decode_mask(data: bytes, file: str, shape: tuple[int, ...], rule: MaskRule) -> np.ndarray:
    """The label u8[H,W] encoded in `data`: a palette or grey PNG whose pixels are class indices.

    Raises DataError, naming `file`, where it is broken, has colours instead of indices, is not of `shape` (the image's)
    or holds a value that `rule` does not allow.
    """
    mask = open_image(data, file)
    if mask.mode not in ("P", "L"):
        raise DataError(
            f"{file}: the mask's mode is {mask.mode}; save class indices as an 8-bit palette (P) or grey (L) PNG"
        )
    index = np.asarray(mask)
    if index.shape != tuple(shape[:2]):
        raise DataError(
            f"{file}: the mask is {mask.width}x{mask.height}, its image {shape[1]}x{shape[0]} pixels; "
            "resize one of them (masks to the nearest pixel)"
        )
    label = rule.table[index]
    if (label == _FORBIDDEN).any():
        values = sorted(set(np.unique(index[label == _FORBIDDEN]).tolist()))
        raise DataError(
            f"{file}: the mask holds {values[:5]}; allowed are 0 to {rule.num_classes - 1} and "
            f"{', '.join(map(str, rule.void))} (void). Convert the mask, or correct the number of classes"
        )
    return label


def open_image(data: bytes, file: str) -> Image.Image:
    """The image in `data` as Pillow holds it. Raises DataError, naming `file`, where it is broken."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be decoded ({error}); replace the file, or take it off the list") from error
    return image
