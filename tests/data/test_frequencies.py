import numpy as np
import pytest

from forec_jax.config import load_config
from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError, Example, class_pixels, median_frequency_weights
from forec_jax.experiment import sources


class Masks(list):
    """Examples of these masks; "broken" cannot be read."""

    def __getitem__(self, index):
        mask = super().__getitem__(index)
        if isinstance(mask, str):
            raise DataError(mask)
        return Example(str(index), np.zeros((*np.shape(mask), 3), np.uint8), np.asarray(mask, np.uint8))


MASKS = Masks([[[0, 0, 1, IGNORE]], [[0, 0, 0, 2]], [[UNLABELLED, UNLABELLED, UNLABELLED, 1]]])


def test_pixels_are_counted_image_by_image_without_those_that_have_no_label():
    np.testing.assert_array_equal(class_pixels(MASKS, 4), [[2, 1, 0, 0], [3, 0, 1, 0], [0, 1, 0, 0]])


def test_an_image_that_cannot_be_read_shows_nothing_or_stops():
    masks = Masks([*MASKS, "broken"])
    assert class_pixels(masks, 4, "skip")[3].tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match="broken"):
        class_pixels(masks, 4)


def test_median_frequency_by_hand():
    """5 of the 7 pixels beside class 0, 2 of the 4 beside class 1, 1 of the 4 beside class 2: the median is 1/2."""
    weights = median_frequency_weights(class_pixels(MASKS, 4))
    np.testing.assert_allclose(weights, [0.5 / (5 / 7), 1.0, 2.0, 1.0])


def test_masks_that_show_nothing_weigh_all_alike():
    assert median_frequency_weights(np.zeros((2, 3), np.int64)) == (1.0, 1.0, 1.0)


def test_a_run_counts_its_labelled_masks_and_no_others():
    c = load_config("configs/shapes.py:mean_teacher", {"data.labelled": "4:0", "data.shapes.size": 48})
    data = sources.build_training_data(c)
    assert sources.frequency_weights(c, data) is None
    c.method.class_weights = "median_frequency"
    pool = data.dataset.source(c.data.pool)
    masks = [pool[pool.ids.index(name)].label for name in data.split.labelled]
    counted = [[(mask == k).sum() for k in range(len(data.dataset.classes))] for mask in masks]
    assert len(counted) == 4
    assert sources.frequency_weights(c, data) == median_frequency_weights(np.array(counted))
