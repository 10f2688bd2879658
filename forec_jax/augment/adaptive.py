"""Mixings that favour classes which are learnt badly: AEL's copy-paste and CutMix (Hu et al., NeurIPS 2021), UCC's paste.

Each is a function `(key, rows, confidence) -> rows`, where `confidence` f32[K] in [0, 1] says how surely the student knows
each class. The partners are rows of the same batch, so that a batch stays a function of the seed and of its number.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.augment.boxes import HalfAreaBox
from forec_jax.augment.geometry import InTurn, Mirror, Zoom
from forec_jax.augment.mixing import Rows, coin, next_rows, paste, rows_at
from forec_jax.contracts import IGNORE, Array

_GROWN = 128
"""How often a component grows by one cell, at most."""


@dataclass(frozen=True)
class CopyPaste:
    """Some rows get the pixels that the ground truth of the next row gives to a few classes; the same classes in all rows.

    They are drawn with replacement by softmax((1 - confidence)^0.5). The next row is scaled, cropped and mirrored anew.
    """

    classes: int = 1  # so many draws
    probability: float = 0.5  # of a row
    scale: tuple[float, float] = (0.1, 2.0)
    left_out: tuple[int, ...] = ()  # classes that are never pasted

    def __call__(self, key: Array, rows: Rows, confidence: Array) -> Rows:
        """`rows` with the drawn classes pasted in every field."""
        truth = jnp.where(rows.is_ground_truth, rows.label, IGNORE)
        return self.from_rows(key, rows, next_rows(rows._replace(label=truth)), confidence)

    def from_rows(self, key: Array, rows: Rows, partner: Rows, confidence: Array) -> Rows:
        """`rows` with the pixels pasted that as many other rows, with the same fields, name as one of the drawn classes."""
        class_key, geometry_key, apply_key = jax.random.split(key, 3)
        partner = InTurn((Zoom(self.scale), Mirror()))(geometry_key, partner)
        chosen = self.drawn(class_key, confidence)
        is_class = partner.label[..., None] == jnp.arange(len(chosen))[None, None, None]
        mask = jnp.any(is_class & chosen[None, None, None], axis=-1) & partner.valid
        return paste(mask & coin(apply_key, self.probability, len(mask)), rows, partner)

    def drawn(self, key: Array, confidence: Array) -> Array:
        """bool[K], the classes that are pasted; none where all are left out."""
        number = jnp.arange(len(confidence))
        allowed = ~jnp.isin(number, jnp.asarray(self.left_out, jnp.int32))
        odds = jnp.where(allowed, jnp.sqrt(1.0 - confidence), -jnp.inf)
        draws = jax.random.categorical(key, odds, shape=(self.classes, 1))
        return jnp.any(draws == number[None], axis=0) & allowed


@dataclass(frozen=True)
class AdaptiveCutMix:
    """Some rows get a box around something of a badly learnt class, from a row that shows enough of it.

    Each row draws a class by softmax(1 - confidence) among those that another row shows, and one of these rows, uniformly.
    There it draws a pixel of the class; the box is that of the connected component around it. Where the component is small
    the box is half of the area, anywhere. Maps are looked at in `cell`s, by the pixel in their middle.
    """

    probability: float = 1.0  # of a row
    row_area: float = 0.03  # share of a row's pixels from which on it shows a class
    box_area: float = 0.03  # share of a row's cells above which a component has a box
    cell: int = 8  # side in pixels

    def __call__(self, key: Array, rows: Rows, confidence: Array) -> Rows:
        """`rows` with the same boxes pasted in every field."""
        partner_key, component_key, box_key, apply_key = jax.random.split(key, 4)
        count, height, width = rows.label.shape
        chosen = self.partners(partner_key, rows.label, confidence)
        partner = rows_at(rows, chosen.row)
        in_cells = _middles(partner.label, self.cell)
        seen = component(component_key, in_cells == chosen.label[:, None, None])
        large = jnp.sum(seen, axis=(1, 2), keepdims=True) > self.box_area * seen[0].size
        around = surrounded(seen, self.cell)[:, :height, :width]
        box = jnp.where(large, around, HalfAreaBox()(box_key, count, height, width))
        return paste(box & coin(apply_key, self.probability, count), rows, partner)

    def partners(self, key: Array, label: Array, confidence: Array) -> "Partners":
        """For each row of i32[B,H,W] another one (itself where there is no other), and the class that it is chosen for."""
        class_key, row_key = jax.random.split(key)
        classes = jnp.arange(len(confidence))
        number = jnp.sum(label[..., None] == classes[None, None, None], axis=(1, 2))  # i32[B,K]
        shows = (number > 0) & (number >= self.row_area * label[0].size)
        other = ~jnp.eye(len(label), dtype=bool) | (len(label) == 1)
        shown = jnp.any(other[:, :, None] & shows[None], axis=1)
        drawn = jax.random.categorical(class_key, jnp.where(shown, 1.0 - confidence[None], -jnp.inf))
        fitting = other & shows[:, drawn].T
        fitting = jnp.where(jnp.any(fitting, axis=1, keepdims=True), fitting, other)
        return Partners(jax.random.categorical(row_key, jnp.where(fitting, 0.0, -jnp.inf)), drawn)


def from_either(key: Array, rows: Rows, labelled: Rows, share: float) -> Rows:
    """For each of `rows` one to paste from: with probability `share` a labelled one, otherwise the next of `rows`.

    The labelled rows come in turn. `share` is in [0, 1]; the rows of both have the same fields.
    """
    count = len(rows.label)
    times = -(-count // len(labelled.label))
    in_turn = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times)[:count], labelled)
    return paste(coin(key, share, count), next_rows(rows), in_turn)


class Partners(NamedTuple):
    """What each row is mixed with."""

    row: Array  # i32[B]
    label: Array  # i32[B], the class for which


def component(key: Array, inside: Array) -> Array:
    """bool[B,h,w]: of each row of bool[B,h,w] the connected component of a place drawn uniformly; none where all is False.

    Neighbours are the eight around a place. What is more than 128 of them away, along the component, is left out.
    """
    flat = inside.reshape(len(inside), -1)
    start = jax.random.categorical(key, jnp.where(flat, 0.0, -jnp.inf))
    first = (jnp.arange(flat.shape[1])[None] == start[:, None]).reshape(inside.shape) & inside

    def grown(_: int, seen: Array) -> Array:
        around: Array = jax.lax.reduce_window(seen, False, jax.lax.bitwise_or, (1, 3, 3), (1, 1, 1), "SAME")
        return around & inside

    grown_out: Array = jax.lax.fori_loop(0, min(_GROWN, inside[0].size - 1), grown, first)
    return grown_out


def surrounded(inside: Array, cell: int) -> Array:
    """bool[B,h*cell,w*cell]: the box of pixels around the True cells of each row of bool[B,h,w]."""

    def between(occupied: Array) -> Array:
        occupied = occupied.astype(jnp.int32)
        span = jax.lax.cummax(occupied, axis=1) * jax.lax.cummax(occupied, axis=1, reverse=True)
        return jnp.repeat(span > 0, cell, axis=1)

    return between(jnp.any(inside, axis=2))[:, :, None] & between(jnp.any(inside, axis=1))[:, None, :]


def _middles(label: Array, cell: int) -> Array:
    """The pixels of i32[B,H,W] in the middle of cells, of which the last may be cut: i32[B,h,w]."""
    rows, columns = (jnp.minimum(jnp.arange(0, side, cell) + cell // 2, side - 1) for side in label.shape[1:])
    return label[:, rows[:, None], columns[None]]
