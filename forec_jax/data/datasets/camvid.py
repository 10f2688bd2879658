"""CamVid with the 11 classes of SegNet, from a folder in SegNet's layout."""

from pathlib import Path

from forec_jax.data.decode import MaskRule
from forec_jax.data.prepared import Entry, PreparedSource, Records, index_by_id, maskless, prepare, sums_of
from forec_jax.data.source import DataEntry, DataError, Dataset, Labels, dataset_of, select
from forec_jax.options import NoOptions

PALETTE = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""The classes in the order of their indices, with SegNet's colours."""

_VOID = 11
_SPLITS = ("train", "val", "test")
_IMAGES = (".png", ".jpg")

BACKGROUND = "road"
"""The class that stands around the others."""

LABELS = Labels(tuple(PALETTE), tuple(PALETTE.values()), (tuple(PALETTE).index(BACKGROUND),))


def camvid_dataset(root: str | Path, prepared: str | Path | None = None) -> Dataset:
    """CamVid from `root`, the folder that holds train/, trainannot/, val/ and valannot/; test and testannot if there.

    The files are packed into `prepared` on first use. Raises DataError for a missing folder, and for one without images.
    """
    base = Path(root)
    listing = {split: _split_entries(base, split) for split in _SPLITS if _is_wanted(base, split)}
    entries = tuple(index_by_id((entry for part in listing.values() for entry in part), base).values())
    folder = prepare("camvid", base, entries, prepared=None if prepared is None else Path(prepared))
    pool = PreparedSource(Records(folder), base, entries, MaskRule(len(PALETTE), void=(_VOID, 255)))
    sources = {split: select(pool, [entry.id for entry in part]) for split, part in listing.items()}
    return dataset_of("camvid", LABELS, sources, maskless(entries), sums_of(folder))


def _is_wanted(base: Path, split: str) -> bool:
    """Train and val must be there; test need not."""
    return split != "test" or (base / split).is_dir()


def _split_entries(base: Path, split: str) -> list[Entry]:
    for folder in (base / split, base / f"{split}annot"):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; data.root is the folder that holds train/, trainannot/, val/ ..."
            )
    masks = {file.name for file in (base / f"{split}annot").iterdir()}
    images = sorted(file for file in (base / split).iterdir() if file.suffix.lower() in _IMAGES)
    if not images:
        raise DataError(f"{base / split}: holds no image ({' or '.join(_IMAGES)})")
    return [
        Entry(
            file.stem, f"{split}/{file.name}", f"{split}annot/{mask}" if (mask := f"{file.stem}.png") in masks else None
        )
        for file in images
    ]


ENTRY = DataEntry(
    "camvid",
    NoOptions,
    lambda place, _: camvid_dataset(place.root, place.prepared),
    lambda root, _: LABELS,
    holds="train/, trainannot/, val/ and valannot/",
)
