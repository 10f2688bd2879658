"""Commands in processes of their own, some at a time: one that fails or crashes stops no other."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from forec_jax.options import OptionError
from forec_jax.training import Interruption

NAP = 0.2  # seconds between two looks at the processes


class Job(NamedTuple):
    """A command, and the file that takes what it prints."""

    name: str
    command: Sequence[str]
    log: Path


class Ended(NamedTuple):
    """How a job ended."""

    job: Job
    code: int  # the exit code; below 0 the signal that killed it
    seconds: float


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    since: float


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    *,
    began: Callable[[Job], None],
    ended: Callable[[Ended], None],
) -> int | None:
    """Runs jobs in their order, up to `at_once` at a time with as many cores each.

    `began` and `ended` are told of each. SIGINT and SIGTERM are passed on to the jobs that run, once, which then end in
    their own time; no other begins, and the signal is returned (otherwise None). A second one kills them. Raises
    OptionError for more jobs at once than cores.
    """
    cores, running = shares_of_cores(at_once), dict[int, _Running]()
    waiting = iter(jobs)
    with Interruption() as interruption, _killed_after_error(running):
        told = False
        while True:
            for place in range(at_once):
                if place in running and (end := _end_of(running[place])) is not None:
                    del running[place]
                    ended(end)
                if place not in running and not interruption.received and (job := next(waiting, None)) is not None:
                    began(job)
                    running[place] = _start(job, cores[place])
            if interruption.received and not told:
                told = True
                for one in running.values():
                    one.process.send_signal(interruption.received)
            if not running:
                return interruption.received or None
            time.sleep(NAP)


def shares_of_cores(count: int) -> list[set[int] | None]:
    """The cores of this process in so many parts; None, which is all, for a single part and where they cannot be chosen."""
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise OptionError(f"--jobs={count}: there are {len(cores)} cores, and a run needs one of its own")
    return [set(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)]


def _start(job: Job, cores: set[int] | None) -> _Running:
    """Starts a job in a process group of its own: a terminal's Ctrl-C reaches it through this process alone, once."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log, _pinned(cores):
        process = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
    return _Running(job, process, time.monotonic())


@contextmanager
def _pinned(cores: set[int] | None) -> Iterator[None]:
    """This thread on some cores, which a process that starts meanwhile inherits."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end_of(running: _Running) -> Ended | None:
    """How a job ended; None as long as it runs."""
    code = running.process.poll()
    return None if code is None else Ended(running.job, code, time.monotonic() - running.since)


@contextmanager
def _killed_after_error(running: dict[int, _Running]) -> Iterator[None]:
    """Leaves no job behind where this process ends otherwise than by their end, as by a second Ctrl-C."""
    try:
        yield
    except BaseException:
        for one in running.values():
            with suppress(ProcessLookupError):
                os.killpg(one.process.pid, 9)
            one.process.wait()
        raise
