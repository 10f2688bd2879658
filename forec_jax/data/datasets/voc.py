"""PASCAL VOC 2012 with the SBD masks (VOC-Aug), from a VOCdevkit folder."""

from pathlib import Path

from forec_jax.data.decode import MaskRule
from forec_jax.data.prepared import Entry, PreparedSource, Records, maskless, prepare, sums_of
from forec_jax.data.source import RGB, DataEntry, DataError, Dataset, Labels, dataset_of, select
from forec_jax.data.splits import read_list
from forec_jax.options import NoOptions

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_LISTS = {"train": ("train.txt",), "train_aug": ("train_aug.txt", "trainaug.txt"), "val": ("val.txt",)}
_MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")  # the first that has the mask


def voc_dataset(root: str | Path, prepared: str | Path | None = None) -> Dataset:
    """VOC 2012 from `root`, the folder that holds `VOC2012/`; splits train, val and, where listed, train_aug.

    The files are packed into `prepared` on first use (a progress bar shows it). Raises DataError for a folder, list or
    image that is missing.
    """
    base = Path(root) / "VOC2012"
    listing, lists = _listing(base)
    used = tuple(str(file.relative_to(base)) for file in lists.values())
    ids = {split: read_list(file, listing) for split, file in lists.items()}
    entries = tuple(listing.values())  # each image once, whatever lists it is on
    folder = prepare("voc2012", base, entries, lists=used, prepared=None if prepared is None else Path(prepared))
    pool = PreparedSource(Records(folder), base, entries, MaskRule(len(CLASSES)))
    sources = {split: select(pool, names) for split, names in ids.items()}
    return dataset_of("voc", LABELS, sources, maskless(entries), sums_of(folder))


def _listing(base: Path) -> tuple[dict[str, Entry], dict[str, Path]]:
    """An entry for every image on a list, by id, and the list files by split."""
    if not base.is_dir():
        raise DataError(f"{base}: no such folder; data.root is the folder that holds VOC2012/, usually VOCdevkit")
    lists = {split: file for split, names in _LISTS.items() if (file := _first_file(base, names))}
    if missing := {"train", "val"} - set(lists):
        raise DataError(f"{base}/ImageSets/Segmentation: {sorted(missing)} have no list; add train.txt and val.txt")
    masks = {folder: _names(base / folder) for folder in _MASK_FOLDERS}
    images = _names(base / "JPEGImages")
    entries: dict[str, Entry] = {}
    for file in lists.values():
        for name in read_list(file, ()):
            if f"{name}.jpg" not in images:
                raise DataError(f"{base}/JPEGImages/{name}.jpg is missing; add it, or take {name} off {file}")
            mask = next((f"{folder}/{name}.png" for folder in _MASK_FOLDERS if f"{name}.png" in masks[folder]), None)
            entries[name] = Entry(name, f"JPEGImages/{name}.jpg", mask)
    return entries, lists


def _first_file(base: Path, names: tuple[str, ...]) -> Path | None:
    files = (base / "ImageSets" / "Segmentation" / name for name in names)
    return next((file for file in files if file.is_file()), None)


def _names(folder: Path) -> frozenset[str]:
    return frozenset(file.name for file in folder.iterdir()) if folder.is_dir() else frozenset()


def voc_palette(count: int) -> tuple[RGB, ...]:
    """VOC's first `count` colours: the bits of the index, three at a time, fill red, green and blue from the top."""

    def channel(index: int, first_bit: int) -> int:
        return sum((index >> (3 * j + first_bit) & 1) << (7 - j) for j in range(8))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(count))


LABELS = Labels(CLASSES, voc_palette(len(CLASSES)), background_classes=(0,))
ENTRY = DataEntry(
    "voc",
    NoOptions,
    lambda place, _: voc_dataset(place.root, place.prepared),
    lambda root, _: LABELS,
    holds="VOC2012/",
)
