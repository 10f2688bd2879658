"""CamVid with SegNet's 11 classes, 480x360.

    forec-jax train --config=configs/camvid.py:forec --workdir=runs/camvid_forec --config.data.root=CamVid

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `small` for a
CPU core, with VOC's settings (weights: --config.model.weights=efficientnet_lite2). FOrec's background is road.
The default is ResNet-50 at output stride 16, crop 321, 8 + 8 images a step, an eighth of the 367 training images labelled;
one GPU. Its optimiser is that of Cityscapes, as the papers have none for CamVid. Not yet measured.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults
from forec_jax.variants import SMALL_PRETRAINED


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "camvid"
    c.data.labelled = "46:0"
    c.optim.lr = 1e-2
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 5e-4
    return apply_variant(c, variant, {"small": SMALL_PRETRAINED})
