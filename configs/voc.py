"""PASCAL VOC 2012 with the SBD masks.

    forec-jax train --config=configs/voc.py:forec --workdir=runs/voc_forec \
        --config.data.root=VOCdevkit --config.data.labelled=lists/92.txt --config.data.pool=train_aug

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `paper` for the
FOrec paper's hyper-parameters; `small` for two CPU cores (docs/results.md has its mIoU).
The default is ResNet-50 at output stride 16, crop 321, 8 + 8 images a step; one GPU. Not yet measured on a GPU.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults


def _paper(c: ConfigDict) -> None:
    """FOrec, section 5.1: ResNet-101, crop 512, batch 16, SGD 1e-3, weight decay 1e-4, 80 epochs of 10,582 images."""
    c.model.encoder = "resnet101"
    c.model.stem = "deep"
    c.data.crop = 512
    c.data.pool = "train_aug"
    c.steps = 80 * 10582 // 8
    c.evaluate_every = c.checkpoint_every = 10582 // 8


def _small(c: ConfigDict) -> None:
    """MobileNetV2 with a narrow decoder at crop 128: a run of minutes on two CPU cores."""
    c.model.encoder = "mobilenet_v2"
    c.model.output_stride = 8
    c.model.decoder.channels = 64
    c.model.decoder.low_level_channels = 24
    c.data.crop = 128
    c.data.scale = (0.3, 1.0)
    c.optim.name = "adamw"  # in so few steps SGD learns the background and little else
    c.optim.lr = 3e-4
    c.optim.head_lr_multiplier = 5.0
    c.optim.weight_decay = 1e-2
    c.steps = 400
    c.evaluate_every = c.checkpoint_every = 200


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "voc"
    c.data.labelled = "92:0"
    return apply_variant(c, variant, {"paper": _paper, "small": _small})
