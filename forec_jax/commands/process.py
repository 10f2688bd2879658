"""How a process of the command line starts, and what it says when it fails."""

import errno
import os
import sys
from contextlib import suppress

from absl import flags

from forec_jax.files import cache_folder

EXPLAINED = (ValueError, AttributeError, TypeError, KeyError, OSError, FloatingPointError, flags.Error)
"""What bad input, a bad environment or a diverging loss raise, with a message for the user."""


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR says otherwise.

    Works because nothing above imports JAX, which reads the variable when it is imported.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))


def use_huge_pages() -> None:
    """Starts this process anew, as itself, with huge pages for its memory, where GLIBC_TUNABLES is not set.

    On a CPU a step works on some gigabytes that come from the C library anew each time; in pages of 4 KB the system hands
    out hundreds of thousands of them a step (docs/performance.md). glibc reads the setting when a process starts, hence
    the start; anywhere but on Linux with glibc this does nothing.
    """
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def tells_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error of the runtime is about the connection to other processes, and not, say, about memory."""
    words = ("peer", "heartbeat", "coordination service", "connection", "gloo", "socket", "barrier")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def explain(error: Exception) -> str:
    """What went wrong in words, with a remedy where the error itself names none."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and rerun: the same command goes on"
    return str(error)


def tell(text: str) -> None:
    """A line on stderr, which may be a file on a full disk: then the exit code alone has to say it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def fail(command: str, message: str) -> int:
    """Tells what went wrong; returns the exit code. One of several processes ends here: to tidy up is to wait for others."""
    tell(f"forec-jax {command}: {message}")
    if several_processes():
        os._exit(2)
    return 2


def several_processes() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")  # nothing here imports it early (use_compilation_cache)
    return jax is not None and jax.distributed.is_initialized()
