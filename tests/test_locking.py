import os
import signal
import socket
import subprocess
import sys

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
