"""Losses against soft targets: the class probabilities that another network gives."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean


def weighted_divergence(logits: Array, target: Array, weight: Array) -> Array:
    """Each pixel's KL(target || softmax of the logits), summed over the classes, times its weight: f32[B,H,W], in nats.

    Args:
        logits: f32[B,H,W,K].
        target: f32[B,H,W,K], class probabilities; carries no gradient.
        weight: f32[B,H,W], at least 0; carries no gradient. Where it is 0, a pixel has neither value nor gradient.
    """
    target, weight = jax.lax.stop_gradient((target, weight))
    said = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    divergence = -jnp.sum(jax.scipy.special.entr(target) + target * said, axis=-1)
    return jnp.where(weight > 0, weight * divergence, 0.0)


def mean_squared_distance(probabilities: Array, target: Array, counts: Array) -> Mean:
    """The mean over pixels and classes of (probability - target)^2.

    Args:
        probabilities: f32[B,H,W,K].
        target: f32[B,H,W,K]; carries no gradient.
        counts: bool[B,H,W]; the other pixels have neither value nor gradient.
    """
    squares = jnp.mean(jnp.square(probabilities - jax.lax.stop_gradient(target)), axis=-1)
    return Mean(jnp.sum(jnp.where(counts, squares, 0.0)), jnp.sum(counts, dtype=jnp.float32))
