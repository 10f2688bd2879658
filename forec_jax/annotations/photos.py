"""The images that annotations name: found in a listing of their folder, so that no name leads out of it."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from forec_jax.data.imagefile import SUFFIXES
from forec_jax.data.listing import files_below, relative_id
from forec_jax.data.source import DataError


class Photos:
    """The image files of a folder and below. Raises DataError where there are none, or two have the same name."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"--images={folder}: no such folder; give the one that holds the images")
        self.folder = folder
        files = [file for file in files_below(folder) if file.suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(f"--images={folder}: holds no image ({', '.join(SUFFIXES)})")
        self.by_path = {_plain(file.relative_to(folder).as_posix()): file for file in files}
        self.by_id = {relative_id(file, folder): path for path, file in self.by_path.items()}
        if len(self.by_id) < len(files):
            one, other = _same_name(self.by_path)
            raise DataError(
                f"{folder / one} and {folder / other} have the same name but for its ending, and would have one mask; "
                "rename or remove one"
            )

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        """The paths by their last parts, without endings."""
        found = defaultdict(list)
        for path in self.by_path:
            found[PurePosixPath(path).stem].append(path)
        return found

    def find(self, names: Iterable[str], file: str) -> str | None:
        """The path, below the folder, of the image that has one of some names, with or without its ending.

        Failing that, the only one whose path ends as a name does, whatever folders stand before it. None where there is
        none. Raises DataError, naming `file`, for a name that leads out of the folder.
        """
        plain = [_plain(name) for name in names]
        for name in plain:
            _check_stays(name, file)
            if name in self.by_path:
                return name
        for name in plain:
            for stem in (name, str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name):
                if stem in self.by_id:
                    return self.by_id[stem]
        for name in plain:
            last = self._by_last.get(PurePosixPath(name).stem, [])
            if len(last) == 1:
                return last[0]
        return None


def _plain(name: str) -> str:
    """A path with slashes and composed letters."""
    return re.sub(r"^(\./)+", "", unicodedata.normalize("NFC", name.replace("\\", "/")))


def _check_stays(name: str, file: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise DataError(
            f"{file}: the image {name!r} lies outside of --images; give the folder that holds it, or correct the name"
        )


def _same_name(paths: Iterable[str]) -> tuple[str, str]:
    """Two paths that are equal but for their endings."""
    seen: dict[str, str] = {}
    for path in paths:
        stem = str(PurePosixPath(path).with_suffix(""))
        if (other := seen.setdefault(stem, path)) != path:
            return other, path
    raise AssertionError("all are different")
