"""How surely the student knows each class, as part of a method's memory: AEL's confidence bank (Hu et al., NeurIPS 2021)."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array


def moved_bank(bank: Array, logits: Array, label: Array, included: Array, *, decay: float, skip_absent: bool) -> Array:
    """decay * bank + (1 - decay) * v, where v is the mean probability of the true class over each class's pixels.

    Args:
        bank: f32[K] in [0, 1].
        logits: f32[B,H,W,K], the student's.
        label: i32[B,H,W], in [0, K) where included.
        included: bool[B,H,W], the labelled pixels.
        decay: in [0, 1].
        skip_absent: whether a class without a pixel stays as it is. Otherwise its v is 0, as in the released code: rare
            classes then look worse than they are.
    """
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    is_class = (label[..., None] == jnp.arange(len(bank))[None, None, None]) & included[..., None]
    number = jnp.sum(is_class, axis=(0, 1, 2), dtype=jnp.float32)
    mean = jnp.sum(jnp.where(is_class, probability, 0.0), axis=(0, 1, 2)) / jnp.maximum(number, 1.0)
    moved = decay * bank + (1.0 - decay) * mean
    return jax.lax.stop_gradient(jnp.where((number > 0) | (not skip_absent), moved, bank))


def sampling_rates(bank: Array, power: float) -> Array:
    """((1 - b) / max(1 - b))^power of f32[K]: 1 for the class that is known worst; 1 for all where all are known."""
    unsure = 1.0 - bank
    worst = jnp.max(unsure)
    return jnp.where(worst > 0, unsure / jnp.where(worst > 0, worst, 1.0), 1.0) ** power
