"""SUN RGB-D with 37 classes, indoor scenes; colour alone, no depth.

    forec-jax train --config=configs/sunrgbd.py:reco --workdir=runs/sunrgbd_reco --config.data.root=SUN_RGBD \
        --config.data.labelled=balanced:50:0

Variants: the methods and tasks of docs/methods.md and sums of them ("+"), `reco_paper` for ReCo's hyper-parameters.
FOrec's background is wall; any other is --config.data.background=CLASS,CLASS.
The default is ResNet-50 at output stride 16, crop 321, 8 + 8 images a step, 150 labelled images; one GPU. Not yet measured.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults
from forec_jax.variants import OTHERS, batch_of

RECO_PAPER = OTHERS["reco_paper"].but(
    batch_of(5),
    meaning="ReCo, appendix A: as on VOC, with five images a step (the paper scales all images to 384x512 first)",
)


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "sunrgbd"
    c.data.labelled = "balanced:150:0"
    c.optim.lr = 2.5e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 5e-4
    return apply_variant(c, variant, {"reco_paper": RECO_PAPER})
