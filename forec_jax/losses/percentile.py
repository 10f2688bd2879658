"""Percentiles of some of the numbers in an array, and what U2PL takes them of: how unsure a prediction is."""

import jax.numpy as jnp

from forec_jax.contracts import Array


def masked_percentile(values: Array, included: Array, percent: Array | float) -> Array:
    """The percentile of the included values, as np.percentile interpolates between two of them; f32[].

    Args:
        values: f32[...], of the global batch.
        included: bool[...]; with none the result is +inf.
        percent: f32[] in [0, 100].

    All values are sorted, those that are left out as +inf at the end.
    """
    ordered = jnp.sort(jnp.where(included, values, jnp.inf), axis=None)
    last = jnp.maximum(jnp.sum(included, dtype=jnp.int32) - 1, 0)
    place = last * (percent / 100.0)
    low = jnp.minimum(jnp.floor(place).astype(jnp.int32), last)
    lower, upper = ordered[low], ordered[jnp.minimum(low + 1, last)]
    step = jnp.where(upper > lower, upper - lower, 0.0)  # 0 where both are +inf, whose difference is NaN
    return lower + (place - jnp.floor(place)) * step


def entropy(probabilities: Array) -> Array:
    """H = -sum p log(p + 1e-10) of f32[...,K], in nats: f32[...], 0 where a prediction is sure (U2PL, Eq. 5)."""
    return -jnp.sum(probabilities * jnp.log(probabilities + 1e-10), axis=-1)
