"""From a batch to what the student sees and what it should say: shared by the methods, on the device."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from forec_jax.augment import Mixing, Rows
from forec_jax.contracts import IGNORE, UNLABELLED, Array, Batch, Labelled, Pseudo, Unlabelled, Views
from forec_jax.options import option

PSEUDO_LABELS = "pseudo_labels"
"""Name of the values that are worth keeping where a forward pass is recomputed: they took one of the teacher's."""

Known = TypeVar("Known", Views, Rows)

Colour = Callable[[Array, Array, Array], Array]  # (key, image f32[B,H,W,3] in [0,1], valid) -> the same shape and range


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddingOptions:
    """What becomes of padding where the published loss of unlabelled rows does not know of it."""

    gaps: Literal["hidden", "shown"] = option(
        "hidden",
        'padding of unlabelled rows (and void, where labelled rows count in the same loss): "hidden", or "shown": it counts '
        "like an image, as published",
    )

    def with_gaps(self, part: Unlabelled | Labelled | None) -> Unlabelled | Labelled | None:
        """The unlabelled rows; where gaps are shown, nothing of them is called padding."""
        if part is None or self.gaps == "hidden":
            return part
        return part._replace(valid=jnp.ones_like(part.valid))


def both_parts(batch: Batch, method: str) -> tuple[Labelled, Unlabelled | Labelled]:
    """The labelled and the unlabelled rows of a batch; raises ValueError where a method has not been given both."""
    if batch.labelled is None or batch.unlabelled is None:
        raise ValueError(f"{method} needs both: set batch.labelled and batch.unlabelled above 0")
    return batch.labelled, batch.unlabelled


def labelled_and_others(batch: Batch, method: str, partial: bool) -> tuple[Labelled, Unlabelled | Labelled | None]:
    """The same of a method that with `partial` labels needs no unlabelled rows."""
    if batch.labelled is None or (batch.unlabelled is None and not partial):
        raise ValueError(f"{method} needs both: set batch.labelled and batch.unlabelled above 0 (or data.partial)")
    return batch.labelled, batch.unlabelled


def unit_image(image: Array) -> Array:
    """u8[...] in [0, 255] to f32[...] in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def unchanged(key: Array, image: Array, valid: Array) -> Array:
    """A change of colours that changes nothing."""
    del key, valid
    return image


def labelled_rows(key: Array, part: Labelled, colour: Colour) -> Rows:
    """Rows of ground truth; an UNLABELLED pixel is none, and its label is IGNORE."""
    clean = unit_image(part.image)
    unlabelled = part.label == UNLABELLED
    return Rows(
        clean=clean,
        strong=colour(key, clean, part.valid),
        label=jnp.where(unlabelled, IGNORE, part.label),
        confidence=jnp.where(unlabelled, 0.0, 1.0),
        is_ground_truth=~unlabelled,
        valid=part.valid,
    )


def _completed_rows(key: Array, part: Labelled, probabilities: Array, colour: Colour) -> Rows:
    """Rows of ground truth whose UNLABELLED pixels are labelled by the teacher's f32[b,H,W,K] probabilities."""
    rows = labelled_rows(key, part, colour)
    label, confidence = pseudo_labels(probabilities)
    return rows._replace(
        label=jnp.where(rows.is_ground_truth, rows.label, label),
        confidence=jnp.where(rows.is_ground_truth, rows.confidence, confidence),
    )


def pseudo_labelled_rows(key: Array, part: Unlabelled | Labelled, probabilities: Array, colour: Colour) -> Rows:
    """Rows labelled by the teacher's f32[b,H,W,K] probabilities of the weak view, unthresholded; IGNORE in the padding.

    Where a label is known the teacher is not asked.
    """
    return pseudo_labelled(unlabelled_rows(key, part, colour), *pseudo_labels(probabilities))


def weak_rows(part: Unlabelled | Labelled, probabilities: Array) -> Rows:
    """Rows labelled by f32[b,H,W,K] probabilities of their weak view, in their own colours."""
    return pseudo_labelled_rows(jax.random.key(0), part, probabilities, unchanged)


def stored_rows(key: Array, part: Pseudo, colour: Colour) -> Rows:
    """Rows labelled by the stored masks of a model."""
    confidence = jnp.where(part.label == IGNORE, 0.0, part.confidence.astype(jnp.float32) / 255.0)
    return unlabelled_rows(key, part, colour)._replace(label=part.label, confidence=confidence)


def taught_views(
    teach: Callable[[Array], Array],
    labelled: Labelled,
    unlabelled: Unlabelled | Labelled | None,
    key: Array,
    *,
    colour: Colour,
    labelled_colour: Colour,
    mixing: Mixing,
    labelled_mixing: Mixing,
    partial_labels: bool,
) -> tuple[Array, Views]:
    """The student's images and what it should say about them, where a teacher says what the labels do not.

    Args:
        teach: unit images f32[b,H,W,3] -> class probabilities f32[b,H,W,K].
        labelled: rows of ground truth; with `partial_labels` the teacher labels their UNLABELLED pixels.
        unlabelled: rows that the teacher labels, but for pixels whose labels are known; may be None.
        key: of the colour changes and the mixing.
        colour: of the student's view of the unlabelled rows.
        labelled_colour: of its view of the labelled rows.
        mixing: of the unlabelled rows among themselves, with the student's own geometry where it has one.
        labelled_mixing: the same of the labelled rows.
        partial_labels: whether the labelled rows have UNLABELLED pixels.
    """
    colour_l, colour_u, mixing_l, mixing_u = jax.random.split(key, 4)
    if partial_labels:
        rows = _completed_rows(colour_l, labelled, teach(unit_image(labelled.image)), labelled_colour)
    else:
        rows = labelled_rows(colour_l, labelled, labelled_colour)
    rows = labelled_mixing(mixing_l, rows)
    if unlabelled is None:
        return student_input(rows, None)
    pseudo = pseudo_labelled_rows(colour_u, unlabelled, teach(unit_image(unlabelled.image)), colour)
    return student_input(rows, mixing(mixing_u, pseudo))


def unlabelled_rows(key: Array, part: Unlabelled | Labelled | Pseudo, colour: Colour) -> Rows:
    """Rows of which nothing is said yet: every label is IGNORE, but for known ones, pseudo-labels of confidence 1.

    Void says nothing here: it is pseudo-labelled like the pixels that nobody labelled.
    """
    clean = unit_image(part.image)
    label, confidence = jnp.full(part.valid.shape, IGNORE, jnp.int32), jnp.zeros(part.valid.shape, jnp.float32)
    if isinstance(part, Labelled):
        known = part.valid & (part.label < UNLABELLED)
        label, confidence = jnp.where(known, part.label, label), known.astype(jnp.float32)
    return Rows(
        clean=clean,
        strong=colour(key, clean, part.valid),
        label=label,
        confidence=confidence,
        is_ground_truth=jnp.zeros(part.valid.shape, bool),
        valid=part.valid,
    )


def self_labelled(views: Views, probabilities: Array) -> Views:
    """The views with the student's own f32[B,H,W,K] probabilities of them as pseudo-labels where nothing else is said."""
    return pseudo_labelled(views, *pseudo_labels(probabilities))


def pseudo_labelled(known: Known, label: Array, confidence: Array) -> Known:
    """Views or rows with pseudo-labels i32[B,H,W] and their confidence f32[B,H,W] where nothing else is said."""
    asked = known.valid & ~known.is_ground_truth & (known.label == IGNORE)
    return known._replace(
        label=jnp.where(asked, label, known.label), confidence=jnp.where(asked, confidence, known.confidence)
    )


def labels_alone(views: Views, hidden: Array) -> Views:
    """The views with ground truth alone, where `hidden` bool[] is True.

    What no ground truth says is IGNORE, with a confidence of 0, and nothing of an unlabelled row is valid.
    """
    gone = hidden & ~views.is_ground_truth
    return views._replace(
        label=jnp.where(gone, IGNORE, views.label),
        confidence=jnp.where(gone, 0.0, views.confidence),
        valid=views.valid & (views.labelled_row[:, None, None] | ~hidden),
    )


def pseudo_labels(probabilities: Array) -> tuple[Array, Array]:
    """The likeliest classes i32[b,H,W] by f32[b,H,W,K], and how likely they are, f32[b,H,W]; without gradient."""
    probabilities = jax.lax.stop_gradient(probabilities)
    label = checkpoint_name(jnp.argmax(probabilities, axis=-1).astype(jnp.int32), PSEUDO_LABELS)
    return label, checkpoint_name(jnp.max(probabilities, axis=-1), PSEUDO_LABELS)


def interleave(labelled: Array, unlabelled: Array) -> Array:
    """Joins two parts on the batch axis; row by row when they are equally many.

    Both parts are sharded over that axis, so row by row each device keeps its own rows, whereas concatenation moves
    rows between the devices (an all-to-all).
    """
    if labelled.shape[0] != unlabelled.shape[0]:
        return jnp.concatenate([labelled, unlabelled])
    return jnp.stack([labelled, unlabelled], axis=1).reshape(2 * labelled.shape[0], *labelled.shape[1:])


def apart(rows: Array, labelled: int) -> tuple[Array, Array]:
    """What `interleave` has joined: the so many labelled rows, and the others."""
    if 2 * labelled != rows.shape[0]:
        return rows[:labelled], rows[labelled:]
    pairs = rows.reshape(labelled, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def student_input(labelled: Rows, unlabelled: Rows | None) -> tuple[Array, Views]:
    """The student's strong images f32[B,H,W,3] and the views that go with them."""
    row_is_labelled = jnp.ones(labelled.label.shape[:1], bool)
    if unlabelled is None:
        return views_of(labelled, row_is_labelled)
    row_is_labelled = interleave(row_is_labelled, jnp.zeros(unlabelled.label.shape[:1], bool))
    return views_of(jax.tree.map(interleave, labelled, unlabelled), row_is_labelled)


def views_of(rows: Rows, labelled_row: Array) -> tuple[Array, Views]:
    """The strong images f32[B,H,W,3] of rows and the views that go with them."""
    views = Views(
        image=rows.clean,
        label=rows.label,
        confidence=rows.confidence,
        is_ground_truth=rows.is_ground_truth,
        valid=rows.valid,
        labelled_row=labelled_row,
    )
    return rows.strong, views


def unlabelled_views(rows: Rows) -> Views:
    """The views that go with unlabelled rows."""
    return views_of(rows, jnp.zeros(rows.label.shape[:1], bool))[1]


def strong_rows(key: Array, weak: Rows, colour: Colour, mixing: Mixing) -> Rows:
    """Two strong views of every row, each with colours and boxes of its own, as 2b rows.

    The views of a row lie side by side: 2i and 2i + 1. Both have the labels of the weak row.
    """

    def strong(view_key: Array) -> Rows:
        colour_key, mixing_key = jax.random.split(view_key)
        return mixing(mixing_key, weak._replace(strong=colour(colour_key, weak.clean, weak.valid)))

    rows: Rows = jax.tree.map(interleave, *(strong(view_key) for view_key in jax.random.split(key)))
    return rows
