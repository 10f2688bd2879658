"""Who is contrasted with whom in U2PL: anchors, positives and negatives by how sure a teacher is (Wang et al., CVPR 2022).

Shapes: N pixels, K classes, A anchors a class, M negatives an anchor.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array, Views
from forec_jax.losses import Draws, by_class
from forec_jax.methods.parts.ring import Ring, draw_places
from forec_jax.methods.parts.terms import pseudo_labelled_pixels
from forec_jax.models.resize import nearest

Negatives = Literal["paper", "released"]


class Pixels(NamedTuple):
    """What is known of N pixels of a batch; constants."""

    label: Array  # i32[N]; IGNORE where nobody says a class
    is_truth: Array  # bool[N], whether the ground truth says it
    sure: Array  # bool[N], pseudo-labelled pixels of which the teacher is sure
    unsure: Array  # bool[N], those of which it is not
    probability: Array  # f32[N,K], the teacher's


def pixels_of(views: Views, probability: Array, sure: Array, unsure: Array, size: tuple[int, int]) -> Pixels:
    """The pixels of views at a lower resolution, row by row: the nearest ones.

    `probability` is f32[B,H,W,K]; `sure` and `unsure` are bool[B,H,W].
    """
    said = views.is_ground_truth | pseudo_labelled_pixels(views)
    of_views = Pixels(
        jnp.where(said, views.label, IGNORE), views.is_ground_truth, sure, unsure, jax.lax.stop_gradient(probability)
    )
    return jax.tree.map(lambda field: nearest(field, size).reshape(-1, *field.shape[3:]), of_views)


def reliable(pixels: Pixels) -> Array:
    """bool[N]: ground truth that names a class, and pseudo-labels of which the teacher is sure."""
    return (pixels.label != IGNORE) & (pixels.is_truth | pixels.sure)


def anchors(pixels: Pixels, threshold: float) -> Array:
    """bool[N]: reliable pixels whose class has a probability above the threshold."""
    of_label = jnp.sum(jnp.where(_is_class(pixels), pixels.probability, 0.0), axis=-1)
    return reliable(pixels) & (of_label > threshold)


def negatives(pixels: Pixels, rule: Negatives, low_rank: int, high_rank: int) -> Array:
    """bool[N,K]: for which classes a pixel is a negative. Ranks count from 0, a pixel's likeliest class.

    "paper": a labelled pixel for another class that the teacher ranks below `low_rank`; an unsure pixel for a class of a
    rank from `low_rank` to before `high_rank`. "released": an unsure pixel for its pseudo-label's class, in the same ranks
    alone, and no labelled pixel (which is what U2PL's code does).
    """
    rank = jnp.argsort(jnp.argsort(-pixels.probability, axis=-1), axis=-1)
    unlikely = pixels.unsure[:, None] & (rank >= low_rank) & (rank < high_rank)
    if rule == "released":
        return _is_class(pixels) & unlikely
    mistaken = (pixels.is_truth & (pixels.label != IGNORE))[:, None] & ~_is_class(pixels) & (rank < low_rank)
    return mistaken | unlikely


def present_classes(pixels: Pixels) -> Array:
    """bool[K]: the classes with a pixel."""
    return jnp.any(_is_class(pixels), axis=0)


def draw_anchors(
    key: Array, pixels: Pixels, is_anchor: Array, ring: Ring, rule: Negatives, *, queries: int, keys: int
) -> Draws:
    """A anchors of each class and M stored negatives of each, uniformly and with replacement; keys are the ring's places.

    A class enters that has an anchor and something stored, where at least two classes have a pixel. By the rule "released"
    class i takes what is stored for the i-th of the present classes, and classes beyond their number do not enter.
    """
    anchor_key, place_key = jax.random.split(key)
    present = present_classes(pixels)
    classes, number = len(present), jnp.sum(present)
    order, count, start = by_class(pixels.label, is_anchor, classes)
    place = jax.random.randint(anchor_key, (classes, queries), 0, jnp.maximum(count, 1)[:, None])
    store, enters = jnp.arange(classes), (count > 0) & (number >= 2)
    if rule == "released":
        store, enters = jnp.argsort(~present, stable=True), enters & (jnp.arange(classes) < number)
    stored = draw_places(ring, place_key, (queries, keys)) + (jnp.arange(classes) * ring.places)[:, None, None]
    return Draws(order[start[:, None] + place], stored[store], enters & (ring.number[store] > 0))


def _is_class(pixels: Pixels) -> Array:
    """bool[N,K]: the class of each pixel."""
    return pixels.label[:, None] == jnp.arange(pixels.probability.shape[-1])[None]
