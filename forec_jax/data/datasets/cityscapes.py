"""Cityscapes with its 19 training classes, from the folders leftImg8bit/ and gtFine/."""

from pathlib import Path

from forec_jax.data.decode import MaskRule
from forec_jax.data.prepared import Entry, PreparedSource, Records, index_by_id, maskless, prepare, sums_of
from forec_jax.data.source import DataEntry, DataError, Dataset, Labels, dataset_of, select
from forec_jax.options import NoOptions

PALETTE = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""The classes in the order of their training ids, with the official colours."""

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The official label id of each class; the other ids from 0 to 33 are not trained on."""

_VOID_IDS = tuple(sorted({*range(35), 255}.difference(LABEL_IDS)))  # 255: -1, the licence plate, in a byte
_RULES = {
    "labelIds": MaskRule(len(PALETTE), void=_VOID_IDS, values=LABEL_IDS),
    "labelTrainIds": MaskRule(len(PALETTE)),
}
"""How the masks are read, by the ending of their names; of both, the first that the data set has."""

_IMAGE = "_leftImg8bit.png"

BACKGROUND = "road"
"""The class that stands around the others."""

LABELS = Labels(tuple(PALETTE), tuple(PALETTE.values()), (tuple(PALETTE).index(BACKGROUND),))


def cityscapes_dataset(root: str | Path, prepared: str | Path | None = None) -> Dataset:
    """Cityscapes from `root`, the folder that holds leftImg8bit/ and gtFine/; splits train and val.

    Ids are like `aachen_000000_000019`. The files are packed into `prepared` on first use. Raises DataError for a missing
    folder, and for one without images or masks.
    """
    base = Path(root)
    images = {split: _images(base, split) for split in ("train", "val")}
    kind = _mask_kind(base)
    listing = {split: [_entry(base, file, kind) for file in files] for split, files in images.items()}
    entries = tuple(index_by_id((entry for part in listing.values() for entry in part), base).values())
    folder = prepare("cityscapes", base, entries, prepared=None if prepared is None else Path(prepared))
    pool = PreparedSource(Records(folder), base, entries, _RULES[kind])
    sources = {split: select(pool, [entry.id for entry in part]) for split, part in listing.items()}
    return dataset_of("cityscapes", LABELS, sources, maskless(entries), sums_of(folder))


def _images(base: Path, split: str) -> list[Path]:
    folder = base / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root is the folder that holds leftImg8bit/ and gtFine/")
    if not (files := sorted(folder.glob(f"*/*{_IMAGE}"))):
        raise DataError(f"{folder}: holds no CITY/*{_IMAGE}; unpack leftImg8bit_trainvaltest.zip there")
    return files


def _mask_kind(base: Path) -> str:
    for kind in _RULES:
        if any((base / "gtFine").glob(f"train/*/*_gtFine_{kind}.png")):
            return kind
    raise DataError(
        f"{base / 'gtFine' / 'train'}: holds no CITY/*_gtFine_labelIds.png or _labelTrainIds.png; "
        "unpack gtFine_trainvaltest.zip there"
    )


def _entry(base: Path, image: Path, kind: str) -> Entry:
    name = image.name.removesuffix(_IMAGE)
    mask = base / "gtFine" / image.parent.relative_to(base / "leftImg8bit") / f"{name}_gtFine_{kind}.png"
    return Entry(name, str(image.relative_to(base)), str(mask.relative_to(base)) if mask.is_file() else None)


ENTRY = DataEntry(
    "cityscapes",
    NoOptions,
    lambda place, _: cityscapes_dataset(place.root, place.prepared),
    lambda root, _: LABELS,
    holds="leftImg8bit/ and gtFine/",
)
