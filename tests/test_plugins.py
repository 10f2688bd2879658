"""Things from outside come through the library's own entries: trained, resumed, evaluated, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forec_jax.methods.tasks import TASKS
from forec_jax.options import OptionError
from forec_jax.plugins import use_plugin

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "tests" / "toy_plugin.py"
CONFIG = """
from forec_jax.config import apply_variant, defaults


def get_config(variant="self_training+brightness"):
    c = defaults()
    c.data.name = "stripes"
    c.data.labelled = "4:0"
    c.data.crop = 48
    c.model.encoder = "plain"
    c.model.deeplab.rates, c.model.deeplab.channels, c.model.deeplab.low_level_channels = (1, 2, 3), 8, 4
    c.steps, c.log_every, c.evaluate_every, c.checkpoint_every = 4, 1, 4, 2
    c.batch.labelled = c.batch.unlabelled = 2
    c.optim.name, c.optim.lr = "adamw", 1e-2
    c.eval.bucket, c.eval.batch, c.eval.pictures = 64, 2, 1
    return apply_variant(c, variant)
"""


def command(*argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "forec_jax", *argv], env=env, capture_output=True, text=True, check=False
    )


def test_a_method_a_task_a_data_set_and_an_encoder_of_ones_own_are_trained_and_evaluated(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    run = tmp_path / "run"
    given = f"--config={tmp_path / 'mine.py'}", f"--config.plugin={PLUGIN}", f"--workdir={run}"
    trained = command("train", *given, "--config.model.plain.channels=6")
    assert trained.returncode == 0, trained.stderr
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert {"supervised_loss", "unsupervised_loss", "brightness_loss"} <= steps[-1].keys()
    assert [event["brightness_seen"] for event in steps] == [4, 8, 12, 16]  # what a task remembers
    assert steps[-1]["brightness_loss"] < steps[0]["brightness_loss"]
    stored = json.loads((run / "config.json").read_text())
    assert stored["plugin"] == str(PLUGIN)
    assert stored["method"]["self_training"] == {"trust": 0.75}
    assert stored["model"]["plain"] == {"channels": 6}
    scored = command("evaluate", f"--workdir={run}")
    assert scored.returncode == 0, scored.stderr
    assert f"{json.loads((run / 'summary.json').read_text())['last']['miou']:.4f} mIoU" in scored.stdout
    again = command("train", *given, "--config.model.plain.channels=7")
    assert again.returncode == 2
    assert "model.plain.channels was 6, is 7" in again.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("x = 1", "must end in ENTRIES"),
        ("ENTRIES = (3,)", "holds a int, which is no entry"),
        (
            "from forec_jax.data.datasets import DATASETS\nENTRIES = (DATASETS['voc'],)",
            "the name 'voc' is taken",
        ),
    ],
)
def test_a_file_that_brings_nothing_usable_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OptionError, match=rf"plugin=.*mine\.py: .*{message}"):
        use_plugin(str(file))


def test_of_a_file_with_one_entry_that_cannot_be_used_none_is_listed(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from forec_jax.methods.entry import TaskEntry, TaskOptions\n"
        "ENTRIES = (TaskEntry('edges', TaskOptions, None, {}), TaskEntry('reco', TaskOptions, None, {}))"
    )
    for _ in range(2):  # the second time says the same
        with pytest.raises(OptionError, match="the name 'reco' is taken"):
            use_plugin(str(file))
    assert "edges" not in TASKS
