"""CVAT's XML, "CVAT for images 1.1": boxes, polygons, ellipses and masks by image (docs.cvat.ai)."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from forec_jax.annotations.drawn import Annotated, Annotations, NothingDrawn, Shape, Size
from forec_jax.annotations.outline import by_centres, ellipse, turned
from forec_jax.annotations.photos import Photos
from forec_jax.annotations.runs import mask_of_runs, placed
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError

_FARTHEST = 1e9
_NOT_SHAPES = ("tag",)


def read_cvat(file: Path, photos: Photos, remarks: Remarks) -> Annotations:
    """The annotations of an annotations.xml, or of the folder that holds it.

    No entity is expanded and nothing outside of the file is read. Raises DataError, naming the file, for what is no such
    XML, and for a label that the file does not list.
    """
    file = file / "annotations.xml" if file.is_dir() else file
    root = _parsed(file)
    if root.find("track") is not None:
        raise DataError(f'{file}: is "CVAT for video"; export the task as "CVAT for images"')
    names = [
        label.findtext("name") or "" for label in root.iterfind("meta//labels/label") if not label.findtext("parent")
    ]
    images = tuple(_image(image, file) for image in root.iterfind("image"))
    if not images:
        raise DataError(f'{file}: has no <image>; export the task as "CVAT for images"')
    found = {shape.label for image in images for shape in image.shapes if shape.label is not None}
    if names and (unknown := sorted(found.difference(names))):
        raise DataError(
            f"{file}: the labels {', '.join(unknown[:3])} are used and not listed; add them to its <labels>"
        )
    return Annotations(tuple(dict.fromkeys(names)) or tuple(sorted(found)), images)


def _parsed(file: Path) -> Any:
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError as error:
        raise DataError(
            "CVAT's XML needs defusedxml, which is not installed: pip install 'forec-jax[import]'"
        ) from error
    try:
        return fromstring(file.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check --annotations") from error
    except DefusedXmlException as error:
        raise DataError(f"{file}: has a document type or entities, which CVAT never writes and are not read") from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file}: is no XML ({error}); export it anew") from error


def _image(image: Any, file: Path) -> Annotated:
    name = image.get("name") or ""
    where = f"{file}: image {name!r}"
    size = _whole(image, "height", where), _whole(image, "width", where)
    if not name or min(size) < 1:
        raise DataError(f"{where} has no name, or no size; export it anew")
    return Annotated((name,), size, tuple(_shapes(image, where)), str(file))


def _shapes(image: Any, where: str) -> Iterator[Shape]:
    for element in image:
        if element.tag in _NOT_SHAPES:
            continue
        if not (label := element.get("label")):
            raise DataError(f"{where}: a {element.tag} has no label; export it anew")
        layer = _whole(element, "z_order", where) if element.get("z_order") else 0
        if element.tag == "mask":
            yield Shape(label, _mask(element, where), layer)
        elif (points := _outline(element, where)) is None:
            yield Shape(label, partial(_line, element.tag), layer)
        else:
            yield Shape(label, partial(by_centres, [points], where), layer, points)


def _outline(element: Any, where: str) -> np.ndarray | None:
    """f64[n,2] of what has an area."""
    turn = _number(element, "rotation", where) if element.get("rotation") else 0.0
    match element.tag:
        case "polygon":
            return _points(element.get("points") or "", where)
        case "box":
            left, top, right, bottom = (_number(element, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
            corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            return turned(corners, corners.mean(axis=0), turn)
        case "ellipse":
            x, y, across, down = (_number(element, key, where) for key in ("cx", "cy", "rx", "ry"))
            return ellipse(np.array([x, y]), (across, down), turn)
    return None


def _points(text: str, where: str) -> np.ndarray:
    """f64[n,2] of "x,y;x,y;..."."""
    try:
        pairs = np.array([[float(number) for number in pair.split(",")] for pair in text.split(";")], float)
    except ValueError:
        pairs = np.full(1, math.nan)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not (np.abs(pairs) <= _FARTHEST).all():
        raise DataError(f"{where}: a polygon's points are {text[:60]!r}, which are not x,y;x,y;...")
    return pairs


def _mask(element: Any, where: str) -> "partial[np.ndarray]":
    """What draws a mask: run lengths along the rows of its box, the first one outside."""
    left, top, width, height = (_whole(element, key, where) for key in ("left", "top", "width", "height"))
    try:
        counts = [int(number) for number in (element.get("rle") or "").split(",")]
    except ValueError as error:
        raise DataError(f"{where}: a mask's rle is no list of whole numbers; export it anew") from error
    return partial(_mask_of_box, counts, (height, width), (left, top), where)


def _mask_of_box(counts: list[int], box: Size, corner: tuple[int, int], where: str, size: Size) -> np.ndarray:
    if not (0 < box[0] <= size[0] and 0 < box[1] <= size[1]):
        raise DataError(f"{where}: a mask's box is {box[1]}x{box[0]}, and the image {size[1]}x{size[0]} pixels")
    return placed(mask_of_runs(counts, box, "rows", where), *corner, size)


def _line(kind: str, size: Size) -> np.ndarray:
    raise NothingDrawn(f"is a {kind}, which has no area")


def _number(element: Any, key: str, where: str) -> float:
    try:
        number = float(element.get(key, ""))
    except ValueError:
        number = math.nan
    if not abs(number) <= _FARTHEST:
        raise DataError(f"{where}: {key}={element.get(key)!r} of <{element.tag}> is no number of pixels")
    return number


def _whole(element: Any, key: str, where: str) -> int:
    return round(_number(element, key, where))
