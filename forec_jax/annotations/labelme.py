"""Labelme's JSON files, one an image, as its versions 4 and 5 write them."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from forec_jax.annotations.drawn import Annotated, Annotations, NothingDrawn, Shape, Size
from forec_jax.annotations.jsonfile import Node, read_json
from forec_jax.annotations.outline import by_touch, circle_by_touch, rectangle_by_touch
from forec_jax.annotations.photos import Photos
from forec_jax.annotations.runs import mask_of_picture, placed
from forec_jax.data.listing import files_below, relative_id
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError

VOID, BACKGROUND = "__ignore__", "_background_"
"""Labels that Labelme's own exports give a meaning to."""

_CORNERS = 2


def read_labelme(folder: Path, photos: Photos, remarks: Remarks) -> Annotations:
    """The annotations of a folder's JSON files, and of those below. An image that a file holds is not read.

    Raises DataError, naming the file, for one that is not Labelme's, and for an image outside of --images.
    """
    images = [_image(file, folder, photos, remarks) for file in json_files(folder)]
    labels = sorted({shape.label for image in images for shape in image.shapes if shape.label is not None})
    return Annotations(tuple(labels), tuple(images))


def json_files(folder: Path, ending: str = ".json") -> list[Path]:
    """The JSON files of a folder and below, or the one that is named. Raises DataError where there is none."""
    files = [folder] if folder.is_file() else [file for file in files_below(folder) if file.name.endswith(ending)]
    if not files:
        raise DataError(f"--annotations={folder}: holds no file *{ending}; give the folder of the annotations")
    return files


def _image(file: Path, folder: Path, photos: Photos, remarks: Remarks) -> Annotated:
    root = read_json(file)
    shapes = [_shape(node) for node in root.get("shapes").each()]
    if "imageData" in root:
        remarks.add("an image that annotations hold is not read; the one in --images is used", str(file))
    size = None
    if "imageHeight" in root and "imageWidth" in root:
        size = root.get("imageHeight").side(), root.get("imageWidth").side()
    beside = relative_id(file, folder if folder.is_dir() else file.parent)
    named = (_below(root.get("imagePath").text(), file, photos.folder),) if "imagePath" in root else ()
    return Annotated((*named, beside), size, tuple(shapes), str(file))


def _below(path: str, file: Path, images: Path) -> str:
    """An imagePath, which starts from the JSON file's folder, as a path below the folder of the images where it is one."""
    whole = Path(os.path.abspath(file.parent / path.replace("\\", "/")))
    start = Path(os.path.abspath(images))
    return whole.relative_to(start).as_posix() if whole.is_relative_to(start) else path


def _shape(node: Node) -> Shape:
    label: str | None = node.get("label").text()
    if label == VOID:
        label = None
    elif label == BACKGROUND:
        label = "background"
    kind = node.get("shape_type").text() if "shape_type" in node else "polygon"
    points = node.get("points").points()
    match kind:
        case "polygon":
            return Shape(label, partial(by_touch, points, node.file), points=points)
        case "rectangle" | "circle" | "mask" if len(points) != _CORNERS:
            raise node.error(f"is a {kind} of {len(points)} points; it has two")
        case "rectangle":
            return Shape(label, partial(rectangle_by_touch, points), points=points)
        case "circle":
            radius = float(np.hypot(*(points[1] - points[0])))
            return Shape(label, partial(circle_by_touch, points[0], radius, node.file))
        case "mask":
            return Shape(label, partial(_mask, node, points))
    return Shape(label, partial(_line, kind))


def _mask(node: Node, points: np.ndarray, size: Size) -> np.ndarray:
    """A picture between two corners, the second included."""
    (left, top), (right, bottom) = points.astype(int).tolist()
    part = mask_of_picture(node.get("mask").text(), node.file)
    if part.shape != (bottom - top + 1, right - left + 1):
        raise node.error(
            f"is a mask of {part.shape[1]}x{part.shape[0]} pixels between corners for {right - left + 1}x{bottom - top + 1}"
        )
    return placed(part, left, top, size)


def _line(kind: str, size: Size) -> np.ndarray:
    raise NothingDrawn(f"is a {kind}, which has no area")
