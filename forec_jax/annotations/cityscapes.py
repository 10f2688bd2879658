"""Polygons in JSON as Cityscapes has them: *_polygons.json, one an image, labels by name (Cordts et al., CVPR 2016)."""

import re
from functools import partial
from pathlib import Path

from forec_jax.annotations.drawn import Annotated, Annotations, Shape
from forec_jax.annotations.jsonfile import Node, read_json
from forec_jax.annotations.labelme import json_files
from forec_jax.annotations.outline import by_touch
from forec_jax.annotations.photos import Photos
from forec_jax.data.datasets.cityscapes import PALETTE
from forec_jax.data.listing import relative_id
from forec_jax.data.remarks import Remarks

_VOID = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking",
    "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
)  # fmt: skip
"""Labels of Cityscapes that are no classes of its benchmark."""

_NOT_DRAWN = "license plate"
"""Drawn over cars; Cityscapes' own label images have the car there."""

_GROUP = "group"  # "cargroup" is several cars in one outline
_ENDING = re.compile(r"(_gt[A-Z][a-z]+)?(_polygons)?$")


def read_cityscapes(folder: Path, photos: Photos, remarks: Remarks) -> Annotations:
    """The annotations of a folder's *_polygons.json, or *.json where there are none of these, and of those below.

    Where every label is one of Cityscapes, the classes are its 19, and other labels are void; otherwise each label is a
    class. An image is named as its file of polygons, with _leftImg8bit or nothing in the place of that ending. Raises
    DataError, naming the file, for one that is not of this form.
    """
    polygons = [] if folder.is_file() else [file for file in folder.rglob("*_polygons.json") if file.is_file()]
    files = json_files(folder, "_polygons.json" if polygons else ".json")
    images = [_image(file, folder) for file in files]
    found = {shape.label for image in images for shape in image.shapes if shape.label is not None}
    if not found <= {*PALETTE, *_VOID}:
        return Annotations(tuple(sorted(found)), tuple(images))
    return Annotations(tuple(PALETTE), tuple(image._replace(shapes=_void(image.shapes)) for image in images))


def _void(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    return tuple(shape if shape.label in PALETTE else shape._replace(label=None) for shape in shapes)


def _image(file: Path, folder: Path) -> Annotated:
    root = read_json(file)
    stem = _ENDING.sub("", relative_id(file, folder if folder.is_dir() else file.parent))
    size = root.get("imgHeight").side(), root.get("imgWidth").side()
    shapes = [_shape(node) for node in root.get("objects").each() if not _is_left_out(node)]
    return Annotated((f"{stem}_leftImg8bit", stem), size, tuple(shapes), str(file))


def _is_left_out(node: Node) -> bool:
    return ("deleted" in node and bool(node.get("deleted").value)) or node.get("label").text() == _NOT_DRAWN


def _shape(node: Node) -> Shape:
    label, points = node.get("label").text(), node.get("polygon").points()
    single = label.removesuffix(_GROUP)
    known = single if label not in PALETTE and label not in _VOID and single in PALETTE else label
    return Shape(known, partial(by_touch, points, node.file), points=points)
