"""A folder of results that appears complete or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forec_jax.data.source import DataError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which takes that name when all went well, and is gone when not.

    Raises DataError where `out` is there already and not an empty folder (see `check_new`), or cannot be written.
    """
    check_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            unfinished = Path(temporary) / out.name
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); set --out to a folder with room") from error


def check_new(out: Path) -> None:
    """Raises DataError where `out` is there already, and not an empty folder: nothing is written over."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose another --out, or move it away")
