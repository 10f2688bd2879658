"""Real processes on this machine that are one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from forec_jax.parallel import DistributedError, join
from forec_jax.parallel.distributed import launcher, listens_on, summed
from forec_jax.training.reporting import read_events

PROGRAM = Path(__file__).with_name("one_of_several.py")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-4]"}, "slurm"),
        ({"SLURM_NTASKS": "4"}, None),  # a batch script's own shell, before srun
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "openmpi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"FOREC_JAX_JOIN": "1"}, "jax"),
    ],
)
def test_what_started_the_processes_is_read_from_the_environment(environ, expected):
    assert launcher(environ) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("node:1", 2, None), "go together; one is missing"),
        (("node:1", 2, 2), r"--process=2 must be from 0 to 1"),
        (("node", 2, 0), r"--coordinator=node must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_errors(given, message):
    with pytest.raises(DistributedError, match=message):
        join(*given)


@pytest.mark.parametrize(
    ("coordinator", "bind", "expected"),
    [
        ("localhost:1", None, "localhost:1"),
        ("127.0.0.1:1", None, "127.0.0.1:1"),
        ("127.8.9.1:1", None, "127.8.9.1:1"),
        ("[::1]:1", None, "[::1]:1"),
        ("node1:1", None, None),
        ("10.0.0.1:1", None, None),
        ("node1:1", "10.0.0.1", "10.0.0.1:1"),
        ("node1:1", "fd00::1", "[fd00::1]:1"),
        ("localhost:1", "0.0.0.0", "0.0.0.0:1"),
    ],
)
def test_a_local_run_listens_for_itself_alone(coordinator, bind, expected):
    assert listens_on(coordinator, bind) == expected


def test_the_coordinators_address_reaches_jax(monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: asked.update(options))
    join("localhost:1", 2, 0)
    assert asked["coordinator_bind_address"] == "localhost:1"
    join("node1:1", 2, 0, bind="10.0.0.1")
    assert asked["coordinator_bind_address"] == "10.0.0.1:1"


def test_an_address_without_a_coordinator_is_an_error():
    with pytest.raises(DistributedError, match=r"--bind=10\.0\.0\.1 is for process 0"):
        join(None, None, None, bind="10.0.0.1")


SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "all"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1,1"}, "all"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, "0"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "0"),
        (SLURM, "0"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "all"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "0"),
    ],
)
def test_a_process_that_has_a_node_to_itself_has_all_its_gpus(monkeypatch, environ, expected):
    """JAX takes a process of Slurm or Open MPI to have one GPU, the one of its number on the node."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: jax.config.update("jax_cuda_visible_devices", "0"))
    join(None, None, None)
    assert settings["jax_cuda_visible_devices"] == expected


def test_a_launcher_that_jax_cannot_read_is_an_error_with_a_way_out(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(
        DistributedError, match=r"openmpi started this process.*coordinator_address.*--coordinator=HOST"
    ):
        join(None, None, None)


def test_one_process_sums_by_itself():
    np.testing.assert_array_equal(summed(np.array([2**40, 3])), [2**40, 3])


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(workdir, processes, *, fsdp=1, signal_at=-1, environ=None):
    workdir.mkdir(exist_ok=True)
    port = free_port()
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(environ or {})}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": variables}
    return [
        subprocess.Popen(
            [sys.executable, PROGRAM, workdir, *map(str, (port, processes, process, fsdp, signal_at))], **quiet
        )
        for process in range(processes)
    ]


def run(workdir, processes, **options):
    """What each process found."""
    for process in start(workdir, processes, **options):
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    return [json.loads((workdir / f"found{process}.json").read_text()) for process in range(processes)]


def losses(workdir):
    return {e["step"]: e["loss"] for e in read_events(workdir / "metrics.jsonl") if e["event"] == "train"}


def test_two_processes_are_one_run_that_stops_resumes_and_scores_as_one_process_does(tmp_path):
    """FSDP over two processes, SIGTERM to one of them, then on with one process and none: the numbers are the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = run(one, 1)
    stopped = run(two, 2, fsdp=4, signal_at=2)
    # Process 1 got the signal before step 3; both know one step later.
    assert [(f["step"], f["stopped_by"]) for f in stopped] == [(4, signal.SIGTERM), (4, signal.SIGTERM)]
    assert [f["confusions"] for f in stopped] == [alone["confusions"][:1]] * 2  # of step 2, each scored a share
    (resumed,) = run(two, 1)
    assert (resumed["first"], resumed["step"]) == (4, 6)
    assert resumed["confusions"] == alone["confusions"][-2:]  # of step 4, owed since the signal, and of 6
    assert losses(one).keys() == losses(two).keys()
    for step, loss in losses(one).items():
        assert losses(two)[step] == pytest.approx(loss, rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "fsdp"), [(2, 2), (4, 1), (4, 4)])
def test_one_process_goes_on_as_several_and_each_scores_its_share(tmp_path, processes, fsdp):
    one, several = tmp_path / "one", tmp_path / "several"
    (alone,) = run(one, 1)
    run(several, 1, fsdp=2, signal_at=3)
    resumed = run(several, processes, fsdp=fsdp)
    assert [(f["first"], f["step"]) for f in resumed] == [(4, 6)] * processes
    assert [f["confusions"] for f in resumed] == [alone["confusions"][-2:]] * processes
    for step, loss in losses(one).items():
        assert losses(several)[step] == pytest.approx(loss, rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_dies_the_other_ends(tmp_path, lost):
    """Process 0 is the one through which the others know of each other."""
    processes = start(tmp_path / "run", 2, environ={"FOREC_JAX_HEARTBEAT": "10"})
    dies, stays = processes[lost], processes[1 - lost]
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.1)
        assert stays.poll() is None
    dies.send_signal(signal.SIGKILL)
    dies.communicate()
    output, _ = stays.communicate(timeout=300)
    assert stays.returncode != 0
    assert "another task died" in output or "by peer" in output, output  # JAX's service, or a collective, knew first
