"""A part of a variant's name."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """A part of a variant's name: the other parts that it starts with, the tasks that it adds, the options that it sets."""

    sets: Mapping[str, Any] = {}  # dotted key, or a pattern of keys -> value, or a function of the config
    tasks: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    meaning: str = ""

    def but(self, sets: Mapping[str, Any], meaning: str) -> "Variant":
        """The same part with a data set's own settings over it."""
        return self._replace(sets={**self.sets, **sets}, meaning=meaning)


FROM_THE_START: Mapping[str, Any] = {
    "method.start": 0.0,
    "method.ramp": 0.0,
    "method.supervised_loss": "cross_entropy",
}
"""Every term counts from the first step on, and L_s is plain cross-entropy: so most authors trained."""


def own_colours() -> dict[str, float]:
    """Images as they are: no change of colours."""
    return dict.fromkeys((f"augment.{change}_probability" for change in ("jitter", "grayscale", "blur")), 0.0)
