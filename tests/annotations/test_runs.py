import base64
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from forec_jax.annotations.runs import counts_of_text, mask_of_picture, mask_of_runs, placed
from forec_jax.data import DataError


def test_runs_go_down_columns_or_along_rows():
    """One pixel outside, then three inside, then two outside."""
    np.testing.assert_array_equal(mask_of_runs([1, 3, 2], (2, 3), "columns", "f"), [[0, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(mask_of_runs([1, 3, 2], (2, 3), "rows", "f"), [[0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(mask_of_runs([0, 6], (2, 3), "rows", "f"), np.ones((2, 3)))


@pytest.mark.parametrize("counts", [[1, 3], [1, 3, 3], [7, -1], [], [10**30]])
def test_runs_make_up_the_whole_mask(counts):
    with pytest.raises(DataError, match=r"f\.json: run lengths do not add up to 3x2 pixels"):
        mask_of_runs(counts, (2, 3), "rows", "f.json")


def test_compressed_runs_are_those_that_coco_writes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        mask = rng.random((height, width)) < rng.random() ** 3
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        np.testing.assert_array_equal(mask_of_runs(counts_of_text(text, "f"), mask.shape, "columns", "f"), mask)


def test_a_compressed_number_by_hand():
    """5 is 00101: "5". 40 is 01000 with more to follow (8 + 32 + 48 = "X"), then 00001 ("1"); -1 is 11111, "O"."""
    assert counts_of_text("5", "f") == [5]
    assert counts_of_text("X1", "f") == [40]
    assert counts_of_text("5X1O", "f") == [5, 40, -1]
    assert counts_of_text("5X15O", "f") == [5, 40, 5, 39]  # the fourth is 40 - 1


@pytest.mark.parametrize(
    ("text", "says"), [("5X", "cut off"), ("5 ", "no place"), ("é", "no place"), ("o" * 99, "no place")]
)
def test_other_text_is_refused(text, says):
    with pytest.raises(DataError, match=rf"f\.json: .*{says}"):
        counts_of_text(text, "f.json")


def picture(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_picture_in_the_text():
    np.testing.assert_array_equal(mask_of_picture(picture(np.array([[0, 1], [9, 0]], np.uint8)), "f"), [[0, 1], [1, 0]])
    for text in ("%%%", "aaaa", picture(np.zeros((2, 2, 3), np.uint8))):
        with pytest.raises(DataError, match=r"^f\.json[:,] "):
            mask_of_picture(text, "f.json")


def test_a_part_at_its_place():
    part = np.ones((2, 3), bool)
    np.testing.assert_array_equal(placed(part, 1, 0, (2, 4)), [[0, 1, 1, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(placed(part, -2, 1, (2, 4)), [[0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(placed(part, 3, -1, (2, 4)), [[0, 0, 0, 1], [0, 0, 0, 0]])
    assert not placed(part, 9, 9, (2, 4)).any()
    assert not placed(part, -9, 0, (2, 4)).any()
