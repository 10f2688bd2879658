"""What the command line says to bad input and bad surroundings."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import error_of, train

from forec_jax import cli
from forec_jax.commands import process
from forec_jax.config import load_config
from forec_jax.experiment.load import with_chosen_threshold
from forec_jax.experiment.workdir import WorkdirError, check_same_config, read_labels
from forec_jax.methods import TagClassifier


@pytest.mark.parametrize("option", ["data.on_corrupt", "on_nan"])
def test_a_run_that_ended_may_go_on_with_what_its_error_said(tmp_path, option):
    stored, given = (
        json.loads(load_config("configs/shapes.py", options).to_json()) for options in ({}, {option: "skip"})
    )
    assert stored != given
    check_same_config(stored, given, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": ["a"], "palette": [0], "background_classes": []}'])
def test_damaged_labels_are_named(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"labels\.json is damaged .*rerun the training's command"):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"threshold": "high"}'])
def test_a_damaged_threshold_is_named(tmp_path, make_toy_network, content):
    method = TagClassifier(make_toy_network(), None, (1, 2), 0)
    assert with_chosen_threshold(method, tmp_path) == method
    (tmp_path / "mask_threshold.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"mask_threshold\.json is damaged .*remove it"):
        with_chosen_threshold(method, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/shapes.py", "--partial=0%"], "data.partial='0%': the percentage must be above 0"),
        (["--config=configs/tags.py:classifier"], "there are no labels to show"),
        ([], "--config is missing"),
    ],
)
def test_labels_explains_what_it_cannot_show(tmp_path, capsys, arguments, message):
    assert message in error_of(capsys, cli.run(["labels", *arguments, f"--out={tmp_path}"]))


def test_an_unknown_key_is_an_error(tmp_path, capsys):
    message = error_of(capsys, train(tmp_path / "run", "--config.optim.lrr=1"))
    assert "lrr" in message
    assert "optim.lr" in message or 'Did you mean "lr"' in message


def test_a_value_of_the_wrong_type_is_an_error(tmp_path, capsys):
    assert "optim.lr" in error_of(capsys, train(tmp_path / "run", "--config.optim.lr=fast"))


def test_a_crop_below_the_minimum_is_an_error(tmp_path, capsys):
    assert "crop=32" in error_of(capsys, train(tmp_path / "run", "--config.data.crop=32"))


@pytest.mark.slow
def test_a_run_that_failed_at_its_start_may_be_mended(tmp_path, capsys):
    """Its work directory holds a config and no checkpoint, so that another config takes nothing away."""
    options = ["--config.eval.pictures=0"]
    assert "crop=32" in error_of(capsys, train(tmp_path / "run", *options, "--config.data.crop=32"))
    assert not (tmp_path / "run" / "config.json").exists()  # found before anything was written
    assert "bucket=40" in error_of(capsys, train(tmp_path / "run", *options, "--config.eval.bucket=40"))
    assert (tmp_path / "run" / "config.json").exists()
    assert train(tmp_path / "run", *options, "--config.data.crop=33", "--config.steps=1", variant="supervised") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["eval"]["bucket"] == 64


def test_a_value_that_makes_no_sense_is_an_error(tmp_path, capsys):
    message = error_of(capsys, train(tmp_path / "run", "--config.method.threshold=95.0"))
    assert "method.threshold=95.0 must be between 0 and 1" in message


def test_a_validation_image_in_the_pool_is_an_error(tmp_path, capsys):
    lists = tmp_path / "list.txt"
    lists.write_text("train_00000\nval_00001\n")
    assert "val_00001" in error_of(capsys, train(tmp_path / "run", f"--config.data.labelled={lists}"))


def test_classes_without_a_labelled_image_are_named(tmp_path, caplog):
    lists = tmp_path / "list.txt"
    lists.write_text("".join(f"train_{i:05d}\n" for i in range(1)))
    cli.run(
        [
            "train",
            "--config=configs/shapes.py:supervised",
            f"--workdir={tmp_path / 'x'}",
            f"--config.data.labelled={lists}",
            "--config.data.crop=3",
        ]
    )
    assert "no labelled image shows: " in caplog.text


def test_a_workdir_that_cannot_be_made_is_an_error(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.touch()
    assert "cannot be written" in error_of(capsys, train(blocked / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to a folder without write permission")
def test_a_read_only_workdir_is_an_error(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        code = train(tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert "cannot be written" in error_of(capsys, code)


def test_a_workdir_that_the_locale_cannot_spell_is_an_error(tmp_path, capsys):
    assert "PYTHONUTF8=1" in error_of(capsys, train(f"{tmp_path}/l\udcc3\udca4ufe"))


def test_a_missing_voc_folder_is_an_error(tmp_path, capsys):
    options = [f"--workdir={tmp_path / 'run'}", f"--config.data.root={tmp_path / 'nowhere'}"]
    assert "nowhere" in error_of(capsys, cli.run(["train", "--config=configs/voc.py:forec", *options]))
    assert "data.root is empty" in error_of(capsys, cli.run(["train", "--config=configs/voc.py", options[0]]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage"),
        (["fly"], "usage"),
        (["train", "--config=configs/none.py"], "no file configs/none.py"),
        (["train", "--config=configs/shapes.py"], "--workdir is missing"),
        (["train", "--config=configs/shapes.py:forek", "--workdir=x"], "train: unknown variant 'forek' in 'forek'"),
        (
            ["plan", "--config=configs/shapes.py:forec", "--config.data.scale[0]=2", "--config.o=1"],
            "--config.o: there is",
        ),
        (["evaluate", "--workdir=/nonexistent/run"], "holds no run"),
        (["evaluate", "--workdir=x", "--network=both"], "network"),
        (["predict", "--workdir=x", "--out=y"], "--images is missing"),
        (["evaluate", "run"], "unexpected argument"),
        (["evaluate", "--workdir=x", "--images=a", "--masks=b", "--split=val"], "--split is of the run's data set"),
        (["prepare", "--config=configs/voc.py", "--dataset=voc"], "--dataset and --source are for a data set without"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, argv, message):
    assert message in error_of(capsys, cli.run(argv))


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="huge pages are a setting of glibc's")
def test_a_command_starts_itself_anew_with_huge_pages_once(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nprint(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))\n"
        "from forec_jax.cli import use_huge_pages\nuse_huge_pages()\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[1])

    def lines(environ):
        command = [sys.executable, "-X", "utf8", program, "--a=b c"]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.splitlines()

    first, second = lines(environ)
    assert first.endswith("['--a=b c'] None")
    assert second == first.replace("None", "glibc.malloc.hugetlb=1")
    assert len(lines(environ | {"GLIBC_TUNABLES": "glibc.malloc.check=0"})) == 1


def test_a_full_disk_is_explained():
    message = cli.explain(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"))
    assert "disk is full (runs/a/metrics.jsonl)" in message
    assert "free some space" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("Gloo all-reduce failed: Connection closed by peer [::1]"),
            "another process of the run has ended",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "this process ends with RuntimeError"),
        (IndexError("3"), "this process ends with IndexError"),
    ],
)
def test_one_of_several_processes_says_whose_fault_it_is_and_ends_at_once(monkeypatch, capsys, error, message):
    """To tidy up would be to wait for the others. What ends the process for good returns here."""

    def train(argv):
        raise error

    left = []
    monkeypatch.setattr("forec_jax.commands.train.train", train)
    monkeypatch.setattr(cli, "several_processes", lambda: True)
    monkeypatch.setattr(process, "several_processes", lambda: True)
    monkeypatch.setattr(os, "_exit", left.append)
    cli.run(["train"])
    assert left == [2]
    said = capsys.readouterr().err
    assert message in said
    assert str(error) in said
