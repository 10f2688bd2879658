"""Maps of how wrong a prediction is, and who of two is less wrong (GCT: Ke et al., ECCV 2020)."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Array

_EMPTY = 0.1
"""A map that stays below it after blurring shows no flaw."""


def flaw_target(probabilities: Array, label: Array, counts: Array) -> Array:
    """What a flaw detector should say, f32[B,H,W] in [0, 1]: half the distance to the truth, spread out and stretched.

    It is blurred over an eighth of the image, grown by a pixel, blurred over a quarter, and stretched to [0, 1] in each row.
    Carries no gradient.

    Args:
        probabilities: f32[B,H,W,K].
        label: i32[B,H,W]; of any value outside [0, K) the truth is no class, which is half a flaw.
        counts: bool[B,H,W]; elsewhere there is no flaw.
    """
    flaw = jnp.where(counts, raw_flaw(jax.lax.stop_gradient(probabilities), label), 0.0)
    return stretched(_blurred(_grown(_blurred(flaw, 8)), 4), counts)


def raw_flaw(probabilities: Array, label: Array) -> Array:
    """Half of sum over the classes |one-hot truth - probability|, f32[B,H,W]."""
    truth = jax.nn.one_hot(label, probabilities.shape[-1], dtype=jnp.float32)
    return 0.5 * jnp.sum(jnp.abs(truth - probabilities), axis=-1)


def handled(flaw: Array, counts: Array) -> Array:
    """A flaw detector's word as it is compared, f32[B,H,W] in [0, 1].

    What is below 0 is 0; the map is blurred over a sixteenth of the image and stretched to [0, 1], or all 0 where nothing in
    it is above 0.1. Carries no gradient.

    Args:
        flaw: f32[B,H,W].
        counts: bool[B,H,W]; elsewhere there is no flaw.
    """
    flaw = _blurred(jnp.where(counts, jax.nn.relu(jax.lax.stop_gradient(flaw)), 0.0), 16)
    some = jnp.max(flaw, axis=(1, 2), keepdims=True, where=counts, initial=0.0) > _EMPTY
    return jnp.where(some, stretched(flaw, counts), 0.0)


def stretched(maps: Array, counts: Array) -> Array:
    """f32[B,H,W] from each row's smallest value to its largest as 0 to 1, and 0 where nothing counts or all is alike.

    Args:
        maps: f32[B,H,W], at least 0.
        counts: bool[B,H,W]; elsewhere the result is 0.
    """
    low = jnp.min(maps, axis=(1, 2), keepdims=True, where=counts, initial=jnp.inf)
    high = jnp.max(maps, axis=(1, 2), keepdims=True, where=counts, initial=0.0)
    span = high - low
    return jnp.where(counts & (span > 0), (maps - low) / jnp.where(span > 0, span, 1.0), 0.0)


def keeps_own(own: Array, other: Array, threshold: float) -> Array:
    """bool[...]: where the own handled flaw is no larger than the other's; all above the threshold are alike."""
    mine, others = (jnp.where(flaw > threshold, 1.0, flaw) for flaw in (own, other))
    return mine <= others


def _blurred(maps: Array, part: int) -> Array:
    """f32[B,H,W] by a Gaussian as wide as a `part` of the image (an odd number of pixels); the border reflects."""
    rows, columns = (jnp.asarray(_blur_matrix(side, part)) for side in maps.shape[1:])
    return jnp.einsum("bij,hi,wj->bhw", maps, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _blur_matrix(side: int, part: int) -> np.ndarray:
    """f32[side,side]: row i holds what each pixel gives to pixel i."""
    reach = side // part // 2
    deviation = 0.3 * (reach - 1) + 0.8
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    matrix = np.zeros((side, side))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        at = np.abs(np.arange(side) + offset)
        np.add.at(matrix, (np.arange(side), np.where(at < side, at, 2 * (side - 1) - at)), weight)
    return matrix.astype(np.float32)


def _grown(maps: Array) -> Array:
    """f32[B,H,W]: each pixel's largest among it and its eight neighbours."""
    for axis in (1, 2):
        padded = jnp.pad(maps, [(1, 1) if axis == a else (0, 0) for a in range(3)], mode="edge")
        side = maps.shape[axis]
        maps = jnp.maximum(
            maps,
            jnp.maximum(
                jax.lax.slice_in_dim(padded, 0, side, axis=axis), jax.lax.slice_in_dim(padded, 2, side + 2, axis=axis)
            ),
        )
    return maps
