"""The student's own geometry: its view is scaled, cropped and mirrored anew, with all that is known of its pixels.

Each change is a function `(key, rows) -> rows` of the rows' own size, as a mixing is. The teacher sees nothing of it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from forec_jax.augment.masking import mean_colour
from forec_jax.augment.mixing import Mixing, Rows
from forec_jax.contracts import IGNORE, Array
from forec_jax.options import ASCENDING, option


@dataclass(frozen=True)
class StudentOptions:
    """What the student's view goes through beside the geometry that it shares with the teacher's (data.*)."""

    student_scale: tuple[float, float] = option(
        (1.0, 1.0), "range of a scale of the student's view alone, which is then cropped anew; (1, 1): none", ASCENDING
    )
    student_order: Literal["after", "before"] = option(
        "after", 'whether that scale comes "after" mixing, or "before" it (as ReCo\'s code)'
    )
    student_flip: bool = option(False, "mirror half of the student's views anew, after mixing")
    student_labelled: bool = option(True, "the labelled rows' views as well; False: the others' alone (ReCo)")


class _Window(NamedTuple):
    """Along one axis: what part of the scaled row is seen. i32[B]."""

    scaled: Array  # pixels of the whole scaled row
    offset: Array  # of them before the first that is seen


@dataclass(frozen=True)
class Zoom:
    """Scales each row by a factor drawn from `scale` and cuts its own size out of it at a place drawn uniformly.

    Where the scaled row is smaller the rest is padding, at the right and the bottom: mean colour, IGNORE, confidence 0,
    no ground truth, invalid. Images are scaled bilinearly, with anti-aliasing where they shrink; everything else is that
    of the nearest pixel, the confidence as well: it belongs to that pixel's label. A factor of 1 changes nothing.
    """

    scale: tuple[float, float]

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` scaled and cropped."""
        scale_key, row_key, column_key = jax.random.split(key, 3)
        count, *size = rows.label.shape
        low, high = self.scale
        factor = jax.random.uniform(scale_key, (count,), minval=low, maxval=high)
        high_window, wide_window = (
            _window(axis_key, factor, length) for axis_key, length in zip((row_key, column_key), size, strict=True)
        )
        return _seen_through(rows, high_window, wide_window)


@dataclass(frozen=True)
class Mirror:
    """Mirrors half of the rows, left to right."""

    probability: float = 0.5

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows`, some of them mirrored in every field."""
        turned = jax.random.bernoulli(key, self.probability, rows.label.shape[:1])

        def of(field: Array) -> Array:
            return jnp.where(turned.reshape(-1, *(1,) * (field.ndim - 1)), field[:, :, ::-1], field)

        return jax.tree.map(of, rows)


@dataclass(frozen=True)
class InTurn:
    """Several changes, one after another, each with a key of its own."""

    changes: tuple[Mixing, ...]

    def __call__(self, key: Array, rows: Rows) -> Rows:
        """`rows` after all changes."""
        for change, change_key in zip(self.changes, jax.random.split(key, len(self.changes)), strict=True):
            rows = change(change_key, rows)
        return rows


def with_geometry(mixing: Mixing, o: StudentOptions) -> Mixing:
    """The mixing with the student's geometry before and after it; the mixing alone where the options ask for none."""
    zoom = () if o.student_scale == (1.0, 1.0) else (Zoom(o.student_scale),)
    mirror = (Mirror(),) if o.student_flip else ()
    before, after = (zoom, mirror) if o.student_order == "before" else ((), (*zoom, *mirror))
    return InTurn((*before, mixing, *after)) if before or after else mixing


def _window(key: Array, factor: Array, length: int) -> _Window:
    """A window of `length` pixels at most onto rows of `length` pixels scaled by f32[B], at any place where it fits."""
    scaled = jnp.maximum(jnp.round(length * factor).astype(jnp.int32), 1)
    offset = jax.random.randint(key, factor.shape, 0, jnp.maximum(scaled - length, 0) + 1)
    return _Window(scaled, offset)


def _seen_through(rows: Rows, high: _Window, wide: _Window) -> Rows:
    """What the windows show of rows [B,H,W,...], at the same size."""
    height, width = rows.label.shape[1:]
    inside = _inside(high, height)[:, :, None] & _inside(wide, width)[:, None, :]
    row, column = _nearest(high, height), _nearest(wide, width)
    pick = jax.vmap(lambda field, i, j: field[i[:, None], j[None, :]])

    def nearest(field: Array, outside: int = 0) -> Array:
        shown = inside.reshape(*inside.shape, *(1,) * (field.ndim - 3))
        return jnp.where(shown, pick(field, row, column), jnp.asarray(outside, field.dtype))

    rows_weights, columns_weights = _bilinear(high, height), _bilinear(wide, width)
    fill = mean_colour()

    def bilinear(image: Array) -> Array:
        # Full float32 products, so that a factor of 1 gives the same pixels.
        across = jnp.einsum("bhwc,bWw->bhWc", image, columns_weights, precision=lax.Precision.HIGHEST)
        scaled = jnp.einsum("bhWc,bHh->bHWc", across, rows_weights, precision=lax.Precision.HIGHEST)
        return jnp.where(inside[..., None], scaled, fill).astype(image.dtype)

    return Rows(
        clean=bilinear(rows.clean),
        strong=bilinear(rows.strong),
        label=nearest(rows.label, IGNORE),
        confidence=nearest(rows.confidence),
        is_ground_truth=nearest(rows.is_ground_truth),
        valid=nearest(rows.valid),
        extra=jax.tree.map(nearest, rows.extra),
    )


def _inside(window: _Window, length: int) -> Array:
    """bool[B,length]: which pixels of the result show something."""
    return jnp.arange(length)[None] + window.offset[:, None] < window.scaled[:, None]


def _nearest(window: _Window, length: int) -> Array:
    """i32[B,length]: the pixel of the row in which the middle of each pixel of the result lies; whole numbers throughout."""
    middle = 2 * (jnp.arange(length)[None] + window.offset[:, None]) + 1  # in halves of a scaled pixel
    return jnp.minimum(middle * length // (2 * window.scaled[:, None]), length - 1)


def _bilinear(window: _Window, length: int) -> Array:
    """f32[B,length,length]: what each pixel of the row (last axis) gives to each of the result.

    A triangle as wide as two pixels of the row, or of the result where those are larger; what it has beyond the border
    goes to the pixels inside.
    """
    ratio = length / window.scaled.astype(jnp.float32)[:, None]
    at = (jnp.arange(length)[None] + window.offset[:, None] + 0.5) * ratio - 0.5
    at = jnp.clip(at, 0, length - 1)  # beyond the row's end nothing is shown: any weights do
    distance = jnp.abs(at[..., None] - jnp.arange(length)[None, None])
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(ratio, 1.0)[..., None])
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
