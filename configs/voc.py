"""PASCAL VOC 2012 with the SBD masks.

    forec-jax train --config=configs/voc.py:forec --workdir=runs/voc_forec \
        --config.data.root=VOCdevkit --config.data.labelled=lists/92.txt --config.data.pool=train_aug

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `paper` for the
FOrec paper's hyper-parameters (weights of its stem: --config.model.weights=hf:timm/resnet101s.gluon_in1k);
`small` for two CPU cores (docs/results.md has its mIoU).
The default is ResNet-50 at output stride 16, crop 321, 8 + 8 images a step; one GPU. Not yet measured on a GPU.
"""

from ml_collections import ConfigDict

from forec_jax.config import Variant, apply_variant, defaults

PAPER = Variant(
    {
        "model.encoder": "resnet101",
        "model.resnet.stem": "deep",
        "data.crop": 512,
        "data.pool": "train_aug",
        "steps": 80 * 10582 // 8,
        "evaluate_every": 10582 // 8,
        "checkpoint_every": 10582 // 8,
    },
    meaning="FOrec, section 5.1: ResNet-101, crop 512, batch 16, SGD 1e-3, weight decay 1e-4, 80 epochs of 10,582 images",
)


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "voc"
    c.data.labelled = "92:0"
    return apply_variant(c, variant, {"paper": PAPER})
