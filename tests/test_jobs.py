"""Commands in processes of their own: small programs in place of trainings."""

import os
import signal
import sys
import textwrap
import threading
import time

import pytest

from forec_jax.experiment.jobs import Job, run_jobs, shares_of_cores
from forec_jax.options import OptionError


def job(tmp_path, name, program):
    return Job(name, [sys.executable, "-c", program], tmp_path / name / "log.txt")


def run(jobs, at_once=1):
    ends = {}
    stopped_by = run_jobs(jobs, at_once, began=lambda job: None, ended=lambda e: ends.update({e.job.name: e.code}))
    return ends, stopped_by


def test_one_that_fails_or_crashes_stops_no_other(tmp_path):
    programs = {
        "fails": "import sys; print('why'); sys.exit(2)",
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "ends": "print('first')",
    }
    ends, stopped_by = run([job(tmp_path, *one) for one in programs.items()])
    assert (ends, stopped_by) == ({"fails": 2, "crashes": -11, "ends": 0}, None)
    assert (tmp_path / "fails" / "log.txt").read_text() == "why\n"
    run([job(tmp_path, "ends", "import sys; print('second', file=sys.stderr)")])
    assert (tmp_path / "ends" / "log.txt").read_text() == "first\nsecond\n"  # one that goes on adds to its log


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores there are")
def test_jobs_at_the_same_time_share_no_core(tmp_path):
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one core alone")
    # Each ends when it has seen the other's file: one after the other they would wait for ever.
    program = textwrap.dedent(
        """
        import os, pathlib, sys, time
        here = pathlib.Path({here!r})
        (here / {name!r}).write_text(" ".join(map(str, os.sched_getaffinity(0))))
        for _ in range(2000):
            time.sleep(0.01)
            if len(list(here.glob("cores_*"))) == 2: sys.exit()
        sys.exit(1)
        """
    )
    names = ["cores_a", "cores_b"]
    jobs = [job(tmp_path, name[-1], program.format(here=str(tmp_path), name=name)) for name in names]
    assert run(jobs, at_once=2)[0] == {"a": 0, "b": 0}
    one, two = (set(map(int, (tmp_path / name).read_text().split())) for name in names)
    assert one | two == mine
    assert not one & two
    assert os.sched_getaffinity(0) == mine
    with pytest.raises(OptionError, match=f"--jobs={len(mine) + 1}: there are {len(mine)} cores"):
        shares_of_cores(len(mine) + 1)


WAITS = """
import os, pathlib, signal, sys, time
here = pathlib.Path({here!r})
heard = []
def note(number, frame):
    heard.append(number)
    with (here / "heard").open("a") as file:
        file.write(f"{{number}} ")
    if len(heard) > 1:
        os._exit(9)
    if not {deaf}:
        time.sleep(0.3)  # a checkpoint
        sys.exit(128 + number)
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGTERM, note)
(here / "group").write_text(str(os.getpgid(0)))
for _ in range(2000): time.sleep(0.01)
(here / "ended").touch()
"""


def waiting_jobs(tmp_path, deaf):
    return [job(tmp_path, name, WAITS.format(here=str(tmp_path), deaf=deaf)) for name in ("one", "two")]


def when(file, number):
    """Sends this process a signal when a file is there."""

    def wait():
        while not file.exists() or not file.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_no_other_job_begins(tmp_path, number):
    when(tmp_path / "group", number)
    assert run(waiting_jobs(tmp_path, deaf=False)) == ({"one": 128 + number}, number)
    assert (tmp_path / "heard").read_text().split() == [str(int(number))]
    assert int((tmp_path / "group").read_text()) != os.getpgid(0)  # a terminal's Ctrl-C does not reach it besides


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a terminal has it: what a script starts in the background inherits that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_leaves_no_job_behind(tmp_path):
    when(tmp_path / "group", signal.SIGINT)
    when(tmp_path / "heard", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(waiting_jobs(tmp_path, deaf=True))
    with pytest.raises(ProcessLookupError):
        os.killpg(int((tmp_path / "group").read_text()), 0)
    assert not (tmp_path / "ended").exists()  # it was killed, not waited for
