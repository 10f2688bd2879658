"""The embedded shapes data: 96x96 scenes drawn by the library, nothing to download.

    forec-jax train --config=configs/shapes.py:forec --workdir=runs/forec

Variants: the methods and tasks of docs/methods.md and sums of them ("+").
Two CPU cores are enough; docs/results.md has what was measured.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "shapes"
    c.data.labelled = "balanced:16:0"  # a plain draw of 16 may show a class once
    c.data.crop = 64
    c.data.scale = (0.8, 1.2)
    c.steps = 800
    c.log_every = 40
    c.evaluate_every = 400
    c.checkpoint_every = 400
    c.model.encoder = "resnet18"
    c.model.resnet.stem = "deep"
    c.model.resnet.width = 0.5
    c.model.deeplab.rates = (1, 2, 3)  # of 4x4 features: larger dilations would read the padding only
    c.model.deeplab.channels = 64
    c.model.deeplab.low_level_channels = 48
    for critic in (c.method.adv_semseg, c.method.gct, c.method.ecs):
        critic.halvings = 2  # of 64 pixels: maps of 13 and 10 a side
        critic.channels = 16  # of such maps 64 would be most of a step's work
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.25
    c.augment.hue = 0.05  # classes have colours
    c.augment.grayscale_probability = 0.0
    c.method.threshold = 0.8  # a short run from scratch is seldom surer
    c.method.ramp = 0.4  # first labels, then pseudo-labels: those of a network from scratch mislead
    c.optim.name = "adamw"
    c.optim.lr = 2e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 1e-2
    c.optim.warmup = 30
    c.eval.batch = 16
    c.eval.bucket = 96
    threshold = c.method.threshold  # a method that a variant names may mean something else by its own
    apply_variant(c, variant)
    for task in (task for task in c.auxiliary.values() if "threshold" in task):
        task.threshold = threshold
    return c
