"""Losses: leaves that take arrays and give a `Mean` (a sum and a count), so that parts of a batch add up exactly."""

from forec_jax.losses.adversarial import discrimination, feature_matching
from forec_jax.losses.cross_entropy import (
    confidence_weighted_cross_entropy,
    cross_entropy,
    mean_cross_entropy,
    ohem_cross_entropy,
)
from forec_jax.losses.masks import area_loss, mask_area, size_penalty_loss
from forec_jax.losses.reconstruction import squared_error

__all__ = [
    "area_loss",
    "confidence_weighted_cross_entropy",
    "cross_entropy",
    "discrimination",
    "feature_matching",
    "mask_area",
    "mean_cross_entropy",
    "ohem_cross_entropy",
    "size_penalty_loss",
    "squared_error",
]
