"""metrics.jsonl: a run's events, a line each, and what becomes of a file that a disk has damaged."""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from forec_jax.files import to_json, write_whole
from forec_jax.kinds import listed, mapping, number, text, whole

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class _Lines(NamedTuple):
    events: list[dict[str, Any]]
    damaged: list[int]  # numbers of the lines that are no event, from 1


def _read(path: Path) -> _Lines:
    events, damaged = [], []
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for place, line in enumerate(lines, start=1):
        event = _event(line)
        if event is None:
            damaged.append(place)
        else:
            events.append(event)
    if (last := _event(rest)) is not None:  # otherwise a kill cut it short, which is no damage
        events.append(last)
    return _Lines(events, damaged)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = dict(mapping(json.loads(line)))
        of_kind = {name: _of_its_kind(name, value) for name, value in event.items()}
        if event["event"] == "evaluation" and not {"teacher_miou", "student_miou"} & event.keys():
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return of_kind if "step" in event else None


def _of_its_kind(name: str, value: Any) -> Any:
    """A value of an event as its name asks it to be. Raises TypeError where it is another."""
    if name == "event":
        return text(value)
    if name == "step":
        return whole(value)
    return [number(one) for one in listed(value)] if name.endswith("_iou") else number(value)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics file. A line that is damaged, or cut short by a kill, is left out; the others are kept."""
    return _read(path).events


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the events after `step`, which the resumed run will write again; returns those that stay.

    Nothing goes in silence: of a damaged file, and of one that tells of evaluations before a start at step 0, a copy is kept
    beside it, and a warning names it.
    """
    found, damaged = _read(path)
    kept = [event for event in found if event["step"] <= step]
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        copy = _set_aside(path, "damaged")
        log.warning("%s: line %s cannot be read and is left out; the file as it was is kept as %s", path, numbers, copy)
    if step == 0 and any(event["event"] == "evaluation" for event in found[len(kept) :]):
        copy = _set_aside(path, "before")
        log.warning(
            "%s goes on to step %d, but no checkpoint is there: the run starts at step 0; the file is kept as %s",
            path,
            found[-1]["step"],
            copy,
        )
    write_whole(path, "".join(to_json(event) + "\n" for event in kept).encode())
    return kept


def _set_aside(path: Path, suffix: str) -> Path:
    """Copies a file to the first free name with the suffix: a.damaged, a.damaged2, ..."""
    names: Iterable[Path] = (path.with_name(f"{path.name}.{suffix}{number}") for number in ("", *range(2, 1000)))
    copy = next(name for name in names if not name.exists())
    shutil.copy2(path, copy)
    return copy


class Lines:
    """A file that grows by whole lines. Where the disk is full, they wait in memory for the next one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, line: str) -> None:
        """Appends a line."""
        self._waiting += line.encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            log.warning(
                "%s cannot be written (%s); its new lines are kept in memory until there is room",
                self._file.name,
                error.strerror,
            )

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
