"""Sweeps: files and flags become trainings; those that are done are left, others go on, and a failure stops none."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from made_run import make_run
from tiny_run import TINY

from forec_jax import cli
from forec_jax.commands import sweep as command
from forec_jax.commands.train import training_flags
from forec_jax.config import load_config
from forec_jax.experiment.sweep import read_sweep, trainings
from forec_jax.experiment.sweep_state import State, rate_of, state_of
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.options import OptionError

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "configs" / "sweeps"

FILE = """
config = "configs/voc.py:small"
methods = [
    "supervised",
    "forec",
    { name = "sure", baseline = "forec", variant = "mean_teacher+forec", options = { method.threshold = 0.9 } },
]
baseline = "supervised"

[options]
steps = 9
data.scale = [0.75, 1.5]
optim.nesterov = true

[vary]
labels = [
    { name = 39, options = { data.labelled = "{data.root}/39/{seed}.txt" } },
    { name = 78, options = { data.labelled = "{data.root}/78/{seed}.txt" } },
]

[repeat]
seed = [0, 1]
"""


def written(tmp_path, content=FILE):
    (tmp_path / "sweep.toml").write_text(content)
    return str(tmp_path / "sweep.toml")


def test_methods_options_and_repetitions_are_multiplied(tmp_path):
    planned = trainings(read_sweep(written(tmp_path)), {"data.root": "VOC", "steps": "5"})
    assert [run.name for run in planned[:6]] == [
        f"{method}, labels={count}, seed=0" for count in (39, 78) for method in ("supervised", "forec", "sure")
    ]
    assert len(planned) == 12
    assert [run.baseline for run in planned[:3]] == ["", "supervised, labels=39", "forec, labels=39"]
    last = planned[-1]
    assert last.folder == "sure,labels=78/seed=1"
    assert last.arguments(tmp_path) == [
        "train",
        "--config=configs/voc.py:small+mean_teacher+forec",
        "--config.steps=5",
        "--config.data.scale=(0.75, 1.5)",
        "--config.optim.nesterov=True",
        "--config.data.labelled=VOC/78/1.txt",
        "--config.method.threshold=0.9",
        "--config.seed=1",
        "--config.data.root=VOC",
        f"--workdir={tmp_path}/sure,labels=78/seed=1",
    ]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('baseline = "forec"', 'baseline = "forek"', r"baseline='forek' is no method of it; did you mean forec\?"),
        ("[options]", "[option]", r"sweep.toml: there is no 'option'; did you mean options\?"),
        ("baseline", "bases", "there is no 'bases'"),
        ('config = "configs/voc.py:small"', "", "config is missing; such as config ="),
        ('    "supervised",', "    3,", r"methods\[0\] is 3; it must be like"),
        ("variant = ", "variants = ", r"methods\[2\]: there is no 'variants'; did you mean variant\?"),
        ('"supervised"\n', '"supervise"\n', r"baseline='supervise' is no method of it; did you mean supervised\?"),
        ("seed = [0, 1]", "seed = 0", r"repeat.seed is 0; it must be like a list"),
        ("seed = [0, 1]", "seed = []", "repeat.seed is empty"),
        ("seed = [0, 1]", "seed = [0, 0]", r"supervised, labels=39, seed=0 are twice in it"),
        ("seed = [0, 1]", "seed = [2026-01-01]", r"repeat.seed: datetime.date\(2026, 1, 1\) is no value"),
        ("name = 39, ", "", r"vary.labels\[0\] needs a name and options"),
        ("{seed}", "{sed}", r"\{sed\}: no option sed is given there; did you mean seed\?"),
        ("[options]", "[options", "sweep.toml: cannot be read as TOML"),
        ("steps = 9", "steps = " + "[" * 3000, "sweep.toml: cannot be read as TOML"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_file_and_key(tmp_path, old, new, error):
    with pytest.raises(OptionError, match=error):
        trainings(read_sweep(written(tmp_path, FILE.replace(old, new))), {"data.root": "VOC"})


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    file = written(tmp_path)
    (tmp_path / "sweep.toml").write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode())
    assert read_sweep(file).baseline == "supervised"
    with pytest.raises(OptionError, match="there is no such file"):
        read_sweep(str(tmp_path / "none.toml"))


def test_how_far_a_training_is_and_whose_folder_it_is(tmp_path):
    def state(folder, **options):
        c = load_config("configs/shapes.py:forec", {"steps": 60, "eval.split": "tune"} | options)
        return state_of(tmp_path / folder, c)

    assert state("new") == State(0, False)
    make_run(tmp_path / "done", "forec")
    assert state("done") == State(60, True)
    assert state("done", log_every=3) == State(60, True)  # changes nothing that is trained
    with pytest.raises(WorkdirError, match=r"another config \(optim.lr was 0.002, is 1.0\)"):
        state("done", **{"optim.lr": 1.0})
    for damaged in ('{"steps"', "[]", '{"steps": 60, "config": {"steps": 30}}'):
        (tmp_path / "done" / "summary.json").write_text(damaged)
        assert state("done") == State(60, False)
    make_run(tmp_path / "stopped", "forec", scores=((30, 0.5, 0.5),), unfinished=True)
    assert state("stopped") == State(30, False)
    shutil.rmtree(tmp_path / "stopped" / "checkpoints")
    assert state("stopped", seed=4) == State(0, False)  # it failed at its start


def test_a_run_of_an_earlier_version_is_done_too(tmp_path):
    make_run(tmp_path, "forec")
    for file in ("config.json", "summary.json"):
        content = json.loads((tmp_path / file).read_text())
        if file == "config.json":
            del content["data"]["classes"]
        else:
            del content["config"]["data.classes"]
        (tmp_path / file).write_text(json.dumps(content))
    assert state_of(tmp_path, load_config("configs/shapes.py:forec", {"steps": 60, "eval.split": "tune"})).done


def test_what_a_run_works_out_from_its_data_makes_no_other_config(tmp_path):
    make_run(tmp_path, "ps_mt", {"method.ps_mt.epoch": 31})
    c = load_config("configs/shapes.py:ps_mt", {"steps": 60, "eval.split": "tune"})
    assert c.method.ps_mt.epoch == 0
    assert state_of(tmp_path, c).done


def test_the_rate_of_a_row_is_the_median_of_what_its_runs_logged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            f'{{"event": "train", "step": {n}, "images_per_second": {r}}}\n' for n, r in ((1, 0.5), (2, 40), (3, 42))
        )
    )
    assert rate_of([tmp_path, tmp_path / "none"]) == 40
    assert rate_of([tmp_path / "none"]) is None


# --- the command, with copies of made runs in place of trainings

FLAGS = [
    "sweep",
    "--config=configs/shapes.py",
    "--methods=supervised,forec",
    "--seeds=0,1",
    "--baseline=supervised",
    "--config.steps=60",
    "--config.eval.split=tune",
]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What is trained, by name; `fail` names what fails instead."""
    names, fail = [], []

    def fake(run, workdir):
        names.append(run.name)
        if run.name in fail:
            return ["sh", "-c", "echo begins; echo 'there is no such thing' >&2; exit 3"]
        made = tmp_path / "made" / run.folder
        variant = run.config.partition(":")[2]
        make_run(made, variant, {"seed": int(run.options["seed"])}, labelled=run.options["seed"])
        return ["sh", "-c", f"cp -r {shlex.quote(str(made))}/. {shlex.quote(str(workdir / run.folder))}"]

    monkeypatch.setattr(command, "_command", fake)
    return names, fail


def told(capsys, code, *argv):
    assert cli.run([*map(str, argv)]) == code
    return capsys.readouterr()


def test_a_failed_run_is_named_and_tried_again_and_what_is_done_is_left(tmp_path, trained, capsys):
    names, fail = trained
    fail.append("forec, seed=0")
    argv = [*FLAGS, f"--workdir={tmp_path / 'runs'}"]
    said = told(capsys, 1, *argv)
    assert names == ["supervised, seed=0", "forec, seed=0", "supervised, seed=1", "forec, seed=1"]
    log = tmp_path / "runs" / "forec" / "seed=0" / "log.txt"
    assert f"FAILED: forec, seed=0, exit code 3: there is no such thing (log: {log})" in said.err.splitlines()
    assert said.err.splitlines()[-1].startswith("1 of 4 runs failed")
    assert "[2/4] forec, seed=0: begins" in said.err
    assert "missing: forec, seed=0: not begun" in said.out
    assert next(line.split()[-3:] for line in said.out.splitlines() if line.startswith("forec")) == ["1", "of", "2"]

    fail.clear()
    names.clear()
    said = told(capsys, 0, *argv)
    assert names == ["forec, seed=0"]
    assert "4 runs: 3 done, 1 to do" in said.err
    assert "forec - supervised" in said.out
    assert said.out.index("\nsupervised") < said.out.index("\nforec")  # as they were given
    names.clear()
    assert "4 runs: 4 done, 0 to do" in told(capsys, 0, *argv).err
    assert "4 runs, 4 done; 0.0 hours are left" in told(capsys, 0, *argv, "--dry_run").out
    assert told(capsys, 0, *argv, "--array_index=3").err.splitlines()[-1] == "run 3 of 4: forec, seed=1: done"
    assert not names
    of_folder = told(capsys, 0, "table", f"--workdirs={tmp_path / 'runs'}", "--format=markdown").out
    assert "| forec | 60.00 ± 0.00 (2) | 50.00 ± 0.00 (2) |" in of_folder

    before = (tmp_path / "runs" / "sweep.json").read_text()
    error = told(capsys, 2, *argv, "--config.optim.lr=1", "--methods=forec", "--baseline=").err
    assert "the flags: forec, seed=0: --workdir=" in error
    assert "another config (optim.lr was 0.002, is 1.0)" in error
    assert not names
    assert (tmp_path / "runs" / "sweep.json").read_text() == before


def test_a_stopped_sweep_says_how_to_go_on(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr("forec_jax.experiment.jobs.run_jobs", lambda *a, **k: 2)
    said = told(capsys, 130, *FLAGS, f"--workdir={tmp_path}")
    assert said.err.splitlines()[-1] == "stopped by signal 2; the same command goes on from here"
    assert not said.out


def test_a_task_of_an_array_is_the_training_itself(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(command, "train", lambda argv: asked.append(argv) or 143)
    told(capsys, 143, *FLAGS, f"--workdir={tmp_path}", "--array_index=1")
    assert asked == [
        [
            "train",
            "--config=configs/shapes.py:forec",
            "--config.seed=0",
            "--config.steps=60",
            "--config.eval.split=tune",
            f"--workdir={tmp_path}/forec/seed=0",
        ]
    ]
    error = told(capsys, 2, *FLAGS, f"--workdir={tmp_path}", "--array_index=4").err
    assert "there are 4 runs, 0 to 3" in error


def test_a_dry_run_lists_runs_and_hours_and_the_line_for_slurm(tmp_path, capsys):
    """60 steps of 16 images, 8 of supervised's, at 2 a second: 480 s and 240 s; two of each, 0.4 hours."""
    lists = "--lists=balanced:16:0,balanced:16:1"
    argv = [a for a in FLAGS if not a.startswith("--seeds")]
    said = told(capsys, 0, *argv, lists, f"--workdir={tmp_path}", "--dry_run", "--rate=2").out.splitlines()
    assert said[0] == "   0  supervised, seed=0, data.labelled=balanced:16:0: 60 steps, 0.07 hours"
    assert said[1] == "   1  forec, seed=0, data.labelled=balanced:16:0: 60 steps, 0.13 hours"
    assert said[4] == "4 runs, 0 done; 0.4 hours are left, one after another, without evaluations"
    assert said[5].startswith("as a Slurm array: sbatch --array=0-3 launch/sweep.sbatch --config=configs/shapes.py ")
    assert said[5].endswith("--config.steps=60 --config.eval.split=tune")
    assert "--dry_run" not in said[5]
    assert not list(tmp_path.glob("*/seed*"))
    said = told(capsys, 0, *FLAGS, f"--workdir={tmp_path}", "--dry_run", "--vary=optim.lr=1e-3,1e-4").out
    assert "forec, optim.lr=1e-4, seed=1: 60 steps\n" in said
    assert "8 runs, 0 done; 8 runs have no rate yet" in said  # no hours are claimed


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--config.optim.lrr=1"], "supervised, seed=0: --config.optim.lrr: there is no such option; did you mean"),
        (["--methods=supervised,forek"], "forek, seed=0: unknown variant 'forek'"),
        (["--config.steps=0"], "supervised, seed=0: steps=0 must be at least 1"),
        (["--config.steps=few"], "supervised, seed=0: "),
        (["--config=configs/camvid.py"], "supervised, seed=0: data.root is empty"),
        (["--vary=optim.lr"], "--vary=optim.lr: write KEY=VALUE,VALUE"),
        (["--sweep=configs/sweeps/tiny.toml"], "--config stands in the sweep's file"),
        (["--baseline=forek"], "the flags: baseline='forek' is no method of it; did you mean forec?"),
    ],
)
def test_flags_that_make_no_sense_are_named_before_anything_is_trained(tmp_path, trained, capsys, more, error):
    assert error in told(capsys, 2, *FLAGS, *more, f"--workdir={tmp_path / 'runs'}").err
    assert not trained[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_sweep_that_comes_with_the_library_can_be_trained(file, tmp_path):
    planned = trainings(
        read_sweep(f"configs/sweeps/{file.name}"), {"data.root": str(tmp_path)} if needs_data(file) else {}
    )
    for run in {run.config: run for run in planned}.values():
        assert state_of(tmp_path, training_flags(run.arguments(tmp_path)).config) == State(0, False)
    assert f"{len(planned)} runs" in file.read_text()
    assert f"`{file.name}`" in (ROOT / "docs" / "sweeps.md").read_text()


def needs_data(file):
    return "--config.data.root=" in file.read_text()


@pytest.mark.slow
def test_a_real_sweep_trains_and_compares(tmp_path, capsys):
    argv = ["sweep", "--config=configs/shapes.py", "--methods=supervised,forec", "--baseline=supervised"]
    said = told(capsys, 0, *argv, *TINY, f"--workdir={tmp_path}")
    assert said.out.count("1 of 1") == 3
    assert "mIoU" in said.err
    assert "2 done, 0 to do" in told(capsys, 0, *argv, *TINY, f"--workdir={tmp_path}").err
