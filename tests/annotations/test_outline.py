import numpy as np
import pytest

from forec_jax.annotations.drawn import NothingDrawn
from forec_jax.annotations.outline import (
    by_centres,
    by_touch,
    circle_by_touch,
    ellipse,
    reaches_outside,
    rectangle_by_touch,
    turned,
)
from forec_jax.data import DataError

SQUARE = np.array([(1, 1), (3, 1), (3, 3), (1, 3)], float)


def rows(mask):
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask]


def test_a_pixel_belongs_to_an_outline_that_holds_its_centre():
    """Pixel 1 is from x = 1 to x = 2, and its centre at 1.5."""
    assert rows(by_centres([SQUARE], "f", (5, 5))) == [".....", ".##..", ".##..", ".....", "....."]
    assert rows(by_centres([SQUARE + 0.4], "f", (5, 5))) == [".....", ".##..", ".##..", ".....", "....."]
    assert rows(by_centres([SQUARE + 0.6], "f", (5, 5))) == [".....", ".....", "..##.", "..##.", "....."]
    narrow = np.array([(1.6, 0), (2.4, 0), (2.4, 5), (1.6, 5)])
    assert not by_centres([narrow], "f", (5, 5)).any()


def test_or_points_name_pixels_and_the_line_belongs_to_it():
    assert rows(by_touch(SQUARE, "f", (5, 5))) == [".....", ".###.", ".###.", ".###.", "....."]
    assert rows(rectangle_by_touch(SQUARE[[2, 0]], (5, 5))) == [".....", ".###.", ".###.", ".###.", "....."]
    assert rows(circle_by_touch(np.array([2.0, 2.0]), 1.0, "f", (5, 5)))[2] == ".###."


def test_parts_are_joined_and_what_is_flat_is_none():
    line = np.array([(0, 0), (2, 2), (4, 4)], float)
    assert rows(by_centres([SQUARE, line, SQUARE + 2], "f", (5, 5))) == [".....", ".##..", ".##..", "...##", "...##"]
    for flat in (line, SQUARE[:2], SQUARE[:1].repeat(5, axis=0), np.zeros((0, 2))):
        with pytest.raises(NothingDrawn):
            by_centres([flat], "f", (5, 5))
        with pytest.raises(NothingDrawn):
            by_touch(flat, "f", (5, 5))


@pytest.mark.parametrize("far", [6, 1e3, 1e9])
def test_what_is_outside_is_cut_off(far):
    """As the part inside alone: x from 2 on, y up to 3."""
    outline = np.array([(2, -far), (far, -far), (far, 3), (2, 3)])
    assert rows(by_centres([outline], "f", (4, 4))) == ["..##", "..##", "..##", "...."]
    assert rows(by_touch(outline, "f", (4, 4))) == ["..##"] * 4
    assert reaches_outside(outline, (4, 4))
    around = np.array([(-far, -far), (far, -far), (far, far), (-far, far)])
    assert by_centres([around], "f", (4, 4)).all()
    assert by_touch(around, "f", (4, 4)).all()
    assert not by_centres([around + 2 * far + 9], "f", (4, 4)).any()
    assert not by_touch(around + 2 * far + 9, "f", (4, 4)).any()
    assert not reaches_outside(np.array([(0, 0), (4, 4)]), (4, 4))


def test_a_corner_is_cut_on_its_line():
    """Of the triangle below the line from (0, 8.4) to (8.4, 0), at any size of the rest."""
    small = np.array([(0, 8.4), (8.4, 0), (9, 9)], float)
    large = np.array([(-1e6, 1e6 + 8.4), (1e6 + 8.4, -1e6), (1e6 + 9, 1e6 + 9)], float)
    np.testing.assert_array_equal(by_centres([large], "f", (8, 8)), by_centres([small], "f", (8, 8)))


def test_a_circle_may_be_larger_than_the_image():
    assert circle_by_touch(np.array([2.0, 2.0]), 1e8, "f", (5, 5)).all()
    assert not circle_by_touch(np.array([1e8, 2.0]), 5, "f", (5, 5)).any()
    assert not circle_by_touch(np.array([50.0, 2.0]), 5, "f", (5, 5)).any()


def test_a_line_that_never_ends_takes_no_memory():
    zigzag = np.stack([np.arange(2000) % 2 * 3000.0, np.arange(2000.0)], axis=1)
    for draw in (
        lambda: by_centres([zigzag], "f.json", (3000, 3000)),
        lambda: by_touch(zigzag, "f.json", (3000, 3000)),
    ):
        with pytest.raises(DataError, match=r"f\.json: an outline is 6\d{6} pixels long"):
            draw()


def test_turns_are_clockwise_as_they_are_seen():
    np.testing.assert_allclose(turned(np.array([[3.0, 1.0]]), np.array([1.0, 1.0]), 90), [[1, 3]], atol=1e-12)
    oval = ellipse(np.array([5.0, 5.0]), (3, 1), 90)
    np.testing.assert_allclose(np.ptp(oval, axis=0), [2, 6], atol=1e-3)
