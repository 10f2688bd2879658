"""Which files of a folder are images and masks."""

import logging
import unicodedata

import pytest

from forec_jax.data import DataError
from forec_jax.data.listing import entries_of, files_below
from forec_jax.evaluation import image_files


@pytest.fixture
def touch(tmp_path):
    """Makes empty files below the folder."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return make


def masks_of(base):
    return {entry.id: entry.mask for entry in entries_of(base)}


OF_TOOLS = (
    ".DS_Store.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "@eaDir/a.png/THUMB.png",
    "day/.thumbs/a.png", "$RECYCLE.BIN/a.png",
)  # fmt: skip


def test_files_of_tools_are_no_images(tmp_path, touch):
    touch("images/a.png", "images/day/b.png", "masks/a.png")
    for folder in ("images", "masks", "unlabelled"):
        touch(*(f"{folder}/{name}" for name in OF_TOOLS))
    assert masks_of(tmp_path) == {"a": "masks/a.png", "day/b": None}
    assert [file.name for file in image_files(tmp_path / "images")] == ["a.png", "b.png"]


def test_every_ending_of_an_image_is_known_in_any_case(tmp_path, touch):
    touch("images/a.JPG", "images/b.Tif", "images/c.bmp", "images/d.GIF", "masks/a.TIFF", "masks/b.BMP", "masks/c.webp")
    assert masks_of(tmp_path) == {"a": "masks/a.TIFF", "b": "masks/b.BMP", "c": "masks/c.webp", "d": None}


def test_masks_are_found_by_what_tools_add_to_the_name(tmp_path, touch, caplog):
    touch("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d_mask.jpg", "images/Day/E.JPG", "images/f.jpg")
    names = ("a_mask", "b-label", "c.gt", "d_mask", "day/e_Seg", "F")
    touch(*(f"masks/{name}.png" for name in names))
    with caplog.at_level(logging.INFO):
        found = masks_of(tmp_path)
    expected = dict(zip(("a", "b", "c", "d_mask", "Day/E", "f"), names, strict=True))
    assert found == {name: f"masks/{mask}.png" for name, mask in expected.items()}
    assert "5 masks are not named as their images are; masks/F.png is taken for the mask of f" in caplog.text


@pytest.mark.parametrize("masks", [("a", "a_mask"), ("a_mask", "a_gt"), ("A", "a_mask")])
def test_two_masks_of_one_image_are_named(tmp_path, touch, masks):
    touch("images/a.jpg", *(f"masks/{mask}.png" for mask in masks))
    with pytest.raises(
        DataError, match=r"masks/\w+\.png and .*masks/\w+\.png are both named as masks of a; remove one"
    ):
        masks_of(tmp_path)


def test_a_mask_that_may_be_of_two_images_is_of_none(tmp_path, touch):
    touch("images/a.jpg", "images/A.jpg", "masks/a_mask.png")
    with pytest.raises(
        DataError, match=r"1 masks have no image in images/ \(masks/a_mask\.png\); name each as its image"
    ):
        masks_of(tmp_path)


def test_masks_of_unlabelled_images_are_named(tmp_path, touch, caplog):
    touch("images/a.png", "masks/a.png", "masks/u.png", "unlabelled/u.png")
    assert masks_of(tmp_path) == {"a": "masks/a.png", "u": None}
    assert (
        "1 masks are of images in unlabelled/ and not used (masks/u.png); move these images to images/" in caplog.text
    )


def test_names_that_look_alike_are_alike(tmp_path, touch):
    """One tool writes the letter u with dots, another the letter u and the dots."""
    composed, decomposed = (unicodedata.normalize(form, "M\u00fcll") for form in ("NFC", "NFD"))
    touch(f"images/{decomposed}.png", f"masks/{composed}.png")
    assert masks_of(tmp_path) == {composed: f"masks/{composed}.png"}


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", '{"shapes": []}', "labelme"),
        ("a.json", '{"images": [], "annotations": []}', "coco"),
        ("day/a.json", '{"imgHeight": 9, "objects": []}', "cityscapes"),
        ("a.xml", "<annotations><version>1.1</version>", "cvat"),
    ],
)
def test_annotations_that_are_no_masks_are_named(tmp_path, touch, name, content, kind):
    touch("images/a.png", name)
    (tmp_path / name).write_text(content)
    says = (
        rf"masks: holds no mask; {name} holds annotations: make a data set of them by forec-jax import --from={kind}; "
    )
    with pytest.raises(DataError, match=says):
        masks_of(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path, touch, caplog):
    touch("camera/a.png", "camera/day/b.png", "images/c.png")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "camera")
    (tmp_path / "camera" / "day" / "back").symlink_to(tmp_path / "camera")
    found = [str(file.relative_to(tmp_path / "images")) for file in files_below(tmp_path / "images")]
    assert found == ["c.png", "linked/a.png", "linked/day/b.png"]
    assert "linked/day/back is a link to" in caplog.text
    assert len(caplog.records) == 1


def test_what_cannot_be_read_is_named(tmp_path, touch):
    touch("a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"b\.png: is a link to a file that is not there"):
        files_below(tmp_path)
    (tmp_path / "b.png").unlink()
    with open(bytes(tmp_path) + b"/\xe9.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"xe9\.png': the name is no UTF-8; rename the file"):
        files_below(tmp_path)
