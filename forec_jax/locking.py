"""One run in one work directory: a lock that ends with its process, however that ends."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class LockedError(ValueError):
    """A work directory that another run is using; the message says which process on which machine."""


@contextmanager
def only_run_in(workdir: Path) -> Iterator[None]:
    """Holds the work directory while it is entered. Raises LockedError where another process does.

    The file stays behind; the lock on it does not. Where the file system knows no locks, a warning takes their place.
    """
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockedError(
                    f"--workdir={workdir} is in use by {holder(workdir)}; wait for it, stop it, or choose another --workdir"
                ) from error
            log.warning("%s: cannot be locked (%s); take care that no other run uses it", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def holder(workdir: Path) -> str:
    """Who wrote the lock file, in words."""
    return (workdir / LOCK_FILE).read_text(encoding="utf-8") or "another process"
