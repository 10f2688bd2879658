import numpy as np
import pytest

from forec_jax.visualize import confusion_picture, heatmap


@pytest.mark.parametrize("classes", [3, 41])
def test_a_cells_colour_is_its_share_of_the_rows_pixels(classes):
    """The diagonal has 3/4, the cell beside it 1/4; the last class has no pixel and is grey."""
    confusion = 3 * np.eye(classes, dtype=int) + np.eye(classes, k=1, dtype=int)
    confusion[-1] = 0
    picture = confusion_picture(confusion, [f"class {k}" for k in range(classes)])
    cell = 40 if classes == 3 else 14
    top, left = picture.shape[0] - 8 - cell * classes, int(np.flatnonzero((picture[-12] == 225).all(-1))[0])

    def colour(row, column):
        """Near the cell's upper left corner, where no number is."""
        return picture[top + cell * row + 2, left + cell * column + 2].tolist()

    shares = heatmap(np.array([[0.75, 0.25, 0.0]]))[0].tolist()
    assert [colour(0, 0), colour(0, 1), colour(0, 2)] == shares
    assert colour(1, 1) == shares[0]
    assert colour(classes - 1, classes - 1) == [225, 225, 225]


def test_long_names_are_cut_and_one_class_is_enough():
    assert confusion_picture(np.array([[5]]), ["a name that is longer than all others"]).shape[1] >= 320
