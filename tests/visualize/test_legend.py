import numpy as np

from forec_jax.contracts import IGNORE
from forec_jax.data import Labels
from forec_jax.visualize import IGNORE_COLOUR, legend, with_legend

LABELS = Labels(("ground", "cat", "dog"), ((0, 0, 0), (200, 0, 0), (0, 100, 0)), (0,))


def swatches(strip):
    """Where the 10 x 10 inner pixels of each colour begin, (line, column), by name."""
    colours = dict(zip(LABELS.classes, LABELS.palette, strict=True)) | {"void": IGNORE_COLOUR}
    found = {}
    for name, colour in colours.items():
        ys, xs = np.nonzero((strip == np.array(colour)).all(-1))
        inside = [(y, x) for y, x in zip(ys.tolist(), xs.tolist(), strict=True) if block_of(strip, y, x, colour)]
        if inside:
            found[name] = (inside[0][0] // 20, inside[0][1])
    return found


def block_of(strip, y, x, colour):
    return strip[y : y + 10, x : x + 10].shape == (10, 10, 3) and (strip[y : y + 10, x : x + 10] == colour).all()


def test_every_class_has_a_square_of_its_colour_from_left_to_right():
    found = swatches(legend(LABELS, 400))
    assert list(found) == ["ground", "cat", "dog"]
    assert [line for line, _ in found.values()] == [0, 0, 0]
    assert found["ground"][1] == 7 < found["cat"][1] < found["dog"][1]


def test_what_does_not_fit_stands_in_the_next_line():
    strip = legend(LABELS, 70)
    assert strip.shape == (60, 70, 3)
    assert [line for line, _ in swatches(strip).values()] == [0, 1, 2]


def test_a_sheet_names_what_it_shows_and_void_but_no_index_without_a_class():
    picture = np.full((10, 300, 3), 255, np.uint8)
    result = with_legend(picture, LABELS, [np.array([[0, 2]]), np.array([[IGNORE, 9]])])
    np.testing.assert_array_equal(result[:10], picture)
    assert list(swatches(result[10:])) == ["ground", "dog", "void"]
