"""Boxes that a mixing pastes or cuts out: one for each row, drawn from a distribution."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Array


class Box(Protocol):
    """A distribution of boxes. A frozen dataclass."""

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        ...


@dataclass(frozen=True)
class AreaBox:
    """A box of a share of the image drawn from `area` and an aspect (height / width) from `aspect`: UniMatch, ST++.

    Their code draws aspect and corner again until the box fits into the image. That is the uniform distribution over
    all placements that fit, which is drawn here at once, with the aspect in 64 steps. Where no aspect fits at all (a
    large area in a long image), boxes are cut to the image's size.
    """

    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, place_key = jax.random.split(key)
        area = jax.random.uniform(area_key, (rows, 1), minval=self.area[0], maxval=self.area[1]) * (height * width)
        low, high = self.aspect
        aspect = low + (high - low) * (np.arange(64, dtype=np.float32)[None] + 0.5) / 64
        # At least one pixel, which UniMatch's truncation lets vanish in tiny images.
        box_height = jnp.maximum(jnp.sqrt(area * aspect).astype(jnp.int32), 1)  # i32[rows,64]
        box_width = jnp.maximum(jnp.sqrt(area / aspect).astype(jnp.int32), 1)
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class HalfAreaBox:
    """ReCo's and U2PL's box: a width between half and all of the image's, and always half of its area."""

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        width_key, place_key = jax.random.split(key)
        low = width // 2 + 1
        box_width = jax.random.randint(width_key, (rows, 1), low, max(width, low + 1))
        box_height = jnp.maximum(jnp.round(height * width / 2 / box_width).astype(jnp.int32), 1)
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class BetaBox:
    """PS-MT's and CutMix's box: of the image's shape, a share of its area from Beta(alpha, alpha), wherever it fits.

    CutMix (Yun et al., ICCV 2019) draws the centre anywhere and cuts the box at the borders; here it lies inside.
    """

    alpha: float = 4.0

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, place_key = jax.random.split(key)
        side = jnp.sqrt(jax.random.beta(area_key, self.alpha, self.alpha, (rows, 1)))
        box_height, box_width = (jnp.maximum(jnp.round(side * size).astype(jnp.int32), 1) for size in (height, width))
        return _place(place_key, box_height, box_width, height, width)


@dataclass(frozen=True)
class ClippedBox:
    """PS-MT's box as published for VOC: of the image's shape, one size for all rows, cut off at the image's borders.

    Its share of the area, before it is cut, is from Beta(alpha, alpha); its centre lies anywhere but in the first eighth of
    either side. The mean of what is left is 0.358 of the area, with a deviation of 0.134.
    """

    alpha: float = 4.0

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        side_key, *centre_keys = jax.random.split(key, 3)
        side = jnp.sqrt(jax.random.beta(side_key, self.alpha, self.alpha))
        inside = []
        for centre_key, size in zip(centre_keys, (height, width), strict=True):
            half = (side * size).astype(jnp.int32) // 2
            centre = jax.random.randint(centre_key, (rows, 1), size // 8, size)
            place = jnp.arange(size)[None]
            inside.append((place >= centre - half) & (place < centre + half))
        return inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class SquareBox:
    """PseudoSeg's square: a side of a fifth of the image's, centred anywhere, cut off at the borders.

    Published: 100 pixels of a crop of 513.
    """

    side: float = 100 / 513

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        half = max(round(self.side * min(height, width) / 2), 1)
        inside = []
        for axis_key, size in zip(jax.random.split(key), (height, width), strict=True):
            first = jax.random.randint(axis_key, (rows, 1), 0, size) - half
            place = jnp.arange(size)[None]
            inside.append((place >= first) & (place < first + 2 * half))
        return inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class ShareBox:
    """A part of a random share of the image: CutMix-Seg's box (French et al., BMVC 2020), of which PS-MT pastes three.

    The share p is from `area`, the box's height p^u of the image's with u from [0, 1], its width p^(1-u) of it; both are
    then divided by the square root of `parts`. It lies anywhere inside.
    """

    parts: int = 3
    area: tuple[float, float] = (0.25, 0.5)

    def __call__(self, key: Array, rows: int, height: int, width: int) -> Array:
        """bool[rows,height,width], True inside a box drawn for each row."""
        area_key, aspect_key, *place_keys = jax.random.split(key, 4)
        share = jax.random.uniform(area_key, (rows, 1), minval=self.area[0], maxval=self.area[1])
        tall = jnp.power(share, jax.random.uniform(aspect_key, (rows, 1)))
        inside = []
        for place_key, part, size in zip(place_keys, (tall, share / tall), (height, width), strict=True):
            length = jnp.round(part * size / self.parts**0.5)
            first = jnp.round((size - length) * jax.random.uniform(place_key, (rows, 1)))
            place = jnp.arange(size, dtype=jnp.float32)[None]
            inside.append((place >= first) & (place < first + length))
        return inside[0][:, :, None] & inside[1][:, None, :]


def _place(key: Array, box_height: Array, box_width: Array, height: int, width: int) -> Array:
    """bool[B,height,width]: one of all placements of the candidate boxes i32[B,n] in the image, uniformly.

    The draw is an integer below the number of placements, so that rounding cannot make devices disagree.
    """
    fits = (box_height <= height) & (box_width <= width)
    fits |= ~jnp.any(fits, axis=-1, keepdims=True)
    box_height, box_width = jnp.minimum(box_height, height), jnp.minimum(box_width, width)
    lefts = width - box_width + 1
    placements = jnp.where(fits, (height - box_height + 1) * lefts, 0)
    last = jnp.cumsum(placements, axis=-1)
    draw = jax.random.randint(key, last.shape[:1], 0, last[:, -1])[:, None]
    is_drawn = (draw < last) & (draw >= last - placements)  # exactly one in each row

    def of_drawn(values: Array) -> Array:
        return jnp.sum(jnp.where(is_drawn, values, 0), axis=-1)[:, None, None]

    offset = of_drawn(draw - (last - placements))
    top, left = offset // of_drawn(lefts), offset % of_drawn(lefts)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside_rows = (y >= top) & (y < top + of_drawn(box_height))
    return inside_rows & (x >= left) & (x < left + of_drawn(box_width))
