import numpy as np
import pytest

from forec_jax.evaluation.tiles import Tiles
from forec_jax.options import OptionError


def test_neighbours_meet_in_the_middle_of_what_they_share():
    found = [(tile.seen[1], tile.kept[1]) for tile in Tiles(10, 4).of(5, 19)]
    assert found == [(slice(0, 10), slice(0, 8)), (slice(6, 16), slice(8, 12)), (slice(9, 19), slice(12, 19))]


@pytest.mark.parametrize("size", [(7, 30), (8, 8), (23, 9), (16, 17)])
def test_every_pixel_is_kept_once_and_far_from_a_border_that_is_none_of_the_image(size):
    image, made = np.arange(size[0] * size[1]).reshape(size), np.full(size, -1)
    for tile in Tiles(8, 4).of(*size):
        part = image[tile.seen]
        assert max(part.shape) <= 8
        assert (made[tile.kept] == -1).all()
        made[tile.kept] = part[tile.inside]
        for seen, kept, length in zip(tile.seen, tile.kept, size, strict=True):
            assert seen.start == 0 or kept.start - seen.start >= 2
            assert seen.stop == length or seen.stop - kept.stop >= 2
    np.testing.assert_array_equal(made, image)


def test_without_a_side_the_image_is_one_tile():
    (tile,) = Tiles().of(5, 7)
    assert tile.seen == tile.kept == tile.inside == (slice(0, 5), slice(0, 7))


def test_tiles_that_would_not_move_on_are_refused():
    with pytest.raises(OptionError, match="--overlap=8 must be at least 0 and below the tile's 8 pixels"):
        Tiles(8, 8).check()
