"""What lets a run be gone on with: from its weights, at another place, by an error that says so."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from forec_jax import cli
from forec_jax.config import check_options, load_config
from forec_jax.contracts import Variables
from forec_jax.experiment import build, load
from forec_jax.experiment.load import load_run
from forec_jax.experiment.run import check_rows, warn_of_random_values, with_absolute_paths
from forec_jax.models.network import ModelOptions
from forec_jax.options import OptionError
from forec_jax.training.state import INIT_STREAM

TINY = {
    "steps": 1,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "data.shapes.size": 48,
    "data.crop": 33,
    "data.labelled": "8:0",
    "eval.split": "tune",
    "eval.batch": 8,  # as in tiny_run.py, so that a training of one step is compiled once for both
    "eval.bucket": 64,
    "eval.pictures": 0,
    "model.encoder": "unet",  # compiled in half of a ResNet's time
    "model.unet.width": 0.03125,
}


def train(workdir, *options):
    given = [f"--config.{key}={value}" for key, value in TINY.items()]
    return cli.run(["train", "--config=configs/shapes.py:supervised", f"--workdir={workdir}", *given, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("warm") / "run"
    assert train(workdir) == 0
    return workdir


def test_a_training_starts_from_the_teacher_of_another_run(trained):
    c = load_config("configs/shapes.py:forec", {**TINY, "model.weights": str(trained)})
    run = load_run(trained, "last")
    params = build.build_method(c, run.labels).init(jax.random.key(5))[0]["student"]
    teacher = run.state.teacher["student"].params
    for part in ("encoder", "segmentation"):
        jax.tree.map(np.testing.assert_array_equal, params[part], jax.device_get(teacher[part]))
    assert "reconstruction" in params  # new heads start from random values


@pytest.mark.parametrize(("network", "checkpoint"), [("student", "last"), ("teacher", "best")])
def test_which_network_in_which_state_a_training_starts_from(tmp_path, monkeypatch, network, checkpoint):
    says = {name: Variables({"encoder": name}, {}) for name in ("student", "teacher")}
    state = SimpleNamespace(teacher={"student": says["teacher"]}, params={"student": {"encoder": "student"}})
    state.batch_stats = {"student": {}}
    asked = []
    monkeypatch.setattr(load, "load_run", lambda *of: asked.append(of) or SimpleNamespace(state=state))
    m = ModelOptions(weights_network=network, weights_checkpoint=checkpoint)
    assert build._of_run(tmp_path, m) == says[network]
    assert asked == [(tmp_path, checkpoint)]


def test_a_state_that_no_run_has_is_refused_by_name():
    c = load_config("configs/shapes.py:supervised", {"model.weights_checkpoint": "newest"})
    with pytest.raises(OptionError, match=r"model\.weights_checkpoint='newest': choose one of 'last', 'best'"):
        check_options(c)


def test_a_run_of_another_encoder_is_no_start(trained):
    c = load_config("configs/shapes.py:supervised", {**TINY, "model.weights": str(trained), "model.unet.width": 0.0625})
    with pytest.raises(OptionError, match=r"model\.weights=.*a run of another encoder"):
        build.build_method(c, load_run(trained, "last").labels)


@pytest.mark.slow
def test_a_run_with_a_frozen_encoder_says_where_it_is_random_and_goes_on_frozen_alone(tmp_path, capsys, caplog):
    workdir = tmp_path / "frozen"
    assert train(workdir, "--config.model.freeze=encoder") == 0
    assert "model.freeze='encoder' without model.weights: the encoder keeps its random values" in caplog.text
    run = load_run(workdir, "last")
    first = run.method.init(jax.random.fold_in(jax.random.key(0), INIT_STREAM))[0]["student"]
    params = jax.device_get(run.state.params["student"])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], jax.device_get(first["encoder"]))
    assert np.any(jax.tree.leaves(params["segmentation"])[0] != jax.tree.leaves(first["segmentation"])[0])
    assert train(workdir) == 2
    assert "model.freeze was 'encoder', is ''" in capsys.readouterr().err


def test_a_frozen_encoder_with_weights_and_a_trained_one_need_no_word(caplog):
    for options in ({"model.freeze": "encoder", "model.weights": "efficientnet_lite0"}, {}):
        warn_of_random_values(load_config("configs/shapes.py:supervised", options))
    assert not caplog.text


def test_a_finished_run_says_its_score_and_how_to_go_on(trained, capsys, caplog):
    assert train(trained) == 0
    last = json.loads((trained / "summary.json").read_text())["last"]["miou"]
    assert f"last {100 * last:.2f} % (step 1)" in capsys.readouterr().out
    assert f"--config.model.weights={trained}" in caplog.text
    assert train(trained, "--config.optim.lr=0.5") == 2
    assert f"start another --workdir with --config.model.weights={trained}" in capsys.readouterr().err


def test_what_a_run_stores_of_files_holds_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    c = load_config("configs/folder.py:forec", {"data.root": "photos", "data.prepared": "~/packed"})
    c = with_absolute_paths(c.copy_and_resolve_references())
    assert (c.data.root, c.data.prepared) == (str(tmp_path / "photos"), str(tmp_path / "home" / "packed"))


def test_a_moved_data_set_is_found_where_it_is_said_to_be(trained, tmp_path):
    assert load_run(trained, "last").config.data.root == ""
    assert load_run(trained, "last", str(tmp_path)).config.data.root == str(tmp_path)


def test_rows_that_a_method_needs_are_asked_for_with_the_way_out():
    c = load_config("configs/shapes.py:mean_teacher", {"batch.unlabelled": 0})
    with pytest.raises(OptionError, match=r"mean_teacher' needs unlabelled rows.*variant supervised"):
        check_rows(c)
    c.data.partial = "1px"
    check_rows(c)
