import pytest
from annotated import photo

from forec_jax.annotations.photos import Photos
from forec_jax.data import DataError


@pytest.fixture
def photos(tmp_path):
    for name in ("a.jpg", "day/b.png", "day/c.v2.png", "night/c.v2.png"):
        photo(tmp_path / name)
    return Photos(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("a", "a.jpg"),
        ("a.png", "a.jpg"),  # converted since it was annotated
        ("day\\b.png", "day/b.png"),
        ("train2017/a.jpg", "a.jpg"),
        ("b.png", "day/b.png"),
        ("night/c.v2", "night/c.v2.png"),
        ("c.v2.png", None),  # there are two
        ("d.png", None),
    ],
)
def test_an_image_is_found_by_its_path_or_by_the_end_of_it(photos, name, found):
    assert photos.find([name], "f") == found


def test_the_first_name_counts(photos):
    assert photos.find(["gone", "day/b"], "f") == "day/b.png"
    assert photos.find(["x/a", "day/b"], "f") == "day/b.png"  # as it is written before by its end alone


@pytest.mark.parametrize("name", ["../a.jpg", "day/../../a.jpg", "/etc/a.jpg", "C:\\a.jpg", "..\\a.jpg"])
def test_no_name_leads_out_of_the_folder(photos, name):
    with pytest.raises(DataError, match=r"f\.json: the image .* lies outside of --images"):
        photos.find([name], "f.json")


def test_two_images_of_one_name_are_refused(tmp_path):
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have the same name but for its ending"):
        Photos(tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--images=.*gone: no such folder"):
        Photos(tmp_path / "gone")
    with pytest.raises(DataError, match=r"--images=.*: holds no image"):
        Photos(tmp_path)
