"""What a change is."""

from typing import NamedTuple


class Change(NamedTuple):
    """One wrong line."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def of(file: str, tests: str, *pairs: tuple[str, str]) -> list[Change]:
    """The changes of a file that the same tests, named with spaces between, should notice."""
    return [
        Change(
            file if file.startswith("configs/") else f"forec_jax/{file}",
            before,
            after,
            tuple(f"tests/{test}" for test in tests.split()),
        )
        for before, after in pairs
    ]
