"""Losses: leaves that take arrays and give a `Mean` (a sum and a count), so that parts of a batch add up exactly."""

from forec_jax.losses.adversarial import discrimination, feature_matching
from forec_jax.losses.contrast import Draws, by_class, class_means, class_weights, draw, regional_contrast
from forec_jax.losses.cross_entropy import (
    cross_entropy,
    mean_cross_entropy,
    ohem_cross_entropy,
    weighted_cross_entropy,
)
from forec_jax.losses.masks import area_loss, mask_area, size_penalty_loss
from forec_jax.losses.percentile import entropy, masked_percentile
from forec_jax.losses.reconstruction import squared_error

__all__ = [
    "Draws",
    "area_loss",
    "by_class",
    "class_means",
    "class_weights",
    "cross_entropy",
    "discrimination",
    "draw",
    "entropy",
    "feature_matching",
    "mask_area",
    "masked_percentile",
    "mean_cross_entropy",
    "ohem_cross_entropy",
    "regional_contrast",
    "size_penalty_loss",
    "squared_error",
    "weighted_cross_entropy",
]
