"""Any folder of images beside a folder of their masks, read as it is asked for: for scoring, not for training."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forec_jax.data.decode import ColourRule, Follow, MaskRule, decode_mask_of, decode_photo
from forec_jax.data.imagefile import read_file
from forec_jax.data.listing import MASK_ENDING, image_files, match_masks, relative_id
from forec_jax.data.prepared import Entry, index_by_id
from forec_jax.data.remarks import Remarks
from forec_jax.data.shrink import shrunk_label
from forec_jax.data.source import DataError, Example

log = logging.getLogger(__name__)

_LOSSY = (".jpg", ".jpeg")  # what no mask is stored as


def pairs_of(images: Path, masks: Path) -> tuple[Entry, ...]:
    """An entry for every image in `images` and below, with its mask in `masks`, named as in a data set of one's own.

    One of the folders may lie in the other, or both may be one. Raises DataError for a folder that is missing or holds no
    image, and for an image without a mask.
    """
    image_list, mask_list = _apart(images, masks)
    by_id = index_by_id(_entries(image_list, images), Path())
    by_mask = index_by_id(_entries(mask_list, masks), Path())
    found = match_masks({name: entry.image for name, entry in by_mask.items()}, by_id, Path())
    if lone := sorted(found.keys() - by_id.keys()):
        log.warning(
            "%s: %d masks have no image in %s and are not used (%s)", masks, len(lone), images, ", ".join(lone[:3])
        )
    if bare := [entry.image for name, entry in by_id.items() if name not in found]:
        raise DataError(
            f"{bare[0]} has no mask in {masks} ({len(bare)} of {len(by_id)} images have none); name each mask as its "
            "image is (a.png or a_mask.png for a.jpg), or take these images out of the folder"
        )
    return tuple(entry._replace(mask=found[name]) for name, entry in by_id.items())


def _entries(files: Sequence[Path], folder: Path) -> Iterator[Entry]:
    return (Entry(relative_id(file, folder), str(file.absolute())) for file in files)


def _apart(images: Path, masks: Path) -> tuple[list[Path], list[Path]]:
    """The image files of either folder; what lies in the one inside the other is of that one alone."""
    of_images, of_masks = _files(images, "--images"), _files(masks, "--masks")
    inner, outer = masks.resolve(), images.resolve()
    if inner == outer:
        return _told_apart(images, of_images)
    if inner.is_relative_to(outer):
        of_images = [file for file in of_images if not file.parent.resolve().is_relative_to(inner)]
    if outer.is_relative_to(inner):
        of_masks = [file for file in of_masks if not file.parent.resolve().is_relative_to(outer)]
    return of_images, of_masks


def _files(folder: Path, flag: str) -> list[Path]:
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(f"{flag}={folder} is no folder of images; give one that holds some")
    return files


def _told_apart(folder: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images and masks of one folder: a_mask.png is a mask, or else a.png beside a.jpg is."""
    photographs = {file.with_suffix("") for file in files if file.suffix.lower() in _LOSSY}
    masks = [file for file in files if MASK_ENDING.search(file.stem)] or [
        file for file in files if file.suffix.lower() not in _LOSSY and file.with_suffix("") in photographs
    ]
    if not masks:
        raise DataError(
            f"{folder}: is given as --images and as --masks, and no name says which files are masks; name them a_mask.png, "
            "or move them to a folder of their own"
        )
    return [file for file in files if file not in frozenset(masks)], masks


@dataclass(frozen=True)
class PairSource:
    """Images and masks from their own files, at most `longest_side` pixels a side (0: as they are)."""

    entries: Sequence[Entry]
    rule: MaskRule | ColourRule
    follow: Follow
    longest_side: int
    remarks: Remarks  # what is worth a word about the files that were read
    labels: bool = True

    @property
    def ids(self) -> Sequence[str]:
        """The entries' names."""
        return tuple(entry.id for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[index]
        photo = decode_photo(read_file(entry.image), entry.image, self.longest_side, self.remarks)
        if not self.labels or entry.mask is None:
            return Example(entry.id, photo.pixels)
        label = decode_mask_of(photo, read_file(entry.mask), entry.mask, self.rule, self.follow, self.remarks)
        return Example(entry.id, photo.pixels, shrunk_label(label, (photo.pixels.shape[0], photo.pixels.shape[1])))

    def without_labels(self) -> "PairSource":
        """The same images, masks unopened."""
        return replace(self, labels=False)
