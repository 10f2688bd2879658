"""Rises at the start of training: of an unsupervised loss's weight, or of a bound."""

import jax.numpy as jnp

from forec_jax.contracts import Array


def ramp_up(step: Array, length: float) -> Array:
    """f32 in [0, 1]: 0 before step 0, then (1 - cos(pi t / length)) / 2, 1 from t = `length` on (PS-MT).

    A length of 0 is no ramp: 1 from step 0 on.
    """
    if not length:
        return (step >= 0).astype(jnp.float32)
    progress = jnp.clip(step.astype(jnp.float32) / length, 0.0, 1.0)
    return (1.0 - jnp.cos(jnp.pi * progress)) / 2.0


def exponential_rise(step: Array, length: float) -> Array:
    """f32 in [0, 1]: 0 before step 0, then exp(-5 (1 - t / length)^2), from 0.0067 on, 1 from t = `length` on (GCT, CCT).

    A length of 0 is no rise: 1 from step 0 on.
    """
    if not length:
        return (step >= 0).astype(jnp.float32)
    progress = jnp.clip(step.astype(jnp.float32) / length, 0.0, 1.0)
    return jnp.where(step >= 0, jnp.exp(-5.0 * jnp.square(1.0 - progress)), 0.0)


def logarithmic_rise(step: Array, length: float) -> Array:
    """f32 in [0, 1): 1 - exp(-5 t / length), from 0 at step 0 to 0.9933 from t = `length`, above 0, on (CCT)."""
    return 1.0 - jnp.exp(-5.0 * jnp.clip(step.astype(jnp.float32) / length, 0.0, 1.0))
