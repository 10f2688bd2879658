"""Cross-entropy over pixels."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array


def cross_entropy(logits: Array, label: Array) -> Array:
    """Each pixel's cross-entropy, f32[B,H,W], in nats.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K); any other value (IGNORE) gives 0 and no gradient.

    The label is picked by comparison with an iota instead of a gather: its gradient is then elementwise as well.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    is_class = label[..., None] == jnp.arange(classes, dtype=label.dtype)
    picked = jnp.sum(jnp.where(is_class, logits, 0.0), axis=-1)
    known = (label >= 0) & (label < classes)
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)
