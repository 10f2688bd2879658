"""What is said of an image at several scales, and of its mirror image."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from forec_jax.contracts import Array
from forec_jax.models.layers import valid_extent, within
from forec_jax.models.resize import resize

Predict = Callable[[Array, Array | None], Array]
"""(image f32[B,h,w,3], valid bool[B,h,w] or None) -> class probabilities f32[B,h,w,K]."""


def mean_over_scales(
    predict: Predict, image: Array, valid: Array | None, scales: Sequence[float], multiple: int
) -> Array:
    """The mean over scales of images' class probabilities, f32[B,H,W,K]. Resizes are bilinear, corners on corners.

    Args:
        predict: what says them; it sees sides that are multiples of `multiple`, and at scale 1 the images as they are.
        image: f32[B,H,W,3].
        valid: bool[B,H,W], a top-left rectangle in each row, which is scaled as it would be alone; None: everything.
        scales: of the sides.
        multiple: of sides (contracts.Network).
    """
    size, extent = (image.shape[1], image.shape[2]), None if valid is None else valid_extent(valid, 1)

    def at(scale: float) -> Array:
        if scale == 1:
            return predict(image, valid)
        height, width = (math.ceil(math.ceil(scale * side) / multiple) * multiple for side in size)
        scaled = None if extent is None else jnp.maximum(jnp.round(scale * extent), 1).astype(jnp.int32)
        seen = resize(image, (height, width), align_corners=True, extent_in=extent, extent_out=scaled)
        said = predict(seen, None if scaled is None else within(scaled, (height, width)))
        return resize(said, size, align_corners=True, extent_in=scaled, extent_out=extent)

    return sum((at(scale) for scale in scales), start=jnp.zeros(())) / len(scales)


def both_ways(predict: Predict) -> Predict:
    """What says the mean of an image's class probabilities and those of its mirror image, turned back."""

    def mean(image: Array, valid: Array | None) -> Array:
        return (predict(image, valid) + mirrored(predict(mirrored(image, valid), valid), valid)) / 2

    return mean


def mirrored(rows: Array, valid: Array | None) -> Array:
    """[B,H,W,C] with each row's valid top-left rectangle (None: all of it) turned left to right; its padding stays."""
    if valid is None:
        return rows[:, :, ::-1]
    width = jnp.sum(valid[:, 0], axis=1)[:, None]
    column = jnp.arange(rows.shape[2])[None]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(rows, source[:, None, :, None], axis=2)
