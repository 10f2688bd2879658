"""The loss of two strong views of each unlabelled row (UniMatch, V1 and V2)."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Metrics, Term, Terms, Views
from forec_jax.methods.parts.views import apart

T = TypeVar("T")

PseudoLabelLoss = Callable[[Array, Views], tuple[Terms, Metrics]]
"""(logits f32[b,H,W,K], views) -> L_u with its weight in a step as "unsupervised_loss", and its metrics."""


def two_view_terms(loss: PseudoLabelLoss, logits: Array, views: Views) -> tuple[Terms, Metrics]:
    """(L_1 + L_2) / 2 times the weight of `loss`, each a mean of its own; metrics of both together.

    Args:
        loss: of one view.
        logits: f32[2b,H,W,K]; rows 2i and 2i + 1 are the views of one image, as `strong_rows` lays them.
        views: what they should say.
    """
    terms: Terms = {}
    metrics: list[Metrics] = []
    for number in (0, 1):
        of_view, its_views = jax.tree.map(lambda leaf, n=number: apart(leaf, len(leaf) // 2)[n], (logits, views))
        found, seen = loss(of_view, its_views)
        terms |= {f"unsupervised{number + 1}_loss": Term(term.mean, 0.5 * term.weight) for term in found.values()}
        metrics.append(seen)
    return terms, jax.tree.map(jnp.add, *metrics)


def joined(one: T, other: T) -> T:
    """Two trees of arrays [b,...] as one, the rows of the first before those of the second."""
    rows: T = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)
    return rows
