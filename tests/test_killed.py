"""Runs in processes of their own: held, stopped, killed, and gone on with."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_run import TINY

from forec_jax.config import load_config
from forec_jax.experiment.load import load_run
from forec_jax.experiment.run import run_training
from forec_jax.locking import LockedError
from forec_jax.training.checkpoint import UNFINISHED


def start(workdir, *options, environment=None):
    command = [sys.executable, "-m", "forec_jax", "train", "--config=configs/shapes.py:forec", f"--workdir={workdir}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = [*TINY, "--config.steps=40", "--config.evaluate_every=10", "--config.eval.pictures=0", *options]
    return subprocess.Popen([*command, *options], env=environment, stdin=subprocess.DEVNULL, **quiet)


@pytest.mark.slow
def test_a_run_in_odd_surroundings_holds_its_workdir_and_stops_when_asked(tmp_path):
    """A locale that is not UTF-8, no terminal, a path with a space; a second run; then SIGTERM."""
    workdir = tmp_path / "my runs"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(workdir, "--config.steps=100000", "--config.evaluate_every=100000", environment=environment)
    while last_step(workdir) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(LockedError, match=f"process {process.pid} "):
        run_training(load_config("configs/shapes.py:forec", {}), workdir)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert not (workdir / "summary.json").exists()
    assert max(saved_steps(workdir)) - last_step(workdir) in (
        0,
        1,
    )  # last_step leaves out a line that may be unfinished


def last_step(workdir):
    file = workdir / "metrics.jsonl"
    return (
        max((json.loads(line)["step"] for line in file.read_text().splitlines()[:-1]), default=0)
        if file.exists()
        else 0
    )


def arrays(workdir):
    from forec_jax.training.checkpoint import flatten

    return {path: np.asarray(leaf) for path, leaf in flatten(load_run(workdir, "last").state).items()}


def saved_steps(workdir):
    """The steps of the finished checkpoints of the last state."""
    return {int(folder.name.removeprefix("step_")) for folder in (workdir / "checkpoints" / "last").glob("step_*[0-9]")}


def is_saving(workdir):
    return any((workdir / "checkpoints" / "last").glob(UNFINISHED))


def kill_at_some_moment(process, workdir, draw):
    """SIGKILL some steps after the last one, every second time while a checkpoint is being written; whether it was."""
    target, during_save = last_step(workdir) + draw.randint(2, 8), draw.random() < 0.5
    while last_step(workdir) < target or (during_save and not is_saving(workdir)):
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.001 if during_save else 0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return is_saving(workdir)


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_a_process_killed_at_random_moments_and_resumed_is_bit_equal(tmp_path, kills):
    """SIGKILL, with no chance to tidy up; the same command run again ends with the very same state."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = [f"--config.steps={12 * kills}", "--config.evaluate_every=24", "--config.checkpoint_every=4"]
    assert start(whole, *steps).wait() == 0
    draw, saved, during_save = random.Random(4), set(), 0
    for _ in range(kills):
        process = start(killed, *steps)
        during_save += kill_at_some_moment(process, killed, draw)
        assert max(saved, default=0) <= max(saved_steps(killed), default=0), "a checkpoint was lost"
        saved = saved_steps(killed)
    assert during_save, "no kill hit a checkpoint in flight: draw other moments"
    assert start(killed, *steps).wait() == 0
    one, other = arrays(whole), arrays(killed)
    assert one.keys() == other.keys()
    assert int(one["step"]) == 12 * kills
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)
