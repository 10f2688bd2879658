"""A data set of one's own: a folder of images, of which some have masks, and a class file."""

import logging
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forec_jax.data.datasets.voc import voc_palette
from forec_jax.data.decode import ColourRule, MaskRule, decode_image, decode_mask
from forec_jax.data.prepared import Check, Entry, PreparedSource, Records, index_by_id, maskless, prepare
from forec_jax.data.source import RGB, DataEntry, DataError, Dataset, Labels, select
from forec_jax.data.splits import draw, read_list
from forec_jax.options import SHARE, option

log = logging.getLogger(__name__)

CLASS_FILE = "classes.toml"
EXAMPLE = """names = ["background", "cat", "dog"]                  # in the order of their indices
colours = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]       # of the masks; leave it out where masks hold indices
background = "background"                             # the class that stands around the others
void = [255, 255, 255]                                # pixels without a class; an index where masks hold indices
unlabelled = [128, 128, 128]                          # pixels that nobody has looked at, with data.partial=masks"""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LOSSY = (".jpg", ".jpeg")
_UNLABELLED = ("unlabelled", "unlabeled")
_VAL_SEED = 0  # fixed, so that runs of any seed are scored on the same images


class ClassFile(NamedTuple):
    """What the class file says."""

    names: tuple[str, ...]
    palette: tuple[RGB, ...]  # the masks' colours, or VOC's where masks hold indices
    background: tuple[int, ...]  # class indices; () where no class is named so
    rule: MaskRule | ColourRule


def folder_dataset(root: str | Path, prepared: str | Path | None = None, val_fraction: float = 0.2) -> Dataset:
    """The folder `root` with images/, masks/, classes.toml and, if there, unlabelled/, train.txt and val.txt.

    Splits are train (images without masks included), val, and one more for every val_*.txt. Without val.txt, val is
    `val_fraction` of the images with masks, chosen by a hash of their names. Every file is decoded once when it is packed
    into `prepared`, on first use. Raises DataError for anything that cannot be used, naming the file.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder; set data.root to the one with images/, masks/ and {CLASS_FILE}")
    classes = read_classes(base / CLASS_FILE)
    by_id = index_by_id(_entries(base), base)
    splits = _splits(base, by_id, val_fraction)
    entries = tuple(by_id.values())
    name = "folder_" + re.sub(r"\W+", "_", base.resolve().name)
    where = None if prepared is None else Path(prepared)
    check = _decodes(base, classes.rule)
    folder = prepare(name, base, entries, lists=(CLASS_FILE,), prepared=where, check=check)
    pool = PreparedSource(Records(folder), base, entries, classes.rule)
    sources = {split: select(pool, ids) for split, ids in splits.items()}
    return Dataset("folder", classes.names, classes.palette, sources, classes.background, maskless(entries))


def read_classes(file: Path) -> ClassFile:
    """Reads a class file. Raises DataError, naming the key, for one that is missing or contradicts itself."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing; write one such as\n{EXAMPLE}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); it should be such as\n{EXAMPLE}") from error
    if unknown := set(content) - {"names", "colours", "background", "void", "unlabelled"}:
        raise DataError(f"{file}: unknown keys {sorted(unknown)}; it should be such as\n{EXAMPLE}")
    names = _names(file, content.get("names"))
    background = _background(file, content.get("background"), names)
    void, unlabelled = content.get("void"), content.get("unlabelled")
    if "colours" not in content:
        return ClassFile(names, voc_palette(len(names)), background, _index_rule(file, len(names), void, unlabelled))
    rule = _colour_rule(file, content["colours"], len(names), void, unlabelled)
    return ClassFile(names, rule.colours, background, rule)


def _names(file: Path, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) or len(names) < 2:
        raise DataError(
            f'{file}: names={names!r} must be a list of two or more names, as names = ["background", "cat"]'
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file}: names has {', '.join(twice)} more than once; a class is there once")
    return tuple(names)


def _background(file: Path, background: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    if background is None:
        return tuple(index for index, name in enumerate(names) if name == "background")
    if background not in names:
        raise DataError(f"{file}: background={background!r} is no class; choose one of {', '.join(names)}")
    return (names.index(background),)


def _index_rule(file: Path, count: int, void: Any, unlabelled: Any) -> MaskRule:
    """Without a void value there is none: 255 is void by custom only, and a class in a black and white mask."""
    given = {"void": void, "unlabelled": unlabelled}
    for key, value in given.items():
        if value is not None and (type(value) is not int or not count <= value <= 255):
            raise DataError(
                f"{file}: {key}={value!r} must be an index from {count} to 255, as masks hold indices (no colours)"
            )
    if void is not None and void == unlabelled:
        raise DataError(f"{file}: void and unlabelled are both {void}; each needs its own index")
    return MaskRule(count, **{key: () if value is None else (value,) for key, value in given.items()})


def _colour_rule(file: Path, colours: Any, count: int, void: Any, unlabelled: Any) -> ColourRule:
    if not isinstance(colours, list) or len(colours) != count:
        raise DataError(f"{file}: colours must be a list of {count} colours, one a name")
    table = tuple(_colour(file, "colours", colour) for colour in colours)
    others = {"void": void, "unlabelled": unlabelled}
    given = {key: _colour(file, key, colour) for key, colour in others.items() if colour is not None}
    every = (*table, *given.values())
    if twice := sorted({colour for colour in every if every.count(colour) > 1}):
        raise DataError(f"{file}: {twice} more than once among {', '.join(('colours', *others))}; each needs its own")
    return ColourRule(table, **given)


def _colour(file: Path, key: str, colour: Any) -> RGB:
    if not isinstance(colour, list) or len(colour) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in colour):
        raise DataError(f"{file}: {key} holds {colour!r}; a colour is [red, green, blue], each 0 to 255")
    return (colour[0], colour[1], colour[2])


def _entries(base: Path) -> Iterator[Entry]:
    """images/ with their masks, then unlabelled/; an id is a path below these folders without its ending."""
    if not (base / "images").is_dir():
        raise DataError(
            f"{base / 'images'}: no such folder; data.root is the folder with images/, masks/ and {CLASS_FILE}"
        )
    masks = _masks(base)
    for file in _files(base / "images"):
        name = _id(file, base / "images")
        yield Entry(name, str(file.relative_to(base)), masks.pop(name, None))
    if masks:
        lone = sorted(masks.values())
        raise DataError(
            f"{base}: {len(lone)} masks have no image in images/ ({', '.join(lone[:3])}); name each as its image is, or "
            "remove them"
        )
    for folder in _UNLABELLED:
        for file in _files(base / folder):
            yield Entry(_id(file, base / folder), str(file.relative_to(base)))


def _masks(base: Path) -> dict[str, str]:
    """The masks' paths by id."""
    folder = base / "masks"
    entries = [Entry(_id(file, folder), str(file.relative_to(base))) for file in _files(folder)]
    if not entries:
        raise DataError(f"{folder}: holds no mask; draw some, and name each as its image: images/a.jpg has masks/a.png")
    if lossy := [entry.image for entry in entries if entry.image.lower().endswith(_LOSSY)]:
        raise DataError(f"{base / lossy[0]}: a JPEG changes the values of a mask; export the masks as PNG")
    return {name: entry.image for name, entry in index_by_id(entries, base).items()}


def _files(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted; says which others it passes over."""
    visible = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    if others := [file.name for file in visible if file.suffix.lower() not in _SUFFIXES]:
        named = ", ".join(others[:3])
        log.warning("%s: %d files are not %s and not used: %s", folder, len(others), ", ".join(_SUFFIXES), named)
    return [file for file in visible if file.suffix.lower() in _SUFFIXES]


def _id(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _splits(base: Path, by_id: dict[str, Entry], val_fraction: float) -> dict[str, tuple[str, ...]]:
    """The ids of train, val and further evaluation splits: from the lists, or with a drawn val."""
    further = {file.stem: _masked(file, by_id) for file in sorted(base.glob("val_*.txt"))}
    scored = frozenset().union(*further.values())
    if (base / "val.txt").is_file():
        val = _masked(base / "val.txt", by_id)
    elif (base / "train.txt").is_file():
        raise DataError(f"{base}: train.txt needs a val.txt beside it; without both, val is drawn")
    else:
        val = _drawn_val(base, {name: entry for name, entry in by_id.items() if name not in scored}, val_fraction)
    train = _train(base, by_id, scored.union(val))
    masked = sum(by_id[name].mask is not None for name in train)
    if not masked:
        raise DataError(f"{base}: no image to train on has a mask; take some off val.txt, or add masks")
    log.info("%d images to train on, %d of them with masks; %d in val", len(train), masked, len(val))
    return {"train": train, "val": val, **further}


def _drawn_val(base: Path, by_id: dict[str, Entry], fraction: float) -> tuple[str, ...]:
    masked = [name for name, entry in by_id.items() if entry.mask]
    if len(masked) < 2:
        raise DataError(
            f"{base}: one image has a mask; draw another one, as one is trained on and one is for the score"
        )
    if not 0 < fraction < 1:
        raise DataError(f"data.val_fraction={fraction} must lie between 0 and 1")
    count = min(max(1, round(len(masked) * fraction)), len(masked) - 1)
    val = draw(masked, count, _VAL_SEED)
    log.info(
        "%s has no val.txt: %d of the %d images with masks are for evaluation and never trained on: %s",
        base, count, len(masked), ", ".join(val[:10]) + (", ..." if count > 10 else ""),
    )  # fmt: skip
    return val


def _train(base: Path, by_id: dict[str, Entry], val: Collection[str]) -> tuple[str, ...]:
    """train.txt with everything that lies in unlabelled/; without that list, whatever is not in val."""
    if not (base / "train.txt").is_file():
        return tuple(name for name in by_id if name not in val)
    listed = frozenset(_listed(base / "train.txt", by_id))
    if both := sorted(listed.intersection(val)):
        raise DataError(f"{base / 'train.txt'}: {', '.join(both[:3])} are in a val*.txt too; remove them from one")
    train = [n for n, entry in by_id.items() if n in listed or (entry.image.startswith(_UNLABELLED) and n not in val)]
    if unused := len(by_id) - len(train) - len(val):
        log.warning("%s: %d images are on neither list and not used", base, unused)
    return tuple(train)


def _listed(file: Path, by_id: dict[str, Entry]) -> tuple[str, ...]:
    ids = read_list(file, by_id)
    if unknown := [name for name in ids if name not in by_id]:
        raise DataError(
            f"{file}: {', '.join(unknown[:3])} are not in images/ or unlabelled/; add them, or take them off"
        )
    return ids


def _masked(file: Path, by_id: dict[str, Entry]) -> tuple[str, ...]:
    ids = _listed(file, by_id)
    if bare := maskless(by_id[name] for name in ids):
        raise DataError(f"{file}: {', '.join(sorted(bare)[:3])} have no mask; add masks, or take them off")
    return ids


def _decodes(base: Path, rule: MaskRule | ColourRule) -> Check:
    """A check that decodes both files, so that a bad one is named before the training and not in the middle of it."""

    def check(entry: Entry, image: bytes, mask: bytes) -> None:
        shape = decode_image(image, str(base / entry.image)).shape
        if entry.mask:
            decode_mask(mask, str(base / entry.mask), shape, rule)

    return check


@dataclass(frozen=True)
class Options:
    """How images are scored where no val.txt says which."""

    val_fraction: float = option(0.2, "part of the images with masks that is val where there is no val.txt", SHARE)


def folder_labels(root: Path, _: Options) -> Labels:
    """The class file's labels."""
    said = read_classes(root / CLASS_FILE)
    return Labels(said.names, said.palette, said.background)


ENTRY = DataEntry(
    "folder",
    Options,
    lambda root, prepared, o: folder_dataset(root, prepared, o.val_fraction),
    folder_labels,
    holds=f"images/, masks/ and {CLASS_FILE}",
)
