"""Which images there are, what was drawn on each, and which classes there are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from forec_jax.annotations.cityscapes import read_cityscapes
from forec_jax.annotations.coco import read_coco
from forec_jax.annotations.cvat import read_cvat
from forec_jax.annotations.drawn import Annotated, Annotations
from forec_jax.annotations.labelme import read_labelme
from forec_jax.annotations.masks import read_masks
from forec_jax.annotations.paint import Overlap
from forec_jax.annotations.photos import Photos
from forec_jax.annotations.voc import read_voc
from forec_jax.data.datasets.cityscapes import BACKGROUND as ROAD
from forec_jax.data.decode import Follow
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError

BACKGROUND = "background"
_MOST = 253
"""So many classes fit a mask of bytes beside void and unlabelled."""


class Format(NamedTuple):
    """How annotations of a kind are read, and what they mean where nobody says otherwise."""

    read: Callable[[Path, Photos, Remarks], Annotations]
    overlap: Overlap
    uncovered: str = BACKGROUND  # or "void"
    around: str = BACKGROUND  # the class that stands around the others, where there is one


FORMATS = {
    "coco": Format(read_coco, "area"),  # its files have no order
    "labelme": Format(read_labelme, "order"),
    "cvat": Format(read_cvat, "order"),
    "voc": Format(read_voc, "order"),
    "cityscapes": Format(read_cityscapes, "order", "void", ROAD),
    "masks": Format(read_masks, "area"),
}
"""By the name that --from has."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is imported, and how."""

    kind: str  # of FORMATS
    annotations: Path
    images: Path
    val_annotations: Path | None = None  # of images that become val
    val_images: Path | None = None  # where these are; None: beside the others
    val_list: Path | None = None  # names of images that become val
    classes: tuple[str, ...] = ()  # in this order; (): all that there are
    uncovered: str = (
        ""  # what pixels become that no object covers: "background" or "void"; "": as is usual for the kind
    )
    overlap: Overlap | None = None  # None: as is usual for the kind
    crowd: str = "void"  # what COCO's crowds become: "void" or their "class"
    empty: str = "unlabelled"  # what an image is on which nothing is drawn: "unlabelled", or "background" all over
    follow: Follow = "display"  # what was drawn on, for photographs with an orientation tag


class Picture(NamedTuple):
    """An image, and what was drawn on it."""

    path: str  # below the folder of the images, and below that of the new ones
    file: Path
    drawn: Annotated | None  # None: nobody has looked at it
    scored: bool = False  # it belongs to val

    @property
    def id(self) -> str:
        """Its name in the data set."""
        return str(PurePosixPath(self.path).with_suffix(""))


class Gathered(NamedTuple):
    """What a request comes to."""

    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]  # in the order of their indices
    unwanted: Mapping[str, int]  # how many objects have which other class


def gather(request: Request, remarks: Remarks) -> Gathered:
    """Reads the annotations and finds their images.

    Annotations whose image is missing get a remark. Raises DataError for what its reader refuses, annotations of none of the
    images, two for one image, two images of one name, and classes that cannot be a folder data set's.
    """
    read = partial(read_coco, crowd=request.crowd) if request.kind == "coco" else FORMATS[request.kind].read
    photos = Photos(request.images)
    found = read(request.annotations, photos, remarks)
    drawn, classes = _matched(found, photos, request.annotations, remarks), [*found.classes]
    pictures = [Picture(path, file, drawn.get(path)) for path, file in photos.by_path.items()]
    if request.val_annotations is not None:
        beside = Photos(request.val_images) if request.val_images else photos
        found = read(request.val_annotations, beside, remarks)
        scored = _matched(found, beside, request.val_annotations, remarks)
        classes += [name for name in found.classes if name not in classes]
        val = [Picture(path, beside.by_path[path], image, scored=True) for path, image in scored.items()]
        files = {picture.file for picture in val}
        pictures = [picture for picture in pictures if picture.drawn or picture.file not in files] + val
    _check_names(pictures)
    shapes = [shape.label for picture in pictures if picture.drawn for shape in picture.drawn.shapes]
    chosen = _chosen(classes, request)
    unwanted = {name: shapes.count(name) for name in classes if name not in chosen}
    return Gathered(tuple(pictures), chosen, unwanted)


def _matched(found: Annotations, photos: Photos, where: Path, remarks: Remarks) -> dict[str, Annotated]:
    """The annotated images by their paths."""
    drawn: dict[str, Annotated] = {}
    for image in found.images:
        path = photos.find(image.names, image.file)
        if path is None:
            remarks.add(f"annotated, and not in {photos.folder}; left out", image.names[0])
        elif (other := drawn.setdefault(path, image)) is not image:
            raise DataError(
                f"{photos.folder / path} is annotated twice, as {other.names[0]} in {other.file} and as "
                f"{image.names[0]} in {image.file}; remove one"
            )
    if not drawn:
        named = f" (the first is {found.images[0].names[0]!r})" if found.images else ""
        raise DataError(f"{where}: none of the {len(found.images)} images that it names{named} is in {photos.folder}")
    return drawn


def _check_names(pictures: Sequence[Picture]) -> None:
    """Raises DataError for two images that would have one name, on a disk that does not tell small letters from large."""
    seen: dict[str, Picture] = {}
    for picture in pictures:
        other = seen.setdefault(picture.id.casefold(), picture)
        if other.file == picture.file and other is not picture:
            raise DataError(f"{picture.file}: is in --annotations and in --val_annotations; remove it from one")
        if other is not picture:
            raise DataError(f"{other.file} and {picture.file} would have the same name, {picture.id}; rename one")


def _chosen(found: Sequence[str], request: Request) -> tuple[str, ...]:
    """The classes of the data set, background first where there is one."""
    if unknown := [name for name in request.classes if name not in found and name != BACKGROUND]:
        raise DataError(f"--classes: {', '.join(unknown)} are not there; the annotations have {_few(found)}")
    names = [*(request.classes or found)]
    if uncovered(request) == BACKGROUND and BACKGROUND not in names:
        names.insert(0, BACKGROUND)
    for name in names:
        if not name.isprintable() or not name.strip() or len(name) > 100:
            raise DataError(
                f"{request.annotations}: {name[:100]!r} is no name of a class; rename it, or choose --classes"
            )
    if not 2 <= len(names) <= _MOST:
        raise DataError(
            f"{request.annotations}: has {len(names)} classes ({_few(names)}); a data set has 2 to {_MOST}. Choose some by "
            "--classes, or take what is not drawn as a class by --uncovered=background"
        )
    return tuple(sorted(names, key=lambda name: name != BACKGROUND)) if not request.classes else tuple(names)


def uncovered(request: Request) -> str:
    """What pixels become that no object covers."""
    return request.uncovered or FORMATS[request.kind].uncovered


def _few(names: Iterable[str]) -> str:
    listed = [*names]
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
