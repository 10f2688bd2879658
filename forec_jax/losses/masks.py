"""What an image's tags say about the sizes of its masks (WSSSByRec's mask regulation)."""

import jax
import jax.numpy as jnp
import optax

from forec_jax.contracts import Array, Mean

FOCAL_POWER, FOCAL_OFFSET = 3, 0.01
_TINY = 1e-6


def mask_area(masks: Array, valid: Array) -> Array:
    """f32[B,K]: the mean of masks f32[B,H,W,K] in [0, 1] over the valid pixels bool[B,H,W]."""
    weight = valid[..., None].astype(jnp.float32)
    return jnp.sum(masks * weight, axis=(1, 2)) / jnp.maximum(jnp.sum(weight, axis=(1, 2)), 1.0)


def area_loss(masks: Array, valid: Array, present: Array) -> Mean:
    """The binary cross-entropy between each mask's area and whether its class is present (WSSSByRec, L_mask).

    Args:
        masks: f32[B,H,W,K] in [0, 1].
        valid: bool[B,H,W].
        present: f32[B,K], 1 where the class is in the image; the background always is.
    """
    area = jnp.clip(mask_area(masks, valid), _TINY, 1 - _TINY)
    error = -(present * jnp.log(area) + (1 - present) * jnp.log1p(-area))
    return Mean(jnp.sum(error), jnp.asarray(error.size, jnp.float32))


def size_penalty_loss(logits: Array, valid: Array, present: Array, foreground: Array) -> Mean:
    """The binary cross-entropy of pooled scores with a penalty on small masks (Araslanov & Roth, CVPR 2020).

    A class's score is its logits' mean weighted by its mask (normalised global weighted pooling, with 1 added to the
    weights' sum) plus (1 - area)^3 log(0.01 + area), which is lowest for an empty mask.

    Args:
        logits: f32[B,H,W,K]; the masks are their softmax.
        valid: bool[B,H,W].
        present: f32[B,K], 1 where the class is in the image.
        foreground: i32[C], the classes that are scored: all but the background, whose presence says nothing.
    """
    logits = logits.astype(jnp.float32)
    inside = valid[..., None].astype(jnp.float32)
    masks = jax.nn.softmax(logits, axis=-1) * inside
    pooled = jnp.sum(masks * logits, axis=(1, 2)) / (1.0 + jnp.sum(masks, axis=(1, 2)))
    area = mask_area(masks, valid)
    scores = pooled + (1 - area) ** FOCAL_POWER * jnp.log(FOCAL_OFFSET + area)
    error = optax.sigmoid_binary_cross_entropy(scores[:, foreground], present[:, foreground])
    return Mean(jnp.sum(error), jnp.asarray(error.size, jnp.float32))
