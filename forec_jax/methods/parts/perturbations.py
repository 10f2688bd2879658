"""What CCT does to the map that its auxiliary decoders see (Ouali et al., CVPR 2020, section 3.2; numbers: released code).

Each takes a tree of arrays [B,h,w,C] and gives one like it. The adversarial one is in vat.py, the dropout in dropout.py.
"""

import functools

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, PyTree
from forec_jax.methods.parts.vat import random_like
from forec_jax.models.resize import nearest

_FACTORS = 0.7, 0.9
"""Of the strongest pixel's strength, from which on a pixel is dropped."""

_NOISE = 0.3
"""The largest share of a value by which noise changes it."""

_BOX = 0.4
"""A cut box's side, of the foreground's."""


def weak_pixels(key: Array, features: PyTree, valid: Array) -> PyTree:
    """Zero where the mean of the channels is at least U(0.7, 0.9) of its maximum in the row; one draw for all rows.

    `valid` is bool[B,H,W]: the padding is no maximum.
    """
    factor = jax.random.uniform(key, (), minval=_FACTORS[0], maxval=_FACTORS[1])

    def kept(leaf: Array) -> Array:
        strength = jnp.mean(leaf.astype(jnp.float32), axis=-1)
        known = nearest(valid, (leaf.shape[1], leaf.shape[2]))
        highest = jnp.max(jnp.where(known, strength, -jnp.inf), axis=(1, 2), keepdims=True)
        return jnp.where((strength < factor * highest)[..., None], leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(kept, features)


def with_noise(key: Array, features: PyTree) -> PyTree:
    """z (1 + n), n uniform in [-0.3, 0.3]: a draw for each place and channel, the same in all rows."""
    draw = functools.partial(jax.random.uniform, minval=-_NOISE, maxval=_NOISE)
    noise = random_like(key, jax.tree.map(lambda leaf: leaf[0], features), draw)
    return jax.tree.map(lambda leaf, n: leaf * (1 + n)[None], features, noise)


def shown_where(features: PyTree, shown: Array) -> PyTree:
    """Zero where the nearest pixel of bool[B,H,W] is False."""

    def masked(leaf: Array) -> Array:
        return jnp.where(nearest(shown, (leaf.shape[1], leaf.shape[2]))[..., None], leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(masked, features)


def cut_box(key: Array, foreground: Array) -> Array:
    """bool[B,H,W], True in a box of each row: 0.4 x 0.4 of the box around its foreground bool[B,H,W], anywhere in that.

    None where a row has no foreground.
    """
    across, down = (
        _interval(own_key, jnp.any(foreground, axis=axis))
        for own_key, axis in zip(jax.random.split(key), (1, 2), strict=True)
    )
    return across[:, None, :] & down[:, :, None]


def _interval(key: Array, occupied: Array) -> Array:
    """bool[B,n], True in a part, 0.4 long, of what lies between the first and the last True of bool[B,n]."""
    length = occupied.shape[1]
    first = jnp.argmax(occupied, axis=1)
    around = length - jnp.argmax(occupied[:, ::-1], axis=1) - first
    cut = jnp.floor(_BOX * around).astype(jnp.int32)
    draw = jax.random.uniform(key, first.shape)
    start = (first + jnp.floor(draw * (around - cut + 1)).astype(jnp.int32))[:, None]
    at = jnp.arange(length)[None]
    return (at >= start) & (at < start + cut[:, None]) & jnp.any(occupied, axis=1, keepdims=True)
