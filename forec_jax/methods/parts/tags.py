"""Which classes an image shows: a linear head whose mean scores say it, and the maps that they are means of."""

import jax
import jax.numpy as jnp
import optax

from forec_jax.contracts import Array, HeadSpec, Mean

TAGS = "tags"
"""The head's name."""


def tags_head(foreground: tuple[int, ...]) -> HeadSpec:
    """A score map for each foreground class."""
    return HeadSpec(TAGS, len(foreground), upsample=False, linear=True)


def at_cells(valid: Array, size: tuple[int, int]) -> Array:
    """bool[B,H,W] at the pixels that the cells of maps of a size (h, w) stand for: bool[B,h,w]."""
    high, wide = (_stride(side, cells) for side, cells in zip(valid.shape[1:], size, strict=True))
    return valid[:, ::high, ::wide]


def _stride(side: int, cells: int) -> int:
    """Pixels from a cell to the next: a power of two where one fits; a transformer's patch is none."""
    return next((power for power in (1, 2, 4, 8, 16, 32) if -(-side // power) == cells), -(-side // cells))


def pooled(scores: Array, valid: Array) -> Array:
    """f32[B,C]: the mean of score maps f32[B,h,w,C] over the valid pixels of bool[B,H,W]: the classes' logits."""
    weight = at_cells(valid, (scores.shape[1], scores.shape[2]))[..., None].astype(jnp.float32)
    return jnp.sum(scores * weight, axis=(1, 2)) / jnp.maximum(jnp.sum(weight, axis=(1, 2)), 1.0)


def activations(maps: Array, shown: Array, inside: Array) -> Array:
    """Class activation maps: the positive part of each score map, as a share of its largest value in the image.

    Args:
        maps: f32[B,h,w,C], scores.
        shown: bool[B,C], the classes that are in an image; others have no activation.
        inside: bool[B,h,w]; elsewhere there is no activation.

    Returns:
        f32[B,h,w,C] in [0, 1].
    """
    active = jnp.where(shown[:, None, None] & inside[..., None], jax.nn.relu(maps), 0.0)
    return active / jnp.maximum(jnp.max(active, axis=(1, 2), keepdims=True), 1e-6)


def tag_errors(logits: Array, target: Array, counts: Array) -> tuple[Mean, Mean]:
    """The mean binary cross-entropy of tags, and the share of tags that are right.

    Args:
        logits: f32[B,C], that a class is in an image.
        target: f32[B,C], 1 where it is.
        counts: bool[B]; the other rows have neither value nor gradient.
    """
    number = target.shape[1] * jnp.sum(counts, dtype=jnp.float32)
    error = jnp.where(counts[:, None], optax.sigmoid_binary_cross_entropy(logits, target), 0.0)
    right = counts[:, None] & ((logits > 0) == (target > 0))
    return Mean(jnp.sum(error), number), Mean(jnp.sum(right, dtype=jnp.float32), number)
