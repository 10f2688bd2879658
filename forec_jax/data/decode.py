"""Encoded image and mask files to arrays, with errors that name the file."""

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from forec_jax.data.imagefile import ImageFile, fit, open_image, to_rgb, turn
from forec_jax.data.remarks import Remarks
from forec_jax.data.rules import ColourRule, MaskRule
from forec_jax.data.shrink import shrunk_size
from forec_jax.data.source import DataError

__all__ = ["ColourRule", "Follow", "MaskRule", "Photo", "decode_image", "decode_mask", "decode_photo"]

Follow = Literal["display", "file"]
"""What masks were drawn on: the photograph as viewers show it, or as its file holds it, before it is turned."""


class Photo(NamedTuple):
    """An image and what its mask must fit."""

    pixels: np.ndarray  # u8[h,w,3], upright
    size: tuple[int, int]  # height and width of the file, upright; `pixels` may be smaller
    orientation: int = 1  # the EXIF tag by which it was turned
    lossy: bool = False  # its file's format changes pixels a little


def decode_image(data: bytes, file: str) -> np.ndarray:
    """The image u8[H,W,3] in `data`, upright. Raises DataError, naming `file`, where it is broken or `to_rgb` refuses it."""
    return decode_photo(data, file).pixels


def decode_photo(data: bytes, file: str, longest_side: int = 0, remarks: Remarks | None = None) -> Photo:
    """The image in `data`, upright, with at most `longest_side` pixels a side (0: as it is).

    A large JPEG is decoded at a part of its size, which takes a part of the time and memory. Raises DataError, naming
    `file`, where it is broken or `to_rgb` refuses it.
    """
    opened = open_image(data, file, longest_side)
    pixels = np.asarray(fit(to_rgb(opened, file, remarks), shrunk_size(*opened.size, longest_side)))
    return Photo(pixels, opened.size, opened.orientation, opened.lossy)


def decode_mask(data: bytes, file: str, shape: tuple[int, ...], rule: MaskRule | ColourRule) -> np.ndarray:
    """The label u8[H,W] encoded in `data`, as `rule` reads it.

    Raises DataError, naming `file`, where it is broken, is not of `shape` (the image's) or holds what `rule` does not
    allow.
    """
    mask = open_mask(data, file)
    return _checked(rule.label(mask.image, file), file, shape)


def decode_mask_of(
    photo: Photo, data: bytes, file: str, rule: MaskRule | ColourRule, follow: Follow, remarks: Remarks
) -> np.ndarray:
    """The label u8[H,W] of a photograph, at the size of its file; `follow` says how a turned one's mask lies.

    Raises DataError as `decode_mask` does, and where the size shows that `follow` is wrong.
    """
    mask = open_mask(data, file)
    image, orientation = mask.image, photo.orientation
    if orientation > 1:
        if (_size(image) == photo.size) != (_size(turn(image, orientation)) == photo.size):
            _check_turn(image, file, photo, follow)
        elif follow == "display":
            remarks.add(_ASKED, file)
    label = rule.label(turn(image, orientation) if follow == "file" else image, file, remarks)
    return _checked(label, file, photo.size)


_ASKED = (
    "the photograph has an orientation tag, and its size does not tell whether the mask was drawn before or after turning "
    'it; it is taken to fit what viewers show. If it does not, set data.folder.masks_follow="file"'
)


def _check_turn(mask: Image.Image, file: str, photo: Photo, follow: Follow) -> None:
    """Raises DataError where the mask fits the photograph in the other way alone."""
    fits = "display" if _size(mask) == photo.size else "file"
    if fits != follow:
        drawn = {"file": "before it is turned", "display": "as viewers show it"}[fits]
        raise DataError(
            f"{file}: the mask is {mask.width}x{mask.height}, as is its photograph {drawn}: that has an orientation tag "
            f'({photo.orientation}). If all masks were drawn so, set data.folder.masks_follow="{fits}"; '
            "otherwise turn this mask, or take the tag out of the photograph"
        )


def open_mask(data: bytes, file: str) -> ImageFile:
    """The image in `data`. Raises DataError, naming `file`, where it is broken, or its format changes values."""
    mask = open_image(data, file)
    if mask.lossy:
        raise DataError(
            f"{file}: holds a {mask.image.format or 'JPEG'} that changes the values of a mask, whatever its name; "
            "export the mask as PNG"
        )
    return mask


def _checked(label: np.ndarray, file: str, shape: tuple[int, ...]) -> np.ndarray:
    if label.shape != tuple(shape[:2]):
        height, width = label.shape
        raise DataError(
            f"{file}: the mask is {width}x{height}, its image {shape[1]}x{shape[0]} pixels; "
            "resize one of them (masks to the nearest pixel)"
        )
    return label


def _size(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width
