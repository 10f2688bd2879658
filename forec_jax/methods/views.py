"""From a batch to what the student sees and what it should say: shared by the methods, on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from forec_jax.augment import Rows
from forec_jax.contracts import IGNORE, Array, Labelled, Unlabelled, Views

Colour = Callable[[Array, Array, Array], Array]  # (key, image f32[B,H,W,3] in [0,1], valid) -> the same shape and range


def unit_image(image: Array) -> Array:
    """u8[...] in [0, 255] to f32[...] in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def labelled_rows(key: Array, part: Labelled, colour: Colour) -> Rows:
    """Rows whose every pixel is ground truth."""
    clean = unit_image(part.image)
    return Rows(
        clean=clean,
        strong=colour(key, clean, part.valid),
        label=part.label,
        confidence=jnp.ones(part.label.shape, jnp.float32),
        is_ground_truth=jnp.ones(part.label.shape, bool),
        valid=part.valid,
    )


def pseudo_labelled_rows(key: Array, part: Unlabelled, probabilities: Array, colour: Colour) -> Rows:
    """Rows labelled by the teacher's f32[b,H,W,K] probabilities of the weak view, unthresholded; IGNORE in the padding."""
    clean = unit_image(part.image)
    probabilities = jax.lax.stop_gradient(probabilities)
    return Rows(
        clean=clean,
        strong=colour(key, clean, part.valid),
        label=jnp.where(part.valid, jnp.argmax(probabilities, axis=-1).astype(jnp.int32), IGNORE),
        confidence=jnp.where(part.valid, jnp.max(probabilities, axis=-1), 0.0),
        is_ground_truth=jnp.zeros(part.valid.shape, bool),
        valid=part.valid,
    )


def unlabelled_rows(key: Array, part: Unlabelled, colour: Colour) -> Rows:
    """Rows of which nothing is said yet: every label is IGNORE."""
    clean = unit_image(part.image)
    return Rows(
        clean=clean,
        strong=colour(key, clean, part.valid),
        label=jnp.full(part.valid.shape, IGNORE, jnp.int32),
        confidence=jnp.zeros(part.valid.shape, jnp.float32),
        is_ground_truth=jnp.zeros(part.valid.shape, bool),
        valid=part.valid,
    )


def self_labelled(views: Views, probabilities: Array) -> Views:
    """The views with the student's own f32[B,H,W,K] probabilities of them as pseudo-labels where there is no truth."""
    probabilities = jax.lax.stop_gradient(probabilities)
    asked = views.valid & ~views.is_ground_truth
    return views._replace(
        label=jnp.where(asked, jnp.argmax(probabilities, axis=-1).astype(jnp.int32), views.label),
        confidence=jnp.where(asked, jnp.max(probabilities, axis=-1), views.confidence),
    )


def interleave(labelled: Array, unlabelled: Array) -> Array:
    """Joins two parts on the batch axis; row by row when they are equally many.

    Both parts are sharded over that axis, so row by row each device keeps its own rows, whereas concatenation moves
    rows between the devices (an all-to-all).
    """
    if labelled.shape[0] != unlabelled.shape[0]:
        return jnp.concatenate([labelled, unlabelled])
    return jnp.stack([labelled, unlabelled], axis=1).reshape(2 * labelled.shape[0], *labelled.shape[1:])


def student_input(labelled: Rows, unlabelled: Rows | None) -> tuple[Array, Views]:
    """The student's strong images f32[B,H,W,3] and the views that go with them."""
    row_is_labelled = jnp.ones(labelled.label.shape[:1], bool)
    if unlabelled is None:
        rows = labelled
    else:
        rows = jax.tree.map(interleave, labelled, unlabelled)
        row_is_labelled = interleave(row_is_labelled, jnp.zeros(unlabelled.label.shape[:1], bool))
    views = Views(
        image=rows.clean,
        label=rows.label,
        confidence=rows.confidence,
        is_ground_truth=rows.is_ground_truth,
        valid=rows.valid,
        labelled_row=row_is_labelled,
    )
    return rows.strong, views
