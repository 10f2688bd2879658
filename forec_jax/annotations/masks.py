"""One black and white mask for each class of an image, in a folder of its class or named by it."""

import functools
from collections import defaultdict
from pathlib import Path

import numpy as np

from forec_jax.annotations.drawn import Annotated, Annotations, Shape, Size
from forec_jax.annotations.photos import Photos
from forec_jax.annotations.voc import mask_files
from forec_jax.data.decode import open_mask
from forec_jax.data.imagefile import alpha_of, is_transparent, read_file
from forec_jax.data.listing import relative_id
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError

_BETWEEN = "_-. "  # an image's name and its class


def read_masks(folder: Path, photos: Photos, remarks: Remarks) -> Annotations:
    """The masks of a folder and below: CLASS/NAME.png, or NAME_CLASS.png, of the image NAME.

    Black is outside; of other values a mask has one. A file that belongs to no image gets a remark. Raises DataError,
    naming the file, for one that is no such mask.
    """
    drawn: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in mask_files(folder):
        found = _image_and_class(relative_id(file, folder), photos)
        if found is None:
            remarks.add("belongs to no image; masks are named CLASS/NAME.png or NAME_CLASS.png, as NAME.jpg", str(file))
        elif (other := drawn[found[0]].setdefault(found[1], file)) != file:
            raise DataError(f"{other} and {file} are both the mask of {found[1]} in {found[0]}; remove one")
    classes = sorted({label for files in drawn.values() for label in files})
    return Annotations(tuple(classes), tuple(_annotated(name, files) for name, files in drawn.items()))


def _image_and_class(name: str, photos: Photos) -> tuple[str, str] | None:
    """The image that a mask is of, and the class, by its path without ending."""
    folder, _, rest = name.partition("/")
    if rest in photos.by_id:
        return rest, folder
    places = [place for place, letter in enumerate(name) if letter in _BETWEEN and name[:place] in photos.by_id]
    return (name[: places[-1]], name[places[-1] + 1 :]) if places and places[-1] + 1 < len(name) else None


def _annotated(name: str, files: dict[str, Path]) -> Annotated:
    """An image with a shape for each of its masks that is not black, in the order of the classes."""
    masks = {label: (file, _mask(file)) for label, file in sorted(files.items())}
    (first, mask), *others = masks.values()
    for file, other in others:
        if other.shape != mask.shape:
            raise DataError(
                f"{file}: is {_size(other)}, and {first} of the same image {_size(mask)} pixels; export anew"
            )
    shapes = [Shape(label, functools.partial(_again, file)) for label, (file, mask) in masks.items() if mask.any()]
    return Annotated((name,), (mask.shape[0], mask.shape[1]), tuple(shapes), str(first))


def _again(file: Path, size: Size) -> np.ndarray:
    return _mask(file)


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"


def _mask(file: Path) -> np.ndarray:
    """bool[H,W]: what is not black."""
    image = open_mask(read_file(file), str(file)).image
    plain = image if image.mode[0] in "1I" or image.mode in ("L", "RGB") else image.convert("RGB")
    bands = np.atleast_3d(np.asarray(plain)).astype(np.int32)
    values = functools.reduce(lambda code, band: code << 8 | band, np.moveaxis(bands, 2, 0))
    if is_transparent(image):
        values = np.where(alpha_of(image) == 0, 0, values)
    if len(found := set(np.unique(values).tolist()) - {0}) > 1:
        raise DataError(
            f"{file}: has {len(found)} values beside black, and may have one; export it without smoothing. "
            "For a mask of several classes take --from=voc"
        )
    return np.asarray(values != 0)
