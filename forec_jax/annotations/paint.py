"""From the shapes of an image to its label, with one rule for what lies over what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from forec_jax.annotations.drawn import Annotated, NothingDrawn, Shape, Size
from forec_jax.annotations.outline import reaches_outside
from forec_jax.contracts import IGNORE
from forec_jax.data.remarks import Remarks

Overlap = Literal["area", "order"]
"""Which of two objects is seen: the smaller one, or the later one of the file."""


@dataclass(frozen=True)
class Rule:
    """What objects become."""

    index: Mapping[str, int]  # of each class
    uncovered: int  # what pixels become that no object covers, or one of a class that is not wanted
    overlap: Overlap


class Painted(NamedTuple):
    """A label, and what was painted."""

    label: np.ndarray  # u8[H,W]
    objects: int
    contested: int  # pixels in objects of different classes


def paint(image: Annotated, size: Size, rule: Rule, remarks: Remarks) -> Painted:
    """The label of an image of a size. Objects that cover no pixel are left out, with a remark; raises DataError."""
    label, covered = np.full(size, rule.uncovered, np.uint8), np.zeros(size, bool)
    contested, count = np.zeros(size, bool), 0
    for shape in _sorted(image.shapes, size, rule.overlap):
        mask = _mask(shape, size, image, remarks)
        if mask is None:
            continue
        value = IGNORE if shape.label is None else rule.index.get(shape.label, rule.uncovered)
        contested |= mask & covered & (label != value)
        label[mask] = value
        covered |= mask
        count += 1
    return Painted(label, count, int(contested.sum()))


def _sorted(shapes: Sequence[Shape], size: Size, overlap: Overlap) -> list[Shape]:
    """The shapes from below to above. Areas are those in the image, and nothing is kept of the masks but these."""
    if overlap == "order" or len(shapes) < 2:
        return sorted(shapes, key=lambda shape: shape.layer)
    areas = [_area(shape, size) for shape in shapes]
    order = sorted(range(len(shapes)), key=lambda k: (shapes[k].layer, -areas[k]))
    return [shapes[k] for k in order]


def _area(shape: Shape, size: Size) -> int:
    try:
        return int(shape.mask(size).sum())
    except NothingDrawn:
        return 0


def _mask(shape: Shape, size: Size, image: Annotated, remarks: Remarks) -> np.ndarray | None:
    """What a shape covers; None where that is nothing."""
    name = image.names[0]
    outside = shape.points is not None and reaches_outside(shape.points, size)
    try:
        mask = shape.mask(size)
    except NothingDrawn as error:
        remarks.add(f"an object {error}; it is left out", name)
        return None
    if not mask.any():
        remarks.add(f"an object {'lies outside the image' if outside else 'covers no pixel'}; it is left out", name)
        return None
    if outside:
        remarks.add("an object reaches out of the image; what is outside is cut off", name)
    return mask
