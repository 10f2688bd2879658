"""Image-level tags: read from a CSV file, from folders' names, or from masks (simulated annotation)."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forec_jax.data.pipeline import evaluation_examples
from forec_jax.data.source import DataError, Source, Subset, WithTags
from forec_jax.data.textfile import read_text
from forec_jax.options import option

Tags = Mapping[str, frozenset[int]]
"""The classes in each image, by id."""

NOTHING = "background"
"""The tag of an image that shows none of the classes, whatever the data set calls its background."""


@dataclass(frozen=True)
class TagOptions:
    """Where tags come from."""

    tags: str = option("masks", '"masks" (simulated annotation), "folders" (one a class), or a CSV file')
    tag: str = option("", 'one class against the rest, such as "dog"; empty: every class of the data set')


def read_tags(path: Path, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names in a CSV file of lines `image,tag;tag` for every one of `ids`.

    An image is an id, or a path that ends in one, with or without its ending. A first line `image,tags` is a heading.
    Raises DataError for a file that cannot be read, a line of another form, an image that is unknown, listed twice or
    without a tag, and for ids that the file does not list.
    """
    try:
        text = unicodedata.normalize("NFC", read_text(path))
        lines = [(number, line) for number, line in enumerate(csv.reader(io.StringIO(text)), start=1) if line]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); data.tags is a CSV file of lines image,tag;tag") from error
    known, found = {unicodedata.normalize("NFC", name): name for name in ids}, dict[str, tuple[str, ...]]()
    for number, line in lines:
        if number == 1 and [cell.strip().lower() for cell in line] in (["image", "tag"], ["image", "tags"]):
            continue
        if len(line) != 2:
            raise DataError(f"{path}, line {number}: {','.join(line)!r} is not of the form image,tag;tag")
        name, tags = _known_id(line[0].strip(), known), tuple(t.strip() for t in line[1].split(";") if t.strip())
        if name is None:
            raise DataError(f"{path}, line {number}: {line[0]!r} is no image of the pool; remove it, or set data.pool")
        if name in found:
            raise DataError(f"{path}, line {number}: {name} is there twice; put all its tags on one line")
        if not tags:
            raise DataError(f"{path}, line {number}: {name} has no tag; {NOTHING} says that it shows no class")
        found[name] = tags
    if missing := [name for name in ids if name not in found]:
        raise DataError(f"{path}: {len(missing)} images have no tag ({', '.join(missing[:3])}); add a line for each")
    return found


def _known_id(text: str, known: Mapping[str, str]) -> str | None:
    """The id that a path means: the longest one that it ends in; backslashes are slashes."""
    if text in known:
        return known[text]
    parts = Path(text.replace("\\", "/")).parts
    tails = [Path(*parts[start:]) for start in range(len(parts))]
    readings = (name for tail in tails for name in (tail.as_posix(), tail.with_suffix("").as_posix()))
    return next((known[name] for name in readings if name in known), None)


def tags_of_folders(ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """One folder a class: the first folder of an id is its tag. Raises DataError for an image that lies in none."""
    if bare := [name for name in ids if "/" not in name]:
        raise DataError(
            f'data.tags="folders": {len(bare)} images lie in no folder of a class ({", ".join(bare[:3])}); '
            "move each to images/CLASS/"
        )
    return {name: (name.split("/", 1)[0],) for name in ids}


def tags_of_masks(source: Source, num_classes: int) -> Tags:
    """The classes that each mask shows: simulated annotation. Reads every mask; raises DataError where one is missing."""
    return {
        example.id: frozenset(np.flatnonzero(example.tags).tolist())
        for example in evaluation_examples(WithTags(source, num_classes))
        if example.tags is not None
    }


def tag_indices(named: Mapping[str, Sequence[str]], known: Sequence[str], classes: Sequence[str]) -> Tags:
    """Names as indices into `classes`; names that are in `known` only, and NOTHING, are none of them.

    Raises DataError for a name that is neither known nor NOTHING.
    """
    for image, names in named.items():
        if unknown := [name for name in names if name not in known and name != NOTHING]:
            raise DataError(f"{image}: unknown tag {unknown[0]!r}; the classes are {', '.join(known)}")
    return {i: frozenset(classes.index(name) for name in names if name in classes) for i, names in named.items()}


def check_tags(tags: Tags, classes: Sequence[str], foreground: Sequence[int]) -> None:
    """Raises DataError for a foreground class that no image shows, or that none is without: neither can be learned."""
    for k in foreground:
        number = sum(k in present for present in tags.values())
        if not number:
            raise DataError(f"no image has the tag {classes[k]!r}; tag some, or leave the class out")
        if number == len(tags):
            raise DataError(f"every image has the tag {classes[k]!r}; add images without it")


def balanced(source: Source, tags: Tags, class_index: int) -> Subset:
    """The images with and without a class in equal number: the rarer are repeated by turns."""
    has = np.array([class_index in tags[name] for name in source.ids])
    sides = np.flatnonzero(has), np.flatnonzero(~has)
    count = max(map(len, sides))
    return Subset(source, tuple(int(i) for side in sides for i in np.resize(side, count)))
