"""Which pixels an outline covers, by the rule of the tool that it was drawn with.

The pixel in column c and row r covers c <= x < c + 1 and r <= y < r + 1. There are two rules.

- `by_centres`: a pixel belongs to an outline that holds its centre (c + 1/2, r + 1/2). It is COCO's and CVAT's, and is left
  to pycocotools, which rounds outlines to a fifth of a pixel.
- `by_touch`: points name pixels, x = c being the middle of column c, and the pixels on the outline belong to it. It is
  Labelme's and Cityscapes', and is left to Pillow, with which these draw. A shape is up to a pixel wider and higher so.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from forec_jax.annotations.drawn import NothingDrawn, Size
from forec_jax.data.source import DataError

_LONGEST = 1_000_000
"""Pixels that an outline may be long: a fractal's length costs memory."""


def by_centres(parts: Sequence[np.ndarray], file: str, size: Size) -> np.ndarray:
    """bool[H,W]: the pixels whose centres lie in any of the outlines f64[n,2].

    Raises NothingDrawn where none has an area, DataError for an outline that is unreasonably long.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "COCO's and CVAT's outlines need pycocotools, which is not installed: pip install 'forec-jax[import]'"
        ) from error
    wide = [part for part in parts if not _is_flat(part)]
    if not wide:
        raise NothingDrawn("has no area")
    near = [_near(part, file, size) for part in wide]
    flat = [part.ravel().tolist() for part in near if len(part) > 2]  # pycocotools takes two points for a box
    if not flat:
        return np.zeros(size, bool)
    return np.asarray(mask.decode(mask.merge(mask.frPyObjects(flat, *size))), bool)


def by_touch(points: np.ndarray, file: str, size: Size) -> np.ndarray:
    """bool[H,W]: the pixels in an outline f64[n,2], and those that its line runs through.

    Raises as `by_centres` does.
    """
    if _is_flat(points):
        raise NothingDrawn("has no area")
    canvas, near = Image.new("1", size[::-1]), _near(points, file, size)
    if len(near) > 2:
        ImageDraw.Draw(canvas).polygon([*map(tuple, near.tolist())], fill=1, outline=1)
    return np.asarray(canvas)


def rectangle_by_touch(points: np.ndarray, size: Size) -> np.ndarray:
    """bool[H,W]: the pixels from one corner to the other one, both included; `points` is f64[2,2]."""
    canvas = Image.new("1", size[::-1])
    limit = np.array(size[::-1]) + 1
    low, high = (np.clip(corner, -1, limit).tolist() for corner in (points.min(axis=0), points.max(axis=0)))
    ImageDraw.Draw(canvas).rectangle((*low, *high), fill=1, outline=1)
    return np.asarray(canvas)


def circle_by_touch(centre: np.ndarray, radius: float, file: str, size: Size) -> np.ndarray:
    """bool[H,W]: the pixels in a circle and on its line."""
    if radius > 2 * sum(size):  # Pillow would walk along all of it
        return by_touch(ellipse(centre, (radius, radius)), file, size)
    canvas = Image.new("1", size[::-1])
    box = (*(centre - radius).tolist(), *(centre + radius).tolist())
    if max(map(abs, box)) < 10 * sum(size):
        ImageDraw.Draw(canvas).ellipse(box, fill=1, outline=1)
    return np.asarray(canvas)


def ellipse(centre: np.ndarray, radii: Sequence[float], degrees: float = 0.0) -> np.ndarray:
    """f64[360,2]: the outline of an ellipse, turned clockwise as it is seen."""
    angle = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    return turned(np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=1), np.zeros(2), degrees) + centre


def turned(points: np.ndarray, centre: np.ndarray, degrees: float) -> np.ndarray:
    """f64[n,2]: points turned about a centre, clockwise as they are seen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre


def reaches_outside(points: np.ndarray, size: Size) -> bool:
    """Whether a point lies outside an image, whose right border is x = width."""
    return bool((points < 0).any() or (points > np.array(size[::-1])).any())


def _is_flat(points: np.ndarray) -> bool:
    """Whether all points lie on one line."""
    if len(points) < 3:
        return True
    along = points - points[0]
    far = along[np.argmax(np.abs(along).sum(axis=1))]
    return not np.any(along[:, 0] * far[1] != along[:, 1] * far[0])


def _near(points: np.ndarray, file: str, size: Size) -> np.ndarray:
    """The outline, cut off where it is farther outside the image than the image is large: memory goes with its length."""
    height, width = size
    for axis, low, high in ((0, -width - 16, 2 * width + 16), (1, -height - 16, 2 * height + 16)):
        points = _cut(_cut(points, axis, low, 1), axis, high, -1)
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum()
    if length > _LONGEST:
        raise DataError(f"{file}: an outline is {length:.0f} pixels long, which no drawn one is; export it anew")
    return points


def _cut(points: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
    """The part of a closed outline on one side of a line (Sutherland and Hodgman, 1974)."""
    if not len(points) or (sign * (points[:, axis] - bound) >= 0).all():
        return points
    start, end = points, np.roll(points, -1, axis=0)
    starts, ends = (sign * (place[:, axis] - bound) >= 0 for place in (start, end))
    crosses = starts != ends
    step = np.where(crosses, end[:, axis] - start[:, axis], 1)
    crossing = start + (end - start) * ((bound - start[:, axis]) / step)[:, None]
    return np.stack([crossing, end], axis=1)[np.stack([crosses, ends], axis=1)]
