"""ST and ST++ by one command, stage after stage."""

import json

import pytest

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.data import shapes_dataset
from forec_jax.experiment import self_training, sources, stages
from forec_jax.experiment.self_training import CHAINS, HandOver, chain_of, run_self_training, stage_variants

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
    assert stage_variants("small+st_plus_plus+forec") == {"first": supervised, "second": stored, "third": stored}
    assert stage_variants("st") == {"first": "supervised", "second": "st"}


@pytest.mark.parametrize("chain", CHAINS)
def test_each_stage_takes_what_those_before_it_have_made(tmp_path, monkeypatch, chain):
    done = []

    def train(c, folder):
        done.append((folder.name, c.method.name, c.data.pseudo, tuple(c.milestones)))

    def write(run, out, how):
        done.append((out.name, run, how.rank, how.keep, how.scales, how.flips, how.stored))

    monkeypatch.setattr(stages, "run_training", train)
    monkeypatch.setattr(stages, "load_run", lambda folder, checkpoint: f"{folder.name} {checkpoint}")
    monkeypatch.setattr(self_training, "write_labels", write)
    variants = stage_variants(chain)
    configs = {stage: load_config(f"configs/shapes.py:{name}", {"steps": 9}) for stage, name in variants.items()}
    assert run_self_training(chain, configs, tmp_path, HandOver(checkpoint="best")) is None

    reliable, masks, seen = f"{tmp_path}/reliable", f"{tmp_path}/masks", ((0.5, 0.75, 1.0, 1.5, 2.0), True)
    expected = {
        "st": [
            ("first", "supervised", "", ()),
            ("masks", "first best", "confidence", 1.0, *seen, ""),
            ("second", "st", masks, ()),
        ],
        "st_plus_plus": [
            ("first", "supervised", "", (3, 6)),
            ("reliable", "first best", "agreement", 0.5, *seen, ""),
            ("second", "st", reliable, ()),
            ("masks", "second best", "confidence", 1.0, *seen, reliable),
            ("third", "st", masks, ()),
        ],
    }
    assert done == expected[chain]


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
    assert "mIoU (%) of the student, last checkpoint; masks by the last one" in table
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
    ("option", "message"),
    [
        ("--scales=1,0", "--scales=1,0 must be numbers above 0"),
        ("--second.batch.pseudo=0", "needs pseudo rows: set batch.pseudo above 0"),
        ("--config.stepss=3", "did you mean --config.steps?"),
        ("--second.steps=0", "steps=0 must be at least 1"),
    ],
)
def test_a_chain_that_would_break_later_does_not_begin(tmp_path, capsys, option, message):
    command = ["chain", "--config=configs/shapes.py:st", f"--workdir={tmp_path / 'st'}", *TINY, option]
    assert cli.run(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "st").exists()
