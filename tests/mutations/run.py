"""Changes lines of the library one at a time, and looks whether a test notices.

    python tests/mutations/run.py --out=mutations.json             all of them: hours, as the tests of each line run
    python tests/mutations/run.py --only=geometry --only=views     those whose file's path holds one of the words
    python tests/mutations/run.py --out=mutations.json --resume    those that the file does not know yet

Each change of tests/mutations/changes/ is made in a copy of the repository, and the tests that should notice run there
until the first fails. A change that no test notices has survived: a test is missing.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from changes import CHANGES, Change

REPOSITORY = Path(__file__).resolve().parents[2]
CAUGHT, SURVIVED, SLOW = "caught", "survived", "out of time"
_SECONDS = 900
_FAILED = 1  # pytest's exit code where a test failed; all others but 0 are a fault of the list


def copied(folder: Path) -> Path:
    """A copy of what git tracks, and of new files that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def changed(text: str, change: Change) -> str:
    """The file's text after a change. Raises ValueError unless the text before it is there exactly once."""
    if text.count(change.before) != 1:
        raise ValueError(f"{change.file}: {change.before!r} is there {text.count(change.before)} times, not once")
    return text.replace(change.before, change.after)


def outcome(change: Change, copy: Path) -> str:
    """Whether the change's tests notice it. Raises RuntimeError where they do not run at all."""
    path = copy / change.file
    original = path.read_text(encoding="utf-8")
    path.write_text(changed(original, change), encoding="utf-8")
    try:
        return _tested(change, copy)
    finally:
        path.write_text(original, encoding="utf-8")


def _tested(change: Change, copy: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *change.tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return SLOW
    if done.returncode not in (0, _FAILED):
        raise RuntimeError(
            f"{change.file}, {change.after!r}: pytest gave {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return CAUGHT if done.returncode else SURVIVED


def table(found: Iterable[dict[str, str]]) -> str:
    """How many changes of each folder were caught, and each that was not."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lines = []
    for one in found:
        for name in (str(Path(one["file"]).parent), "all"):
            counts[name][one["outcome"]] += 1
        if one["outcome"] != CAUGHT:
            lines.append(f"{one['outcome']}: {one['file']}: {one['before']} -> {one['after']}")
    rows = [f"| {name} | {sum(count.values())} | {count[CAUGHT]} |" for name, count in sorted(counts.items())]
    return "\n".join(["| | changes | caught |", "|---|---|---|", *rows, *lines])


def main() -> int:
    """The command; 1 where a change survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file of the outcomes, written after each")
    parser.add_argument("--only", action="append", help="a word in the path of the changed file; may be given again")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds")
    values = parser.parse_args()
    known = json.loads(values.out.read_text()) if values.resume and values.out.is_file() else []
    done = {(one["file"], one["before"], one["after"]): one for one in known}
    wanted = [change for change in CHANGES if not values.only or any(word in change.file for word in values.only)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for change in wanted:
            one = done.get(change[:3]) or {**change._asdict(), "outcome": outcome(change, copy)}
            found.append(one)
            print(f"{one['outcome']}: {change.file}: {change.after.strip()}", flush=True)
            if values.out:
                values.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return int(any(one["outcome"] != CAUGHT for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
