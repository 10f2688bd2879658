"""An image that is too large to be seen at once, as tiles that overlap."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from forec_jax.options import OptionError

Window = tuple[slice, slice]


class Tile(NamedTuple):
    """A part of an image, and what of it counts: the rest is there to be seen, and lies in a neighbour."""

    seen: Window  # of the image
    kept: Window  # of the image, inside `seen`

    @property
    def inside(self) -> Window:
        """`kept` as a window of `seen`."""
        rows, columns = (
            slice(kept.start - seen.start, kept.stop - seen.start)
            for kept, seen in zip(self.kept, self.seen, strict=True)
        )
        return rows, columns


class Tiles(NamedTuple):
    """Square tiles of `side` pixels (0: the whole image is one), of which neighbours share at least `overlap`.

    Raises OptionError (`check`) where they would not move on.
    """

    side: int = 0
    overlap: int = 0

    def check(self) -> "Tiles":
        """These tiles, if they make sense."""
        if self.side and not 0 <= self.overlap < self.side:
            raise OptionError(f"--overlap={self.overlap} must be at least 0 and below the tile's {self.side} pixels")
        return self

    def of(self, height: int, width: int) -> Iterator[Tile]:
        """The tiles of an image, row by row; every pixel is kept by one."""
        columns = self._along(width)
        for seen_rows, kept_rows in self._along(height):
            for seen, kept in columns:
                yield Tile((seen_rows, seen), (kept_rows, kept))

    def _along(self, length: int) -> list[tuple[slice, slice]]:
        """What is seen and kept along a side: the last tile ends at the border, and neighbours meet in the middle."""
        side = min(self.side or length, length)
        starts = [*range(0, length - side, side - self.overlap), length - side]
        borders = [0, *((first + side + second) // 2 for first, second in pairwise(starts)), length]
        return [
            (slice(start, start + side), slice(*kept)) for start, kept in zip(starts, pairwise(borders), strict=True)
        ]


WHOLE = Tiles()
"""An image seen at once."""
