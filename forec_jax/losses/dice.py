"""The Dice loss: how little predicted and true regions overlap, in each image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean
from forec_jax.losses.cross_entropy import weight_of_label, weighted_cross_entropy


def dice_loss(logits: Array, label: Array, included: Array, *, class_weights: Sequence[float]) -> Mean:
    """The mean over images of 1 - the mean over classes of 2 sum p g / (sum p + sum g), sums over an image's pixels.

    p is the softmax's value for a class, g is 1 where the pixel is of that class (Isensee et al., nnU-Net, 2018; the
    coefficient is that of Milletari et al., V-Net, 3DV 2016, without its squares). The classes are those that the
    image's included pixels show: what is predicted of any other class is missing from one of these.

    An image's loss is its own, so the mean is the same however many devices or parts a batch is spread over.

    Args:
        logits: f32[B,H,W,K].
        label: i32[B,H,W] in [0, K) where included.
        included: bool[B,H,W]; the others have neither value nor gradient. An image without any is not counted.
        class_weights: K numbers, at least 0, by which the mean over an image's classes is weighed.
    """
    loss, counts = _dice_of_images(logits, label, included, class_weights)
    return Mean(jnp.sum(loss), jnp.sum(counts, dtype=jnp.float32))


def dice_cross_entropy(logits: Array, label: Array, included: Array, *, class_weights: Sequence[float]) -> Mean:
    """The mean over images of Dice loss plus cross-entropy, the sum that nnU-Net minimises (Isensee et al., 2018).

    An image's cross-entropy is the mean over its included pixels, weighed by class. The arguments are those of `dice_loss`.
    """
    dice, counts = _dice_of_images(logits, label, included, class_weights)
    weight = weight_of_label(label, included, class_weights)
    error = jnp.sum(weighted_cross_entropy(logits, label, weight), axis=(1, 2))
    entropy = error / jnp.where(counts, jnp.sum(weight, axis=(1, 2)), 1.0)
    return Mean(jnp.sum(dice + entropy), jnp.sum(counts, dtype=jnp.float32))


def _dice_of_images(
    logits: Array, label: Array, included: Array, class_weights: Sequence[float]
) -> tuple[Array, Array]:
    """Each image's Dice loss f32[B], 0 where it shows no class that weighs something; and whether it does, bool[B]."""
    said = jnp.where(included[..., None], jax.nn.softmax(logits.astype(jnp.float32), axis=-1), 0.0)
    of_class = label[..., None] == jnp.arange(logits.shape[-1], dtype=label.dtype)[None, None, None]
    truth = (of_class & included[..., None]).astype(jnp.float32)
    both, pixels = (jnp.sum(array, axis=(1, 2)) for array in (said * truth, truth))
    overlap = 2 * both / jnp.where(pixels > 0, jnp.sum(said, axis=(1, 2)) + pixels, 1.0)
    weight = jnp.where(pixels > 0, jnp.asarray(class_weights, jnp.float32)[None], 0.0)
    total = jnp.sum(weight, axis=1)
    counts = total > 0
    return jnp.where(counts, 1 - jnp.sum(weight * overlap, axis=1) / jnp.where(counts, total, 1.0), 0.0), counts
