"""Progress bars that end no run: what they are written to may be a file on a full disk."""

import sys
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm


class _Stderr:
    """stderr as it is at the moment; what cannot be written is dropped."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)  # its encoding, and the width of its terminal


def progress_bar(*args: Any, **options: Any) -> "tqdm[Any]":
    """A bar of tqdm, which takes the arguments: as wide as the terminal, or a widget in a notebook."""
    return tqdm(*args, file=_Stderr(), dynamic_ncols=True, **options)
