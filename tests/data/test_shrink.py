"""Large images at a smaller size, masks with them."""

import numpy as np
import pytest

from forec_jax.data import DataError, Dataset, Example, select, shapes_dataset, shrink, with_longest_side


def test_the_longer_side_shrinks_and_the_label_keeps_its_values():
    """40x20 to 10x5: blocks of four are averaged in the image; of the label one pixel is taken, never a mean."""
    image = np.kron(np.arange(50, dtype=np.uint8).reshape(5, 10), np.ones((4, 4), np.uint8))
    label = np.where(image > 20, 7, 255).astype(np.uint8)
    small = shrink(Example("a", np.repeat(image[..., None], 3, -1), label), 10)
    assert small.image.shape == (5, 10, 3)
    np.testing.assert_allclose(small.image[2, 1:-1, 0], np.arange(21, 29), atol=1)
    np.testing.assert_array_equal(small.label, np.where(np.arange(50).reshape(5, 10) > 20, 7, 255))


@pytest.mark.parametrize("size", [(10, 4), (4, 10), (1, 1)])
def test_a_small_image_stays_as_it_is(size):
    example = Example("a", np.zeros((*size, 3), np.uint8))
    assert shrink(example, 10) is example


def test_no_side_vanishes():
    assert shrink(Example("a", np.zeros((1, 12_000, 3), np.uint8)), 100).image.shape == (1, 100, 3)


def test_every_split_of_a_data_set_shrinks():
    dataset = with_longest_side(shapes_dataset(size=64), 32)
    example = select(dataset.source("val"), ["val_00003"])[0]
    assert (example.image.shape, example.label.shape) == ((32, 32, 3), (32, 32))
    assert dataset.source("train").without_labels()[0].label is None
    assert len(dataset.source("train")) == 512


def test_zero_is_off_and_less_is_an_error():
    dataset = Dataset("d", ("a", "b"), ((0, 0, 0), (1, 1, 1)), {})
    assert with_longest_side(dataset, 0) is dataset
    with pytest.raises(DataError, match=r"data\.longest_side=-1 must be"):
        with_longest_side(dataset, -1)
