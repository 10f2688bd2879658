"""The commands as a user runs them, on runs of a few steps."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forec_jax import cli
from forec_jax.commands import process
from forec_jax.config import load_config
from forec_jax.data import DataError, shapes_dataset, shrink
from forec_jax.data.splits import draw
from forec_jax.evaluation import mean_iou
from forec_jax.experiment.load import load_run, with_chosen_threshold
from forec_jax.experiment.run import run_training
from forec_jax.experiment.use import predict_run
from forec_jax.experiment.workdir import WorkdirError, check_same_config, read_labels
from forec_jax.locking import LockedError
from forec_jax.methods import TagClassifier
from forec_jax.training import CheckpointError, Checkpoints, NotFiniteError
from forec_jax.training.checkpoint import UNFINISHED
from forec_jax.visualize.panel import Panel

TINY = [
    "--config.steps=6",
    "--config.evaluate_every=3",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.data.size=48",
    "--config.data.crop=33",
    "--config.data.labelled=8:0",
    "--config.eval.batch=8",
    "--config.eval.split=tune",
    "--config.eval.bucket=64",
    "--config.eval.pictures=1",
    "--config.model.width=0.125",
    "--config.model.decoder.channels=8",
    "--config.model.decoder.low_level_channels=4",
]


def train(workdir, *options, variant="forec"):
    return cli.run(["train", f"--config=configs/shapes.py:{variant}", f"--workdir={workdir}", *TINY, *options])


def error_of(capsys, code):
    assert code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "forec"
    assert train(workdir) == 0
    return workdir


def test_a_run_leaves_what_the_readme_promises(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["method"] == "mean_teacher"
    assert summary["auxiliary"] == ["reconstruction"]
    assert (summary["last"]["step"], summary["seed"], summary["split"]["labelled"]) == (6, 0, 8)
    assert len(summary["split"]["sha256"]) == 64
    assert set(summary["per_class"]) == set(summary["classes"])
    assert summary["config"]["ema.bn_mode"] == "ema"
    assert "ema.bn_mode" not in summary["options"]
    assert summary["options"]["steps"] == 6
    assert 0 <= summary["best"]["miou"] <= 1
    assert summary["best"]["miou"] >= summary["last"]["miou"]
    events = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = {key for key in events[0] if key.endswith("loss")}
    assert losses == {
        "loss",
        "supervised_loss",
        "unsupervised_loss",
        "reconstruction_labelled_loss",
        "reconstruction_unlabelled_loss",
    }
    for name in ("config.json", "checkpoints/last", "checkpoints/best", "pictures/last.png", "tensorboard"):
        assert (trained / name).exists(), name


def test_a_finished_run_is_not_trained_again(trained):
    before = (trained / "metrics.jsonl").read_text()
    assert train(trained) == 0
    assert (trained / "metrics.jsonl").read_text() == before


@pytest.fixture
def finished(trained, tmp_path):
    """A finished run that a test may change."""
    return shutil.copytree(trained, tmp_path / "finished")


def test_a_signal_while_the_last_checkpoint_is_being_written_does_not_end_the_run(finished, monkeypatch):
    close, missed = Checkpoints.close, []

    def signalled(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", signalled)
    before = signal.signal(signal.SIGTERM, lambda *_: missed.append("what would have ended the process"))
    try:
        assert train(finished) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not missed


def test_ctrl_c_ends_a_run_with_its_exit_code(finished, monkeypatch):
    """It comes in the evaluation of step 6, which is owed since nothing says that it was made."""
    (finished / "metrics.jsonl").unlink()
    (finished / "summary.json").unlink()
    monkeypatch.setattr(Panel, "draw", lambda *_: signal.raise_signal(signal.SIGINT))
    assert train(finished) == 128 + signal.SIGINT
    assert not (finished / "summary.json").exists()


def test_what_ended_a_training_is_told_even_if_its_checkpoint_fails_too(finished, monkeypatch, capsys, caplog):
    def diverge(state, **_):
        raise NotFiniteError("step 7: loss=nan")

    def fail(checkpoints):
        raise CheckpointError("the last checkpoint could not be written")

    monkeypatch.setattr("forec_jax.experiment.run.train", diverge)
    monkeypatch.setattr(Checkpoints, "close", fail)
    assert "step 7: loss=nan" in error_of(capsys, train(finished))
    assert "the last checkpoint could not be written" in caplog.text


def test_an_edited_list_is_an_error_and_the_same_images_are_not(finished, tmp_path, capsys):
    ids = draw(shapes_dataset(size=48).source("train").ids, 8, 0)  # as the run drew them
    lists, config = tmp_path / "list.txt", json.loads((finished / "config.json").read_text())
    config["data"]["labelled"] = str(lists)
    (finished / "config.json").write_text(json.dumps(config))
    lists.write_text("\n".join(ids))
    assert train(finished, f"--config.data.labelled={lists}") == 0
    lists.write_text("\n".join(ids[1:]))
    message = error_of(capsys, train(finished, f"--config.data.labelled={lists}"))
    assert f"holds a run on other images than those of data.labelled='{lists}'" in message
    assert "put the list back as it was, or choose another --workdir" in message


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


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_evaluate_repeats_the_runs_own_score(trained, capsys, network):
    assert cli.run(["evaluate", f"--workdir={trained}", "--split=tune", f"--network={network}"]) == 0
    events = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert f"{events[-1][f'{network}_miou']:.4f} mIoU" in capsys.readouterr().out


def test_predict_writes_index_images_and_overlays_at_the_images_size(trained, tmp_path):
    sizes = {"wide.png": (70, 40), "sub/tall.jpg": (35, 90), "grey.png": (50, 50)}
    for name, (width, height) in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if "grey" in name else "RGB").save(tmp_path / "in" / name)
    assert cli.run(["predict", f"--workdir={trained}", f"--images={tmp_path / 'in'}", f"--out={tmp_path / 'out'}"]) == 0
    for name, size in sizes.items():
        target = name.rsplit(".", 1)[0] + ".png"
        index = Image.open(tmp_path / "out" / "index" / target)
        assert (index.mode, index.size) == ("P", size)
        assert np.asarray(index).max() < 7
        assert Image.open(tmp_path / "out" / "overlay" / target).size == size
    assert Image.open(tmp_path / "out" / "legend.png").size[0] == 400


def test_predict_at_the_size_of_training_passes_over_what_it_cannot_read(trained, tmp_path, caplog):
    """data.longest_side: a large image gets the prediction of the scaled-down one, at its own size."""
    large = shapes_dataset(size=96).source("val")[1]
    for name, pixels in {"small": shrink(large, 48).image, "large": large.image}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    run = load_run(trained, "last")
    run.config.data.longest_side = 48
    assert predict_run(run, tmp_path, tmp_path / "out", "student") == 2
    assert "broken.jpg: cannot be decoded" in caplog.text
    one, two = (np.asarray(Image.open(tmp_path / "out" / "index" / f"{name}.png")) for name in ("small", "large"))
    np.testing.assert_array_equal(two, np.repeat(np.repeat(one, 2, 0), 2, 1))
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be decoded"):
        predict_run(run, tmp_path / "broken.jpg", tmp_path / "out", "student")


def test_a_run_from_before_an_option_existed_is_still_read(trained, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(trained, older)
    content = json.loads((older / "config.json").read_text())
    del content["data"]["protocol"], content["method"]["supervised_loss"], content["eval"]["stride_fraction"]
    (older / "config.json").write_text(json.dumps(content))
    (older / "split.json").unlink()
    before = json.loads((older / "summary.json").read_text())
    assert train(older) == 0
    assert json.loads((older / "summary.json").read_text()) == before
    assert cli.run(["evaluate", f"--workdir={older}", "--split=tune"]) == 0
    assert f"{before['last']['miou']:.4f} mIoU" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["ps_mt_forec", "s4gan_forec"])
def test_other_methods_from_the_command_line(tmp_path, variant):
    """Two teachers, or a discriminator: trained, scored, stopped, resumed and read back like any other."""
    assert train(tmp_path / "run", "--config.steps=3", "--config.method.ramp=2", variant=variant) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    # 504 unlabelled images by 8: PS-MT's epoch was worked out and stored; other methods have none.
    assert config["method"]["ps_mt"]["epoch"] == (63 if variant == "ps_mt_forec" else 0)
    assert train(tmp_path / "run", "--config.steps=3", "--config.method.ramp=2", variant=variant) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["method"], summary["last"]["step"]) == (variant.removesuffix("_forec"), 3)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(
        0 <= e["teacher_miou"] <= 1 and 0 <= e["student_miou"] <= 1 for e in events if e["event"] == "evaluation"
    )
    assert cli.run(["evaluate", f"--workdir={tmp_path / 'run'}", "--split=tune", "--network=teacher"]) == 0


@pytest.mark.slow
def test_ohem_and_sliding_windows_from_the_command_line(tmp_path):
    """A run's windows serve its evaluations, `evaluate` and `predict`: the score is that of the written predictions."""
    options = [
        "--config.method.supervised_loss=ohem",
        "--config.method.ohem_min_kept=500",
        "--config.eval.mode=sliding",
    ]
    run = tmp_path / "run"
    assert train(run, *options, "--config.eval.crop=32", "--config.eval.pictures=0", variant="supervised") == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["protocol"]["evaluation_mode"], summary["protocol"]["supervised_loss"]) == ("sliding", "ohem")
    assert summary["split"]["published"] == ""
    source = shapes_dataset(size=48).source("tune")
    (tmp_path / "in").mkdir()
    for index in range(len(source)):
        Image.fromarray(source[index].image).save(tmp_path / "in" / f"{index}.png")
    assert cli.run(["predict", f"--workdir={run}", f"--images={tmp_path / 'in'}", f"--out={tmp_path / 'out'}"]) == 0
    confusion = np.zeros((7, 7), np.int64)
    for index in range(len(source)):
        label = source[index].label
        prediction = np.asarray(Image.open(tmp_path / "out" / "index" / f"{index}.png"))
        np.add.at(confusion, (label[label < 7], prediction[label < 7]), 1)
    assert mean_iou(confusion) == pytest.approx(summary["last"]["miou"], abs=1e-4)


def test_table_compares_runs(trained, capsys):
    assert cli.run(["table", f"--workdirs={trained},{trained}", "--splits=tune"]) == 0
    assert capsys.readouterr().out.count("forec") == 2


def test_visualize_draws_a_sheet_an_image_and_measures_a_split(trained, tmp_path, capsys):
    images = "tune_00000,tune_00003"
    arguments = ["visualize", f"--workdir={trained},{trained}/../forec", f"--out={tmp_path}", "--k=2"]
    assert cli.run([*arguments, f"--images={images}", "--correlate=tune"]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"tune_00000.png", "tune_00003.png", "latents.json"}
    found = json.loads((tmp_path / "latents.json").read_text())
    assert found["split"] == "tune"
    first, second = found["runs"].values()  # one run under two paths
    assert first == second
    assert (first["step"], first["network"]) == (6, "student")
    foreground = [k["correlation"] for name, k in first["classes"].items() if name != "background"]
    assert first["mean_correlation"] == pytest.approx(np.mean(foreground))
    assert first["classes"]["background"]["images"] == 96
    assert str(first["mean_correlation"]) in capsys.readouterr().out
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "own.png")
    assert cli.run([*arguments, f"--images={tmp_path / 'own.png'}", f"--out={tmp_path / 'own'}"]) == 0
    # Two rows of a wide picture at 240x192, each with its caption, between the titles and the classes' colours.
    assert Image.open(tmp_path / "own" / "own.png").size[1] == 18 + 2 * (192 + 18 + 4) + 20


def test_visualize_draws_how_the_classes_relate(trained, tmp_path, capsys):
    """A run without regional contrast has the encoder's relations, and probabilities but no queries."""
    arguments = ["visualize", "--what=classes", f"--workdir={trained}", f"--out={tmp_path}"]
    assert cli.run([*arguments, "--images=tune_00000"]) == 0
    (found,) = json.loads((tmp_path / "classes.json").read_text())["runs"].values()
    assert found.keys() == {"split", "step", "network", "encoder"}
    relations = found["encoder"]
    assert (found["split"], len(relations["classes"])) == ("tune", 7)
    similarity = np.array(relations["similarity"])
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-6)
    assert relations["mean_similarity"] == pytest.approx((similarity.sum() - 7) / 42, abs=1e-5)
    assert f"{relations['mean_similarity']:.3f}" in capsys.readouterr().out
    assert Image.open(tmp_path / "classes.png").size[0] > 7 * 22
    assert Image.open(tmp_path / "queries" / "tune_00000.png").size[0] == 4 + 3 * 244


def test_labels_shows_what_a_training_learns_from(tmp_path):
    """Without partial labels the mask alone, with them a column a share; the first labelled images."""
    arguments = ["labels", "--config=configs/shapes.py:partial_1px", "--count=2"]
    assert cli.run([*arguments, f"--out={tmp_path / 'own'}"]) == 0
    assert cli.run([*arguments, "--partial=1px,5%", f"--out={tmp_path / 'both'}"]) == 0
    assert cli.run([*arguments, "--partial=", f"--out={tmp_path / 'none'}"]) == 0
    widths = {
        name: {Image.open(file).size[0] for file in (tmp_path / name).iterdir()} for name in ("own", "both", "none")
    }
    assert widths == {"own": {4 + 4 * 244}, "both": {4 + 5 * 244}, "none": {4 + 3 * 244}}
    assert len(list((tmp_path / "own").iterdir())) == 2


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what=classes", "--images=tune_00000", "--class=dog"], "--class='dog': choose one of"),
        (["--images=val_00000"], "val_00000 is neither a file nor a folder, nor an id of the run's split tune"),
        (["--images=tune_00000", "--class=dog"], "--class='dog': choose one of 'background', 'disc'"),
        (["--correlate=test"], "no split 'test'"),
        ([], "--images or --correlate is missing"),
    ],
)
def test_visualize_explains_what_it_cannot_show(trained, tmp_path, capsys, options, message):
    assert message in error_of(capsys, cli.run(["visualize", f"--workdir={trained}", f"--out={tmp_path}", *options]))


def test_an_unknown_key_is_an_error(tmp_path, capsys):
    message = error_of(capsys, train(tmp_path / "run", "--config.optim.lrr=1"))
    assert "lrr" in message
    assert "optim.lr" in message or 'Did you mean "lr"' in message


def test_a_value_of_the_wrong_type_is_an_error(tmp_path, capsys):
    assert "optim.lr" in error_of(capsys, train(tmp_path / "run", "--config.optim.lr=fast"))


def test_another_config_in_the_same_workdir_is_an_error(trained, capsys):
    message = error_of(capsys, train(trained, "--config.optim.lr=0.5"))
    assert "optim.lr was 0." in message
    assert "is 0.5" in message
    assert "another --workdir" in message


def test_a_crop_below_the_minimum_is_an_error(tmp_path, capsys):
    assert "crop=32" in error_of(capsys, train(tmp_path / "run", "--config.data.crop=32"))


def test_a_run_that_failed_at_its_start_may_be_mended(tmp_path, capsys):
    """Its work directory holds a config and no checkpoint, so that another config takes nothing away."""
    options = ["--config.steps=1", "--config.eval.pictures=0"]
    assert "crop=32" in error_of(capsys, train(tmp_path / "run", *options, "--config.data.crop=32"))
    assert not (tmp_path / "run" / "config.json").exists()  # found before anything was written
    assert "bucket=40" in error_of(capsys, train(tmp_path / "run", *options, "--config.eval.bucket=40"))
    assert (tmp_path / "run" / "config.json").exists()
    assert train(tmp_path / "run", *options, "--config.data.crop=33") == 0
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


def start(workdir, *options, environment=None):
    command = [sys.executable, "-m", "forec_jax", "train", "--config=configs/shapes.py:forec", f"--workdir={workdir}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = [*TINY, "--config.steps=40", "--config.evaluate_every=10", "--config.eval.pictures=0", *options]
    return subprocess.Popen([*command, *options], env=environment, stdin=subprocess.DEVNULL, **quiet)


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


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_process_killed_at_random_moments_and_resumed_is_bit_equal(tmp_path, kills):
    """SIGKILL, with no chance to tidy up; the same command run again ends with the very same state."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = [f"--config.steps={12 * kills}", "--config.evaluate_every=24", "--config.checkpoint_every=4"]
    assert start(whole, *steps).wait() == 0
    draw, saved, during_save = random.Random(0), set(), 0
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
