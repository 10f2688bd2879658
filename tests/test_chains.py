"""ST, ST++ and DMT by one command, stage after stage."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from forec_jax import cli
from forec_jax.config import check_options, load_config
from forec_jax.data import shapes_dataset
from forec_jax.experiment import hand_over, sources, stages
from forec_jax.experiment.chains import CHAINS, begin_chain, chain_of, training_variants
from forec_jax.experiment.load import load_run
from forec_jax.experiment.run import check_rows
from forec_jax.experiment.stages import run_stages
from forec_jax.training.checkpoint import flatten

SIZE = 48
TINY = [
    "--config.steps=3",
    "--config.evaluate_every=3",
    "--config.checkpoint_every=3",
    f"--config.data.shapes.size={SIZE}",
    "--config.data.crop=33",
    "--config.data.labelled=8:0",
    "--config.eval.bucket=64",
    "--config.eval.batch=8",
    "--config.eval.pictures=0",
    "--config.model.encoder=unet",
    "--config.model.unet.width=0.03125",
]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    counts = {"train": 24, "tune": 2, "val": 4, "val_decorrelated": 2}
    small = lambda c, val_ids=None: shapes_dataset(size=SIZE, counts=counts)  # noqa: E731
    monkeypatch.setattr(sources, "build_full_dataset", small)


def test_the_first_training_is_supervised_and_the_others_learn_from_stored_masks():
    assert chain_of("small+st_plus_plus+forec") == "st_plus_plus"
    assert chain_of("small+supervised") == ""
    supervised, stored = "small+supervised+forec", "small+st+forec"
    assert training_variants("small+st_plus_plus+forec") == {"first": supervised, "second": stored, "third": stored}
    assert training_variants("st") == {"first": "supervised", "second": "st"}
    first, rounds = (
        {f"{kind}_{network}": name for network in "ab"} for kind, name in (("first", "x"), ("rounds", "y"))
    )
    kinds = {**dict.fromkeys(first, "supervised+forec"), **dict.fromkeys(rounds, "dmt+forec")}
    assert training_variants("dmt+forec") == kinds


def test_a_method_beside_a_chain_is_that_of_its_first_trainings():
    assert training_variants("st+cps+forec") == {"first": "cps+forec", "second": "st+forec"}
    assert training_variants("dmt+ps_mt_forec")["first_b"] == "ps_mt+forec"
    assert training_variants("cps_paper+dmt")["rounds_a"] == "dmt"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("dmt+st", "names 2 chains, dmt and st; choose one"),
        (
            "dmt+cps+gct",
            r"dmt\+cps: the method beside a chain is that of its first training.*choose one of cps and gct",
        ),
        ("dmt+st_half_paper", "st_half_paper learns from stored masks, which are not there yet"),
        ("st+wsss_rec", "wsss_rec learns from image tags: see configs/tags.py"),
        ("st_plus_plus_paper+cps", "st_plus_plus_paper says what each training is, as published; take it alone"),
    ],
)
def test_what_a_chain_cannot_be_is_refused_with_the_reason(variant, message):
    with pytest.raises(ValueError, match=message):
        training_variants(variant)


@pytest.mark.parametrize(
    ("file", "epochs", "labelled", "masks"),
    [("voc", 80, 92, {"st_half_paper": 5245, "st_paper": 10490}), ("cityscapes", 240, 372, {"st_paper": 2603})],
)
def test_st_plus_plus_is_as_long_as_published(file, epochs, labelled, masks):
    """Batches of 16 of a list in which the labelled images are repeated until they are as many as those with masks."""
    for part, number in masks.items():
        c = load_config(f"configs/{file}.py:{part}", {})
        assert c.batch.labelled + c.batch.pseudo == 16
        listed = -(-number // labelled) * labelled + number
        assert c.steps == epochs * (listed // 16)


@pytest.mark.parametrize("file", ["voc", "cityscapes", "shapes"])
@pytest.mark.parametrize("name", CHAINS)
def test_every_training_of_a_chain_has_a_config_on_every_data_set(file, name):
    for kind, variant in training_variants(name).items():
        c = load_config(f"configs/{file}.py:{variant}", {})
        check_options(c)
        check_rows(c)
        assert bool(c.batch.pseudo) == (c.method.name in ("st", "dmt")) == (not kind.startswith("first"))


def told(tmp_path, monkeypatch, chain, **how):
    """What each stage of a chain is given: trainings, and labellings with the checkpoint that they label with."""
    done = []

    def train(c, folder):
        weights = (c.model.weights, c.model.weights_network, c.model.weights_checkpoint)
        done.append((folder.name, c.method.name, c.seed, c.data.pseudo, weights, tuple(c.milestones)))

    def write(run, out, how):
        share = (how.rank, how.keep, how.keep_pixels, how.pixel_confidence)
        done.append((out.name, run, how.network, share, how.scales, how.flips, how.stored))

    monkeypatch.setattr(stages, "run_training", train)
    monkeypatch.setattr(stages, "load_run", lambda folder, checkpoint: f"{folder.name} {checkpoint}")
    monkeypatch.setattr(hand_over, "write_masks", write)
    variants = training_variants(chain)
    configs = {kind: load_config(f"configs/shapes.py:{name}", {"steps": 9}) for kind, name in variants.items()}
    assert run_stages(begin_chain(chain, configs, tmp_path, CHAINS[chain].options(**how)), tmp_path) is None
    return done


@pytest.mark.parametrize("chain", ["st", "st_plus_plus"])
def test_each_stage_takes_what_those_before_it_have_made(tmp_path, monkeypatch, chain):
    reliable, masks, seen = f"{tmp_path}/reliable", f"{tmp_path}/masks", ((0.5, 0.75, 1.0, 1.5, 2.0), True)
    anew, all_of_it = ("", "teacher", "last"), ("confidence", 1.0, 1.0, False)
    expected = {
        "st": [
            ("first", "supervised", 0, "", anew, ()),
            ("masks", "first best", "student", all_of_it, *seen, ""),
            ("second", "st", 0, masks, anew, ()),
        ],
        "st_plus_plus": [
            ("first", "supervised", 0, "", anew, (3, 6)),
            ("reliable", "first best", "student", ("agreement", 0.5, 1.0, False), *seen, ""),
            ("second", "st", 0, reliable, anew, ()),
            ("masks", "second best", "student", all_of_it, *seen, reliable),
            ("third", "st", 0, masks, anew, ()),
        ],
    }
    assert told(tmp_path, monkeypatch, chain, checkpoint="best") == expected[chain]


def test_two_networks_label_for_each_other_and_go_on_from_themselves(tmp_path, monkeypatch, caplog):
    """a_1 learns from what b_0 says, b_1 from what a_0 says (not a_1); two rounds."""

    def masks(by, share):
        return (f"masks_by_{by}", f"{by} last", "teacher", ("confidence", 1.0, share, True), (1.0,), False, "")

    def training(own, peer, seed):
        weights = (f"{tmp_path}/{own}_{peer[2]}", "teacher", "last")
        return (f"{own}_{int(peer[2]) + 1}", "dmt", seed, f"{tmp_path}/masks_by_{peer}", weights, ())

    caplog.set_level("INFO", logger="forec_jax")
    anew = ("", "teacher", "last")
    assert told(tmp_path, monkeypatch, "dmt", network="teacher", shares=(0.5, 1.0)) == [
        ("a_0", "supervised", 0, "", anew, ()),
        ("b_0", "supervised", 1, "", anew, ()),
        masks("a_0", 0.5),
        masks("b_0", 0.5),
        training("a", "b_0", 0),
        training("b", "a_0", 1),
        masks("a_1", 1.0),
        masks("b_1", 1.0),
        training("a", "b_1", 0),
        training("b", "a_1", 1),
    ]
    assert "stage 3 of 10: masks_by_a_0" in caplog.text
    options = json.loads((tmp_path / "chain.json").read_text())
    assert (options["chain"], options["checkpoint"], options["shares"]) == ("dmt", "last", [0.5, 1.0])


def masks_in(folder):
    return sum(
        (folder / "masks" / f"{name}.png").exists() for name in json.loads((folder / "confidences.json").read_text())
    )


@pytest.mark.slow
def test_one_command_does_all_of_st_plus_plus_and_goes_on_where_it_was_stopped(tmp_path, capsys):
    workdir = tmp_path / "st"
    command = ["chain", "--config=configs/shapes.py:st_plus_plus", f"--workdir={workdir}", "--scales=1", *TINY]
    assert cli.run([*command, "--noflips", "--second.steps=2"]) == 0
    table = capsys.readouterr().out
    assert "mIoU (%) of the student, last checkpoint; handed over was the last one" in table
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("first", "second", "third"))] == [
        "first",
        "second",
        "third",
    ]
    configs = {
        stage: json.loads((workdir / stage / "config.json").read_text()) for stage in ("first", "second", "third")
    }
    assert [(c["method"]["name"], c["steps"]) for c in configs.values()] == [("supervised", 3), ("st", 2), ("st", 3)]
    assert configs["first"]["milestones"] == [1, 2]
    assert masks_in(workdir / "reliable") == 8  # half of 16
    assert masks_in(workdir / "masks") == 8  # what the second training found; the reliable ones are taken over
    split = json.loads((workdir / "third" / "summary.json").read_text())["split"]
    assert (split["labelled"], split["pseudo"]) == (8, 16)

    written = (workdir / "masks" / "classes.toml").stat().st_mtime_ns
    summary = json.loads((workdir / "third" / "summary.json").read_text())
    (workdir / "third").rename(workdir / "away")
    assert cli.run([*command, "--noflips", "--second.steps=2"]) == 0
    assert (workdir / "masks" / "classes.toml").stat().st_mtime_ns == written
    assert json.loads((workdir / "third" / "summary.json").read_text()) == summary
    assert cli.run([*command, "--second.steps=2"]) == 2
    assert "begun with other options: --flips=True (was False)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chain", "option", "message"),
    [
        ("st", "--scales=1,0", "--scales=1,0 must be one or more numbers above 0"),
        ("st", "--scales=1,many", "--scales=1,many must be one or more numbers above 0"),
        ("st", "--second.batch.pseudo=0", "needs pseudo rows: set batch.pseudo above 0"),
        ("st", "--config.stepss=3", "did you mean --config.steps?"),
        ("st", "--second.steps=0", "steps=0 must be at least 1"),
        ("st", "--first.method.threshold=0.5", "--first.method.threshold: this config does not use it"),
        ("dmt", "--b.stepss=3", "did you mean --b.steps?"),
        ("dmt", "--shares=0.5,2", "--shares=0.5,2 must be shares above 0 and up to 1"),
        ("dmt", "--rounds.method.dmt.agreement_power=-1", "method.dmt.agreement_power=-1.0 must be at least 0"),
        ("dmt", "--keep=0.5", "keep"),
        ("dmt+prevmatch+cps", "", "choose one of prevmatch and cps"),
    ],
)
def test_a_chain_that_would_break_later_does_not_begin(tmp_path, capsys, chain, option, message):
    command = ["chain", f"--config=configs/shapes.py:{chain}", f"--workdir={tmp_path / 'runs'}", *TINY]
    assert cli.run([*command, *filter(None, [option])]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_options_of_several_trainings_are_those_of_each():
    from forec_jax.commands.chain import _shared

    groups = {"config": ("first_a", "rounds_a", "rounds_b"), "rounds": ("rounds_a", "rounds_b"), "b": ("rounds_b",)}
    given = ["chain", "--rounds_b.seed=4", "--b.seed=3", "--config.seed=1", "--rounds.seed=2", "--shares=1"]
    assert _shared(given, groups) == [
        "chain",
        *("--first_a.seed=1", "--rounds_a.seed=1", "--rounds_b.seed=1"),
        *("--rounds_a.seed=2", "--rounds_b.seed=2", "--rounds_b.seed=3"),
        *("--rounds_b.seed=4", "--shares=1"),
    ]


def start_dmt(workdir):
    """The command in a process of its own, of one round on few images."""
    command = [sys.executable, "-m", "forec_jax", "chain", "--config=configs/shapes.py:dmt", f"--workdir={workdir}"]
    few = ["--config.data.unlabelled=rest:0.05:0", "--config.steps=8", "--config.checkpoint_every=2", "--shares=0.5"]
    return subprocess.Popen([*command, *TINY, *few, "--config.eval.split=tune"], stdin=subprocess.DEVNULL)


def kill_when(process, seen):
    """SIGKILL once `seen` says so."""
    while not seen():
        assert process.poll() is None, "the chain ended by itself"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_dmt_killed_between_stages_and_inside_them_ends_bit_equal(tmp_path):
    """Between two labellings, while one is written, and in the middle of a training of the round."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_dmt(whole).wait() == 0
    kill_when(start_dmt(killed), lambda: (killed / "masks_by_a_0").exists())
    kill_when(start_dmt(killed), lambda: any(killed.glob(".masks_by_b_0-*/masks_by_b_0/masks/*.png")))
    assert not (killed / "masks_by_b_0").exists()
    kill_when(start_dmt(killed), lambda: (killed / "a_1" / "checkpoints" / "last" / "step_2").exists())
    assert not (killed / "a_1" / "summary.json").exists()
    assert start_dmt(killed).wait() == 0
    for folder in ("masks_by_a_0", "masks_by_b_0"):
        files = [file.relative_to(whole) for file in (whole / folder).rglob("*") if file.is_file()]
        assert len(files) > 8
        assert all((whole / file).read_bytes() == (killed / file).read_bytes() for file in files)
    for run in ("a_1", "b_1"):
        one, other = (flatten(load_run(chain / run, "last").state) for chain in (whole, killed))
        assert one.keys() == other.keys()
        for path, leaf in one.items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other[path]), err_msg=path)
    states = [flatten(load_run(whole / run, "last").state) for run in ("a_1", "b_1")]
    assert any((np.asarray(states[0][path]) != np.asarray(leaf)).any() for path, leaf in states[1].items())
