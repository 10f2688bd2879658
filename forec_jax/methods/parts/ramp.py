"""The rise of an unsupervised loss's weight at the start of training."""

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
