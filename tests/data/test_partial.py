from fractions import Fraction

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import DataError, Example, KnownLabels, PartialLabels, parse_partial
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


@pytest.mark.parametrize(("rounding", "shown"), [("up", 25), ("down", 9)])
def test_a_share_is_rounded_to_a_number_of_pixels(rounding, shown):
    """A quarter of 37 pixels is 9.25. After one dilation 9 are covered, by the 3 x 3 block in the corner; after two 25."""
    label = np.full((40, 40), IGNORE, np.uint8)
    label[:5, :5] = 1
    label[20:22, :6] = 1  # 12 more, out of reach
    name = next(f"0:{i}" for i in range(500) if first_pixel(label, f"0:{i}") == (0, 0))
    found = partial_label(label, Fraction(1, 4), name, rounding)
    assert (found == 1).sum() == shown


def test_a_source_rounds_as_it_is_told():
    both = lambda share: [partial_label(scene(), share, "3:b", rounding) for rounding in ("up", "down")]  # noqa: E731
    share = next(s for s in (Fraction(k, 1000) for k in range(1, 500)) if (both(s)[0] != both(s)[1]).any())
    found = PartialLabels(Pair(scene()), share, 3, "down")[1].label
    np.testing.assert_array_equal(found, both(share)[1])


def first_pixel(label, name):
    """Where class 1 starts."""
    return tuple(np.argwhere(partial_label(label, Fraction(0), name) == 1)[0].tolist())


def test_a_share_of_less_than_a_pixel_is_one_pixel():
    label = np.where(scene() == 2, 1, IGNORE).astype(np.uint8)
    label[1:] = IGNORE  # 4 pixels are left
    assert (partial_label(label, Fraction(1, 100), "0:a", "down") == 1).sum() == 1


class Image:
    """Two images without masks, and one of them is to be seen partly labelled."""

    ids = ("b", "c")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Example(self.ids[index], np.zeros((40, 60, 3), np.uint8), None)

    def without_labels(self):
        return self


def test_known_labels_are_those_of_the_labelled_part_and_no_others():
    part = PartialLabels(Pair(scene()), Fraction(1, 100), 3)
    source = KnownLabels(Image(), part)
    assert (len(source), source.ids) == (2, ("b", "c"))
    np.testing.assert_array_equal(source[0].label, part[1].label)
    assert source[1].id == "c"
    np.testing.assert_array_equal(source[1].label, np.full((40, 60), UNLABELLED))
    assert source.without_labels()[0].label is None


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
