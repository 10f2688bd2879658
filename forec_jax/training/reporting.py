"""What a run tells: metrics.jsonl, TensorBoard, the progress bar, summary.json."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

from forec_jax.files import write_json  # noqa: F401 - its old place
from forec_jax.progress import progress_bar

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
FLUSH_SECONDS = 60  # after which TensorBoard's events go to the disk


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics file; a last line cut short by a kill is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the events after `step`, which the resumed run will write again; returns those that stay."""
    events = [event for event in read_events(path) if event["step"] <= step]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    os.replace(part, path)
    return events


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
                "%s cannot be written (%s); what is new in it is kept until it can", self._file.name, error.strerror
            )

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


class Board:
    """TensorBoard events, for as long as they can be written: without them a run loses nothing.

    tensorboardX's SummaryWriter is not used: its queue to a thread blocks for ever once that thread has met a full disk.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._flushed = folder, time.monotonic()
        self._writer: EventsWriter | None = EventsWriter(str(folder / "events"))
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), first_step)  # hides what a run wrote past it

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a number."""
        self._add(Event(summary=scalar(name, value)), step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Adds u8[H,W,3]."""
        self._add(Event(summary=image(name, picture, dataformats="HWC")), step)

    def _add(self, event: Event, step: int) -> None:
        if self._writer is None:
            return
        event.wall_time, event.step = time.time(), step
        with self._giving_up():
            self._writer.write_event(event)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Lets the events end with a warning where one cannot be written."""
        try:
            yield
        except OSError as error:
            log.warning("%s cannot be written (%s); TensorBoard's events end here", self._folder, error.strerror)
            self._writer = None

    def close(self) -> None:
        """Ends the events."""
        if self._writer is not None:
            with self._giving_up():
                self._writer.close()


class Reporter:
    """Writes a run's events to `workdir` and to the terminal.

    Every event is one line of metrics.jsonl with "event" ("train" or "evaluation") and "step" (steps done so far).
    """

    def __init__(self, workdir: Path, *, steps: int, first_step: int, images_per_step: int) -> None:
        self.events = cut_back(workdir / METRICS_FILE, first_step)
        self._file = Lines(workdir / METRICS_FILE)
        self._board = Board(workdir / "tensorboard", first_step)
        self._bar = progress_bar(total=steps, initial=first_step, unit="step", mininterval=0.5)
        self._images_per_step = images_per_step
        self._mark = (time.monotonic(), first_step)
        self._shown: dict[str, str] = {}

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step, with the rate since the last log."""
        now, (then, last) = time.monotonic(), self._mark
        self._mark = (now, step)
        rate = self._images_per_step * (step - last) / max(now - then, 1e-9)
        self._write({"event": "train", "step": step, **metrics, "images_per_second": round(rate, 2)})
        losses = {name: f"{value:.3f}" for name, value in metrics.items() if name.endswith("loss")}
        self._show(losses | {"images/s": f"{rate:.1f}"})

    def evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Logs an evaluation: mIoU by network, among others."""
        self._write({"event": "evaluation", "step": step, **results})
        self._show({name: f"{100 * value:.1f}" for name, value in results.items() if name.endswith("miou")})
        self._mark = (time.monotonic(), step)  # the time an evaluation takes is not the training's

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds u8[H,W,3] to TensorBoard."""
        self._board.picture(name, picture, step)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._file.write(json.dumps(event))
        for name, value in event.items():
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                self._board.scalar(f"{event['event']}/{name}", value, event["step"])

    def _show(self, values: Mapping[str, str]) -> None:
        self._shown |= values
        self._bar.set_postfix(self._shown, refresh=False)


class Onlooker(Reporter):
    """The reporter of a process that is not the first: it knows the run's events and writes nothing."""

    def __init__(self, workdir: Path, *, steps: int, first_step: int, images_per_step: int) -> None:
        self.events = [event for event in read_events(workdir / METRICS_FILE) if event["step"] <= first_step]

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Keeps the event: the best of them decides what is saved."""
        self.events.append({"event": "evaluation", "step": step, **results})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
