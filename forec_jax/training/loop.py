"""The training loop: the host's side of a run."""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from forec_jax.contracts import Array, Batch, TrainState
from forec_jax.parallel import shard_batch
from forec_jax.training.checkpoint import Checkpoints
from forec_jax.training.reporting import Reporter


class NotFiniteError(FloatingPointError):
    """A loss that is NaN or infinite; the message names the step and the terms."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen, in steps."""

    steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")

    def is_due(self, every: int, done: int) -> bool:
        """Whether something that happens `every` so many steps, and at the end, is due after `done` steps."""
        return done % every == 0 or done == self.steps


class Pending(NamedTuple):
    """Metrics of a dispatched step, still on the device."""

    step: int  # counted from 0
    metrics: dict[str, Array]


class Interruption:
    """Notes SIGINT and SIGTERM while it is entered, so that the loop can end between two steps; a second one is not held."""

    def __init__(self) -> None:
        self.received: int | None = None
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

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def check_finite(pending: Pending, batch_ids: Callable[[int], Any]) -> dict[str, float]:
    """Reads a step's metrics; raises NotFiniteError where one is not finite."""
    metrics = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        values = ", ".join(f"{name}={metrics[name]}" for name in broken)
        raise NotFiniteError(
            f"step {pending.step + 1}: {values}. The batch was {batch_ids(pending.step)}. No checkpoint of this step was "
            "written: rerun the command to go on from the last one with a lower optim.lr, or set optim.clip_norm"
        )
    return metrics


def train(
    state: TrainState,
    *,
    first_step: int,
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]],
    batches: Iterator[Batch],
    batch_ids: Callable[[int], Any],
    evaluate: Callable[[TrainState, int], Mapping[str, Any]],
    is_best: Callable[[Mapping[str, Any]], bool],
    schedule: Schedule,
    checkpoints: Checkpoints,
    reporter: Reporter,
    mesh: Mesh,
) -> tuple[TrainState, int | None]:
    """Trains from `first_step` to the end, or to a signal, whose number is returned (None at the end).

    A step's metrics are read only after the next step was dispatched, so that the device never waits for the host;
    before an evaluation or a checkpoint they are read at once: neither ever sees a state that was not found finite.
    """
    pending: Pending | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        metrics, done = check_finite(pending, batch_ids), pending.step + 1
        reporter.advance(done)
        if schedule.is_due(schedule.log_every, done) or done == 1:
            reporter.train(done, metrics)
        pending = None

    with Interruption() as interruption:
        for index in range(first_step, schedule.steps):
            batch = shard_batch(mesh, next(batches))
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            settle()
            pending, done = Pending(index, metrics), index + 1
            stop, best = interruption.received is not None, False
            if schedule.is_due(schedule.evaluate_every, done) and not stop:
                settle()
                results = evaluate(state, done)
                best = is_best(results)
                reporter.evaluation(done, results)
                if best:
                    checkpoints.save_best(state, done)
            # Beside a best checkpoint goes a last one, so that a resumed run never starts before the best it knows of.
            if schedule.is_due(schedule.checkpoint_every, done) or best or stop:
                settle()
                checkpoints.save_last(state, done)
            if stop:
                return state, interruption.received
    return state, None
