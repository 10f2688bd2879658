"""files/labelme.json was written by Labelme 5.5.0, and GOLDEN is what its `shapes_to_label` makes of it, with the mask
pasted between its corners and void as x."""

import json

import pytest
from annotated import FILES, labels, photo

from forec_jax.annotations.labelme import read_labelme
from forec_jax.annotations.photos import Photos
from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks

GOLDEN = [
    "................",
    ".c.........cc...",
    ".ccccccccccccc..",
    ".ccccccccccccc..",
    ".ccc...ccc.cc...",
    "..ccc.ddddddd...",
    "..ccc.ddddddd...",
    "..ccccddddddd...",
    "..ccccddddddd...",
    "........c.....dd",
    "xxxx.........dd.",
    "xxxx............",
]


@pytest.fixture
def content():
    return json.loads((FILES / "labelme.json").read_text())


@pytest.fixture
def read(tmp_path, content):
    def read(**options):
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / "photo.json").write_text(json.dumps(content))
        photo(tmp_path / "images" / "photo.png")
        return labels("labelme", tmp_path / "json", tmp_path / "images", **options)

    return read


def test_masks_are_those_of_labelme(read, caplog):
    remarks = Remarks()
    assert read(remarks=remarks) == {"photo.png": GOLDEN}
    remarks.report()
    assert "photo.png: an object is a line, which has no area; it is left out" in caplog.text
    assert "photo.json: an image that annotations hold is not read" in caplog.text


def test_the_smaller_may_be_seen_instead(read):
    """The background triangle is smaller than the cat, and the circle overlaps nothing but the cat's class."""
    assert read(overlap="area") == {"photo.png": GOLDEN}


@pytest.mark.parametrize("path", ["../images/photo.png", "..\\images\\photo.png", "elsewhere/photo.jpg", "gone.png"])
def test_images_are_found_in_their_folder(read, content, tmp_path, path):
    content["imagePath"] = path
    read()
    (image,) = read_labelme(tmp_path / "json", Photos(tmp_path / "images"), Remarks()).images
    assert Photos(tmp_path / "images").find(image.names, "f") == "photo.png"


@pytest.mark.parametrize("path", ["../secret/photo.png", "/etc/photo.png", "C:\\photo.png", "a/../../photo.png"])
def test_images_outside_of_it_are_refused(read, content, tmp_path, path):
    content["imagePath"] = path
    read()
    (image,) = read_labelme(tmp_path / "json", Photos(tmp_path / "images"), Remarks()).images
    with pytest.raises(DataError, match=r"photo\.json: the image .* lies outside of --images"):
        Photos(tmp_path / "images").find(image.names, image.file)


def test_an_embedded_image_is_not_even_decoded(read, content):
    content["imageData"] = "this is no base64"
    assert read() == {"photo.png": GOLDEN}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("points", [[1, 1]], r"shapes\[1\] is a rectangle of 1 points; it has two"),
        ("points", [[1, 1, 1], [2, 2]], r"shapes\[1\]\.points\[0\] is no point"),
        ("label", 7, r"shapes\[1\]\.label is no text"),
    ],
)
def test_what_is_wrong_is_named(read, content, key, value, says):
    content["shapes"][1][key] = value
    with pytest.raises(DataError, match=rf"photo\.json: {says}"):
        read()


def test_a_mask_fits_its_corners(read, content):
    content["shapes"][5]["points"] = [[0, 0], [9, 9]]
    with pytest.raises(DataError, match=r"photo\.json: shapes\[5\] is a mask of 3x2 pixels between corners for 10x10"):
        read()


def test_a_folder_without_annotations_is_named(tmp_path):
    photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"--annotations=.*: holds no file \*\.json"):
        read_labelme(tmp_path, Photos(tmp_path), Remarks())
