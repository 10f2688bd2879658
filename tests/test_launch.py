"""The launch scripts: checked by shellcheck, local.sh run, the Kubernetes file held to what JAX and JobSet need."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from forec_jax.experiment.load import load_run

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("local.sh", "slurm.sbatch", "sweep.sbatch", "tpu_pod.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean_and_have_a_section(name):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run([shellcheck, LAUNCH / name], check=True)
    assert f"## {name}:" in (LAUNCH.parent / "docs" / "launch.md").read_text()


def local(tmp_path, processes, body, grace=60):
    """Runs local.sh on a small program that sees its flags as sys.argv[1:]."""
    program = tmp_path / "program.py"
    program.write_text("import os, pathlib, sys, time\nhere = pathlib.Path(__file__).parent\n" + body)
    command = ["bash", LAUNCH / "local.sh", str(processes), sys.executable, program]
    environ = os.environ | {"GRACE": str(grace)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)


def test_local_starts_every_process_with_its_flags(tmp_path):
    body = "me = sys.argv[3].partition('=')[2]\n(here / me).write_text(' '.join(sys.argv[1:]))\n"
    assert local(tmp_path, 3, body).returncode == 0
    flags = [(tmp_path / str(process)).read_text().split() for process in range(3)]
    assert len({f[0] for f in flags}) == 1
    assert flags[0][0].startswith("--coordinator=127.0.0.1:")
    assert [f[1:] for f in flags] == [["--processes=3", f"--process={process}"] for process in range(3)]


def test_local_stops_the_others_and_returns_the_failures_code(tmp_path):
    assert local(tmp_path, 2, "sys.exit(7) if sys.argv[3] == '--process=1' else time.sleep(100)\n").returncode == 7


FIRST = "first = sys.argv[3] == '--process=0'\n(here / f'{os.getpid()}.pid').touch()\n"
DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FIRST}"
WAITS = "while len(list(here.glob('*.pid'))) < 2: time.sleep(0.02)\n"


def ended(tmp_path):
    """Whether no process of the program is left; one that was killed may take a moment to be gone."""
    pids = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    for _ in range(500):
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if not any(state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" for state in states):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        (
            f"{DEAF}{WAITS}sys.exit(7) if first else time.sleep(100)\n",
            7,
            "process 0 of 2 ended with exit code 7; killed after 1 seconds: process 1",
        ),
        (
            f"{FIRST}{WAITS}os.kill(os.getpid(), 19) if first else time.sleep(100)\n",
            137,
            "process 0 of 2 is stopped (SIGSTOP)",
        ),
        (
            f"{FIRST}{WAITS}os.kill(os.getpid(), 19) if first else sys.exit(3)\n",
            3,
            "process 1 of 2 ended with exit code 3; killed after 1 seconds: process 0",
        ),
        (f"{FIRST}{WAITS}sys.exit(0) if first else time.sleep(100)\n", 137, "process 1 of 2 did not end"),
    ],
    ids=["deaf to SIGTERM", "stopped", "stopped while another fails", "hanging after the others"],
)
def test_a_process_that_does_not_answer_is_killed_after_the_grace_period(tmp_path, body, code, line):
    done = local(tmp_path, 2, body, grace=1)
    assert done.returncode == code
    last = done.stderr.splitlines()[-1]
    assert line in last
    assert last.endswith("the same command goes on from the last checkpoint")
    assert ended(tmp_path)


def test_a_process_that_is_stopped_for_a_moment_is_forgiven(tmp_path):
    body = (
        f"{FIRST}{WAITS}\nimport subprocess\n"
        "if first:\n    subprocess.Popen(['sh', '-c', f'sleep 0.6; kill -CONT {os.getpid()}'])\n"
        "    os.kill(os.getpid(), 19)\n"
    )
    assert local(tmp_path, 2, body, grace=30).returncode == 0


def test_processes_deaf_to_a_signal_are_killed_too(tmp_path):
    body = f"{DEAF}{WAITS}os.kill(os.getppid(), 15) if first else None\ntime.sleep(100)\n"
    done = local(tmp_path, 2, body, grace=1)
    assert done.returncode == 137
    assert "process 0, 1 of 2 did not end" in done.stderr
    assert ended(tmp_path)


def test_local_passes_a_signal_on_and_waits(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, signal, sys, time\n"
        "here = pathlib.Path(__file__).parent / sys.argv[3]\n"
        "def leave(*_):\n    time.sleep(0.5)\n    here.with_suffix('.done').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, leave)\nhere.touch()\ntime.sleep(100)\n"
    )
    script = subprocess.Popen(["bash", LAUNCH / "local.sh", "2", sys.executable, program])
    while len(list(tmp_path.glob("--process=*"))) < 2:
        assert script.poll() is None
        time.sleep(0.05)
    script.terminate()
    assert script.wait() == 143
    assert len(list(tmp_path.glob("*.done"))) == 2


def test_a_signal_during_the_launch_reaches_the_processes_that_come_after_it():
    """The first of many ends the script that is still starting the others."""
    body = "case $2 in --process=0) kill -TERM $PPID;; esac; exec sleep 100"
    command = ["bash", LAUNCH / "local.sh", "20", "sh", "-c", body]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 143


def test_a_signal_to_the_whole_group_reaches_each_process_once(tmp_path):
    """As Ctrl-C in a terminal does. The second signal would end a training before its checkpoint."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "here = pathlib.Path(__file__).parent / sys.argv[3]\n"
        "def leave(number, frame):\n    signal.signal(number, signal.SIG_DFL)\n    time.sleep(1)\n"
        "    here.with_suffix('.done').write_text(str(os.getpgid(0)))\n    sys.exit(128 + number)\n"
        "signal.signal(signal.SIGTERM, leave)\nhere.touch()\ntime.sleep(100)\n"
    )
    script = subprocess.Popen(["bash", LAUNCH / "local.sh", "2", sys.executable, program], start_new_session=True)
    while len(list(tmp_path.glob("--process=?"))) < 2:
        assert script.poll() is None
        time.sleep(0.05)
    os.killpg(script.pid, signal.SIGTERM)
    assert script.wait() == 143
    groups = {int(file.read_text()) for file in tmp_path.glob("*.done")}
    assert len(groups) == 2
    assert script.pid not in groups  # so that the group's signal is not theirs


def training(workdir):
    """local.sh with a training in two processes, FSDP over both."""
    command = ["bash", LAUNCH / "local.sh", "2", sys.executable, "-m", "forec_jax", "train", f"--workdir={workdir}"]
    tiny = {"steps": 12, "evaluate_every": 6, "checkpoint_every": 2, "log_every": 1, "mesh.fsdp": 2}
    tiny |= {"data.shapes.size": 48, "data.crop": 33, "data.labelled": "8:0", "eval.batch": 8, "eval.split": "tune"}
    tiny |= {"eval.bucket": 64, "eval.pictures": 0, "model.width": 0.125, "model.decoder.channels": 8}
    options = [f"--config.{key}={value}" for key, value in tiny.items()]
    environ = {**os.environ, "PYTHONPATH": str(LAUNCH.parent), "FOREC_JAX_HEARTBEAT": "10"}
    return subprocess.Popen([*command, "--config=configs/shapes.py:forec", *options], env=environ)


@pytest.mark.slow
def test_a_training_that_loses_a_process_ends_and_the_same_command_finishes_it(tmp_path):
    """Both processes and their checkpoints are real; the end is bit-equal to that of a run that lost none."""
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    assert training(whole).wait() == 0
    script = training(hurt)
    while not list((hurt / "checkpoints" / "last").glob("step_*[0-9]")):
        assert script.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert script.wait(timeout=300) not in (0, None)
    assert not (hurt / "summary.json").exists()
    assert training(hurt).wait() == 0
    one, other = (load_run(workdir, "last").state for workdir in (whole, hurt))
    assert int(one.step) == 12
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_tpu_pod_is_sent_what_is_committed_and_nothing_else(tmp_path):
    program, sent = tmp_path / "forec", tmp_path / "sent.tar.gz"
    (program / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_pod.sh", program / "launch")
    git = ["git", "-C", program, "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], check=True)
    (program / ".venv").mkdir()
    (program / ".venv" / "large").touch()
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\nfor file; do case $file in *.tar.gz) cp "$file" {sent};; esac; done\n')
    gcloud.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", program / "launch" / "tpu_pod.sh", "install", "pod", "zone"], check=True, env=environ)
    with tarfile.open(sent) as content:
        assert content.getnames() == ["launch", "launch/tpu_pod.sh"]


def test_every_host_of_a_tpu_pod_joins_with_its_arguments_as_they_were(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    command = ["bash", LAUNCH / "tpu_pod.sh", "train", "pod", "zone", "--config=configs/voc.py:paper", "--workdir=/a b"]
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    asked = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.splitlines()
    assert "--worker=all" in asked
    (on_a_host,) = [argument for argument in asked if argument.startswith("--command=")]
    assert "FOREC_JAX_JOIN=1" in on_a_host
    assert on_a_host.endswith("forec-jax train --config=configs/voc.py:paper --workdir=/a\\ b")


def test_the_jobset_starts_as_many_processes_as_it_says():
    (content,) = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = content["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    flags = dict(argument.lstrip("-").split("=", 1) for argument in container["args"])
    assert job["completionMode"] == "Indexed"
    assert int(flags["processes"]) == job["parallelism"] == job["completions"]
    # Pod 0 of job 0 is NAME-JOB-0-0.NAME, and $(JOB_COMPLETION_INDEX) needs its variable.
    host, port = flags["coordinator"].split(":")
    assert host == f"{content['metadata']['name']}-{replicated['name']}-0-0.{content['metadata']['name']}"
    assert int(port) in [p["containerPort"] for p in container["ports"]]
    assert [variable["name"] for variable in container["env"]] == ["JOB_COMPLETION_INDEX"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert content["spec"]["failurePolicy"]["maxRestarts"] > 0
    # What a restart needs again lies on the volume, not in the pod that was lost.
    (shared,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
    for flag in ("workdir", "config.data.root", "config.data.prepared"):
        assert flags[flag].startswith(f"{shared}/"), flag
    assert content["spec"]["network"]["enableDNSHostnames"]
