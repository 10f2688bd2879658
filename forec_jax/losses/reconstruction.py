"""The reconstruction error."""

import jax.numpy as jnp

from forec_jax.contracts import Array, Mean


def squared_error(prediction: Array, target: Array, included: Array) -> Mean:
    """The squared error's mean over the included pixels and the channels (FOrec, section 4.3: MSE).

    Args:
        prediction: f32[B,H,W,C].
        target: f32[B,H,W,C].
        included: bool[B,H,W]; the others have neither value nor gradient, whatever they hold.
    """
    # Selecting before squaring keeps a non-finite excluded pixel out of the gradient too.
    difference = jnp.where(included[..., None], prediction - target, 0.0)
    count = jnp.sum(included, dtype=jnp.float32) * prediction.shape[-1]
    return Mean(jnp.sum(jnp.square(difference)), count)
