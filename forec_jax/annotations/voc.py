"""Masks in colours as VOC has them, one an image: SegmentationClass/*.png (Everingham et al., IJCV 2010)."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forec_jax.annotations.drawn import Annotated, Annotations, Shape, Size
from forec_jax.annotations.labelme import BACKGROUND, VOID
from forec_jax.annotations.photos import Photos
from forec_jax.data.datasets.voc import CLASSES, voc_palette
from forec_jax.data.decode import open_mask
from forec_jax.data.imagefile import SUFFIXES, read_file
from forec_jax.data.listing import files_below, relative_id
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import RGB, DataError
from forec_jax.data.textfile import read_text

_VOID_COLOUR, _VOID_INDEX = voc_palette(256)[255], 255
_LABEL_MAP, _CLASS_NAMES = "labelmap.txt", "class_names.txt"


class _Table(NamedTuple):
    """What colours and indices mean: a class's name, or None for void."""

    colours: tuple[tuple[RGB, str | None], ...]
    says: str  # the file that says so

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order."""
        return tuple(dict.fromkeys(name for _, name in self.colours if name is not None))


def read_voc(folder: Path, photos: Photos, remarks: Remarks) -> Annotations:
    """The masks of a folder and below, named as their images are.

    Colours are those of labelmap.txt, as CVAT writes it, or those that VOC gives to the classes of class_names.txt, as
    Labelme writes it, in the folder or the one above; without these they are VOC's own. Grey masks hold indices. Raises
    DataError, naming the file, for another colour.
    """
    files = mask_files(folder)
    table = _table(folder)
    images = []
    for file in files:
        codes = _codes(file, table)
        labels = [None if code < 0 else table.names[code] for code in np.unique(codes).tolist()]
        shapes = [Shape(label, functools.partial(_mask, file, table, label)) for label in labels]
        images.append(
            Annotated((relative_id(file, folder),), (codes.shape[0], codes.shape[1]), tuple(shapes), str(file))
        )
    return Annotations(table.names, tuple(images))


def mask_files(folder: Path) -> list[Path]:
    """The image files of a folder of masks and below. Raises DataError where there are none."""
    files = [file for file in files_below(folder) if file.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not files:
        raise DataError(f"--annotations={folder}: is no folder of masks; give the one that holds them")
    return files


def _table(folder: Path) -> _Table:
    for place in (folder, folder.parent):
        if (file := place / _LABEL_MAP).is_file():
            return _Table(tuple(_label_map(file)), str(file))
        if (file := place / _CLASS_NAMES).is_file():
            names = [_named(line.strip()) for line in read_text(file).splitlines() if line.strip() not in ("", VOID)]
            if not 0 < len(names) < _VOID_INDEX:
                raise DataError(f"{file}: holds {len(names)} names; a mask has room for 1 to {_VOID_INDEX - 1}")
            return _Table((*zip(voc_palette(len(names)), names, strict=True), (_VOID_COLOUR, None)), str(file))
    return _Table((*zip(voc_palette(len(CLASSES)), CLASSES, strict=True), (_VOID_COLOUR, None)), "VOC's 21 classes")


def _named(name: str) -> str:
    return "background" if name == BACKGROUND else name


def _label_map(file: Path) -> "list[tuple[RGB, str | None]]":
    """Lines of NAME:RED,GREEN,BLUE:PARTS:ACTIONS."""
    table: dict[RGB, str | None] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            values = [int(value) for value in rest.partition(":")[0].split(",")]
        except ValueError:
            values = []
        if len(values) != 3 or not all(0 <= value <= 255 for value in values) or not name:
            raise DataError(f"{file}, line {number}: {line[:60]!r} is not NAME:RED,GREEN,BLUE::")
        colour = (values[0], values[1], values[2])
        if colour in table:
            raise DataError(f"{file}, line {number}: {colour} is the colour of {table[colour]} already")
        table[colour] = None if name in ("void", "ignore", VOID) else _named(name)
    table.setdefault(_VOID_COLOUR, None)
    return list(table.items())


@functools.lru_cache(maxsize=1)
def _codes(file: Path, table: _Table) -> np.ndarray:
    """i16[H,W]: the place of each pixel's class among the names; -1: void."""
    image = open_mask(read_file(file), str(file)).image
    place = {name: index for index, name in enumerate(table.names)}
    meant = np.array([-1 if name is None else place[name] for _, name in table.colours], np.int16)
    if image.mode in ("L", "1"):
        index = np.asarray(image.convert("L"))
        found, known = index, dict(enumerate(range(len(table.names)))) | {_VOID_INDEX: -1}
    else:
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
        found = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        known = {r << 16 | g << 8 | b: int(code) for ((r, g, b), _), code in zip(table.colours, meant, strict=True)}
    values, inverse = np.unique(found, return_inverse=True)
    if unknown := [value for value in values.tolist() if value not in known]:
        what = f"the index {unknown[0]}" if found.ndim == 2 and image.mode in ("L", "1") else _colour(unknown[0])
        raise DataError(
            f"{file}: {what} is no class's ({int(np.isin(found, unknown).sum())} pixels have {len(unknown)} such values); "
            f"known are those of {table.says}; put a {_LABEL_MAP} with lines NAME:RED,GREEN,BLUE:: beside the masks"
        )
    return np.array([known[value] for value in values.tolist()], np.int16)[inverse].reshape(found.shape)


def _colour(code: int) -> str:
    return f"the colour {tuple(code.to_bytes(3))}"


def _mask(file: Path, table: _Table, label: str | None, size: Size) -> np.ndarray:
    return _codes(file, table) == (-1 if label is None else table.names.index(label))
