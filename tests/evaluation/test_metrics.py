"""Confusion matrices and IoU against hand-computed values and a NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.contracts import IGNORE
from forec_jax.evaluation.metrics import class_iou, confusion_matrix, mean_iou, scores_of

# Ground truth 0: three right, one called 1. Ground truth 1: two right, two called 0. Class 2 nowhere.
HAND = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def random_case(seed: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape).astype(np.int32)
    label[rng.uniform(size=shape) < 0.2] = IGNORE
    prediction = rng.integers(0, classes, shape).astype(np.int32)
    expected = np.zeros((classes, classes), np.int64)
    counted = label != IGNORE
    np.add.at(expected, (label[counted], prediction[counted]), 1)
    return label, prediction, expected


def test_confusion_by_hand():
    label = jnp.array([[0, 0, 0, 0], [1, 1, 1, 1], [IGNORE, IGNORE, IGNORE, IGNORE]])
    prediction = jnp.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 2, 2]])
    result = confusion_matrix(label, prediction, 3)
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(result, HAND)


@pytest.mark.parametrize(("shape", "classes"), [((7,), 2), ((33, 41), 21), ((4, 20, 30), 19), ((2, 3, 4, 5), 3)])
def test_confusion_against_numpy(shape, classes):
    label, prediction, expected = random_case(0, shape, classes)
    np.testing.assert_array_equal(confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), classes), expected)


def test_labels_that_are_no_class_are_not_counted():
    result = confusion_matrix(jnp.array([-1, 3, 7, 2]), jnp.array([0, 0, 0, 0]), 3)
    np.testing.assert_array_equal(result, [[0, 0, 0], [0, 0, 0], [1, 0, 0]])


def test_counts_are_exact_beyond_float32():
    pixels = 2**24 + 3
    zeros = jnp.zeros(pixels, jnp.int32)
    assert int(confusion_matrix(zeros, zeros, 2)[0, 0]) == pixels


def test_confusion_on_eight_devices():
    label, prediction, expected = random_case(1, (16, 12, 12), 21)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put((label, prediction), NamedSharding(mesh, PartitionSpec("data")))
    result = jax.jit(confusion_matrix, static_argnums=2)(*sharded, 21)
    np.testing.assert_array_equal(result, expected)


def test_scores_by_hand():
    """Class 0: TP 3, FP 2, FN 1. Class 1: TP 2, FP 1, FN 2. Class 2 nowhere: no value, and in no mean."""
    s = scores_of(HAND)
    assert s.pixels.tolist() == [4, 4, 0]
    np.testing.assert_allclose(s.iou, [3 / 6, 2 / 5, np.nan])
    np.testing.assert_allclose(s.precision, [3 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(s.recall, [3 / 4, 2 / 4, np.nan])
    np.testing.assert_allclose(s.f1, [6 / 9, 4 / 7, np.nan])
    assert s.absent == (2,)
    assert mean_iou(HAND) == pytest.approx(0.45)
    assert s.pixel_accuracy == pytest.approx(5 / 8)
    assert s.mean_accuracy == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_the_frequency_weighted_iou_by_hand():
    """Six pixels of class 0 and two of class 1: 6/8 of IoU 5/7 and 2/8 of IoU 1/3."""
    s = scores_of(np.array([[5, 1], [1, 1]]))
    assert s.by_pixels(s.iou) == pytest.approx(6 / 8 * 5 / 7 + 2 / 8 * 1 / 3)


def test_a_class_that_is_only_predicted_counts_as_zero_and_has_no_recall():
    s = scores_of(np.array([[3, 1], [0, 0]]))
    np.testing.assert_allclose(s.iou, [0.75, 0.0])
    np.testing.assert_allclose(s.precision, [1.0, 0.0])
    np.testing.assert_allclose(s.f1, [6 / 7, 0.0])
    np.testing.assert_allclose(s.recall, [0.75, np.nan])
    assert s.absent == ()
    assert mean_iou(np.array([[3, 1], [0, 0]])) == pytest.approx(0.375)
    assert s.mean_accuracy == pytest.approx(0.75)
    assert s.by_pixels(s.iou) == pytest.approx(0.75)


def test_a_class_that_is_never_predicted_counts_as_zero_in_everything():
    s = scores_of(np.array([[3, 0], [1, 0]]))
    for values in (s.iou, s.precision, s.recall, s.f1):
        assert values[1] == 0


def test_scores_against_sets_of_pixels():
    label, prediction, confusion = random_case(2, (50, 60), 6)
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    s = scores_of(confusion)
    for c in range(6):
        truth, called = label == c, prediction == c
        both = (truth & called).sum()
        assert s.iou[c] == pytest.approx(both / (truth | called).sum())
        assert s.precision[c] == pytest.approx(both / called.sum())
        assert s.recall[c] == pytest.approx(both / truth.sum())
        assert s.f1[c] == pytest.approx(2 * both / (truth.sum() + called.sum()))
    assert s.pixel_accuracy == pytest.approx((label == prediction)[label != IGNORE].mean())
    np.testing.assert_array_equal(s.iou, class_iou(confusion))


def test_sums_of_many_images_do_not_overflow():
    assert mean_iou(np.array([[2**31, 0], [0, 2**31]])) == 1.0
    assert scores_of(np.full((2, 2), 2**30, np.int32)).pixel_accuracy == 0.5


def test_nothing_counted():
    s = scores_of(np.zeros((2, 2)))
    assert s.absent == (0, 1)
    for value in (mean_iou(np.zeros((2, 2))), s.pixel_accuracy, s.mean_accuracy, s.by_pixels(s.iou)):
        assert np.isnan(value)
