import numpy as np
import pytest
from annotated import labels, photo
from PIL import Image

from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks

CAT = np.array([[0, 255, 255], [0, 255, 0]], np.uint8)
DOG = np.array([[0, 0, 1], [0, 0, 1]], np.uint8)


@pytest.fixture
def images(tmp_path):
    for name in ("a.jpg", "a_b.jpg", "day/c.png"):
        photo(tmp_path / "images" / name, 2, 3)
    return tmp_path / "images"


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def test_the_class_is_the_folder_or_the_ending(tmp_path, images, caplog):
    """Where both are as large, the later class in the alphabet is seen; the dog is smaller here."""
    for name in ("cat/a.png", "a_b_cat.png", "cat/day/c.png", "day/c-big dog.png"):
        save(tmp_path / "masks" / name, CAT)
    save(tmp_path / "masks" / "dog" / "a.png", DOG)
    save(tmp_path / "masks" / "cat" / "gone.png", CAT)
    remarks = Remarks()
    found = labels("masks", tmp_path / "masks", images, remarks=remarks)
    assert found == {"a": [".cd", ".cd"], "a_b": [".cc", ".c."], "day/c": [".cc", ".c."]}
    remarks.report()
    assert "cat/gone.png: belongs to no image" in caplog.text


def test_black_and_white_in_any_form(tmp_path, images):
    save(tmp_path / "masks" / "a_one.png", CAT > 0)
    save(tmp_path / "masks" / "a_red.png", DOG[..., None] * np.array([255, 0, 0], np.uint8))
    alpha = np.full((2, 3, 4), 200, np.uint8)
    alpha[..., 3] = CAT
    alpha[0, 0, :3] = 3  # its colour is of no account: it is transparent
    save(tmp_path / "masks" / "a_b_seen.png", alpha)
    found = labels("masks", tmp_path / "masks", images)
    assert found == {"a": [".or", ".or"], "a_b": [".ss", ".s."]}


@pytest.mark.parametrize(
    "pixels",
    [
        np.array([[0, 255, 254], [0, 0, 0]], np.uint8),
        np.array([[(0, 0, 0), (255, 0, 0), (0, 255, 0)]], np.uint8),
    ],
)
def test_more_than_two_values_are_refused(tmp_path, images, pixels):
    save(tmp_path / "masks" / "cat" / "a.png", pixels)
    with pytest.raises(DataError, match=r"cat/a\.png: has 2 values beside black, and may have one"):
        labels("masks", tmp_path / "masks", images)


def test_masks_of_one_image_are_of_one_size_and_one_a_class(tmp_path, images):
    save(tmp_path / "masks" / "cat" / "a.png", CAT)
    save(tmp_path / "masks" / "dog" / "a.png", DOG[:1])
    with pytest.raises(DataError, match=r"dog/a\.png: is 3x1, and .*cat/a\.png of the same image 3x2 pixels"):
        labels("masks", tmp_path / "masks", images)
    save(tmp_path / "masks" / "a_cat.png", CAT)
    with pytest.raises(DataError, match=r"are both the mask of cat in a; remove one"):
        labels("masks", tmp_path / "masks", images)
