import numpy as np
import pytest
from annotated import labels, photo
from PIL import Image

from forec_jax.annotations.photos import Photos
from forec_jax.annotations.voc import read_voc
from forec_jax.data import DataError
from forec_jax.data.datasets.voc import voc_palette
from forec_jax.data.remarks import Remarks

CODES = np.array([[0, 0, 2], [1, 255, 2]], np.uint8)
LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:10,20,30::\ndog:255,0,0::\n"
OWN = np.array([(0, 0, 0), (10, 20, 30), (255, 0, 0)], np.uint8)


@pytest.fixture
def masks(tmp_path):
    photo(tmp_path / "images" / "a.jpg", 2, 3)
    (tmp_path / "masks").mkdir()
    return tmp_path / "masks"


def save_voc(file, mode):
    """As VOC's own masks: a palette image of indices; or its colours in RGB, or grey indices."""
    image = Image.fromarray(CODES)
    if mode != "L":
        image.putpalette(np.array(voc_palette(256), np.uint8).tobytes())
    (image.convert("RGB") if mode == "RGB" else image).save(file)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_voc_has_its_own_classes(masks, tmp_path, mode):
    save_voc(masks / "a.png", mode)
    assert labels("voc", masks, tmp_path / "images") == {"a": ["..b", "axb"]}  # bicycle, aeroplane
    assert read_voc(masks, Photos(tmp_path / "images"), Remarks()).classes[:2] == ("background", "aeroplane")


def test_colours_of_a_label_map(masks, tmp_path):
    """As CVAT exports them: the file lies above the masks' folder."""
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP)
    Image.fromarray(OWN[[[0, 1, 2], [0, 0, 1]]]).save(masks / "a.png")
    assert labels("voc", masks, tmp_path / "images") == {"a": [".cd", "..c"]}


def test_names_in_the_order_of_indices(masks, tmp_path):
    """As Labelme exports them."""
    (masks / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    save_voc(masks / "a.png", "P")
    assert labels("voc", masks, tmp_path / "images") == {"a": ["..d", "cxd"]}


def test_other_colours_are_named(masks, tmp_path):
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP)
    Image.fromarray(np.array([[(0, 0, 0), (9, 9, 9), (255, 0, 1)]], np.uint8)).save(masks / "a.png")
    with pytest.raises(
        DataError, match=r"a\.png: the colour \(9, 9, 9\) is no class's \(2 pixels have 2 such values\)"
    ):
        labels("voc", masks, tmp_path / "images")
    (tmp_path / "labelmap.txt").unlink()
    Image.fromarray(np.array([[0, 77]], np.uint8)).save(masks / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the index 77 is no class's .*known are those of VOC's 21 classes"):
        labels("voc", masks, tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat:1,2::", "line 1: 'cat:1,2::' is not NAME:RED,GREEN,BLUE::"),
        ("a:0,0,0::\nb:0,0,0::", r"line 2: \(0, 0, 0\) is the colour of a already"),
        ("a:0,0,999::", "line 1"),
    ],
)
def test_a_wrong_label_map_is_named(masks, tmp_path, text, says):
    save_voc(masks / "a.png", "P")
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labelmap\.txt, {says}"):
        read_voc(masks, Photos(tmp_path / "images"), Remarks())


def test_a_jpeg_is_no_mask(masks, tmp_path):
    photo(tmp_path / "a.jpg", 2, 3).rename(masks / "a.png")
    with pytest.raises(DataError, match=r"a\.png: holds a JPEG that changes the values of a mask"):
        labels("voc", masks, tmp_path / "images")
