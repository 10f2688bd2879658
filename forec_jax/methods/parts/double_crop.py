"""Two overlapping crops of each row, laid on one grid of cells, so that what both see are whole cells (CAC)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, PyTree
from forec_jax.options import OptionError


class Grid(NamedTuple):
    """A crop's size in cells, and the side of a cell in pixels."""

    high: int
    wide: int
    cell: int


class Crop(NamedTuple):
    """Where a crop lies in each row, in cells."""

    top: Array  # i32[b], cells above it
    left: Array  # i32[b]
    turned: Array  # bool[b], mirrored left to right


def grid_of(size: tuple[int, int], share: float, cell: int) -> Grid:
    """The grid of crops with about a `share` of the sides (H, W). Raises OptionError where not one cell fits."""
    if min(size) < cell:
        raise OptionError(f"method.cac.cell={cell} is larger than an image of {size} pixels: make data.crop larger")
    high, wide = (min(max(round(share * side / cell), 1), side // cell) for side in size)
    return Grid(high, wide, cell)


def draw_crop(key: Array, rows: int, size: tuple[int, int], grid: Grid) -> Crop:
    """A crop of each of so many rows of (H, W) pixels, at any cell near enough that two overlap by half of each side."""
    top_key, left_key, turn_key = jax.random.split(key, 3)
    top, left = (
        jax.random.randint(axis_key, (rows,), 0, min(side // grid.cell - cells, cells // 2) + 1)
        for axis_key, side, cells in zip((top_key, left_key), size, grid[:2], strict=True)
    )
    return Crop(top, left, jax.random.bernoulli(turn_key, 0.5, (rows,)))


def cropped(rows: PyTree, crop: Crop, grid: Grid) -> PyTree:
    """What the crop shows of arrays [b,H,W,...]."""

    def of_row(field: Array, top: Array, left: Array, turned: Array) -> Array:
        start = [top * grid.cell, left * grid.cell] + [jnp.int32(0)] * (field.ndim - 2)
        seen = jax.lax.dynamic_slice(field, start, (grid.high * grid.cell, grid.wide * grid.cell, *field.shape[2:]))
        return jnp.where(turned, seen[:, ::-1], seen)

    return jax.tree.map(lambda field: jax.vmap(of_row)(field, *crop), rows)


def partners(one: Crop, other: Crop, grid: Grid) -> tuple[Array, Array]:
    """Which of the other crop's N cells shows what each cell of one shows, i32[b,N], and whether any does, bool[b,N]."""
    row = jnp.arange(grid.high)[None] + (one.top - other.top)[:, None]
    place = _turned(jnp.arange(grid.wide)[None], one, grid) + (one.left - other.left)[:, None]
    column = _turned(place, other, grid)
    inside = ((row >= 0) & (row < grid.high))[:, :, None] & ((place >= 0) & (place < grid.wide))[:, None, :]
    index = jnp.clip(row, 0, grid.high - 1)[:, :, None] * grid.wide + jnp.clip(column, 0, grid.wide - 1)[:, None, :]
    return index.reshape(len(index), -1), inside.reshape(len(inside), -1)


def in_cells(field: Array, grid: Grid) -> Array:
    """The mean of each cell of [b,h,w,...], as f32[b,N,...]. Raises OptionError where cells hold no whole places of it."""
    rows, high, wide, *rest = field.shape
    if high % grid.high or wide % grid.wide:
        raise OptionError(
            f"method.cac.cell={grid.cell} cuts a map of {high} x {wide} into {grid.high} x {grid.wide} cells, which do not "
            "hold whole places of it: take a multiple of the decoder's stride, or method.cac.stride=1"
        )
    parts = field.reshape(rows, grid.high, high // grid.high, grid.wide, wide // grid.wide, *rest)
    return jnp.mean(parts, axis=(2, 4), dtype=jnp.float32).reshape(rows, grid.high * grid.wide, *rest)


def _turned(column: Array, crop: Crop, grid: Grid) -> Array:
    """The columns [b or 1,wide] as a mirrored crop counts them."""
    return jnp.where(crop.turned[:, None], grid.wide - 1 - column, column)
