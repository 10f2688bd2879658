"""Confusion matrices and IoU against hand-computed values and a NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from forec_jax.contracts import IGNORE
from forec_jax.evaluation.metrics import class_iou, confusion_matrix, format_iou, mean_iou, pixel_accuracy

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


def test_iou_by_hand():
    np.testing.assert_allclose(class_iou(HAND), [3 / 6, 2 / 5, np.nan])
    assert mean_iou(HAND) == pytest.approx(0.45)
    assert pixel_accuracy(HAND) == pytest.approx(5 / 8)


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = np.array([[3, 1], [0, 0]])
    np.testing.assert_allclose(class_iou(confusion), [0.75, 0.0])
    assert mean_iou(confusion) == pytest.approx(0.375)


def test_iou_against_sets_of_pixels():
    label, prediction, confusion = random_case(2, (50, 60), 6)
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    for c, iou in enumerate(class_iou(confusion)):
        truth, called = label == c, prediction == c
        assert iou == pytest.approx((truth & called).sum() / (truth | called).sum())


def test_sums_of_many_images_do_not_overflow():
    assert mean_iou(np.array([[2**31, 0], [0, 2**31]])) == 1.0
    assert pixel_accuracy(np.full((2, 2), 2**30, np.int32)) == 0.5


def test_nothing_counted():
    assert np.isnan(mean_iou(np.zeros((2, 2))))
    assert np.isnan(pixel_accuracy(np.zeros((2, 2))))


def test_table():
    lines = format_iou(HAND, ["background", "cat", "dog"]).splitlines()
    assert [line.split() for line in lines] == [
        ["background", "50.00"],
        ["cat", "40.00"],
        ["dog", "-"],
        ["mean", "IoU", "45.00"],
        ["pixel", "accuracy", "62.50"],
    ]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        format_iou(HAND, ["a", "b"])
