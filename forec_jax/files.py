"""Files of any kind: the cache's folder, files that appear whole, JSON, checksums. A leaf: it imports nothing heavy."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where this library keeps what can be made again: `forec_jax` in the user's cache, an absolute path.

    That is $XDG_CACHE_HOME where it is an absolute path (its own rule), or else ~/.cache. A user without a home that can
    be written to, as containers give them, has a folder in the system's temporary one, which no other user can write to.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "forec_jax"
    try:
        cache = Path.home() / ".cache"
    except RuntimeError:  # neither $HOME nor an entry of this user
        return _temporary_cache()
    return cache / "forec_jax" if cache.is_absolute() and _can_be_written(cache) else _temporary_cache()


def _can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _temporary_cache() -> Path:
    """A folder of this user's alone: compiled code is read from a cache, so nobody else may have put it there."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"forec_jax-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or (hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o022)):
        return Path(tempfile.mkdtemp(prefix="forec_jax-"))
    return folder


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # there only where writing failed, on a disk that needs the room


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError or ValueError where it cannot be read."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_whole` does; a number that is not finite becomes null."""
    write_whole(path, (to_json(content, indent=1, sort_keys=True) + "\n").encode())


def to_json(content: Any, **options: Any) -> str:
    """JSON that every reader takes: a number that is not finite becomes null. The options are those of `json.dumps`."""
    return json.dumps(finite(content), allow_nan=False, **options)


def finite(content: Any) -> Any:
    """The same dicts, lists and values, with None in the place of every number that is not finite."""
    match content:
        case float():
            return content if math.isfinite(content) else None
        case Mapping():
            return {name: finite(value) for name, value in content.items()}
        case list() | tuple():
            return [finite(value) for value in content]
    return content


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
