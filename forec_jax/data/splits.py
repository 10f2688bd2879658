"""Which images are labelled and which are not: list files in the published formats, or seeded draws."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from forec_jax.data.balance import balanced_draw, classes_in_image
from forec_jax.data.pipeline import OnCorrupt
from forec_jax.data.source import DataError, Source
from forec_jax.data.textfile import read_text
from forec_jax.options import option

_DRAW = re.compile(r"(\d+):(\d+)")
_REST = re.compile(r"rest:(\d+(?:\.\d*)?|\.\d+):(\d+)")
_BALANCED = re.compile(r"balanced:(\d+):(\d+)(?::(\d+))?")
_CITYSCAPES_IMAGE = "_leftImg8bit"

ClassesOf = Callable[[Sequence[str]], Sequence[Collection[int]]]
"""ids -> the classes that each image's mask shows."""


@dataclass(frozen=True)
class SplitOptions:
    """Which images are trained on, and which of them with labels."""

    pool: str = option("train", 'the split that labelled and unlabelled images come from; voc: "train" or "train_aug"')
    labelled: str = option(
        "all",
        'a list file, "<count>:<seed>" (a draw), "balanced:<count>:<seed>[:<classes>]" (a draw that shows every class '
        'about equally often), or "all": of the pool\'s images with masks',
    )
    unlabelled: str = option(
        "rest",
        'a list file, "rest" (the pool without the labelled part), "rest:<share>:<seed>" (a draw of it), "all" of the pool '
        '(with data.overlap), or "none"',
    )
    overlap: bool = option(
        False, "an image may be in both parts; what data.partial shows of it is then known in its unlabelled rows too"
    )
    protocol: str = option("", 'a published list that the split must be, such as "voc/classic/183"; empty: none')


class Split(NamedTuple):
    """A labelled and an unlabelled part of a pool."""

    name: str
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    sha256: str  # of the labelled ids, sorted and joined by newlines: equal lists have equal sums whatever their format
    tagged: tuple[str, ...] = ()  # with image-level tags instead of masks; the sum is theirs where nothing is labelled
    pseudo: tuple[str, ...] = ()  # with a model's masks (data.pseudo)
    pseudo_sha256: str = ""  # of these masks


def resolve_split(
    *,
    pool_ids: Sequence[str],
    validation_ids: Collection[str] = (),
    maskless: Collection[str] = (),
    labelled: str,
    unlabelled: str = "rest",
    overlap: bool = False,
    classes_of: ClassesOf | None = None,
) -> Split:
    """The split that two options describe.

    `labelled`: a list file; or of the pool's images with masks, which are those not in `maskless`, "all" of them,
    "<count>:<seed>" (a draw), or "balanced:<count>:<seed>[:<classes>]" (see `balanced_draw`; it needs `classes_of`).
    `unlabelled`: a list file, "rest" (the pool without the labelled part), "rest:<share>:<seed>" (a draw of that), "all" or
    "none". `overlap`: whether an id may be in both parts. Raises DataError for a missing or empty list, an id that the pool
    does not have, an id listed twice, or in both parts without `overlap`, a validation id in either part, a labelled id
    without a mask, and a draw of more images than there are.
    """
    known = frozenset(pool_ids).union(validation_ids)
    masked_ids = tuple(name for name in pool_ids if name not in maskless)
    labelled_ids, name = _labelled_part(labelled, masked_ids, known, classes_of)
    unlabelled_ids = _unlabelled_part(unlabelled, pool_ids, labelled_ids, known)
    _check_part("labelled", labelled, labelled_ids, pool_ids, validation_ids)
    if bare := frozenset(labelled_ids).intersection(maskless):
        raise DataError(
            f"{labelled}: {_some(bare)} of the labelled part without a mask; add the masks, or take them off the list"
        )
    _check_part("unlabelled", unlabelled, unlabelled_ids, pool_ids, validation_ids)
    if not overlap and (both := frozenset(labelled_ids).intersection(unlabelled_ids)):
        raise DataError(
            f"{unlabelled}: {_some(both)} in the labelled part ({labelled}) too; remove them from one, use 'rest', or set "
            "data.overlap=True if that is meant"
        )
    return Split(name, labelled_ids, unlabelled_ids, list_sha256(labelled_ids))


def tagged_split(*, pool_ids: Sequence[str], validation_ids: Collection[str] = ()) -> Split:
    """The whole pool with tags and no masks. Raises DataError where it holds a validation id."""
    _check_part("tagged", "data.pool", pool_ids, pool_ids, validation_ids)
    return Split("tags", (), (), list_sha256(pool_ids), tuple(pool_ids))


def _labelled_part(
    labelled: str, masked_ids: Sequence[str], known: Collection[str], classes_of: ClassesOf | None
) -> tuple[tuple[str, ...], str]:
    """The labelled ids and a name for the split that holds no path of this machine."""
    if labelled == "all":
        return tuple(masked_ids), "all"
    if match := _DRAW.fullmatch(labelled):
        return draw(masked_ids, int(match[1]), int(match[2])), labelled
    if classes_of and (match := _BALANCED.fullmatch(labelled)):
        count, seed, at_least = (int(group or 1) for group in match.groups())
        classes = classes_of(masked_ids)
        return balanced_draw(masked_ids, classes, count=count, seed=seed, at_least=at_least), labelled
    return read_list(labelled, known), "/".join(Path(labelled).with_suffix("").parts[-2:])


def _unlabelled_part(
    unlabelled: str, pool_ids: Sequence[str], labelled_ids: Collection[str], known: Collection[str]
) -> tuple[str, ...]:
    """The unlabelled ids. Raises DataError for a share of the rest that is none."""
    taken = frozenset(labelled_ids)
    rest = tuple(name for name in pool_ids if name not in taken)
    if unlabelled == "none":
        return ()
    if unlabelled == "all":
        return tuple(pool_ids)
    if unlabelled == "rest":
        return rest
    if not unlabelled.startswith("rest:"):
        return read_list(unlabelled, known)
    match = _REST.fullmatch(unlabelled)
    if not match or not 0 < float(match[1]) <= 1:
        raise DataError(
            f"data.unlabelled={unlabelled!r} is no share of the rest; write 'rest:<share>:<seed>' with a share above 0 and "
            "at most 1, such as 'rest:0.25:0'"
        )
    return draw(rest, max(round(float(match[1]) * len(rest)), 1), int(match[2])) if rest else ()


def draw(pool_ids: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """`count` ids of the pool, in its order. Draws of one seed are nested: a larger one contains the smaller.

    An id's rank is the SHA-256 of "<seed>:<id>", so a draw depends on no library's random numbers and not on the order
    of the pool. Raises DataError for a count below 1 or above the pool's.
    """
    if not 1 <= count <= len(pool_ids):
        size = len(pool_ids)
        raise DataError(
            f"labelled={count}:{seed} cannot be drawn from a pool of {size} images with masks; use 1 to {size}"
        )
    ranked = sorted(pool_ids, key=lambda name: _rank(seed, name))
    chosen = frozenset(ranked[:count])
    return tuple(name for name in pool_ids if name in chosen)


def hold_out(
    ids: Sequence[str], fraction: float, seed: int, group_of: Callable[[str], str] = str
) -> tuple[tuple[str, ...], bool]:
    """The ids whose SHA-256 of "<seed>:<id>" lies in the lowest `fraction` of all hashes, in their order.

    So whether an id is among them depends on no other id: where some are added, none changes sides. With `group_of` an
    id's group is hashed instead, and a group stays together. At least one group is held out and one is not: the
    lowest, or all but the highest; the second value says whether that rule chose. Raises DataError for a fraction not
    between 0 and 1, and for fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.folder.val_fraction={fraction} must lie between 0 and 1")
    groups = {group_of(name) for name in ids}
    ranked = sorted(groups, key=lambda group: _rank(seed, group))
    if len(ranked) < 2:
        raise DataError(
            f"the {len(ids)} images with masks are one group; change data.folder.val_groups, or write val.txt"
        )
    below = [group for group in ranked if int.from_bytes(_rank(seed, group)[:8]) < fraction * 2**64]
    chosen = frozenset(below[: len(ranked) - 1] or ranked[:1])
    return tuple(name for name in ids if group_of(name) in chosen), len(chosen) != len(below)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def group_rule(val_groups: str) -> Callable[[str], str]:
    """id -> its group. `val_groups`: "" (each image is one), "folder", or a regular expression with one group.

    Raises DataError for another expression; the function raises it for an id that the expression does not fit.
    """
    if not val_groups:
        return str
    if val_groups == "folder":
        return lambda name: str(PurePosixPath(name).parent)
    try:
        pattern = re.compile(val_groups)
    except re.error as error:
        raise DataError(f"data.folder.val_groups={val_groups!r} is no regular expression ({error})") from error
    if pattern.groups != 1:
        raise DataError(
            f"data.folder.val_groups={val_groups!r} must be 'folder', or have one group in parentheses, as '(scene[0-9]+)_'"
        )

    def group_of(name: str) -> str:
        if not (match := pattern.search(name)) or match[1] is None:
            raise DataError(
                f"data.folder.val_groups={val_groups!r} does not fit the image {name}; let it fit every image"
            )
        return match[1]

    return group_of


def read_list(path: str | Path, known: Collection[str]) -> tuple[str, ...]:
    """The ids of a list file, in its order.

    A line is an id, an image path, or an image and a mask path with a space between; leading slashes, folders, file
    endings and Cityscapes' `_leftImg8bit` are no part of the id, backslashes are slashes, and what follows a # at the
    start of a line is a comment. The reading that gives a name of `known` is taken, the longest first.
    Raises DataError where the file is missing or empty or lists an id twice.
    """
    try:
        text = read_text(Path(path))
    except OSError as error:
        raise DataError(
            f"{path}: cannot read this list ({error}); give a text file with an id a line, '<count>:<seed>', or "
            "'balanced:<count>:<seed>'"
        ) from error
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    lines = [line for line in map(str.strip, unicodedata.normalize("NFC", text).split("\n")) if line]
    ids = tuple(_parse_line(line, composed) for line in lines if line in composed or not line.startswith("#"))
    if not ids:
        raise DataError(f"{path}: the list is empty; put an id on each line")
    if "" in ids:
        raise DataError(f"{path}: a line holds nothing but slashes and dots; put an id on each line")
    if len(frozenset(ids)) < len(ids):
        seen: set[str] = set()
        twice = {name for name in ids if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {_some(twice)} listed more than once; remove the repeats")
    return ids


def _parse_line(line: str, known: Mapping[str, str]) -> str:
    """What `known` holds for the first reading of a line that is in it; the plainest reading where none is."""
    readings: list[str] = []
    for text in (line, line.split()[0]):
        path = PurePosixPath(text.replace("\\", "/").lstrip("/"))
        tails = (PurePosixPath(*path.parts[start:]) for start in range(len(path.parts)))
        readings += [text, *(reading for tail in tails for reading in (str(tail), str(tail.parent / tail.stem)))]
        readings += [path.stem, path.stem.removesuffix(_CITYSCAPES_IMAGE)]
    return next((known[reading] for reading in readings if reading in known), readings[-1])


def _check_part(
    part: str, option: str, ids: Sequence[str], pool_ids: Sequence[str], validation_ids: Collection[str]
) -> None:
    if leaked := frozenset(ids).intersection(validation_ids):
        raise DataError(
            f"{option}: {_some(leaked)} of the {part} part in the validation split too; remove them, training on them "
            "would make the scores worthless"
        )
    if unknown := frozenset(ids).difference(pool_ids):
        raise DataError(
            f"{option}: {_some(unknown)} of the {part} part not in the pool of {len(pool_ids)} images; "
            "check that the list belongs to this data set and that data.pool is the list's pool"
        )


def _some(ids: Collection[str]) -> str:
    """`3 ids (a, b, c) are`, with at most three named."""
    named = ", ".join(sorted(ids)[:3]) + (", ..." if len(ids) > 3 else "")
    return f"1 id ({named}) is" if len(ids) == 1 else f"{len(ids)} ids ({named}) are"


def list_sha256(ids: Sequence[str]) -> str:
    """The SHA-256 of the ids, sorted and joined by newlines, in hexadecimal."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def class_coverage(source: Source, num_classes: int, on_corrupt: OnCorrupt = "raise") -> tuple[int, ...]:
    """The classes that no mask of `source` shows, by index. Reads every mask until all classes were seen.

    With on_corrupt="skip" an example that cannot be read shows none; otherwise its DataError is raised.
    """
    missing = set(range(num_classes))
    for index in range(len(source)):
        missing -= classes_in_image(source, index, num_classes, on_corrupt)
        if not missing:
            break
    return tuple(sorted(missing))


def classes_not_shown(source: Source, classes: Sequence[str], on_corrupt: OnCorrupt = "raise") -> tuple[str, ...]:
    """The names of the classes that no mask of `source` shows: their IoU says nothing, if `source` is for the score."""
    return tuple(classes[index] for index in class_coverage(source, len(classes), on_corrupt))
