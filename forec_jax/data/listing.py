"""The files of a folder: which are images, and which mask belongs to which image."""

import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from forec_jax.data.imagefile import SUFFIXES
from forec_jax.data.prepared import Entry, index_by_id
from forec_jax.data.source import DataError

log = logging.getLogger(__name__)

UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")

_OF_TOOLS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"})
_WORDS = {'"shapes"': "labelme", '"annotations"': "coco", '"imgHeight"': "cityscapes", "<annotations>": "cvat"}
"""What a file of annotations holds, and who writes it so."""

MASK_ENDING = re.compile(r"[_\-. ](masks?|labels?|gt|seg|segmentation)$", re.IGNORECASE)


def entries_of(base: Path) -> Iterator[Entry]:
    """images/ with their masks, then unlabelled/; an id is a path below these folders without its ending.

    Raises DataError for a folder that is missing, and for masks that belong to no image or to one that has another.
    """
    if not (base / "images").is_dir():
        raise DataError(
            f"{base / 'images'}: no such folder; data.root is the folder with images/, masks/ and classes.toml"
        )
    labelled = index_by_id(_entries(base, "images"), base)
    unlabelled = [entry for folder in UNLABELLED_FOLDERS for entry in _entries(base, folder)]
    masks = match_masks(_masks(base), labelled, base)
    _check_lone(base, [masks.pop(name) for name in sorted(masks.keys() - labelled.keys())], unlabelled)
    for name, entry in labelled.items():
        yield entry._replace(mask=masks.get(name))
    yield from unlabelled


def _entries(base: Path, folder: str) -> list[Entry]:
    return [Entry(relative_id(file, base / folder), str(file.relative_to(base))) for file in image_files(base / folder)]


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted; says which others it passes over."""
    files = files_below(folder)
    if others := [file.name for file in files if file.suffix.lower() not in SUFFIXES]:
        log.warning(
            "%s: %d files are not %s and not used: %s",
            folder, len(others), ", ".join(SUFFIXES), ", ".join(others[:3]),
        )  # fmt: skip
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder and below, sorted, but for those that are hidden or of an operating system.

    Links to folders are followed; a folder that is met again is read once, with a warning. Raises DataError for a folder
    that cannot be read, a link to nothing, and a name that is no text.
    """
    found: list[Path] = []
    seen: dict[str, str] = {}
    for where, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(where)
        if (other := seen.setdefault(real, where)) is not where:
            log.warning("%s is a link to %s, which is read already; it is passed over", where, other)
            folders.clear()
            continue
        folders[:] = sorted(filter(_is_wanted, folders))
        found += [Path(where, name) for name in files if _is_wanted(name)]
    return sorted(file for file in found if _is_file(file))


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and name not in _OF_TOOLS


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or move it away")


def _is_file(file: Path) -> bool:
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{os.fsencode(file)!r}: the name is no UTF-8; rename the file") from error
    if file.is_symlink() and not file.exists():
        raise DataError(f"{file}: is a link to a file that is not there; restore it, or remove the link")
    return file.is_file()


def relative_id(file: Path, folder: Path) -> str:
    """The path below a folder without its ending; composed, as names that look alike may differ in their letters' form."""
    return unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())


def _masks(base: Path) -> dict[str, str]:
    """The masks' paths by id."""
    entries = _entries(base, "masks")
    if not entries:
        raise DataError(
            f"{base / 'masks'}: holds no mask; {annotations_below(base)}draw some, and name each as its image: "
            "images/a.jpg has masks/a.png"
        )
    return {name: entry.image for name, entry in index_by_id(entries, base).items()}


def annotations_below(base: Path) -> str:
    """A half-sentence where annotations lie in a folder in a form that `forec-jax import` reads; "" where none do."""
    for file in sorted([*base.rglob("*.json"), *base.rglob("*.xml")])[:20]:
        if kind := _kind_of(file):
            return f"{file.relative_to(base)} holds annotations: make a data set of them by forec-jax import --from={kind}; "
    return ""


def _kind_of(file: Path) -> str:
    """Whose annotations a file holds, as --from names it; "" for another file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            start = opened.read(1 << 20)
    except OSError:
        return ""
    return next((kind for text, kind in _WORDS.items() if text in start), "")


def match_masks(masks: Mapping[str, str], images: Collection[str], base: Path) -> dict[str, str]:
    """The masks by their images' ids; those that belong to none keep their own.

    A mask is named as its image is; failing that it may end in _mask, _label, _gt or _seg, and differ in its letters'
    case. Raises DataError, naming both files, where two masks belong to one image.
    """
    plain: dict[str, list[str]] = {}
    for name in images:
        plain.setdefault(name.casefold(), []).append(name)
    matched = {name: path for name, path in masks.items() if name in images}
    renamed = {}
    for name in sorted(masks.keys() - matched.keys()):
        stem = MASK_ENDING.sub("", name).casefold()
        candidates = plain.get(name.casefold()) or plain.get(stem, [])
        image = candidates[0] if len(candidates) == 1 else name
        if image in matched:
            raise DataError(
                f"{base / matched[image]} and {base / masks[name]} are both named as masks of {image}; remove one"
            )
        matched[image] = masks[name]
        if image != name:
            renamed[image] = masks[name]
    if renamed:
        image, mask = next(iter(renamed.items()))
        log.info(
            "%d masks are not named as their images are; %s is taken for the mask of %s", len(renamed), mask, image
        )
    return matched


def _check_lone(base: Path, lone: list[str], unlabelled: list[Entry]) -> None:
    """Names masks of images in unlabelled/. Raises DataError for masks of no image at all."""
    names = {entry.id for entry in unlabelled}
    known = [mask for mask in lone if relative_id(Path(mask), Path("masks")) in names]
    if other := sorted(set(lone).difference(known)):
        raise DataError(
            f"{base}: {len(other)} masks have no image in images/ ({', '.join(other[:3])}); name each as its image is "
            "(a.png or a_mask.png for a.jpg), or remove them"
        )
    if known:
        log.warning(
            "%s: %d masks are of images in unlabelled/ and not used (%s); move these images to images/ to learn from them",
            base, len(known), ", ".join(known[:3]),
        )  # fmt: skip
