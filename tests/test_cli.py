"""The commands as a user runs them, on a run of a few steps."""

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from tiny_run import error_of, train

from forec_jax import cli
from forec_jax.data import DataError, shapes_dataset, shrink
from forec_jax.data.splits import draw
from forec_jax.evaluation import mean_iou
from forec_jax.experiment.load import load_run
from forec_jax.experiment.use import predict_run
from forec_jax.training import CheckpointError, Checkpoints, NotFiniteError
from forec_jax.visualize.panel import Panel


def size_of(file):
    """The width and height of an image file."""
    with Image.open(file) as picture:
        return picture.size


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
        with Image.open(tmp_path / "out" / "index" / target) as index:
            assert (index.mode, index.size) == ("P", size)
            assert np.asarray(index).max() < 7
        assert size_of(tmp_path / "out" / "overlay" / target) == size
    assert size_of(tmp_path / "out" / "legend.png")[0] == 400


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


def test_table_compares_runs(trained, tmp_path, capsys):
    other = shutil.copytree(trained, tmp_path / "forec")
    assert cli.run(["table", f"--workdirs={trained},{other}", "--splits=tune"]) == 0
    miou = json.loads((trained / "summary.json").read_text())["last"]["miou"]
    assert capsys.readouterr().out.count(f"{100 * miou:.2f}") == 3  # either, and their mean


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
    assert size_of(tmp_path / "own" / "own.png")[1] == 18 + 2 * (192 + 18 + 4) + 20


def test_a_report_shows_a_run_on_one_page(trained, tmp_path, capsys):
    pytest.importorskip("jinja2")
    out = tmp_path / "pages" / "report.html"
    assert cli.run(["report", str(trained), f"--out={out}", "--examples=2"]) == 0
    html, best = out.read_text(encoding="utf-8"), json.loads((trained / "summary.json").read_text())["best"]
    assert f"{100 * best['miou']:.1f} at step {best['step']}" in html
    assert html.count('class="stack"') == 2
    assert "forec paints" in html
    assert 'class="matrix"' in html
    again = ["report", f"--workdir={trained}", f"--out={out}", "--examples=0", "--noscore"]
    assert cli.run(again) == 0
    html = out.read_text(encoding="utf-8")
    assert f"{100 * best['miou']:.1f} at step {best['step']}" in html
    assert 'class="matrix"' not in html
    assert "holds no run" in error_of(capsys, cli.run(["report", str(tmp_path), f"--out={out}"]))
    assert "--out is missing" in error_of(capsys, cli.run(["report", str(trained)]))


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
    assert size_of(tmp_path / "classes.png")[0] > 7 * 22
    assert size_of(tmp_path / "queries" / "tune_00000.png")[0] == 4 + 3 * 244


def test_labels_shows_what_a_training_learns_from(tmp_path):
    """Without partial labels the mask alone, with them a column a share; the first labelled images."""
    arguments = ["labels", "--config=configs/shapes.py:partial_1px", "--count=2"]
    assert cli.run([*arguments, f"--out={tmp_path / 'own'}"]) == 0
    assert cli.run([*arguments, "--partial=1px,5%", f"--out={tmp_path / 'both'}"]) == 0
    assert cli.run([*arguments, "--partial=", f"--out={tmp_path / 'none'}"]) == 0
    widths = {name: {size_of(file)[0] for file in (tmp_path / name).iterdir()} for name in ("own", "both", "none")}
    assert widths == {"own": {4 + 4 * 244}, "both": {4 + 5 * 244}, "none": {4 + 3 * 244}}
    assert len(list((tmp_path / "own").iterdir())) == 2


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


def test_another_config_in_the_same_workdir_is_an_error(trained, capsys):
    message = error_of(capsys, train(trained, "--config.optim.lr=0.5"))
    assert "optim.lr was 0." in message
    assert "is 0.5" in message
    assert "another --workdir" in message
