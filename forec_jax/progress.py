"""Progress bars that end no run: what they are written to may be a file, on a full disk."""

import sys
import time
from contextlib import suppress
from typing import Any

from tqdm.asyncio import tqdm as text_bar
from tqdm.auto import tqdm

FILE_SECONDS = 30
"""Between two lines of a bar that goes to a file: a log of a day's training has 3,000 of them."""


class _Terminal:
    """stderr as it is at the moment; what cannot be written is dropped."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)  # its encoding, and the width of its terminal


class _Lines(_Terminal):
    """The same where nothing can be drawn over: now and then a state of a bar is a line, and each text printed above it."""

    def __init__(self) -> None:
        self._shown = -float("inf")
        self._waiting = ""  # a state that is not written yet

    def write(self, text: str) -> None:
        if text.startswith("\r"):  # a state, or blanks over one
            self._waiting = text.strip() or self._waiting
            if time.monotonic() - self._shown >= FILE_SECONDS:
                self._shown = time.monotonic()
                self._write_waiting()
        elif text == "\n":  # the end of a text or of a bar
            self._write_waiting()
        elif text:
            super().write(f"{text}\n")

    def _write_waiting(self) -> None:
        if self._waiting:
            super().write(f"{self._waiting}\n")
        self._waiting = ""


def progress_bar(*args: Any, **options: Any) -> "tqdm[Any]":
    """A bar of tqdm, which takes the arguments.

    It is as wide as the terminal, a widget in a notebook, and in a file a line every FILE_SECONDS.
    """
    if tqdm is text_bar and not sys.stderr.isatty():
        return tqdm(*args, file=_Lines(), **options)
    return tqdm(*args, file=_Terminal(), dynamic_ncols=True, **options)
