"""Boundary IoU (Cheng et al., CVPR 2021): how well the pixels near the contours agree."""

import jax
import jax.numpy as jnp

from forec_jax.contracts import IGNORE, Array
from forec_jax.evaluation.metrics import confusion_matrix

_OUTSIDE = -1  # the label of what is no part of the image


def boundary_confusion(label: Array, prediction: Array, valid: Array, classes: int, share: float) -> Array:
    """i32[K+1,K+1]: the confusion matrix, truth by prediction, of the classes near their contours; row and column K are of
    pixels further inside.

    Boundary IoU = |(G_d & G) & (P_d & P)| / |(G_d & G) | (P_d & P)|, where G and P are the pixels of a class in the
    ground truth and in the prediction, and G_d and P_d those at most d pixels from their contours: it is `class_iou` of
    the matrix without its last entry. Counts of images add up, as those of the mIoU do.

    As in the authors' code, distances are counted along rows and columns (a square's, not a circle's), the border of the
    image is a contour, and d is a share of the image's diagonal, rounded, and at least 1. A pixel without a label is not
    counted, but the edge of such a region is a contour of the class beside it.

    Args:
        label: i32[B,H,W]; outside 0..K-1 (IGNORE) is no class.
        prediction: i32[B,H,W] in 0..K-1.
        valid: bool[B,H,W], the image: a top-left rectangle in each row.
        classes: K.
        share: d as a share of the diagonal. Published: 0.02 for COCO and LVIS, 0.005 for Cityscapes.
    """
    height, width = jnp.sum(valid[:, :, 0], axis=1), jnp.sum(valid[:, 0], axis=1)
    distance = jnp.maximum(jnp.round(share * jnp.hypot(1.0 * height, 1.0 * width)), 1).astype(jnp.int32)

    def near_contour(index: Array) -> Array:
        return jnp.where(_near_another(jnp.where(valid, index, _OUTSIDE), distance), index, classes)

    known = (label >= 0) & (label < classes)
    return confusion_matrix(jnp.where(known, near_contour(label), IGNORE), near_contour(prediction), classes + 1)


def _near_another(index: Array, distance: Array) -> Array:
    """bool[B,H,W]: whether i32[B,H,W] has another value at most i32[B] rows and columns away. Beyond it all is outside."""
    framed = jnp.pad(index, ((0, 0), (1, 1), (1, 1)), constant_values=_OUTSIDE)
    most = jnp.iinfo(framed.dtype).max

    def spread(step: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """The smallest and largest values one pixel further around, in rows whose distance is not reached."""
        low, high = ends
        goes_on = (step < distance)[:, None, None]
        lower = jax.lax.reduce_window(low, most, jax.lax.min, (1, 3, 3), (1, 1, 1), "SAME")
        higher = jax.lax.reduce_window(high, -most, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")
        return jnp.where(goes_on, lower, low), jnp.where(goes_on, higher, high)

    low, high = jax.lax.fori_loop(0, jnp.max(distance), spread, (framed, framed))
    return (low != high)[:, 1:-1, 1:-1]
