"""The file of files/ was written by cityscapesScripts 2.3.0, and GOLDEN is what its `createLabelImage` makes of it."""

import json

from annotated import FILES, labels, photo

from forec_jax.annotations.cityscapes import read_cityscapes
from forec_jax.annotations.photos import Photos
from forec_jax.data.datasets.cityscapes import PALETTE
from forec_jax.data.remarks import Remarks

NAME = "frankfurt_000000_000001"
GOLDEN = """
10  10  10  10  10  10  10  10  10  10  10  10  10  10  10  10
10  10  10  10  10  10  10  10  10  10  10  10  10  10  10  10
10  10  10  10  10  10  10  10  10  10  10  10  10  10  10  10
10  10  10  13  10  10  10  10  10  10  10  10  10  10  10  10
10  10  10  13  13  13  13  13  13  13  10  10  10  10  10  10
10 255 255  13  13  13  13  13  13  13 255 255 255 255 255 255
18  18  18 255  13  13  13  13  13  13 255 255 255 255 255 255
18  18  18 255  13  13  13  13  13  13  13 255 255 255 255   0
18  18  18   0  13  13  13  13  13  13  13   0   0 255   0   0
18  18  18   0   0   0   0   0   0   0  13   0   0 255   0   0
18  18  18   0   0   0   0   0   0   0   0   0   0   0   0   0
18  18  18   0   0   0   0   0   0   0   0   0   0   0   0   0
"""


def folders(tmp_path, content):
    photo(tmp_path / "leftImg8bit" / "frankfurt" / f"{NAME}_leftImg8bit.png")
    file = tmp_path / "gtFine" / "frankfurt" / f"{NAME}_gtFine_polygons.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    return tmp_path / "gtFine", tmp_path / "leftImg8bit"


def test_masks_are_those_of_cityscapes(tmp_path):
    """A group is its class, what was deleted and the licence plate are not drawn, other labels hide what is below."""
    content = json.loads((FILES / f"{NAME}_gtFine_polygons.json").read_text())
    content["objects"][4]["label"] = "license plate"
    annotations, images = folders(tmp_path, content)
    letters = {str(k): name[0] for k, name in enumerate(PALETTE)} | {"255": "x"}
    golden = ["".join(letters[k] for k in line.split()) for line in GOLDEN.strip().splitlines()]
    found = labels("cityscapes", annotations, images, uncovered="void")
    (rows,) = found.values()
    assert [row.replace(".", "r") for row in rows] == golden
    photos = Photos(images)
    said = read_cityscapes(annotations, photos, Remarks())
    assert said.classes == tuple(PALETTE)
    assert photos.find(said.images[0].names, "f") == f"frankfurt/{NAME}_leftImg8bit.png"


def test_labels_of_ones_own_are_classes(tmp_path):
    content = {"imgHeight": 12, "imgWidth": 16, "objects": []}
    for label in ("tree", "car", "cargroup", "treegroup"):
        content["objects"].append({"label": label, "polygon": [[0, 0], [9, 0], [9, 9]]})
    annotations, images = folders(tmp_path, content)
    assert read_cityscapes(annotations, Photos(images), Remarks()).classes == ("car", "tree", "treegroup")
