"""The training loop: the host's side of a run."""

import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from forec_jax.contracts import Array, Batch, Stopped, TrainState
from forec_jax.options import OptionError, at_least, checked, option
from forec_jax.parallel import largest, shard_batch
from forec_jax.training.checkpoint import Checkpoints
from forec_jax.training.reporting import Reporter
from forec_jax.training.scores import Best, best_of, is_better, score_of
from forec_jax.training.step import DROPPED

log = logging.getLogger(__name__)

DROPPED_IN_A_ROW = 20  # updates, after which a run ends even with on_nan="skip": what follows would change nothing


class NotFiniteError(FloatingPointError):
    """A loss that is NaN or infinite; the message names the step and the terms."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen, in steps."""

    steps: int = option(4000, "updates", at_least(1))
    log_every: int = option(50, "steps between two lines in metrics.jsonl", at_least(1))
    evaluate_every: int = option(500, "steps between two evaluations on eval.split", at_least(1))
    checkpoint_every: int = option(500, "steps between two checkpoints of the last state", at_least(1))
    milestones: tuple[int, ...] = option((), "steps whose checkpoints are kept (forec-jax label --rank=agreement)")

    def __post_init__(self) -> None:
        checked(self, "")
        if beyond := [step for step in self.milestones if not 0 < step <= self.steps]:
            raise OptionError(f"milestones={beyond}: a training of steps={self.steps} has the steps 1 to {self.steps}")

    def is_due(self, every: int, done: int) -> bool:
        """Whether something that happens `every` so many steps, and at the end, is due after `done` steps."""
        return done % every == 0 or done == self.steps


class _Pending(NamedTuple):
    """Metrics of a dispatched step, still on the device."""

    step: int  # counted from 0
    metrics: dict[str, Array]


class Interruption:
    """Notes SIGINT and SIGTERM while it is entered, so that the loop can end between two steps; a second one is not held."""

    def __init__(self) -> None:
        self._received = 0
        self._asked: Array | int = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._handlers[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: signals do not arrive here
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def heard(self, mesh: Mesh) -> int:
        """The signal that this process received, 0 for none; to be asked once a step.

        Of several processes each hears what any of them received up to the step before, so that all end after the same step
        and none waits for a device to know.
        """
        if jax.process_count() == 1:
            return self._received
        heard, self._asked = int(self._asked), largest(mesh, self._received)
        return heard

    @property
    def received(self) -> int:
        """The signal that this process received, 0 for none."""
        return self._received

    def came(self) -> bool:
        """Whether this process has received a signal."""
        return self._received != 0

    def agreed(self, mesh: Mesh) -> int:
        """The signal that any process has received; all must ask, and wait for each other."""
        return self._received if jax.process_count() == 1 else int(largest(mesh, self._received))

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _read_metrics(pending: _Pending) -> dict[str, float]:
    """A step's metrics on the host; waits for the step."""
    return {name: float(value) for name, value in jax.device_get(pending.metrics).items()}


def _check_finite(step: int, metrics: Mapping[str, float], batch_ids: Callable[[int], Any]) -> None:
    """Raises NotFiniteError where a metric of `step` (counted from 0) is not finite."""
    if found := _not_finite(metrics):
        raise NotFiniteError(
            f"step {step + 1}: {found}. The batch was {batch_ids(step)}. No checkpoint of this step was written: go on "
            'from the last one with on_nan="skip", which drops such updates, or start anew in another --workdir with a '
            "lower optim.lr or with optim.clip_norm"
        )


def _not_finite(metrics: Mapping[str, float]) -> str:
    """The metrics that are not finite, in words; empty where all are."""
    return ", ".join(f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value))


class _DroppedUpdates:
    """Counts the updates that on_nan="skip" dropped, since the process started."""

    def __init__(self) -> None:
        self.number = 0
        self._in_a_row = 0

    def count(self, step: int, metrics: Mapping[str, float], batch_ids: Callable[[int], Any]) -> dict[str, float]:
        """The metrics of `step` (counted from 0) without those that are not finite, and the number of dropped updates.

        Warns of a dropped one; raises NotFiniteError where too many follow one another.
        """
        if not metrics[DROPPED]:
            self._in_a_row = 0
            return {**metrics, DROPPED: self.number}
        self.number, self._in_a_row = self.number + 1, self._in_a_row + 1
        log.warning(
            "step %d: %s; the update is dropped. The batch was %s", step + 1, _not_finite(metrics), batch_ids(step)
        )
        if self._in_a_row == DROPPED_IN_A_ROW:
            raise NotFiniteError(
                f"step {step + 1}: the {DROPPED_IN_A_ROW}th update in a row that is not finite ({_not_finite(metrics)}); "
                "start anew in another --workdir with a lower optim.lr or with optim.clip_norm"
            )
        return {name: value for name, value in metrics.items() if math.isfinite(value)} | {DROPPED: self.number}


def _was_scored(reporter: Reporter, step: int) -> bool:
    """Whether the evaluation after `step` steps was made: a signal may have come before it, or during it."""
    return any(event["event"] == "evaluation" and event["step"] == step for event in reporter.events)


def train(
    state: TrainState,
    *,
    first_step: int,
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]],
    batches: Iterator[Batch],
    batch_ids: Callable[[int], Any],
    evaluate: Callable[[TrainState, int, Callable[[], bool]], Mapping[str, Any]],
    schedule: Schedule,
    checkpoints: Checkpoints,
    reporter: Reporter,
    interruption: Interruption,
    mesh: Mesh,
    is_best: Callable[[Mapping[str, Any]], bool] | None = None,
) -> tuple[TrainState, int | None]:
    """Trains from `first_step` to the end, or to a signal, whose number is returned (None at the end).

    A step's metrics are read only after the next step was dispatched, so that the device never waits for the host;
    before an evaluation or a checkpoint they are read at once: neither ever sees a state that was not found finite.
    A signal ends an evaluation too: `evaluate` is given what to ask, and raises Stopped; the run that goes on makes it anew.
    The best state is told by the score that the best checkpoint holds, not by the log; `is_best` is another rule.
    The caller has entered `interruption`, and leaves it when the checkpoints are closed: the last save is not cut short.
    """
    pending: _Pending | None = None
    dropped = _DroppedUpdates()
    best = checkpoints.best_score() or best_of(reporter.events)

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        metrics, done = _read_metrics(pending), pending.step + 1
        if DROPPED in metrics:
            metrics = dropped.count(pending.step, metrics, batch_ids)
        _check_finite(pending.step, metrics, batch_ids)
        reporter.advance(done, metrics)
        if schedule.is_due(schedule.log_every, done) or done == 1:
            reporter.train(done, metrics)
        pending = None

    def score(done: int) -> tuple[bool, int]:
        """Evaluates and keeps the state where it is the best so far; whether it is, and the signal that cut this short."""
        nonlocal best
        try:
            results = evaluate(state, done, interruption.came)
        except Stopped:
            return False, interruption.agreed(mesh)
        better = is_best(results) if is_best else is_better(score_of(results), best)
        if better:
            best = Best(done, score_of(results))
        reporter.evaluation(done, results, best and best.score)
        if better:
            checkpoints.save_best(state, done, score_of(results))
        return better, 0

    if first_step in schedule.milestones:  # the run may have been killed before it was kept
        checkpoints.save_kept(state, first_step)
    if first_step and schedule.is_due(schedule.evaluate_every, first_step) and not _was_scored(reporter, first_step):
        _, stopped_by = score(first_step)
        if stopped_by:
            return state, stopped_by
    for index in range(first_step, schedule.steps):
        batch = shard_batch(mesh, next(batches))
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
        settle()
        pending, done = _Pending(index, metrics), index + 1
        stopped_by, better = interruption.heard(mesh), False
        # Before the evaluation: an image that cannot be scored costs no steps then.
        if schedule.is_due(schedule.checkpoint_every, done):
            settle()
            checkpoints.save_last(state, done)
        if schedule.is_due(schedule.evaluate_every, done) and not stopped_by:
            settle()
            better, stopped_by = score(done)
        # Beside a best checkpoint goes a last one, so that a resumed run never starts before the best it knows of.
        if better or stopped_by:
            settle()
            checkpoints.save_last(state, done)
        if done in schedule.milestones:
            settle()
            checkpoints.save_kept(state, done)
        if stopped_by:
            return state, stopped_by
    return state, None
