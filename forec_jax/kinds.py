"""Values read from JSON: each is of the kind that it should be, or a TypeError says what it is instead."""

from collections.abc import Mapping
from typing import Any

LARGEST = 2**53
"""Whole numbers beyond it are not exact in JSON."""


def text(value: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise _other(value, "a text")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    if type(value) is not int or abs(value) > LARGEST:
        raise _other(value, "a whole number")
    return value


def number(value: Any) -> float | None:
    """A finite number; None for null, which stands for one that is not finite."""
    if value is None:
        return None
    most = LARGEST if type(value) is int else 1e300
    if type(value) not in (int, float) or not abs(value) <= most:  # nor is NaN
        raise _other(value, "a number")
    return value


def listed(value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise _other(value, "a list")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise _other(value, "an object")
    return value


def _other(value: Any, expected: str) -> TypeError:
    said = str(value) if isinstance(value, str | bool | float | None) else f"{type(value).__name__}"
    return TypeError(f"{said[:40]!r} is not {expected}")
