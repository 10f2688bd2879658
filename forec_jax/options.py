"""An option stands once, where it is used: its default, its meaning, and what values make sense.

Options are the fields of frozen dataclasses, made by `option`. A block of them lies under a dotted prefix of the config
("optim", "method.ps_mt"): `to_config` makes the block with its defaults, `from_config` reads it back, checked.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

T = TypeVar("T")


class OptionError(ValueError):
    """An option with a value that cannot be used; the message names the key and what it takes."""


class _Rule(NamedTuple):
    """Whether a value is allowed, and the end of the sentence that says what is."""

    allows: Callable[[Any], bool]
    words: str


def from_to(low: float, high: float) -> _Rule:
    """Both ends are allowed; NaN never is."""
    return _Rule(lambda value: low <= value <= high, f" must be between {low} and {high}")


def at_least(low: float) -> _Rule:
    """Finite numbers from `low` on."""
    return _Rule(lambda value: low <= value < math.inf, f" must be at least {low}")


def must_be(words: str, allows: Callable[[Any], bool]) -> _Rule:
    """A rule in words of its own."""
    return _Rule(allows, f" must be {words}")


def one_of(*choices: Any) -> _Rule:
    """A choice. An option whose type is a Literal has this rule without saying so."""
    return _Rule(lambda value: value in choices, f": choose one of {', '.join(map(repr, choices))}")


def whole_numbers(*example: int) -> _Rule:
    """One whole number or more, each from 1 on."""
    return must_be(f"whole numbers from 1 on, such as {example}", lambda found: len(found) > 0 and min(found) >= 1)


SHARE = from_to(0, 1)
BELOW_1 = must_be("at least 0 and below 1", lambda value: 0 <= value < 1)
ABOVE_0 = must_be("above 0", lambda value: 0 < value < math.inf)
ASCENDING = must_be(
    "two numbers above 0, the smaller one first, such as (0.5, 2.0)",
    lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1],
)
SCALES = must_be(
    "one or more numbers above 0, such as (1.0,)",
    lambda found: len(found) > 0 and all(0 < scale < math.inf for scale in found),
)
STEPS = must_be(
    "a whole number of steps, or a fraction of all steps between 0 and 1",
    lambda length: length >= 0 and (length <= 1 or length == int(length)),
)


def option(default: Any, meaning: str, rule: _Rule | None = None) -> Any:
    """A dataclass field that is an option. `meaning` is one sentence, with the unit."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "rule": rule})


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of what has none of its own."""


class Option(NamedTuple):
    """What is known about one option."""

    name: str
    default: Any
    meaning: str
    rule: _Rule | None


def options_of(block: type) -> Iterator[Option]:
    """The options of a dataclass, in the order of its fields; other fields are none."""
    kinds = typing.get_type_hints(block)
    for field in dataclasses.fields(block):
        if "meaning" in field.metadata:
            rule = field.metadata["rule"]
            if typing.get_origin(kinds[field.name]) is typing.Literal:
                rule = one_of(*typing.get_args(kinds[field.name]))
            yield Option(field.name, field.default, field.metadata["meaning"], rule)


def to_config(block: type) -> ConfigDict:
    """The options of a dataclass with their defaults."""
    return ConfigDict({option.name: option.default for option in options_of(block)})


def from_config(block: type[T], c: ConfigDict, prefix: str) -> T:
    """The dataclass with the values that its options have in `c`, which lies under `prefix` ("optim"; "" at the top).

    Raises OptionError for a value that its rule does not allow.
    """
    values = {name: c[name] for name, *_ in options_of(block)}
    for name, _, _, rule in options_of(block):
        check(dotted(prefix, name), values[name], rule)
    return block(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def checked(block: T, prefix: str) -> T:
    """The instance, which Python code made; raises OptionError for a value that its rule does not allow."""
    for name, _, _, rule in options_of(type(block)):
        check(dotted(prefix, name), getattr(block, name), rule)
    return block


def check(key: str, value: Any, rule: _Rule | None) -> None:
    """Raises OptionError where the rule does not allow the value."""
    if rule is not None and not rule.allows(value):
        raise OptionError(f"{key}={value!r}{rule.words}")


def choose(key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The value, if it is one of choices that are known only when the program runs. Raises OptionError otherwise."""
    check(key, value, one_of(*choices))
    return value


def dotted(prefix: str, name: str) -> str:
    """The key of an option under a prefix, which may be empty."""
    return f"{prefix}.{name}" if prefix else name


def taken(block: type, *sources: Any) -> dict[str, Any]:
    """The options of `block` with the values that they have in the first source that has them: keyword arguments."""
    return {name: next(getattr(s, name) for s in sources if hasattr(s, name)) for name, *_ in options_of(block)}
