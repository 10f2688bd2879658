"""Class indices as colours. Palettes are u8[n,3], or rows of them, with n <= 256, by class index."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from forec_jax.contracts import IGNORE

IGNORE_COLOUR = (224, 224, 192)
"""What PASCAL VOC's rule gives 255: the cream of its void borders."""


def colourise(index: np.ndarray, palette: ArrayLike) -> np.ndarray:
    """u8[H,W,3]: the colours of class indices int[H,W] in 0..255; IGNORE is cream."""
    return _full(palette)[np.asarray(index, np.uint8)]


def overlay(image: np.ndarray, index: np.ndarray, palette: ArrayLike, alpha: float = 0.5) -> np.ndarray:
    """u8[H,W,3]: the image u8[H,W,3] under the colours of int[H,W]; `alpha` 0 is the image, 1 the colours."""
    blend = (1.0 - alpha) * image + alpha * colourise(index, palette)
    return np.rint(blend).astype(np.uint8)


def save_index_png(path: str | Path, index: np.ndarray, palette: ArrayLike) -> None:
    """Write int[H,W] as a PNG whose pixel values are the class indices, shown in the palette's colours."""
    picture = Image.fromarray(np.asarray(index, np.uint8))
    picture.putpalette(_full(palette).tobytes())  # turns the mode from L to P, pixel values unchanged
    picture.save(path, format="PNG")


def _full(palette: ArrayLike) -> np.ndarray:
    """u8[256,3]: the palette with black for further indices and cream for IGNORE."""
    full = np.zeros((256, 3), np.uint8)
    colours = np.asarray(palette, np.uint8).reshape(-1, 3)
    full[: len(colours)] = colours
    full[IGNORE] = IGNORE_COLOUR
    return full
