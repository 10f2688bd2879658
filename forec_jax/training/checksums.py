"""Checksums of a checkpoint's files: a bit that flips in an array's data goes unnoticed when orbax reads it."""

from pathlib import Path

from forec_jax.files import read_json, sha256_of, write_json

CHECKSUMS_FILE = "checksums.json"
LATER = (CHECKSUMS_FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that orbax goes on writing after the checksums are taken; none holds a value of the state."""


def write_checksums(folder: Path) -> None:
    """Writes `folder`/checksums.json, the SHA-256 of every file below it by relative path."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in LATER)
    write_json(folder / CHECKSUMS_FILE, {file.relative_to(folder).as_posix(): sha256_of(file) for file in files})


def first_damage(folder: Path) -> str | None:
    """What is wrong with the first file that is not as it was written, in words that name it; None if all are whole.

    A folder without checksums (of an older version) cannot be judged, and is taken as whole.
    """
    stored = folder / CHECKSUMS_FILE
    if not stored.exists():
        return None
    try:
        sums: dict[str, str] = read_json(stored)
        for name, expected in sums.items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if sha256_of(folder / name) != expected:
                return f"{folder / name} is not as it was written"
    except (ValueError, AttributeError):
        return f"{stored} cannot be read"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return None
