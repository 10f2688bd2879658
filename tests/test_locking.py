import ast
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from forec_jax.locking import LockedError, only_run_in

HOLD = """
import sys, pathlib, time
from forec_jax.locking import only_run_in
with only_run_in(pathlib.Path(sys.argv[1])):
    print()
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with (
        only_run_in(tmp_path),
        pytest.raises(LockedError, match=rf"process {os.getpid()} on {socket.gethostname()}.*another --workdir"),
        only_run_in(tmp_path),
    ):
        pass
    with only_run_in(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-uc", HOLD, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(LockedError, match=f"process {process.pid} "), only_run_in(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with only_run_in(tmp_path):
        pass


def test_one_process_waits_for_the_other(tmp_path):
    """The second enters when the first has left, and not before."""
    script = f"""
        import pathlib, time
        from forec_jax.locking import only_one
        with only_one(pathlib.Path({str(tmp_path / "lock")!r})):
            print(time.monotonic(), flush=True)
            time.sleep(0.3)
            print(time.monotonic(), flush=True)
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = sorted([float(line) for line in process.communicate()[0].split()] for process in both)
    assert first[1] <= second[0]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(self, *_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with only_run_in(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
    assert "No locks available" in caplog.text


UNIX_ALONE = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}


def imports(file):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_no_module_needs_what_only_unix_has():
    """On Windows the package could not be imported."""
    files = list((Path(__file__).parents[1] / "forec_jax").rglob("*.py"))
    assert files
    assert [(file.name, name) for file in files for name in imports(file) if name in UNIX_ALONE] == []
