"""What a student says of the cells of crops, and the contrast of cells that follow others (CAC)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, HeadOutput, Mean
from forec_jax.losses import directional_contrast
from forec_jax.methods.parts.double_crop import Grid, in_cells
from forec_jax.methods.parts.ring import Ring

_SURER = 1e-5  # more than rounding: otherwise chance, and the number of devices, decide between two that say the same


class Cells(NamedTuple):
    """What the student says of a crop's N cells."""

    vector: Array  # f32[b,N,D]
    label: Array  # i32[b,N]; without gradient, as the confidence
    confidence: Array  # f32[b,N]
    valid: Array  # bool[b,N], without any padding


def cells_of(segmentation: HeadOutput, projection: HeadOutput, valid: Array, grid: Grid) -> Cells:
    """What two heads' outputs of crops bool[b,H,W] say of their cells: the means of logits and vectors."""
    logits = in_cells(jax.lax.stop_gradient(segmentation.output), grid)
    return Cells(
        in_cells(projection.output, grid),
        jnp.argmax(logits, axis=-1).astype(jnp.int32),
        jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1),
        in_cells(valid, grid) == 1.0,
    )


def with_class(cells: Cells) -> Array:
    """f32[b*N,D+1]: each cell's vector with its class behind it, as it is stored."""
    vectors = jnp.concatenate([cells.vector, cells.label[..., None].astype(jnp.float32)], axis=-1)
    return vectors.reshape(-1, vectors.shape[-1])


def less_sure(who: Cells, whom: Cells) -> Array:
    """bool[b,N]: where the first is less sure than the second."""
    return who.confidence < whom.confidence - _SURER


def followed(who: Cells, whom: Cells, follows: Array, ring: Ring, temperature: float) -> Mean:
    """The contrast of the cells that follow, each with the one that it follows, away from stored ones of other classes.

    Args:
        who: the cells that may follow.
        whom: the cell that each may follow.
        follows: bool[b,N]; the mean is over them.
        ring: one store of vectors with their classes behind them; see `with_class`.
        temperature: above 0.
    """
    size = who.vector.shape[-1]
    keys, key_label = ring.values[0, :, :-1], ring.values[0, :, -1].astype(jnp.int32)
    there = jnp.arange(ring.places) < ring.number[0]
    errors = directional_contrast(
        who.vector.reshape(-1, size),
        whom.vector.reshape(-1, size),
        who.label.reshape(-1),
        keys,
        jnp.where(there, key_label, -1),
        temperature=temperature,
    )
    count = jnp.sum(follows, dtype=jnp.float32)
    return Mean(jnp.sum(jnp.where(follows.reshape(-1), errors, 0.0)), count)
