"""Boundary IoU against SciPy's erosion, and by hand."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from forec_jax.contracts import IGNORE
from forec_jax.evaluation import class_iou
from forec_jax.evaluation.boundary import boundary_confusion

SQUARE = np.ones((3, 3), bool)


def near_contour(mask, share):
    """The pixels of a mask that so many erosions by a square take away; outside of the image nothing is in it."""
    steps = max(1, round(share * float(np.hypot(*mask.shape))))
    return mask & ~ndimage.binary_erosion(mask, SQUARE, iterations=steps, border_value=0)


def oracle(labels, predictions, classes, share):
    """Boundary IoU f64[K]: sums over the images of what the paper's Eq. 3 intersects and joins, void pixels left out."""
    both, either = np.zeros(classes), np.zeros(classes)
    for label, prediction in zip(labels, predictions, strict=True):
        for k in range(classes):
            truth, called = near_contour(label == k, share), near_contour(prediction == k, share)
            both[k] += (truth & called & (label != IGNORE)).sum()
            either[k] += ((truth | called) & (label != IGNORE)).sum()
    return both / either


def blobs(rng, size, classes):
    """Regions of a few pixels' width."""
    return ndimage.gaussian_filter(rng.normal(size=(classes, *size)), (0, 3, 3)).argmax(0)


def padded(maps, side, fill):
    out = np.full((len(maps), side, side), fill, np.int32)
    for row, one in enumerate(maps):
        out[row, : one.shape[0], : one.shape[1]] = one
    return out


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1])
def test_it_is_scipys_whatever_the_sizes_in_a_batch(share):
    """Distances of 1 (the least), 1 or 2, and 4 to 9 pixels; the last image fills its row, so its border is the array's."""
    rng, sizes = np.random.default_rng(0), [(40, 31), (57, 64), (20, 33), (64, 64)]
    labels = [blobs(rng, size, 3) for size in sizes]
    predictions = [np.where(rng.random(one.shape) < 0.05, blobs(rng, one.shape, 3), one) for one in labels]
    for label in labels:
        label[5:9, 7:20] = IGNORE
    expected = oracle(labels, predictions, 3, share)
    valid = padded([np.ones(size, bool) for size in sizes], 64, 0).astype(bool)
    counts = jax.jit(boundary_confusion, static_argnums=(3, 4))(
        padded(labels, 64, IGNORE), padded(predictions, 64, 1), valid, 3, share
    )
    np.testing.assert_allclose(class_iou(np.asarray(counts))[:-1], expected, rtol=1e-12)
    assert int(counts.sum()) == sum((label != IGNORE).sum() for label in labels)


def test_by_hand():
    """A square of 6x6 in an image of 10x10, predicted one pixel to the right; d is 1.

    Each ring has 20 pixels. The upper rows share 5, the lower ones too, the columns none: 10 of 30.
    """
    label, prediction = np.zeros((1, 10, 10), np.int32), np.zeros((1, 10, 10), np.int32)
    label[0, 2:8, 2:8], prediction[0, 2:8, 3:9] = 1, 1
    counts = boundary_confusion(label, prediction, np.ones((1, 10, 10), bool), 2, 0.0)
    assert class_iou(np.asarray(counts))[1] == pytest.approx(10 / 30)
    expected = oracle(label, prediction, 2, 0.0)
    np.testing.assert_allclose(class_iou(np.asarray(counts))[:-1], expected)
