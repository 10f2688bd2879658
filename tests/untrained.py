"""A run that was never trained: its weights are as they were drawn."""

import json

import jax
import jax.numpy as jnp

from forec_jax.config import load_config
from forec_jax.contracts import TrainState
from forec_jax.data import Labels
from forec_jax.experiment import build
from forec_jax.experiment.load import Run
from forec_jax.parallel import make_mesh

LABELS = Labels(("ground", "a|b", "c"), ((0, 0, 0), (1, 2, 3), (4, 5, 6)), (0,))
OPTIONS = {"model.encoder": "unet", "model.unet.width": 0.03125, "eval.bucket": 64, "data.root": "a/secret/place"}


def untrained_run(folder):
    """A run of FOrec with a tiny U-Net, and what its work directory says beside checkpoints."""
    c = load_config("configs/shapes.py:forec", OPTIONS)
    method = build.build_method(c, LABELS)
    state = TrainState(jnp.asarray(7, jnp.int32), *method.init(jax.random.key(0))[:3], (), ())
    scores = {
        "last": {"step": 7, "miou": 0.51},
        "best": {"step": 6, "miou": 0.625},
        "per_class": {"a|b": 0.25, "c": None},
    }
    contents = {
        "config.json": json.loads(c.to_json()),
        "labels.json": LABELS._asdict(),
        "split.json": {"labelled": "12ab", "unlabelled": "", "pseudo": ""},
        "summary.json": scores,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return Run(c, LABELS, method, state, make_mesh(), None, folder)
