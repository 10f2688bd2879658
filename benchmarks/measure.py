"""Measuring: interleaved rounds, their spread, and the memory of a process."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Call = Callable[[], object]


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


def seconds_of(call: Call) -> float:
    """How long a call takes; it returns when its work is done, not when it is queued."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(rounds: int, turns: Mapping[str, Callable[[], float]]) -> dict[str, Spread]:
    """Each contestant's spread. They take turns, so that a disturbance of the machine hits all of them alike.

    A turn returns its seconds. What must be warm has been called before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            seconds[name].append(turn())
    return {name: Spread.of(values) for name, values in seconds.items()}


def peak_process_bytes() -> int:
    """The most memory this process has held so far, its libraries included."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux a process starts with the peak of the one that started it.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


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
