"""What the auxiliary tasks have in common: rows' weights, and foreground and background (FOrec, section 4.4)."""

import dataclasses

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Views
from forec_jax.options import SHARE, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowWeights:
    """What labelled and unlabelled rows count."""

    labelled_weight: float = option(1.0, "of the labelled rows' error", at_least(0))
    unlabelled_weight: float = option(0.5, "of the unlabelled rows' error", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoTruth:
    """When a pseudo-label says what a pixel is."""

    threshold: float = option(0.95, "confidence above which a pseudo-label says what a pixel is", SHARE)


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
