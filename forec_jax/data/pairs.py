"""Any folder of images beside a folder of their masks, read as it is asked for: for scoring, not for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forec_jax.data.decode import ColourRule, Follow, MaskRule, decode_mask_of, decode_photo
from forec_jax.data.imagefile import read_file
from forec_jax.data.listing import image_files, match_masks, relative_id
from forec_jax.data.prepared import Entry, index_by_id
from forec_jax.data.remarks import Remarks
from forec_jax.data.shrink import shrunk_label
from forec_jax.data.source import DataError, Example


def pairs_of(images: Path, masks: Path) -> tuple[Entry, ...]:
    """An entry for every image in `images` and below, with its mask in `masks`, named as in a data set of one's own.

    Raises DataError for a folder that is missing or holds no image, and for an image without a mask.
    """
    by_id = index_by_id(_entries(images, "--images"), Path())
    by_mask = index_by_id(_entries(masks, "--masks"), Path())
    found = match_masks({name: entry.image for name, entry in by_mask.items()}, by_id, Path())
    if bare := [entry.image for name, entry in by_id.items() if name not in found]:
        raise DataError(
            f"{bare[0]} has no mask in {masks} ({len(bare)} of {len(by_id)} images have none); name each mask as its "
            "image is (a.png or a_mask.png for a.jpg), or take these images out of the folder"
        )
    return tuple(entry._replace(mask=found[name]) for name, entry in by_id.items())


def _entries(folder: Path, flag: str) -> Iterator[Entry]:
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(f"{flag}={folder} is no folder of images; give one that holds some")
    return (Entry(relative_id(file, folder), str(file.absolute())) for file in files)


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
