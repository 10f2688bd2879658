"""What the pixels of a mask mean: class indices, or a colour for each class."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data.imagefile import alpha_of, is_transparent
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import RGB, DataError

_FORBIDDEN = 253  # stands for a value that no mask may hold; class indices end below it


@dataclass(frozen=True)
class MaskRule:
    """What the pixels of an index mask may be: a class's value, one of `void`, or `unlabelled`."""

    num_classes: int
    void: tuple[int, ...] = (IGNORE,)  # these values are read as IGNORE
    values: tuple[int, ...] | None = None  # the pixel value of each class; None: its index
    unlabelled: tuple[int, ...] = ()  # these values are read as UNLABELLED
    class_file: str = ""  # messages say what to write into it; "": there is none

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

    def label(self, mask: Image.Image, file: str, remarks: Remarks | None = None) -> np.ndarray:
        """The label u8[H,W] of a palette or grey image, or of one whose colours are all grey.

        Raises DataError for colours and for a value not allowed.
        """
        index = _index_of(mask, file)
        label = np.take(self.table, index, mode="clip")  # faster than table[index]
        wrong = label == _FORBIDDEN
        if index.dtype != np.uint8:  # it may hold more than the table does
            wrong |= (index < 0) | (index > 255)
        if wrong.any():
            bad = np.unique(index[wrong]).tolist()
            raise DataError(
                f"{file}: the mask holds {bad[:5]}; allowed are {self._allowed()}. "
                + self._advice(frozenset(bad), frozenset(np.unique(index).tolist()))
            )
        return label

    def _allowed(self) -> str:
        values = self.values or range(self.num_classes)
        classes = f"{values[0]} to {values[-1]}" if values[-1] - values[0] == len(values) - 1 else str(values)[1:-1]
        others = [f"{value} (void)" for value in self.void] + [f"{value} (unlabelled)" for value in self.unlabelled]
        return f"{classes} and {', '.join(others)}" if others else f"{classes}, and no void"

    def _advice(self, bad: frozenset[int], present: frozenset[int]) -> str:
        """What to do about the values `bad` in a mask that holds those `present`: the lines of the class file to add."""
        if not self.class_file:
            return "Convert the mask, or correct the number of classes"
        if self.num_classes == 2 and bad == {255} and 1 not in present:
            return (
                "Where white is the second class, write `colours = [[0, 0, 0], [255, 255, 255]]` into "
                f"{self.class_file}; where it is no class, `void = 255`"
            )
        from_one = self.values is None and bad - {255} == {self.num_classes}
        if bad - {255} and not from_one:
            return f"Convert the mask, or complete `names` in {self.class_file}, or give there the masks' `colours`"
        void = sorted({*self.void, *(bad & {255}), *(present & {0} if from_one else ())})
        lines = ["first = 1"] * from_one + [f"void = {void[0] if len(void) == 1 else void}"] * (void != [*self.void])
        meaning = "the classes count from 1" if from_one else "255 means no class"
        return f"If {meaning}, write {' and '.join(f'`{line}`' for line in lines)} into {self.class_file}"


def _index_of(mask: Image.Image, file: str) -> np.ndarray:
    """The values [H,W] of an image that holds indices. Raises DataError for one that holds colours."""
    if mask.mode in ("P", "L", "I", "I;16", "I;16L", "I;16B"):
        return np.asarray(mask)
    if mask.mode in ("RGB", "RGBA", "LA") and not is_transparent(mask):
        pixels = np.asarray(mask.convert("RGB"))
        if (pixels == pixels[..., :1]).all():
            return pixels[..., 0]
    raise DataError(
        f"{file}: the mask's mode is {mask.mode}; save class indices as an 8-bit palette (P) or grey (L) PNG, "
        "or in a folder of your own give the class file `colours`"
    )


@dataclass(frozen=True)
class ColourRule:
    """What the pixels of a colour mask may be: a class's colour, `void`, `unlabelled`, or transparent."""

    colours: tuple[RGB, ...]  # one a class, all different
    void: RGB | None = None  # this colour is read as IGNORE
    unlabelled: RGB | None = None  # this one as UNLABELLED
    transparent: int | None = None  # the class of transparent pixels; None: there may be none

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

    def label(self, mask: Image.Image, file: str, remarks: Remarks | None = None) -> np.ndarray:
        """The label u8[H,W] of an image in colours of any mode.

        Raises DataError for a colour not in the table, and for transparency that means no class.
        """
        if mask.mode.startswith(("I", "F")):
            raise DataError(f"{file}: the mask's values have 16 bits or more; export it in 8-bit colours")
        pixels = np.asarray(mask.convert("RGB"))
        if not is_transparent(mask):
            return self._label_of(pixels, file)
        if remarks is not None:
            remarks.add("transparent pixels are read as background", file)
        return self._label_of(self._on_background(pixels, alpha_of(mask), file), file)

    def _on_background(self, pixels: np.ndarray, alpha: np.ndarray, file: str) -> np.ndarray:
        """The pixels with the background's colour where they are transparent. Those that are so by half are refused."""
        if self.transparent is None:
            raise DataError(
                f'{file}: has transparent pixels; say in the class file which class they are (background = "NAME"), or '
                "put the mask on a background"
            )
        if ((alpha > 0) & (alpha < 255)).any():
            y, x = map(int, np.argwhere((alpha > 0) & (alpha < 255))[0])
            raise DataError(
                f"{file}: the pixel at x={x}, y={y} is half transparent; export the mask without smoothing (anti-aliasing)"
            )
        return np.where(alpha[..., None] == 0, np.array(self.colours[self.transparent], np.uint8), pixels)

    def _label_of(self, pixels: np.ndarray, file: str) -> np.ndarray:
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
