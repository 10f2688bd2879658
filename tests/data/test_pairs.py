"""Images with masks from any two folders: which file is what."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forec_jax.data import DataError
from forec_jax.data.pairs import pairs_of


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)


def found(images, masks):
    return {Path(e.image).name: Path(e.mask).relative_to(masks.absolute()).as_posix() for e in pairs_of(images, masks)}


def test_one_folder_may_hold_both(tmp_path):
    put(tmp_path / "named", "a.png", "a_mask.png", "in/b.jpg", "in/b_gt.png")
    assert found(tmp_path / "named", tmp_path / "named") == {"a.png": "a_mask.png", "b.jpg": "in/b_gt.png"}
    put(tmp_path / "kinds", "a.jpg", "a.png")
    assert found(tmp_path / "kinds", tmp_path / "kinds") == {"a.jpg": "a.png"}
    put(tmp_path / "none", "a.png", "b.png")
    with pytest.raises(DataError, match=r"no name says which files are masks; name them a_mask\.png"):
        pairs_of(tmp_path / "none", tmp_path / "none")


def test_masks_inside_the_images_folder_are_no_images_and_the_reverse(tmp_path):
    put(tmp_path / "photos", "a.jpg", "masks/a.png")
    assert found(tmp_path / "photos", tmp_path / "photos" / "masks") == {"a.jpg": "a.png"}
    put(tmp_path / "masks", "a.png", "photos/a.jpg")
    assert found(tmp_path / "masks" / "photos", tmp_path / "masks") == {"a.jpg": "a.png"}


def test_masks_of_no_image_are_named_and_an_image_without_one_is_an_error(tmp_path, caplog):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a.png", "z.png")
    assert found(tmp_path / "images", tmp_path / "masks") == {"a.jpg": "a.png"}
    assert "1 masks have no image in" in caplog.text
    assert "(z)" in caplog.text
    put(tmp_path / "images", "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg has no mask in .*1 of 2 images have none"):
        pairs_of(tmp_path / "images", tmp_path / "masks")


def test_a_folder_that_is_none_is_named(tmp_path):
    put(tmp_path / "images", "a.jpg")
    with pytest.raises(DataError, match=r"--masks=.*nowhere is no folder of images"):
        pairs_of(tmp_path / "images", tmp_path / "nowhere")
