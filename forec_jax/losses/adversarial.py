"""The losses between a segmentation network and its discriminator (Mittal et al., TPAMI 2019; Hung et al., BMVC 2018)."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean


def discrimination(score: Array, is_real: Array, is_fake: Array) -> tuple[Mean, Mean]:
    """What the discriminator minimises: -log D over the real rows, -log(1 - D) over the fake ones.

    Args:
        score: f32[B], the discriminator's logit that a row is real; D is its sigmoid.
        is_real: bool[B].
        is_fake: bool[B]; a row may be neither.
    """
    return taken_for_real(score, is_real), taken_for_real(-score, is_fake)


def taken_for_real(score: Array, counts: Array) -> Mean:
    """The mean of -log D.

    Args:
        score: f32[...], logits; D is their sigmoid.
        counts: bool[...], of the same shape; the others have neither value nor gradient.
    """
    return Mean(jnp.sum(jnp.where(counts, jax.nn.softplus(-score), 0.0)), _number(counts))


def feature_matching(features: Array, is_real: Array, is_fake: Array) -> Mean:
    """The distance |mean of the real rows' features - mean of the fake ones'|, averaged over the features.

    It is no mean over rows, so with accumulation it is the average of the parts' distances, weighted by their rows.
    0 where there is no real row or no fake one.

    Args:
        features: f32[B,D], the discriminator's pooled features; those of the real rows carry no gradient.
        is_real: bool[B].
        is_fake: bool[B].
    """
    features = jnp.where(is_real[:, None], jax.lax.stop_gradient(features), features)
    distance = jnp.mean(jnp.abs(_row_mean(features, is_real) - _row_mean(features, is_fake)))
    rows = jnp.where(jnp.any(is_real) & jnp.any(is_fake), _number(is_fake), 0.0)
    return Mean(distance * rows, rows)


def _number(rows: Array) -> Array:
    """How many are True."""
    return jnp.sum(rows, dtype=jnp.float32)


def _row_mean(features: Array, rows: Array) -> Array:
    return jnp.sum(jnp.where(rows[:, None], features, 0.0), axis=0) / jnp.maximum(_number(rows), 1.0)
