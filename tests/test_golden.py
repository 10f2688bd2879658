"""The redesign changed no number: what the code before it computed and stored is what this code computes and reads."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from forec_jax.config import load_config
from forec_jax.experiment.build import build_optimizer
from forec_jax.experiment.load import load_run, stored_method
from forec_jax.experiment.run import run_training
from forec_jax.experiment.use import evaluate_run
from forec_jax.experiment.workdir import read_config, read_labels
from forec_jax.parallel import make_mesh, replicated
from forec_jax.training import abstract_state
from forec_jax.training.checkpoint import layout

GOLDEN = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.slow  # to compile a case takes a core a third of a minute
@pytest.mark.parametrize("case", make.stored())
def test_two_steps_give_the_numbers_of_the_code_before_the_redesign(case):
    """In a process of one device, as the file was made: eight virtual ones sum in another order, and step 2 shows it."""
    command = [sys.executable, make.__file__, f"--only={case}"]
    env = {**os.environ, "PYTHONPATH": str(Path(make.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_numbers_are_kept_of_every_case():
    assert set(make.stored()) == set(make.CASES)


def test_a_number_that_changed_or_is_gone_is_a_difference():
    before = [{"loss": 1.0, "kept": 0.5}, {"loss": 2.0, "gradient_norm": 4.0}, {"sum/params": 8.0}]
    after = [{"loss": 1.001}, {"loss": 2.001, "gradient_norm": 4.4}, {"sum/params": 8.0001}]
    assert make.differences(before, after, make.across_machines) == [
        "step 1: kept was 0.5, is None",
        "step 1: loss was 1.0, is 1.001",
    ]
    assert len(make.differences(before, after, make.exactly)) == 5


@pytest.mark.parametrize("workdir", sorted((GOLDEN / "stored").iterdir()), ids=lambda workdir: workdir.name)
def test_a_stored_config_builds_a_state_with_the_layout_of_its_checkpoints(workdir):
    c, one_device = read_config(workdir / "config.json"), make_mesh(devices=jax.devices()[:1])
    method = stored_method(c, read_labels(workdir / "labels.json"), workdir)
    found = layout(abstract_state(method, build_optimizer(c), c.seed, replicated(one_device)))
    expected = dict(line.split(" ", 1) for line in (workdir / "layout.txt").read_text().splitlines())
    assert found == expected


RUN_OPTIONS = {
    "steps": 6,
    "log_every": 1,
    "evaluate_every": 4,
    "checkpoint_every": 4,
    "data.size": 48,
    "data.crop": 33,
    "data.labelled": "8:0",
    "batch.labelled": 8,
    "batch.unlabelled": 8,
    "model.width": 0.015625,
    "model.decoder.channels": 2,
    "model.decoder.low_level_channels": 2,
    "optim.name": "sgd",
    "optim.lr": 1e-2,
    "optim.warmup": 0,
    "method.threshold": 0.0,
    "auxiliary.reconstruction.threshold": 0.0,
    "eval.split": "tune",
    "eval.batch": 16,
    "eval.bucket": 64,
    "eval.pictures": 0,
}
"""What the stored run was started with, stopped by a signal after step 4."""


def events(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def stopped_run(tmp_path):
    workdir = tmp_path / "run"
    shutil.unpack_archive(GOLDEN / "run.tar.xz", workdir)
    return workdir


@pytest.fixture(scope="module")
def gone_on():
    """What the code before the redesign logged as it went on with the run."""
    return events(GOLDEN / "run_gone_on.jsonl")


def test_a_run_stored_before_the_redesign_is_scored_as_it_was(stopped_run, gone_on):
    (scored,) = (event for event in gone_on if event["event"] == "evaluation" and event["step"] == 4)
    run = load_run(stopped_run, "last")
    for network in ("teacher", "student"):
        evaluation = evaluate_run(run, "tune", network)
        assert evaluation.miou == pytest.approx(scored[f"{network}_miou"], abs=1e-3)
        assert list(evaluation.iou) == pytest.approx(scored[f"{network}_iou"], abs=1e-3, nan_ok=True)


@pytest.mark.slow
def test_a_run_stored_before_the_redesign_is_gone_on_with(stopped_run, gone_on):
    assert run_training(load_config("configs/shapes.py:mean_teacher+forec", RUN_OPTIONS), stopped_run) is None
    logged = events(stopped_run / "metrics.jsonl")
    assert [(event["event"], event["step"]) for event in logged] == [(e["event"], e["step"]) for e in gone_on]
    for event, expected in zip(logged, gone_on, strict=True):
        assert without_speed(event) == pytest.approx(without_speed(expected), rel=1e-3, abs=1e-3)


def without_speed(event):
    """The numbers of an event, but how fast it was, and the learning rate, which was not logged then."""
    others = ("event", "images_per_second", "learning_rate")
    numbers = {name: value for name, value in event.items() if name not in others}
    lists = [name for name, value in numbers.items() if isinstance(value, list)]
    for name in lists:
        numbers |= {f"{name}/{k}": value for k, value in enumerate(numbers.pop(name))}
    return numbers
