"""classes.toml: what the masks of a folder mean."""

import json
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageColor

from forec_jax.contracts import IGNORE, UNLABELLED
from forec_jax.data.datasets.voc import voc_palette
from forec_jax.data.decode import ColourRule, MaskRule
from forec_jax.data.listing import annotations_below
from forec_jax.data.source import RGB, DataError
from forec_jax.data.textfile import read_text

CLASS_FILE = "classes.toml"
EXAMPLE = """names = ["background", "cat", "dog"]                  # in the order of their indices
colours = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]       # of the masks; leave it out where masks hold indices
background = "background"                             # the class that stands around the others
void = [255, 255, 255]                                # pixels without a class; an index where masks hold indices
unlabelled = [128, 128, 128]                          # pixels that nobody has looked at, with data.partial=masks"""

_KEYS = ("names", "colours", "background", "void", "unlabelled", "first")
_SPELLINGS = {"colors": "colours", "color": "colours", "colour": "colours", "unlabeled": "unlabelled"}


class ClassFile(NamedTuple):
    """What the class file says."""

    names: tuple[str, ...]
    palette: tuple[RGB, ...]  # the masks' colours, or VOC's where masks hold indices
    background: tuple[int, ...]  # class indices; () where no class is named so
    rule: MaskRule | ColourRule


def read_classes(file: Path) -> ClassFile:
    """Reads a class file. Raises DataError, naming the key, for one that is missing or contradicts itself."""
    content = _spelled(file, _parsed(file))
    names, colours = _names_and_colours(file, content.get("names"), content.get("colours"))
    background = _background(file, content.get("background"), names)
    void, unlabelled = content.get("void"), content.get("unlabelled")
    if colours is None:
        rule = _index_rule(file, names, content.get("first", 0), void, unlabelled)
        return ClassFile(names, voc_palette(len(names)), background, rule)
    if "first" in content:
        raise DataError(f"{file}: first is for masks of indices, colours for masks of colours; leave one out")
    palette = _colours(file, colours, len(names))
    return ClassFile(names, palette, background, _colour_rule(file, palette, background, void, unlabelled))


def class_file(names: Sequence[str], background: str | None, *, partial: bool = False) -> str:
    """The text of a class file for masks of indices, in which 255 is void and, if `partial`, 254 what nobody labelled."""
    lines = [f"names = {json.dumps(names, ensure_ascii=False)}", f"void = {IGNORE}"]
    if partial:
        lines.append(f"unlabelled = {UNLABELLED}")
    if background is not None:
        lines.insert(1, f"background = {json.dumps(background, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(unicodedata.normalize("NFC", read_text(file)))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing; {_found_instead(file.parent)}write one such as\n{EXAMPLE}") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); it should be such as\n{EXAMPLE}") from error
    except DataError:  # another encoding; it is a ValueError too
        raise
    except (RecursionError, ValueError) as error:  # brackets within brackets; a number of thousands of digits
        raise DataError(f"{file}: cannot be read (too deep or too long); it should be such as\n{EXAMPLE}") from error


def _found_instead(folder: Path) -> str:
    """Says so where another tool's description of the classes lies there."""
    found = next((name for name in ("labelmap.txt", "label_colors.txt", "obj.names") if (folder / name).exists()), None)
    labels = f"{found}, which lies there, is not read: copy its names and colours. " if found else ""
    return labels + annotations_below(folder)


def _spelled(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with other spellings of its keys replaced. Raises DataError for unknown keys."""
    spelled = {_SPELLINGS.get(key, key): value for key, value in content.items()}
    if len(spelled) < len(content):
        raise DataError(f"{file}: {', '.join(sorted(content))} name one key in two spellings; leave one out")
    if unknown := set(spelled) - set(_KEYS):
        raise DataError(f"{file}: unknown keys {sorted(unknown)}; it should be such as\n{EXAMPLE}")
    return spelled


def _names_and_colours(file: Path, names: Any, colours: Any) -> tuple[tuple[str, ...], list[Any] | None]:
    """Names in order, and a colour for each or None: from lists, or from a table of either key, NAME = COLOUR."""
    if isinstance(names, dict) and colours is None:
        names, colours = list(names), names
    if isinstance(colours, dict) and names is None:
        names = list(colours)
    ordered = _names(file, names)
    if not isinstance(colours, dict):
        if colours is not None and not isinstance(colours, list):
            raise DataError(f"{file}: colours={colours!r} must be a list of {len(ordered)} colours, one a name")
        return ordered, colours
    if wrong := set(ordered).symmetric_difference(colours):
        raise DataError(f"{file}: names and colours differ in {', '.join(sorted(wrong)[:3])}; give every name a colour")
    return ordered, [colours[name] for name in ordered]


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


def _index_rule(file: Path, names: tuple[str, ...], first: Any, void: Any, unlabelled: Any) -> MaskRule:
    """Without a void value there is none: 255 is void by custom only, and a class in a black and white mask."""
    count = len(names)
    if type(first) is not int or not 0 <= first <= 256 - count:
        raise DataError(f"{file}: first={first!r} must be the index of {names[0]} in the masks, usually 0 or 1")
    given = {
        key: _other_values(file, key, value, first, count)
        for key, value in {"void": void, "unlabelled": unlabelled}.items()
    }
    if both := set(given["void"]).intersection(given["unlabelled"]):
        raise DataError(f"{file}: void and unlabelled are both {min(both)}; each needs its own index")
    values = tuple(range(first, first + count)) if first else None
    return MaskRule(count, values=values, class_file=CLASS_FILE, **given)


def _other_values(file: Path, key: str, given: Any, first: int, count: int) -> tuple[int, ...]:
    """The indices that are no class's: one, a list of some, or none."""
    values = given if isinstance(given, list) else [] if given is None else [given]
    classes = range(first, first + count)
    if all(type(value) is int and 0 <= value <= 255 and value not in classes for value in values):
        return tuple(values)
    span = f"from 0 to 255 that is no class's ({first} to {classes[-1]})" if first else f"from {count} to 255"
    hint = "; where the classes count from 1, write `first = 1` too" if given == 0 and not first else ""
    raise DataError(f"{file}: {key}={given!r} must be an index {span}, as masks hold indices (no colours){hint}")


def _colours(file: Path, colours: list[Any], count: int) -> tuple[RGB, ...]:
    if len(colours) != count:
        raise DataError(f"{file}: colours must be a list of {count} colours, one a name")
    return tuple(_colour(file, "colours", colour) for colour in colours)


def _colour_rule(
    file: Path, palette: tuple[RGB, ...], background: tuple[int, ...], void: Any, unlabelled: Any
) -> ColourRule:
    others = {"void": void, "unlabelled": unlabelled}
    given = {key: _colour(file, key, colour) for key, colour in others.items() if colour is not None}
    every = (*palette, *given.values())
    if twice := sorted({colour for colour in every if every.count(colour) > 1}):
        raise DataError(f"{file}: {twice} more than once among {', '.join(('colours', *others))}; each needs its own")
    return ColourRule(palette, transparent=background[0] if background else None, **given)


def _colour(file: Path, key: str, colour: Any) -> RGB:
    """[red, green, blue], or a text as "#ff0000" or "red"."""
    if isinstance(colour, str):
        try:
            colour = list(ImageColor.getrgb(colour))
        except ValueError:
            colour = [colour]
    if not isinstance(colour, list) or len(colour) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in colour):
        raise DataError(f'{file}: {key} holds {colour!r}; a colour is [red, green, blue], each 0 to 255, or "#ff0000"')
    return (colour[0], colour[1], colour[2])
