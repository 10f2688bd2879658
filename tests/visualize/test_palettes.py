import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE
from forec_jax.data.datasets.voc import voc_palette
from forec_jax.visualize import IGNORE_COLOUR, colourise, overlay, save_index_png

SMALL = np.array([[0, 0, 0], [200, 10, 20], [30, 40, 250]], np.uint8)
INDEX = np.array([[0, 1, 2], [IGNORE, 7, 1]])


def test_colourise_knows_ignore_in_every_palette():
    colours = colourise(INDEX, SMALL)
    assert colours.dtype == np.uint8
    expected = [[(0, 0, 0), (200, 10, 20), (30, 40, 250)], [IGNORE_COLOUR, (0, 0, 0), (200, 10, 20)]]
    np.testing.assert_array_equal(colours, expected)
    np.testing.assert_array_equal(colourise(np.array([[IGNORE]]), np.array(voc_palette(256)))[0, 0], IGNORE_COLOUR)


def test_overlay_blends():
    image = np.full((2, 3, 3), 100, np.uint8)
    np.testing.assert_array_equal(overlay(image, INDEX, SMALL, 0.0), image)
    np.testing.assert_array_equal(overlay(image, INDEX, SMALL, 1.0), colourise(INDEX, SMALL))
    half = overlay(image, INDEX, SMALL)
    assert half.dtype == np.uint8
    np.testing.assert_array_equal(half[0, 1], [150, 55, 60])


def test_index_png_holds_indices_and_colours(tmp_path):
    save_index_png(tmp_path / "mask.png", INDEX, SMALL)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), INDEX)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colourise(INDEX, SMALL))
