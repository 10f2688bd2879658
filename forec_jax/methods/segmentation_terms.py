"""The two segmentation losses of semi-supervised training, and what is measured beside them."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import cross_entropy, mean_cross_entropy

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
    logits: Array, views: Views, *, threshold: float, normaliser: Normaliser, weight: float
) -> tuple[Terms, Metrics]:
    """L_u (FOrec, section 4.2): cross-entropy against the pseudo-labels whose confidence is above the threshold.

    `normaliser="valid"` divides by all pseudo-labelled pixels that are not padding (UniMatch), "kept" by those above the
    threshold. A threshold of 0 keeps all.
    """
    candidate = ~views.is_ground_truth & views.valid & (views.label != IGNORE)
    kept = candidate & (views.confidence > threshold)
    error = jnp.where(kept, cross_entropy(logits, views.label), 0.0)
    candidates = jnp.sum(candidate, dtype=jnp.float32)
    kept_count = jnp.sum(kept, dtype=jnp.float32)
    count = candidates if normaliser == "valid" else kept_count
    terms = {"unsupervised_loss": Term(Mean(jnp.sum(error), count), weight)}
    metrics = {
        "kept": Mean(kept_count, candidates),
        "confidence": Mean(jnp.sum(jnp.where(candidate, views.confidence, 0.0)), candidates),
    }
    return terms, metrics
