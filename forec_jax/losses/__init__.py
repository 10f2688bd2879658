"""Losses: leaves that take arrays and give a `Mean` (a sum and a count), so that parts of a batch add up exactly."""

from forec_jax.losses.adversarial import discrimination, feature_matching
from forec_jax.losses.cross_entropy import (
    confidence_weighted_cross_entropy,
    cross_entropy,
    mean_cross_entropy,
    ohem_cross_entropy,
)
from forec_jax.losses.reconstruction import squared_error

__all__ = [
    "confidence_weighted_cross_entropy",
    "cross_entropy",
    "discrimination",
    "feature_matching",
    "mean_cross_entropy",
    "ohem_cross_entropy",
    "squared_error",
]
