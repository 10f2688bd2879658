"""Measuring: interleaved rounds, their spread, and the memory of a process."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """Seconds of a round: the median, and the middle half of the rounds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        """The spread of at least one measurement."""
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0])
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)

    def per(self, number: int) -> "Spread":
        """The spread of one of `number` equal parts of a round."""
        return Spread(*(value / number for value in self))


def interleaved(rounds: int, contestants: Mapping[str, Callable[[], object]]) -> dict[str, Spread]:
    """Each contestant's seconds a call. They take turns, so that a disturbance of the machine hits all of them alike.

    A call returns when its work is done, not when it is queued. What must be warm has been called before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Spread.of(values) for name, values in seconds.items()}


def peak_process_bytes() -> int:
    """The most memory this process has held so far, its libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def readable(value: Any) -> str:
    """A cell of a table: four digits are enough, None is a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([readable(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
