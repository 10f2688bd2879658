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


def weighted_soft_cross_entropy(logits: Array, target: Array, weight: Array) -> Array:
    """Each pixel's cross-entropy against class probabilities, times its weight: f32[B,H,W], in nats.

    The arguments are those of `weighted_divergence`, from which it differs by the target's entropy alone.
    """
    target, weight = jax.lax.stop_gradient((target, weight))
    error = -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    return jnp.where(weight > 0, weight * error, 0.0)


def calibrated_fusion(logits: Array, others: Array, counts: Array, temperature: float) -> Array:
    """What two predictions of the same pixels say together, class probabilities f32[B,H,W,K] without gradient (PseudoSeg).

    Both are divided by one number, the root of the mean of their squares over all pixels that count, so that neither is
    surer for the scale of its logits alone. The mean of their softmax, to the power of 1 / temperature, adds up to 1.

    Args:
        logits: f32[B,H,W,K].
        others: f32[B,H,W,K].
        counts: bool[B,H,W].
        temperature: above 0; 1 leaves the mean as it is, less makes it sharper.
    """
    both = jax.lax.stop_gradient(jnp.stack([logits, others]).astype(jnp.float32))
    squares = jnp.sum(jnp.where(counts[None, ..., None], jnp.square(both), 0.0))
    number = jnp.maximum(2 * logits.shape[-1] * jnp.sum(counts, dtype=jnp.float32), 1)  # beyond an int32 at full size
    fused = jnp.mean(jax.nn.softmax(both * jax.lax.rsqrt(squares / number + 1e-8), axis=-1), axis=0)
    return jax.nn.softmax(jnp.log(fused) / temperature, axis=-1)


def mean_squared_distance(probabilities: Array, target: Array, counts: Array) -> Mean:
    """The mean over pixels and classes of (probability - target)^2.

    Args:
        probabilities: f32[B,H,W,K].
        target: f32[B,H,W,K]; carries no gradient.
        counts: bool[B,H,W]; the other pixels have neither value nor gradient.
    """
    squares = jnp.mean(jnp.square(probabilities - jax.lax.stop_gradient(target)), axis=-1)
    return Mean(jnp.sum(jnp.where(counts, squares, 0.0)), jnp.sum(counts, dtype=jnp.float32))
