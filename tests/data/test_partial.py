from fractions import Fraction

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError, Example, PartialLabels, parse_partial
from forec_jax.data.partial import partial_label


def scene():
    """Class 0 with two islands of class 1 and a stripe of class 2, and void; u8[40,60]."""
    label = np.zeros((40, 60), np.uint8)
    label[3:15, 3:12] = label[25:38, 45:58] = 1
    label[:, 30:34] = 2
    label[18:22] = IGNORE
    return label


def dilated(mask, first, share):
    """The 5x5 dilation to the letter: from the first pixel, over everything, until the class's share is reached."""
    grown = np.zeros_like(mask)
    grown[first] = True
    while (grown & mask).sum() < share * mask.sum():
        grown = binary_dilation(grown, np.ones((5, 5)))
    return grown & mask


@pytest.mark.parametrize("share", ["0", "1/100", "5/100", "1/4", "6/10", "1"])
def test_labels_grow_by_dilation_until_the_share_is_reached(share):
    label, share = scene(), Fraction(share)
    shown, pixel = (partial_label(label, s, "0:a") for s in (share, Fraction(0)))
    for k in range(3):
        ((y, x),) = np.argwhere(pixel == k)
        np.testing.assert_array_equal(shown == k, dilated(label == k, (y, x), share))
    np.testing.assert_array_equal(shown == IGNORE, label == IGNORE)
    assert set(np.unique(shown)) <= {0, 1, 2, UNLABELLED, IGNORE}


def test_first_pixels_follow_from_seed_and_id_and_are_any_of_the_class():
    label = scene()
    places = {tuple(np.argwhere(partial_label(label, Fraction(0), f"0:{i}") == 1)[0]) for i in range(200)}
    assert {row < 20 for row, _ in places} == {True, False}  # on either island
    assert len(places) > 100
    again, other = (partial_label(label, Fraction(0), name) for name in ("0:7", "1:7"))
    np.testing.assert_array_equal(again, partial_label(label, Fraction(0), "0:7"))
    assert (again != other).any()


class Pair:
    ids = ("a", "b")

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Example(self.ids[index], np.zeros((40, 60, 3), np.uint8), self.label)

    def without_labels(self):
        return Pair(None)


def test_a_source_shows_the_part_of_each_image():
    source = PartialLabels(Pair(scene()), Fraction(1, 100), 3)
    assert (len(source), source.ids) == (2, ("a", "b"))
    np.testing.assert_array_equal(source[1].label, partial_label(scene(), Fraction(1, 100), "3:b"))
    assert source.without_labels()[0].label is None
    with pytest.raises(DataError, match="a has no mask to take labels from"):
        PartialLabels(Pair(None), Fraction(1, 100), 3)[0]


@pytest.mark.parametrize(
    ("option", "parsed"),
    [
        ("1px", (0, 0)),
        ("1px:2", (0, 2)),
        ("1%", (Fraction(1, 100), 0)),
        ("2.5%:1", (Fraction(1, 40), 1)),
        ("100%", (1, 0)),
    ],
)
def test_options(option, parsed):
    assert parse_partial(option) == parsed


@pytest.mark.parametrize("option", ["0%", "100.1%", "-1%", "5", "2px", "5%:", "one"])
def test_impossible_options(option):
    with pytest.raises(ValueError, match="percentage"):
        parse_partial(option)
