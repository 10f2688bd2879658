"""The two segmentation losses of semi-supervised training, and what is measured beside them."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import confidence_weighted_cross_entropy, cross_entropy, mean_cross_entropy

Normaliser = Literal["valid", "kept"]
SupervisedLoss = Callable[[Array, Array, Array], Mean]
"""(logits f32[B,H,W,K], label i32[B,H,W], included bool[B,H,W]) -> the loss over (some of) the included pixels."""


def supervised_terms(
    logits: Array, views: Views, *, loss: SupervisedLoss = mean_cross_entropy, weight: float = 1.0
) -> Terms:
    """L_s times `weight`: a loss over the ground-truth pixels that are not IGNORE."""
    included = views.is_ground_truth & (views.label != IGNORE)
    return {"supervised_loss": Term(loss(logits, views.label, included), weight)}


def unsupervised_terms(
    logits: Array, views: Views, *, threshold: float, normaliser: Normaliser, weight: Array | float
) -> tuple[Terms, Metrics]:
    """L_u (FOrec, section 4.2): cross-entropy against the pseudo-labels whose confidence is above the threshold.

    `normaliser="valid"` divides by all pseudo-labelled pixels that are not padding (UniMatch), "kept" by those above the
    threshold. A threshold of 0 keeps all.
    """
    candidate, kept = kept_pixels(views, threshold)
    error = jnp.where(kept, cross_entropy(logits, views.label), 0.0)
    terms = {"unsupervised_loss": Term(Mean(jnp.sum(error), divisor(candidate, kept, normaliser)), weight)}
    return terms, pseudo_label_metrics(views, candidate, kept)


def confidence_weighted_terms(
    logits: Array, views: Views, *, threshold: float, normaliser: Normaliser, weight: Array | float
) -> tuple[Terms, Metrics]:
    """PS-MT's L_u: as `unsupervised_terms`, with each kept pixel's cross-entropy times its confidence."""
    candidate, kept = kept_pixels(views, threshold)
    error = confidence_weighted_cross_entropy(logits, views.label, views.confidence, kept)
    terms = {"unsupervised_loss": Term(Mean(jnp.sum(error), divisor(candidate, kept, normaliser)), weight)}
    return terms, pseudo_label_metrics(views, candidate, kept)


def kept_pixels(views: Views, threshold: float) -> tuple[Array, Array]:
    """The pseudo-labelled pixels, and those of them above the threshold; both bool[B,H,W]."""
    candidate = ~views.is_ground_truth & views.valid & (views.label != IGNORE)
    return candidate, candidate & (views.confidence > threshold)


def divisor(candidate: Array, kept: Array, normaliser: Normaliser) -> Array:
    """The number of pixels that L_u is divided by, f32[]."""
    return jnp.sum(candidate if normaliser == "valid" else kept, dtype=jnp.float32)


def pseudo_label_metrics(views: Views, candidate: Array, kept: Array) -> Metrics:
    """The share of the pseudo-labelled pixels that was kept, and their mean confidence."""
    candidates = jnp.sum(candidate, dtype=jnp.float32)
    return {
        "kept": Mean(jnp.sum(kept, dtype=jnp.float32), candidates),
        "confidence": Mean(jnp.sum(jnp.where(candidate, views.confidence, 0.0)), candidates),
    }
