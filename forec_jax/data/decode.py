"""Encoded image and mask files to arrays, with errors that name the file."""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data.source import RGB, DataError

_FORBIDDEN = 253  # stands for a value that no mask may hold; class indices end below it


@dataclass(frozen=True)
class MaskRule:
    """What the pixels of an index mask may be: a class's value, one of `void`, or `unlabelled`."""

    num_classes: int
    void: tuple[int, ...] = (IGNORE,)  # these values are read as IGNORE
    values: tuple[int, ...] | None = None  # the pixel value of each class; None: its index
    unlabelled: tuple[int, ...] = ()  # these values are read as UNLABELLED

    def __post_init__(self) -> None:
        _check_count(self.num_classes)

    @cached_property
    def table(self) -> np.ndarray:
        """u8[256], the label of each pixel value."""
        table = np.full(256, _FORBIDDEN, np.uint8)
        table[list(self.values or range(self.num_classes))] = np.arange(self.num_classes)
        table[list(self.void)] = IGNORE
        table[list(self.unlabelled)] = UNLABELLED
        return table

    def label(self, mask: Image.Image, file: str) -> np.ndarray:
        """The label u8[H,W] of a palette or grey image. Raises DataError for colours and for a value not allowed."""
        if mask.mode not in ("P", "L"):
            raise DataError(
                f"{file}: the mask's mode is {mask.mode}; save class indices as an 8-bit palette (P) or grey (L) PNG, "
                "or in a folder of your own give the class file `colours`"
            )
        index = np.asarray(mask)
        label = np.take(self.table, index)  # faster than table[index]
        if (label == _FORBIDDEN).any():
            values = sorted(set(np.unique(index[label == _FORBIDDEN]).tolist()))
            raise DataError(
                f"{file}: the mask holds {values[:5]}; allowed are {self._allowed()}. "
                "Convert the mask, or correct the number of classes; a folder's class file may give its masks `colours`, "
                "black and white too"
            )
        return label

    def _allowed(self) -> str:
        classes = f"0 to {self.num_classes - 1}" if self.values is None else ", ".join(map(str, self.values))
        others = [f"{value} (void)" for value in self.void] + [f"{value} (unlabelled)" for value in self.unlabelled]
        return f"{classes} and {', '.join(others)}" if others else f"{classes}, and no void"


@dataclass(frozen=True)
class ColourRule:
    """What the pixels of a colour mask may be: a class's colour, `void`, or `unlabelled`."""

    colours: tuple[RGB, ...]  # one a class, all different
    void: RGB | None = None  # this colour is read as IGNORE
    unlabelled: RGB | None = None  # this one as UNLABELLED

    def __post_init__(self) -> None:
        _check_count(len(self.colours))

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """The colours as numbers i32[n], rising, and their labels u8[n]."""
        others = {IGNORE: self.void, UNLABELLED: self.unlabelled}
        label_of = dict(enumerate(self.colours)) | {k: colour for k, colour in others.items() if colour is not None}
        codes = _code(np.array(list(label_of.values()), np.uint8))
        order = np.argsort(codes)
        return codes[order], np.array(list(label_of), np.uint8)[order]

    def label(self, mask: Image.Image, file: str) -> np.ndarray:
        """The label u8[H,W] of an image in colours of any mode. Raises DataError for a colour not in the table."""
        pixels = to_rgb(mask, file)
        codes, labels = self.table
        code = _code(pixels)
        position = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
        unknown = codes[position] != code
        if unknown.any():
            y, x = map(int, np.argwhere(unknown)[0])
            colour = tuple(pixels[y, x].tolist())
            raise DataError(
                f"{file}: the colour {colour} at x={x}, y={y} ({int(unknown.sum())} such pixels) is no class's; add it to "
                "the class file, or save the mask without smoothing or compression losses. Masks of class indices "
                "need a class file without colours"
            )
        return labels[position]


def _check_count(classes: int) -> None:
    if not 1 <= classes <= _FORBIDDEN:
        raise DataError(f"{classes} classes do not fit a mask of bytes; use 1 to {_FORBIDDEN}")


def _code(colours: np.ndarray) -> np.ndarray:
    """i32[...]: one number for each colour of u8[...,3]."""
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def decode_image(data: bytes, file: str) -> np.ndarray:
    """The image u8[H,W,3] in `data`, upright. Raises DataError, naming `file`, where it is broken or `to_rgb` refuses it."""
    return to_rgb(open_image(data, file), file)


def decode_mask(data: bytes, file: str, shape: tuple[int, ...], rule: MaskRule | ColourRule) -> np.ndarray:
    """The label u8[H,W] encoded in `data`, as `rule` reads it.

    Raises DataError, naming `file`, where it is broken, is not of `shape` (the image's) or holds what `rule` does not
    allow.
    """
    mask = open_image(data, file)
    label = rule.label(mask, file)
    if label.shape != tuple(shape[:2]):
        raise DataError(
            f"{file}: the mask is {mask.width}x{mask.height}, its image {shape[1]}x{shape[0]} pixels; "
            "resize one of them (masks to the nearest pixel)"
        )
    return label


def to_rgb(image: Image.Image, file: str) -> np.ndarray:
    """u8[H,W,3]: grey is repeated, an alpha channel that hides nothing is dropped.

    Colours of 16 bits keep their upper 8, as in every viewer. Raises DataError, naming `file`, for transparency (what
    is behind it is unknown) and for grey values of more than 8 bits (which range of them is black to white is unknown).
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{file}: its values have 16 bits or more (mode {image.mode}), and their range is not known; "
            "scale them to 0-255 and save as an 8-bit image"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise DataError(
                f"{file}: has transparent pixels, whose colour is not defined; put it on a background and save as RGB"
            )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def open_image(data: bytes, file: str) -> Image.Image:
    """The image in `data` as Pillow holds it, upright. Raises DataError, naming `file`, where it is broken."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a mask is drawn on what viewers show
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: too many pixels ({error}); scale it down, or cut it into tiles") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        remedy = "replace the file, or remove it and its line in any list"
        raise DataError(f"{file}: cannot be decoded ({reason}); {remedy}") from error
    return image
