"""Geometry on the host: random scale, crop and flip of an image together with its mask."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE
from forec_jax.data.source import DataError
from forec_jax.options import ASCENDING, from_to, option

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean colour: padding that normalisation makes about zero."""

MIN_CROP = 33


class Cropped(NamedTuple):
    """What the geometry makes of an image. Padding is at the right and the bottom: `valid` is a top-left rectangle."""

    image: np.ndarray  # u8[crop,crop,3]
    label: np.ndarray | None  # u8[crop,crop], IGNORE where void, `pad_label` in the padding
    valid: np.ndarray  # bool[crop,crop], False in the padding
    confidence: np.ndarray | None = None  # u8[crop,crop], 0 in the padding


@dataclass(frozen=True)
class Geometry:
    """Random scale, then a random square crop, then a random flip; image and mask share all three.

    The image is scaled bilinearly with anti-aliasing, the mask to the nearest pixel. Where the scaled image is smaller
    than the crop the rest is padding. Raises DataError for a crop below 33 or a scale range that is not 0 < lo <= hi.
    """

    crop: int = option(321, "side of the square training crop in pixels, at least 33")
    scale: tuple[float, float] = option(
        (0.5, 2.0), "range of the random scale, relative to the image's own size", ASCENDING
    )
    flip: bool = option(True, "mirror half of the images")
    unlabelled_plain: bool = option(
        False,
        "unlabelled images are cropped alone, not scaled or mirrored (ReCo: its student does that, augment.student_*)",
    )
    half_below_one: bool = option(False, "U2PL: shrink and grow equally often")
    pad_label: int = option(IGNORE, "label of the padding: 255 ignores it; U2PL trains on 0", from_to(0, 255))

    def __post_init__(self) -> None:
        if self.crop < MIN_CROP:
            raise DataError(f"data.crop={self.crop} is too small; use at least {MIN_CROP} pixels")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"the scale range {self.scale} is not 0 < low <= high; use for example (0.5, 2.0)")
        if self.half_below_one and not self.scale[0] < 1 < self.scale[1]:
            raise DataError(f"half_below_one needs 1 inside the scale range, which is {self.scale}")

    def of(self, part: str) -> "Geometry":
        """The geometry of a part of the batch ("labelled", "unlabelled", ...)."""
        plain = part == "unlabelled" and self.unlabelled_plain
        return replace(self, scale=(1.0, 1.0), flip=False, half_below_one=False) if plain else self

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray | None,
        rng: np.random.Generator,
        confidence: np.ndarray | None = None,
    ) -> Cropped:
        """A random view of image u8[H,W,3], label u8[H,W] and the label's confidence u8[H,W] (either may be None)."""
        factor = self._factor(rng)
        window = self._window(image.shape[0], image.shape[1], factor, rng)
        window = window._replace(mirrored=self.flip and rng.random() < 0.5)
        pixels = window.cut(image, Image.Resampling.BILINEAR)
        labels, sure = (
            None if part is None else window.cut(part, Image.Resampling.NEAREST) for part in (label, confidence)
        )
        return self._pad(pixels, labels, sure)

    def _factor(self, rng: np.random.Generator) -> float:
        low, high = self.scale
        if not self.half_below_one:
            return rng.uniform(low, high)
        return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)

    def _window(self, height: int, width: int, factor: float, rng: np.random.Generator) -> "_Window":
        scaled_h, scaled_w = max(1, round(height * factor)), max(1, round(width * factor))
        out_h, out_w = min(self.crop, scaled_h), min(self.crop, scaled_w)
        top, left = rng.integers(scaled_h - out_h + 1), rng.integers(scaled_w - out_w + 1)
        sx, sy = width / scaled_w, height / scaled_h
        return _Window((out_w, out_h), (left * sx, top * sy, (left + out_w) * sx, (top + out_h) * sy))

    def _pad(self, pixels: np.ndarray, labels: np.ndarray | None, confidence: np.ndarray | None) -> Cropped:
        height, width = pixels.shape[:2]
        if (height, width) == (self.crop, self.crop):  # nothing to pad: the batch takes its copy from these
            return Cropped(pixels, labels, np.ones((self.crop, self.crop), bool), confidence)
        image = np.empty((self.crop, self.crop, 3), np.uint8)
        image[:] = PAD_COLOUR
        image[:height, :width] = pixels
        valid = np.zeros((self.crop, self.crop), bool)
        valid[:height, :width] = True
        return Cropped(image, self._padded(labels, self.pad_label), valid, self._padded(confidence, 0))

    def _padded(self, pixels: np.ndarray | None, value: int) -> np.ndarray | None:
        """u8[crop,crop] that holds u8[h,w] at its top left, and `value` elsewhere."""
        if pixels is None:
            return None
        padded = np.full((self.crop, self.crop), value, np.uint8)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        return padded


class _Window(NamedTuple):
    """A part of an image, the size at which it is wanted, and whether it is turned left to right.

    Pillow scales a box as it scales the whole image (it looks past the box's edge), so only the crop is computed.
    """

    size: tuple[int, int]  # width, height of the result
    box: tuple[float, float, float, float]  # left, top, right, bottom in the original's pixels
    mirrored: bool = False

    def cut(self, array: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        """The window of u8[H,W] or u8[H,W,3] at the wanted size."""
        height, width = array.shape[:2]
        left, top, right, bottom = self.box
        box = (left, top, min(right, float(width)), min(bottom, float(height)))  # rounding must not step outside
        picture = Image.fromarray(array).resize(self.size, resample, box=box)
        # By Pillow, which moves whole pixels: a NumPy view with a negative stride is slow to copy into a batch.
        return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else picture)
