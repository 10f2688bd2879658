"""The loss of two strong views of each unlabelled row (UniMatch, V1 and V2)."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Metrics, Term, Terms, Views
from forec_jax.methods.parts.ema import SemiSupervised

T = TypeVar("T")


def two_view_terms(method: SemiSupervised, logits: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
    """(L_1 + L_2) / 2 times the weight of L_u in a step, each a mean of its own; metrics of both together.

    Args:
        method: whose options say what counts.
        logits: f32[2b,H,W,K]; rows 2i and 2i + 1 are the views of one image, as `strong_pair` lays them.
        views: what they should say.
        step: i32[].
    """
    terms: Terms = {}
    metrics: list[Metrics] = []
    for number in (0, 1):
        of_view = functools.partial(_every_second, start=number)
        found, seen = method.unsupervised(of_view(logits), jax.tree.map(of_view, views), step)
        terms |= {f"unsupervised{number + 1}_loss": Term(term.mean, 0.5 * term.weight) for term in found.values()}
        metrics.append(seen)
    return terms, jax.tree.map(jnp.add, *metrics)


def joined(one: T, other: T) -> T:
    """Two trees of arrays [b,...] as one, the rows of the first before those of the second."""
    rows: T = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)
    return rows


def _every_second(leaf: Any, start: int) -> Any:
    return leaf[start::2]
