"""The two segmentation losses of semi-supervised training, and what is measured beside them."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import mean_cross_entropy, weighted_cross_entropy

Normaliser = Literal["valid", "kept", "eta"]
SupervisedLoss = Callable[[Array, Array, Array], Mean]
"""(logits f32[B,H,W,K], label i32[B,H,W], included bool[B,H,W]) -> the loss over (some of) the included pixels."""


def supervised_terms(
    logits: Array, views: Views, *, loss: SupervisedLoss = mean_cross_entropy, weight: float = 1.0
) -> Terms:
    """L_s times `weight`: a loss over the ground-truth pixels that are not IGNORE."""
    return {"supervised_loss": Term(loss(logits, views.label, labelled_pixels(views)), weight)}


def labelled_pixels(views: Views) -> Array:
    """bool[B,H,W]: where the ground truth names a class."""
    return views.is_ground_truth & (views.label != IGNORE)


def unsupervised_terms(
    logits: Array, views: Views, *, threshold: float, normaliser: Normaliser, weight: Array | float
) -> tuple[Terms, Metrics]:
    """L_u (FOrec, section 4.2): cross-entropy against the pseudo-labels whose confidence is above the threshold.

    `normaliser="valid"` divides by all pseudo-labelled pixels that are not padding (UniMatch), "kept" by those above the
    threshold. "eta" takes all pseudo-labelled pixels, each times the share of them above the threshold in its image, and
    divides by their number (ReCo, Eq. 5). A threshold of 0 keeps all.
    """
    candidate, kept = kept_pixels(views, threshold)
    share, number = pixel_weights(candidate, kept, normaliser)
    error = weighted_cross_entropy(logits, views.label, share)
    terms = {"unsupervised_loss": Term(Mean(jnp.sum(error), number), weight)}
    return terms, pseudo_label_metrics(views, candidate, kept)


def confidence_weighted_terms(
    logits: Array, views: Views, *, threshold: float, normaliser: Normaliser, weight: Array | float
) -> tuple[Terms, Metrics]:
    """PS-MT's L_u: as `unsupervised_terms`, with each pixel's cross-entropy times its confidence."""
    candidate, kept = kept_pixels(views, threshold)
    share, number = pixel_weights(candidate, kept, normaliser)
    error = weighted_cross_entropy(logits, views.label, share * views.confidence)
    terms = {"unsupervised_loss": Term(Mean(jnp.sum(error), number), weight)}
    return terms, pseudo_label_metrics(views, candidate, kept)


def kept_pixels(views: Views, threshold: float) -> tuple[Array, Array]:
    """The pseudo-labelled pixels, and those of them above the threshold; both bool[B,H,W]."""
    candidate = ~views.is_ground_truth & views.valid & (views.label != IGNORE)
    return candidate, candidate & (views.confidence > threshold)


def pixel_weights(candidate: Array, kept: Array, normaliser: Normaliser) -> tuple[Array, Array]:
    """What each pixel of L_u counts, f32[B,H,W], and the number f32[] that the sum is divided by."""
    match normaliser:
        case "eta":
            of_image = jnp.sum(candidate, axis=(1, 2), keepdims=True)
            eta = jnp.sum(kept, axis=(1, 2), keepdims=True) / jnp.maximum(of_image, 1)
            return jnp.where(candidate, eta, 0.0), jnp.sum(candidate, dtype=jnp.float32)
        case "kept":
            return kept.astype(jnp.float32), jnp.sum(kept, dtype=jnp.float32)
        case _:
            return kept.astype(jnp.float32), jnp.sum(candidate, dtype=jnp.float32)


def pseudo_label_metrics(views: Views, candidate: Array, kept: Array) -> Metrics:
    """The share of the pseudo-labelled pixels that was kept, and their mean confidence."""
    candidates = jnp.sum(candidate, dtype=jnp.float32)
    return {
        "kept": Mean(jnp.sum(kept, dtype=jnp.float32), candidates),
        "confidence": Mean(jnp.sum(jnp.where(candidate, views.confidence, 0.0)), candidates),
    }
