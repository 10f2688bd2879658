"""Annotations as a folder data set: masks of class indices, the images, the class file, lists, and pictures to check it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from forec_jax.annotations.drawn import Annotated, Size
from forec_jax.annotations.gather import BACKGROUND, FORMATS, Gathered, Picture, Request, gather, uncovered
from forec_jax.annotations.paint import Rule, paint
from forec_jax.contracts import IGNORE
from forec_jax.data.classfile import CLASS_FILE, class_file, read_classes
from forec_jax.data.datasets.voc import voc_palette
from forec_jax.data.decode import Follow
from forec_jax.data.imagefile import ImageFile, open_image, read_file, turn
from forec_jax.data.newfolder import check_new, new_folder
from forec_jax.data.pairs import PairSource
from forec_jax.data.prepared import Entry
from forec_jax.data.remarks import Remarks
from forec_jax.data.source import DataError, Labels
from forec_jax.data.splits import read_list
from forec_jax.progress import progress_bar
from forec_jax.visualize import label_sheets, save_index_png

IMAGES, MASKS, UNLABELLED, PREVIEWS = "images", "masks", "unlabelled", "previews"

_SHOWN, _SIDE = 6, 512
"""How many pictures are drawn to check by, and the longer side of their images in pixels."""


@dataclass
class Summary:
    """What an import wrote, or would write."""

    gathered: Gathered
    rule: Rule
    labelled: list[Picture] = field(default_factory=list)
    unlabelled: list[Picture] = field(default_factory=list)
    val: frozenset[str] = frozenset()  # ids
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of each label
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # that show it
    objects: int = 0
    contested: int = 0  # pixels in objects of different classes

    def add(self, label: np.ndarray, objects: int, contested: int) -> None:
        """Counts the label of an image."""
        counts = np.bincount(label.ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        self.objects += objects
        self.contested += contested


def import_annotations(request: Request, out: Path | None) -> Summary:
    """Writes the folder data set `out`, which appears complete or not at all; with None all is read and nothing written.

    Raises DataError, naming the file, for what `gather` refuses, sizes that disagree, images and masks that cannot be read,
    a list of val that names others, and an `out` that is there or lies among the images.
    """
    if out is not None:
        check_new(out)
        if out.resolve().is_relative_to(request.images.resolve()):
            raise DataError(f"--out={out} lies in --images={request.images}, and would be read with it; choose another")
    remarks = Remarks()
    gathered = gather(request, remarks)
    index = {name: k for k, name in enumerate(gathered.classes)}
    ground = index[BACKGROUND] if uncovered(request) == BACKGROUND else IGNORE
    summary = Summary(gathered, Rule(index, ground, request.overlap or FORMATS[request.kind].overlap))
    with nullcontext() if out is None else new_folder(out) as folder:
        for picture in progress_bar(gathered.pictures, desc="importing", unit="image"):
            _import_one(picture, folder, request, summary, remarks)
        remarks.report()
        if not summary.labelled:
            raise DataError(f"{request.annotations}: nothing is drawn on any image of {request.images}")
        summary.val = _val(request, summary.labelled)
        if folder is not None:
            around = FORMATS[request.kind].around
            text = class_file(gathered.classes, around if around in index else None)
            (folder / CLASS_FILE).write_text(text, encoding="utf-8")
            _write_lists(folder, summary)
            _write_previews(folder, summary)
    return summary


def _import_one(picture: Picture, folder: Path | None, request: Request, summary: Summary, remarks: Remarks) -> None:
    """Paints an image's label, and copies the image to where it belongs."""
    data = read_file(picture.file)
    drawn = picture.drawn
    if drawn is not None and (drawn.shapes or request.empty == BACKGROUND):
        opened = open_image(data, str(picture.file), _SIDE)
        size, turned = _canvas(opened, drawn, picture.file, request.follow, remarks)
        painted = paint(drawn, size, summary.rule, remarks)
        if painted.objects or request.empty == BACKGROUND:
            label = np.asarray(turn(Image.fromarray(painted.label), opened.orientation)) if turned else painted.label
            summary.add(label, painted.objects, painted.contested)
            summary.labelled.append(picture)
            if folder is not None:
                _write(folder / IMAGES / picture.path, data)
                _write_mask(folder / MASKS / f"{picture.id}.png", label, summary.gathered.classes)
            return
    if picture.scored:
        remarks.add("nothing is drawn on it, so that it cannot be in val; left out", str(picture.file))
        return
    summary.unlabelled.append(picture)
    if folder is not None:
        _write(folder / UNLABELLED / picture.path, data)


def _canvas(opened: ImageFile, drawn: Annotated, file: Path, follow: Follow, remarks: Remarks) -> tuple[Size, bool]:
    """The height and width that was drawn on, and whether what was drawn must be turned as the photograph is.

    The size usually tells; otherwise `follow` does. Raises DataError where the sizes disagree.
    """
    shown = opened.size
    stored = shown[::-1] if opened.orientation >= 5 else shown
    if drawn.size not in (None, shown, stored):
        assert drawn.size is not None
        raise DataError(
            f"{drawn.file}: {drawn.names[0]} was annotated at {drawn.size[1]}x{drawn.size[0]} pixels, and {file} has "
            f"{shown[1]}x{shown[0]}; restore the image that was drawn on, or scale the annotations"
        )
    if opened.orientation == 1:
        return shown, False
    if drawn.size is not None and shown != stored:
        if drawn.size == stored:
            remarks.add(
                "was drawn on before it was turned by its orientation tag, as the size shows; so it is read", str(file)
            )
        return drawn.size, drawn.size == stored
    if follow == "display":
        remarks.add(
            "has an orientation tag, and its size does not tell whether it was drawn on before or after turning; what was "
            "drawn is taken to fit what viewers show. If it does not, set --masks_follow=file",
            str(file),
        )
    return (stored, True) if follow == "file" else (shown, False)


def _val(request: Request, labelled: Sequence[Picture]) -> frozenset[str]:
    """The ids of val; none where it is left to the data set to draw it."""
    val = {picture.id for picture in labelled if picture.scored}
    if request.val_list is not None:
        ids = [picture.id for picture in labelled]
        val |= set(read_list(request.val_list, ids))
        if unknown := sorted(val.difference(ids)):
            raise DataError(f"{request.val_list}: {', '.join(unknown[:3])} are no images with masks; correct the list")
    if val and len(val) == len(labelled):
        raise DataError("every image with a mask is in val; leave some to train on")
    return frozenset(val)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_mask(file: Path, label: np.ndarray, classes: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_index_png(file, label, voc_palette(len(classes)))


def _write_lists(folder: Path, summary: Summary) -> None:
    """The lists of train and val, where it is known what val is."""
    if not summary.val:
        return
    ids = [picture.id for picture in summary.labelled]
    for name, members in {"train": [i for i in ids if i not in summary.val], "val": sorted(summary.val)}.items():
        (folder / f"{name}.txt").write_text("\n".join(members) + "\n", encoding="utf-8")


def _write_previews(folder: Path, summary: Summary) -> None:
    """Pictures of a few images, from first to last, as they are read from the new folder."""
    said = read_classes(folder / CLASS_FILE)
    step = max(1, len(summary.labelled) // _SHOWN)
    entries = [
        Entry(picture.id, str(folder / IMAGES / picture.path), str(folder / MASKS / f"{picture.id}.png"))
        for picture in summary.labelled[::step][:_SHOWN]
    ]
    source = PairSource(entries, said.rule, "display", _SIDE, Remarks())
    sheets = label_sheets(source, {}, Labels(said.names, said.palette, said.background), _SHOWN)
    (folder / PREVIEWS).mkdir()
    for number, (_, picture) in enumerate(sheets):
        Image.fromarray(picture).save(folder / PREVIEWS / f"{number}.png")
