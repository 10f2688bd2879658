"""COCO's JSON: images, categories, and annotations with outlines or run lengths (Lin et al., ECCV 2014; cocodataset.org)."""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from forec_jax.annotations.drawn import Annotated, Annotations, NothingDrawn, Shape, Size
from forec_jax.annotations.jsonfile import Node, read_json
from forec_jax.annotations.outline import by_centres
from forec_jax.annotations.photos import Photos
from forec_jax.annotations.runs import counts_of_text, mask_of_runs
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError

CROWD_LAYER = -1
"""A crowd lies under everything else: what is drawn one by one is known better than a region of many objects."""


def read_coco(file: Path, photos: Photos, remarks: Remarks, crowd: str = "void") -> Annotations:
    """The annotations of a COCO file. A crowd is "void", or of its "class".

    Raises DataError, naming the place, for what is no COCO file, ids that are there twice, and categories and images that
    an annotation names and the file does not have.
    """
    root = read_json(file)
    if "images" in root and "annotations" in root:
        first = next(root.get("annotations").each(), None)
        if first is not None and "segments_info" in first:
            raise DataError(
                f"{file}: is COCO's panoptic form; give the instances' file, or the masks with --from=masks"
            )
    names = _categories(root.get("categories"), remarks)
    images = _by_id(root.get("images"), "images")
    drawn = _drawn(root.get("annotations"), images, names, crowd, remarks)
    listed = [
        Annotated(
            (node.get("file_name").text(),),
            (node.get("height").side(), node.get("width").side()) if "height" in node and "width" in node else None,
            tuple(drawn.get(number, ())),
            str(file),
        )
        for number, node in images.items()
    ]
    return Annotations(tuple(dict.fromkeys(names.values())), tuple(listed))


def _categories(node: Node, remarks: Remarks) -> dict[int, str]:
    """The names by id."""
    names = {number: category.get("name").text() for number, category in _by_id(node, "categories").items()}
    for name, count in Counter(names.values()).items():
        if count > 1:
            remarks.add(f"the category {name!r} has {count} ids, which are taken for one class", node.file)
    return names


def _by_id(node: Node, kind: str) -> dict[int, Node]:
    """The elements of a list by their ids."""
    found: dict[int, Node] = {}
    for element in node.each():
        number = element.get("id").whole()
        if number in found:
            raise element.error(f"has the id {number} of another one of the {kind}; give each its own")
        found[number] = element
    return found


def _drawn(
    node: Node, images: dict[int, Node], names: dict[int, str], crowd: str, remarks: Remarks
) -> dict[int, list[Shape]]:
    """The shapes by their images' ids."""
    drawn: dict[int, list[Shape]] = defaultdict(list)
    seen: set[int] = set()
    for annotation in node.each():
        image, category = annotation.get("image_id").whole(), annotation.get("category_id").whole()
        if image not in images:
            raise annotation.error(
                f"is of the image {image}, which the file does not list; remove it, or list the image"
            )
        if category not in names:
            raise annotation.error(
                f"has the category {category}, which the file does not list; add it to the categories"
            )
        if "id" in annotation:
            number = annotation.get("id").whole()
            if number in seen:
                remarks.add("annotations share an id; each is used", node.file)
            seen.add(number)
        drawn[image].append(_shape(annotation, names[category], crowd))
    return drawn


def _shape(annotation: Node, name: str, crowd: str) -> Shape:
    is_crowd = "iscrowd" in annotation and annotation.get("iscrowd").value in (1, True)
    label = None if is_crowd and crowd == "void" else name
    layer = CROWD_LAYER if is_crowd else 0
    if "segmentation" not in annotation:
        return Shape(label, _box_alone, layer)
    node = annotation.get("segmentation")
    if isinstance(node.value, dict):
        return Shape(label, _runs(node), layer)
    parts = [part.flat_points() for part in node.each()]
    if not parts:
        return Shape(label, _box_alone, layer)
    return Shape(label, partial(by_centres, parts, node.file), layer, np.concatenate(parts))


def _box_alone(size: Size) -> np.ndarray:
    raise NothingDrawn("has a box and no outline")


def _runs(node: Node) -> "partial[np.ndarray]":
    """What draws run lengths, compressed to a text or as a list of numbers, down columns."""
    sides = [number.side() for number in node.get("size").each()]
    if len(sides) != 2:
        raise node.error("has no size of two numbers, height and width")
    return partial(_mask_of_counts, node, (sides[0], sides[1]))


def _mask_of_counts(node: Node, declared: Size, size: Size) -> np.ndarray:
    if declared != size:
        raise node.error(
            f"is a mask of {declared[1]}x{declared[0]} pixels in an image of {size[1]}x{size[0]}; export anew"
        )
    counts = node.get("counts")
    if isinstance(counts.value, str):
        numbers = counts_of_text(counts.value, node.file)
    else:
        numbers = [number.whole() for number in counts.each()]
    return mask_of_runs(numbers, size, "columns", node.file)
