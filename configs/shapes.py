"""The embedded shapes data: 96x96 scenes drawn by the library, nothing to download.

    forec-jax train --config=configs/shapes.py:forec --workdir=runs/forec

Variants: supervised, mean_teacher, reconstruction, forec, foreground_segmentation and sums of them ("+").
Two CPU cores are enough; docs/results.md has what was measured.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "shapes"
    c.data.labelled = "64:0"
    c.data.crop = 96
    c.data.scale = (0.8, 1.2)
    c.steps = 400
    c.log_every = 20
    c.evaluate_every = 200
    c.checkpoint_every = 200
    c.model.encoder = "resnet18"
    c.model.stem = "deep"
    c.model.width = 0.5
    c.model.decoder.rates = (1, 2, 3)  # of 6x6 features: larger dilations would read the padding only
    c.model.decoder.channels = 64
    c.model.decoder.low_level_channels = 48
    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 1e-2
    c.eval.batch = 16
    c.eval.bucket = 96
    return apply_variant(c, variant)
