"""What a run tells: metrics.jsonl, TensorBoard, the progress bar, summary.json."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

from forec_jax.files import finite, to_json
from forec_jax.progress import progress_bar
from forec_jax.training.events import METRICS_FILE, Lines, cut_back, read_events
from forec_jax.training.scores import score_of
from forec_jax.training.watch import PseudoLabelWatch

log = logging.getLogger(__name__)

FLUSH_SECONDS = 60  # after which TensorBoard's events go to the disk
NAMED = 6  # classes whose IoU is printed at an evaluation
BAR = "step {n_fmt}/{total_fmt} |{bar:6}| {remaining} left{postfix}"
"""80 columns hold it with a loss, a share and a rate."""


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

    Every event is one line of metrics.jsonl with "event" ("train" or "evaluation") and "step" (steps done so far). A number
    that is not finite is None, there and in `events`.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        steps: int,
        first_step: int,
        images_per_step: int,
        classes: Sequence[str] = (),
        threshold: float | None = None,
        start: float = 0,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        """`classes` name the IoUs of an evaluation; `threshold` is that of the pseudo-labels, for a warning.

        `start` is the step from which on they teach, `rate` the learning rate of the step after so many.
        """
        self.events = cut_back(workdir / METRICS_FILE, first_step)
        self._file = Lines(workdir / METRICS_FILE)
        self._board = Board(workdir / "tensorboard", first_step)
        self._bar = progress_bar(total=steps, initial=first_step, mininterval=0.5, bar_format=BAR)
        self._images_per_step, self._start = images_per_step, start
        self._mark = (time.monotonic(), first_step)
        self._classes, self._watch, self._has_compiled = classes, PseudoLabelWatch(threshold), False
        self._rate = rate

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step, with the rate since the last log."""
        now, (then, last) = time.monotonic(), self._mark
        self._mark = (now, step)
        rate = self._images_per_step * (step - last) / max(now - then, 1e-9)
        learning = {} if self._rate is None else {"learning_rate": self._rate(step - 1)}
        self._write({"event": "train", "step": step, **metrics, **learning, "images_per_second": round(rate, 2)})
        self._bar.set_postfix_str(in_short(metrics, rate), refresh=False)

    def evaluation(self, step: int, results: Mapping[str, Any], best: float | None = None) -> None:
        """Logs an evaluation and prints it: mIoU by network, among others. `best` is the best score up to this one."""
        self._write({"event": "evaluation", "step": step, **results})
        self.message(evaluation_line(step, self.events[-1], best, self._classes))
        self._mark = (time.monotonic(), step)  # the time an evaluation takes is not the training's
        self._bar.unpause()  # nor is it in the time that is left

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds u8[H,W,3] to TensorBoard."""
        self._board.picture(name, picture, step)

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar to `step`, and watches its metrics."""
        if not self._has_compiled:  # the first step says nothing of how long the others take
            self._has_compiled = True
            self._bar.unpause()
            self._bar.initial = self._bar.n = self._bar.last_print_n = step
        self._bar.update(step - self._bar.n)
        if step > self._start:
            self._watch.see(metrics)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _write(self, event: dict[str, Any]) -> None:
        event = finite(event)
        self.events.append(event)
        self._file.write(to_json(event))
        for name, value in _scalars_of(event, self._classes):
            self._board.scalar(f"{event['event']}/{name}", value, event["step"])


def _scalars_of(event: Mapping[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The numbers of an event by name, as TensorBoard shows them: a class's IoU as `teacher_iou/cat`."""
    for name, value in event.items():
        if isinstance(value, int | float) and name != "step":
            yield name, value
        elif name.endswith("_iou") and isinstance(value, list):
            named = zip(classes, value, strict=False)
            yield from ((f"{name}/{called}", share) for called, share in named if share is not None)


def in_short(metrics: Mapping[str, float], rate: float) -> str:
    """What of a step's metrics fits beside the bar: the loss, the share of kept pseudo-labels, images a second."""
    shown = [f"{name} {metrics[name]:.3f}" for name in ("loss", "kept") if name in metrics]
    return ", ".join([*shown, f"{rate:.{0 if rate >= 100 else 1}f} images/s"])


def evaluation_line(step: int, results: Mapping[str, Any], best: float | None, classes: Sequence[str]) -> str:
    """An evaluation in a line: `step 300  mIoU 48.4 (best 48.4)  cat 37.6  dog 30.8`; of many classes the worst ones."""
    iou = results.get("teacher_iou", results.get("student_iou"))
    named = list(zip(classes, iou or (), strict=False))
    if len(named) > NAMED:
        scored = [(name, value) for name, value in named if value is not None]
        named = sorted(scored, key=lambda pair: pair[1])[:NAMED]
        named[:1] = [(f"lowest: {name}", value) for name, value in named[:1]]
    of_all = f"step {step}  mIoU {percent(score_of(results))} (best {percent(best)})"
    return "  ".join([of_all, *(f"{name} {percent(value)}" for name, value in named)])


def percent(share: float | None) -> str:
    """A share in percent; a dash where nothing could be counted."""
    return "-" if share is None else f"{100 * share:.1f}"


class Onlooker(Reporter):
    """The reporter of a process that is not the first: it knows the run's events and writes nothing."""

    def __init__(self, workdir: Path, *, first_step: int, **_: Any) -> None:
        self.events = [event for event in read_events(workdir / METRICS_FILE) if event["step"] <= first_step]

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def evaluation(self, step: int, results: Mapping[str, Any], best: float | None = None) -> None:
        """Keeps the event, as all processes decide alike what is owed."""
        self.events.append(finite({"event": "evaluation", "step": step, **results}))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Nothing."""

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
