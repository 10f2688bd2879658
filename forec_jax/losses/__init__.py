"""Losses: leaves that take arrays and give a `Mean` (a sum and a count), so that parts of a batch add up exactly."""

from forec_jax.losses.adversarial import discrimination, feature_matching, taken_for_real
from forec_jax.losses.contrast import (
    Draws,
    by_class,
    class_means,
    class_weights,
    directional_contrast,
    draw,
    regional_contrast,
)
from forec_jax.losses.cross_entropy import (
    balanced_cross_entropy,
    cross_entropy,
    focal_loss,
    mean_cross_entropy,
    ohem_cross_entropy,
    weighted_cross_entropy,
)
from forec_jax.losses.dice import dice_cross_entropy, dice_loss
from forec_jax.losses.flaws import flaw_target, handled, keeps_own
from forec_jax.losses.masks import area_loss, mask_area, size_penalty_loss
from forec_jax.losses.percentile import entropy, masked_percentile
from forec_jax.losses.reconstruction import squared_error
from forec_jax.losses.soft_targets import (
    calibrated_fusion,
    mean_squared_distance,
    weighted_divergence,
    weighted_soft_cross_entropy,
)

__all__ = [
    "Draws",
    "area_loss",
    "balanced_cross_entropy",
    "by_class",
    "calibrated_fusion",
    "class_means",
    "class_weights",
    "cross_entropy",
    "dice_cross_entropy",
    "dice_loss",
    "directional_contrast",
    "discrimination",
    "draw",
    "entropy",
    "feature_matching",
    "flaw_target",
    "focal_loss",
    "handled",
    "keeps_own",
    "mask_area",
    "masked_percentile",
    "mean_cross_entropy",
    "mean_squared_distance",
    "ohem_cross_entropy",
    "regional_contrast",
    "size_penalty_loss",
    "squared_error",
    "taken_for_real",
    "weighted_cross_entropy",
    "weighted_divergence",
    "weighted_soft_cross_entropy",
]
