"""Foreground and background, as the auxiliary tasks see them (FOrec, section 4.4)."""

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Views


def is_background(label: Array, background_classes: tuple[int, ...]) -> Array:
    """True where a pixel's class is one of the background's; bool of the label's shape."""
    background = jnp.zeros(label.shape, bool)
    for index in background_classes:
        background |= label == index
    return background


def is_known(views: Views, threshold: float) -> Array:
    """True where a pixel's class can be relied on: ground truth, or a pseudo-label more confident than the threshold."""
    labelled = views.label != IGNORE
    return views.valid & labelled & (views.is_ground_truth | (views.confidence > threshold))
