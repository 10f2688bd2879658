"""Prediction window by window, as the published systems do on Cityscapes."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Variables


class Predicts(Protocol):
    """What is evaluated: a method, or a method window by window."""

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]; see contracts.Method."""
        ...


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """The mean of the probabilities of all windows that see a pixel (UniMatch sums them; the winner is the same).

    Square windows of `window` pixels start every `stride` pixels; the last one in each direction is moved back to end at
    the image's own border, whatever the padding around it, so that every window is full. In a direction in which the
    image is not larger than the window there is one window, the image. All windows have one static shape, so a bucket of
    image shapes still compiles once.
    """

    whole: Predicts
    window: int
    stride: int
    multiple: int = 32  # of sides that a masked network takes (contracts.Network)

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"a stride of {self.stride} pixels leaves gaps or does not move windows of {self.window}")

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]; `valid` marks a top-left rectangle."""
        valid = jnp.ones(image.shape[:3], bool) if valid is None else valid
        height, width = image.shape[1:3]
        image_heights, image_widths = jnp.sum(valid[:, :, 0], axis=1), jnp.sum(valid[:, 0], axis=1)
        side = -(-self.window // self.multiple) * self.multiple
        # Room at the end, or dynamic slices would move windows near the border back by themselves.
        room = ((0, 0), (0, side), (0, side))
        image, valid = jnp.pad(image, (*room, (0, 0))), jnp.pad(valid, room)
        inside = jnp.arange(side) < self.window

        def add_window(sums: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], None]:
            top, top_counts = self._start(at[0], image_heights)
            left, left_counts = self._start(at[1], image_widths)
            seen = cut(valid, top, left, side) & inside[None, :, None] & inside[None, None]
            probabilities = self.whole.predict(variables, cut(image, top, left, side), seen)
            counted = (seen & (top_counts & left_counts)[:, None, None])[..., None].astype(probabilities.dtype)
            total, number = sums
            return (add(total, probabilities * counted, top, left), add(number, counted, top, left)), None

        rows, columns = jnp.arange(self._number(height)), jnp.arange(self._number(width))
        grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        one = jax.eval_shape(self.whole.predict, variables, image[:, :side, :side], valid[:, :side, :side])
        nothing = jnp.zeros((*valid.shape, one.shape[-1]), one.dtype), jnp.zeros((*valid.shape, 1), one.dtype)
        (total, number), _ = jax.lax.scan(add_window, nothing, grid)
        return (total / jnp.maximum(number, 1))[:, :height, :width]

    def _number(self, size: int) -> int:
        """How many windows cover a side of `size` pixels."""
        return 1 + -(-max(size - self.window, 0) // self.stride)

    def _start(self, index: Array, sizes: Array) -> tuple[Array, Array]:
        """Where window `index` of each image starts, and whether it is not a repetition of the last, along one side."""
        last = jnp.maximum(sizes - self.window, 0)
        return jnp.minimum(index * self.stride, last), (index == 0) | ((index - 1) * self.stride < last)


def cut(rows: Array, top: Array, left: Array, side: int) -> Array:
    """[B,side,side,...] of [B,H,W,...]: from each row the square that starts at its own top and left."""

    def one(row: Array, top: Array, left: Array) -> Array:
        rest = (0,) * (row.ndim - 2)
        return jax.lax.dynamic_slice(row, (top, left, *rest), (side, side, *row.shape[2:]))

    return jax.vmap(one)(rows, top, left)


def add(sums: Array, squares: Array, top: Array, left: Array) -> Array:
    """`sums` [B,H,W,C] with the squares [B,side,side,C] added, each at its row's top and left."""
    before = cut(sums, top, left, squares.shape[1])
    put = jax.vmap(lambda row, square, top, left: jax.lax.dynamic_update_slice(row, square, (top, left, 0)))
    return put(sums, before + squares, top, left)
