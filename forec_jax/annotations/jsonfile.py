"""JSON of unknown origin, read step by step: whatever is not as expected is named by its file and place."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forec_jax.data.source import DataError
from forec_jax.data.textfile import read_text

_FARTHEST = 1e9
"""No coordinate is larger: beyond, arithmetic on pixels has no meaning."""


class Node(NamedTuple):
    """A value in a JSON file, and where it stands."""

    value: Any
    file: str
    path: tuple[str | int, ...] = ()

    def error(self, what: str) -> DataError:
        """An error about this place."""
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        return DataError(f"{self.file}: {f'{place} ' if place else ''}{what}")

    def __contains__(self, key: object) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def get(self, key: str) -> "Node":
        """What an object has under a key. Raises DataError where it is no object, or has no such key."""
        if key not in self:
            raise self.error(f"has no {key!r}; is the file what --from says?")
        return Node(self.value[key], self.file, (*self.path, key))

    def each(self) -> Iterator["Node"]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.error("is no list")
        return (Node(value, self.file, (*self.path, index)) for index, value in enumerate(self.value))

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("is no text")
        return self.value

    def whole(self) -> int:
        """A whole number of ordinary size."""
        number = self.value
        if isinstance(number, float) and number.is_integer():
            number = int(number)  # some tools write 640.0
        if type(number) is not int or abs(number) > 2**62:
            raise self.error("is no whole number")
        return number

    def side(self) -> int:
        """A length of an image in pixels."""
        if not 0 < (number := self.whole()) < 2**31:
            raise self.error(f"is {number}, which is no number of pixels")
        return number

    def points(self) -> np.ndarray:
        """f64[n,2]: a list of [x, y] pairs."""
        return np.array([pair._pair() for pair in self.each()], float).reshape(-1, 2)

    def flat_points(self) -> np.ndarray:
        """f64[n,2]: a list x, y, x, y, ..."""
        numbers = [number._coordinate() for number in self.each()]
        if len(numbers) % 2:
            raise self.error(f"has {len(numbers)} numbers; an outline has an x and a y for each point")
        return np.array(numbers, float).reshape(-1, 2)

    def _pair(self) -> tuple[float, float]:
        pair = [number._coordinate() for number in self.each()]
        if len(pair) != 2:
            raise self.error("is no point; it should be [x, y]")
        return pair[0], pair[1]

    def _coordinate(self) -> float:
        number = self.value
        if type(number) not in (int, float) or not abs(number) <= _FARTHEST or not math.isfinite(number):
            raise self.error("is no coordinate")
        return float(number)


def read_json(file: Path) -> Node:
    """The content of a JSON file. Raises DataError, naming it, where it cannot be read."""
    try:
        return Node(json.loads(read_text(file)), str(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check --annotations") from error
    except DataError:  # another encoding; it is a ValueError too
        raise
    except (RecursionError, ValueError) as error:
        what = "too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise DataError(f"{file}: is no JSON ({what}); export it anew") from error
