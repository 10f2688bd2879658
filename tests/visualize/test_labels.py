import numpy as np

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data import Example, Labels
from forec_jax.visualize import IGNORE_COLOUR, label_sheets, overlay, shown_labels

PALETTE = np.array([(0, 0, 0), (200, 0, 0), (0, 100, 0)], np.uint8)


def test_a_single_labelled_pixel_is_seen_and_the_rest_is_the_image_paler():
    image = np.full((120, 60, 3), 101, np.uint8)
    label = np.full((120, 60), UNLABELLED, np.uint8)
    label[30, 20] = 1
    label[90:, 40] = IGNORE
    picture = shown_labels(image, label, PALETTE)
    assert (picture[30, 18:23] == PALETTE[1]).all()  # 120 / 30 / 2 = 2 pixels to each side
    assert (picture[30, [17, 23]] == 178).all()  # (101 + 255) // 2
    assert (picture[95:, 40] == IGNORE_COLOUR).all()
    assert (picture[95:, [39, 41]] == 178).all()  # void is no label: as thin as it is


def test_a_whole_mask_covers_the_image_and_none_leaves_it_pale():
    image = np.zeros((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(shown_labels(image, np.full((8, 8), 2, np.uint8), PALETTE)[..., 1], 100)
    np.testing.assert_array_equal(shown_labels(image, np.full((8, 8), UNLABELLED, np.uint8), PALETTE), 127)


def test_a_sheet_shows_the_mask_over_the_image_and_names_its_colours():
    """A photograph whose mask lies elsewhere is seen at once."""
    image = np.full((120, 240, 3), 200, np.uint8)
    label = np.zeros((120, 240), np.uint8)
    label[:, 100:] = 1
    labels = Labels(("ground", "cat", "dog"), tuple(map(tuple, PALETTE.tolist())), (0,))
    ((_, sheet),) = label_sheets([Example("one", image, label)], {}, labels, 8)
    np.testing.assert_array_equal(sheet[18:138, 248:488], overlay(image, label, PALETTE))
    legend = sheet[-20:]
    assert [(legend == colour).all(-1).sum() >= 100 for colour in PALETTE] == [True, True, False]  # no dog is there
