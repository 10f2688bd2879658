"""Locks that end with their process, however that ends: one run in one work directory, one process that packs data."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock.holder"  # a file of its own: Windows lets nobody read one that is locked


class LockedError(ValueError):
    """A work directory that another run is using; the message says which process on which machine."""


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Waits until no other process of this machine is in here by the same file, and keeps them out."""
    with FileLock(lock):
        yield


@contextmanager
def only_run_in(workdir: Path) -> Iterator[None]:
    """Holds the work directory while it is entered. Raises LockedError where another process does.

    The file stays behind; the lock on it does not. Where the file system knows no locks, a warning takes their place.
    """
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(workdir / LOCK_FILE, timeout=0))
        except Timeout as error:
            raise LockedError(
                f"--workdir={workdir} is in use by {holder(workdir)}; wait for it, stop it, or choose another --workdir"
            ) from error
        except (OSError, NotImplementedError) as error:
            log.warning("%s: cannot be locked (%s); take care that no other run uses it", workdir, error)
        (workdir / HOLDER_FILE).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def holder(workdir: Path) -> str:
    """Who holds the lock, in words."""
    file = workdir / HOLDER_FILE
    return (file.read_text(encoding="utf-8") if file.exists() else "") or "another process"
