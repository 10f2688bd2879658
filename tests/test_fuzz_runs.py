"""A run's own files, damaged or edited: each is read, or named in a message, and nothing else happens."""

import json

import pytest
from hypothesis import strategies as st
from made_run import make_run
from test_fuzz import allowed, changed_json, damaged, few_or_many, fuzz

from forec_jax.commands.train import ending
from forec_jax.experiment.load import read_stored
from forec_jax.experiment.report import write_report
from forec_jax.experiment.results import known_results
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.options import OptionError

SCORE = {"split": "val", "step": 60, "network": "teacher", "miou": 0.5, "iou": {"disc": 0.25}, "images": 192}
SCORE |= {
    "sha256": "ab",
    "protocol": {"mode": "whole", "longest_side": 0},
    "checkpoint": "last",
    "date": "",
    "version": "0.2.0",
}
SCORES = {
    "last": {"step": 60, "miou": 0.6},
    "best": {"step": 60, "miou": 0.6},
    "versions": {"jax": "0.10"},
    "devices": "1 x cpu",
}
SCORES |= {"split": {"labelled": 16, "unlabelled": 496, "name": "16:0", "sha256": "ab"}}
TRAINED = {"event": "train", "step": 30, "loss": 1.5, "kept": 0.5, "learning_rate": 1e-3, "images_per_second": 20.5}


def a_run(folder):
    """A finished run with one more score on record."""
    make_run(folder)
    (folder / "evaluations.json").write_text(json.dumps([SCORE]))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | SCORES))
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(TRAINED) + "\n")


def read_all(folder, out):
    """As tables, reports and the end of a training read a run."""
    stored = read_stored(folder)
    assert all(isinstance(name, str) for name in stored.labels.classes)
    for result in known_results(stored):
        scores = [result.miou, *result.iou.values()]
        assert all(score is None or isinstance(score, float | int) for score in scores)
    write_report([folder], out, network="teacher", checkpoint="last", examples=0, score=False)
    ending(folder)


@few_or_many
@pytest.mark.parametrize(
    "name", ["config.json", "labels.json", "val.json", "data.json", "evaluations.json", "summary.json", "metrics.jsonl"]
)
def test_files_of_a_run(tmp_path, cases, name):
    folder, out = tmp_path / "run", tmp_path / "page.html"
    a_run(folder)
    read_all(folder, out)
    file, whole = folder / name, (folder / name).read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()] if name == "metrics.jsonl" else [json.loads(whole)]
    edited = st.one_of(*(changed_json(line) for line in lines))
    others = b"\n".join(whole.splitlines()[:-1]) + b"\n" if len(lines) > 1 else b""

    def check(content):
        file.write_bytes(content)
        with allowed((WorkdirError, OptionError), name):  # the latter of another plugin than the run's
            read_all(folder, out)

    deep = st.just(b"[" * 20_000)
    fuzz(cases, st.one_of(damaged([whole]), edited.map(lambda content: others + content), deep), check)
