"""SUN RGB-D with its 37 classes: indoor scenes (Song et al., CVPR 2015), images and label PNGs. Depth is not used."""

import re
from pathlib import Path

from forec_jax.data.datasets.voc import voc_palette
from forec_jax.data.decode import MaskRule
from forec_jax.data.prepared import Entry, PreparedSource, Records, maskless, prepare, sums_of
from forec_jax.data.source import DataEntry, DataError, Dataset, Labels, dataset_of, select
from forec_jax.data.splits import draw, read_list
from forec_jax.options import NoOptions

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor_mat", "clothes", "ceiling", "books",
    "fridge", "tv", "paper", "towel", "shower_curtain", "box", "whiteboard", "person", "night_stand", "toilet", "sink",
    "lamp", "bathtub", "bag",
)  # fmt: skip
"""In the order of the labels, which begin at 1; 0 is void."""

VAL_COUNT = 475
_VAL_SEED = 0
_PARTS = ("train", "test")  # of the published split; both are pooled
_NUMBER = re.compile(r"(\d+)$")

BACKGROUND = "wall"
"""The class that stands around the others."""

LABELS = Labels(CLASSES, voc_palette(len(CLASSES) + 1)[1:], (CLASSES.index(BACKGROUND),))


def sunrgbd_dataset(root: str | Path, prepared: str | Path | None = None) -> Dataset:
    """SUN RGB-D from `root`, the folder that holds image/{train,test}/ and label37/{train,test}/.

    Splits are train and val of all images together: val is `val.txt` where that is there, otherwise 475 images (ReCo's
    number, of fewer than 950 images half) drawn with seed 0. The files are packed into `prepared` on first use. Raises
    DataError for a missing folder, a name without a number, and a validation image that is not there or has no label.
    """
    base = Path(root)
    listing = {entry.id: entry for part in _PARTS for entry in _part_entries(base, part)}
    entries = tuple(listing.values())
    val = _val(base, listing)
    folder = prepare("sunrgbd", base, entries, prepared=None if prepared is None else Path(prepared))
    rule = MaskRule(len(CLASSES), void=(0, 255), values=tuple(range(1, len(CLASSES) + 1)))
    pool = PreparedSource(Records(folder), base, entries, rule)
    sources = {"train": select(pool, [name for name in listing if name not in val]), "val": select(pool, val)}
    return dataset_of("sunrgbd", LABELS, sources, maskless(entries), sums_of(folder))


def _part_entries(base: Path, part: str) -> list[Entry]:
    """The images of a part with the labels of the same number; an id is like "train/005285"."""
    images, labels = (_by_number(base / folder / part) for folder in ("image", "label37"))
    return [
        Entry(
            f"{part}/{number}", f"image/{part}/{name}", f"label37/{part}/{labels[number]}" if number in labels else None
        )
        for number, name in sorted(images.items())
    ]


def _by_number(folder: Path) -> dict[str, str]:
    """The names of the image files in a folder by the number that they end in, "img-000007.jpg" by "000007"."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root is the folder that holds image/ and label37/")
    names: dict[str, str] = {}
    for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".png")):
        if not (match := _NUMBER.search(file.stem)):
            raise DataError(f"{file}: the name does not end in the image's number, as in img-000007.jpg; rename it")
        if (other := names.setdefault(match[1], file.name)) != file.name:
            raise DataError(f"{folder}: {other} and {file.name} have the same number, {match[1]}; remove one")
    return names


def _val(base: Path, listing: dict[str, Entry]) -> tuple[str, ...]:
    """The ids of the validation images."""
    masked = [name for name, entry in listing.items() if entry.mask]
    if not (base / "val.txt").is_file():
        return draw(masked, min(VAL_COUNT, len(masked) // 2), _VAL_SEED)
    ids = read_list(base / "val.txt", listing)
    if unknown := sorted(set(ids).difference(masked)):
        raise DataError(
            f"{base / 'val.txt'}: {', '.join(unknown[:3])} are not in image/, or have no label; an id is like train/005285"
        )
    return ids


ENTRY = DataEntry(
    "sunrgbd",
    NoOptions,
    lambda place, _: sunrgbd_dataset(place.root, place.prepared),
    lambda root, _: LABELS,
    holds="image/ and label37/",
)
