import json

import numpy as np
import pytest
from annotated import labels, photo
from pycocotools import mask as coco
from pycocotools.coco import COCO

from forec_jax.annotations.coco import read_coco
from forec_jax.annotations.photos import Photos
from forec_jax.data import DataError
from forec_jax.data.remarks import Remarks

SIZE = 12, 16
PARTS = [[1.2, 1.4, 9.6, 2.1, 8, 9.7, 2.5, 8.9], [11, 1, 15.5, 1, 15.5, 3.5]]
SMALL = np.zeros(SIZE, np.uint8)
SMALL[4:8, 5:12] = 1


def annotation(number, category, segmentation, image=3, crowd=0):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


@pytest.fixture
def content(tmp_path):
    """Two images; on the first a cat of two parts under a dog, whose mask COCO's own library compressed."""
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "images" / "b.png")
    runs = coco.encode(np.asfortranarray(SMALL))
    images = [{"id": 3, "file_name": "a.png", "height": 12, "width": 16}]
    images.append({"id": 4, "file_name": "b.png", "height": 12, "width": 16})
    return {
        "images": images,
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            annotation(1, 18, {"size": [12, 16], "counts": runs["counts"].decode()}),
            annotation(2, 17, PARTS),
        ],
    }


@pytest.fixture
def read(content, tmp_path):
    def read(**options):
        (tmp_path / "f.json").write_text(json.dumps(content))
        return labels("coco", tmp_path / "f.json", tmp_path / "images", **options)

    return read


def masks_of_coco(tmp_path, content):
    """What COCO's own library makes of the annotations."""
    (tmp_path / "f.json").write_text(json.dumps(content))
    library = COCO(tmp_path / "f.json")
    return {number: library.annToMask(found).astype(bool) for number, found in library.anns.items()}


@pytest.mark.parametrize("compressed", [True, False])
def test_masks_are_those_of_coco(content, read, tmp_path, compressed):
    if not compressed:
        flat = np.concatenate([[0], SMALL.T.ravel()])
        counts = np.diff(np.concatenate([np.flatnonzero(np.diff(flat)), [SMALL.size]]), prepend=0).tolist()
        content["annotations"][0]["segmentation"]["counts"] = counts
    masks = masks_of_coco(tmp_path, content)
    np.testing.assert_array_equal(masks[1], SMALL)
    expected = np.where(masks[1], "d", np.where(masks[2], "c", "."))  # the dog is the smaller one
    found = read()
    assert found["a.png"] == ["".join(row) for row in expected]
    assert found["b.png"] == ["." * 16] * 12
    assert sum(row.count("c") for row in found["a.png"]) > 30


def test_the_later_may_be_seen_instead(read, content, tmp_path):
    masks = masks_of_coco(tmp_path, content)
    assert sum(row.count("c") for row in read(overlap="order")["a.png"]) == masks[2].sum()


def test_a_crowd_lies_under_all_else_and_is_void_or_its_class(read, content):
    everywhere = {"size": [12, 16], "counts": [0, 192]}
    content["annotations"].append(annotation(9, 17, everywhere, crowd=1))
    before = read()["a.png"]
    assert {letter for row in before for letter in row} == {"c", "d", "x"}
    assert [row.replace("x", "c") for row in before] == read(crowd="class")["a.png"]
    content["annotations"][-1]["iscrowd"] = 0
    assert not any("x" in row for row in read()["a.png"])


def test_a_box_without_an_outline_is_said(read, content, caplog):
    remarks = Remarks()
    content["annotations"] += [annotation(8, 17, [], image=4), {"id": 9, "image_id": 4, "category_id": 17}]
    assert read(remarks=remarks)["b.png"] == ["." * 16] * 12
    remarks.report()
    assert "b.png, b.png: an object has a box and no outline; it is left out" in caplog.text


def change(content, path, value):
    *steps, last = path
    for step in steps:
        content = content[step]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("images", 1, "id"), 3, r"images\[1\] has the id 3 of another one of the images"),
        (("categories", 1, "id"), 18, r"categories\[1\] has the id 18 of another one of the categories"),
        (("annotations", 0, "image_id"), 9, r"annotations\[0\] is of the image 9, which the file does not list"),
        (("annotations", 1, "category_id"), 9, r"annotations\[1\] has the category 9, which the file does not list"),
        (("images", 0, "height"), 10**12, r"images\[0\]\.height is 1000000000000, which is no number of pixels"),
        (
            ("annotations", 0, "segmentation", "size"),
            [60000, 60000],
            r"is a mask of 60000x60000 pixels in an image of 16x12",
        ),
        (("annotations", 0, "segmentation", "counts"), [1, 2], "run lengths do not add up to 16x12"),
        (("annotations", 1, "segmentation"), [[1, 2, 3]], "has 3 numbers; an outline has an x and a y"),
        (("annotations", 1, "segmentation"), [[1, 2, 3, float("nan"), 1, 1]], "is no coordinate"),
        (("annotations", 1, "segmentation"), [[10**400, 2, 3, 1, 1, 1]], "is no coordinate"),
        (("annotations",), None, "has no 'annotations'; is the file what --from says"),
        (("annotations", 0), {"segments_info": [], "image_id": 3}, "is COCO's panoptic form"),
        (("images", 0, "file_name"), "", r"images\[0\]\.file_name is no text"),
    ],
)
def test_what_is_wrong_is_named(read, content, tmp_path, path, value, says):
    change(content, path, value)
    with pytest.raises(DataError, match=rf"f\.json: .*{says}"):
        read()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, '"\ud800"'.encode("utf-8", "surrogatepass")])
def test_what_is_no_json_is_named(tmp_path, text):
    photo(tmp_path / "a.png")
    file = tmp_path / "f.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"f\.json"):
        read_coco(file, Photos(tmp_path), Remarks())


def test_a_name_with_two_ids_is_one_class_and_shared_ids_are_said(content, tmp_path, caplog):
    content["categories"].append({"id": 19, "name": "cat"})
    content["annotations"].append(annotation(2, 19, PARTS))
    (tmp_path / "f.json").write_text(json.dumps(content))
    remarks = Remarks()
    assert read_coco(tmp_path / "f.json", Photos(tmp_path / "images"), remarks).classes == ("dog", "cat")
    remarks.report()
    assert "f.json: the category 'cat' has 2 ids, which are taken for one class" in caplog.text
    assert "f.json: annotations share an id; each is used" in caplog.text
