"""Masks from image-level tags: a classifier with its class activation maps, then WSSSByRec guided by it (docs/methods.md).

    forec-jax train --config=configs/tags.py:classifier --workdir=runs/classifier
    forec-jax train --config=configs/tags.py:wsss --workdir=runs/wsss --config.method.wsss_rec.classifier=runs/classifier
    forec-jax threshold --workdir=runs/wsss
    forec-jax bridge --workdir=runs/wsss --out=runs/masks

or all of it and a segmenter (mean_teacher + FOrec) on the masks by one command:

    forec-jax chain --config=configs/tags.py:shapes --workdir=runs/tags

Variants: `classifier` (or `cam`: its activation maps are what is evaluated), `wsss`, and for the latter the ablations
`no_reconstruction`, `no_mask_loss`, `no_class_loss`, `size_penalty`; for both, last, `paper` (its hyper-parameters);
`segmenter`, the last stage of `chain`; the data set `shapes` (unless named) or `voc`, all classes or one against the rest
(`dog`): `--config=configs/tags.py:voc+dog+classifier`. The data set comes first. `shapes` needs two CPU cores, `voc` a GPU;
not yet measured on a GPU.
"""

from ml_collections import ConfigDict

from forec_jax.config import apply_variant, defaults
from forec_jax.variants import Change


def _shapes(c: ConfigDict) -> None:
    """The embedded set, with the small networks of configs/shapes.py."""
    c.data.name = "shapes"
    c.data.shapes.size = 64
    c.data.crop = 64
    c.data.scale = (0.8, 1.2)
    c.steps = 800
    c.log_every = 20
    c.evaluate_every = c.checkpoint_every = 200
    c.model.resnet.stem = "deep"
    c.model.resnet.width = c.model.unet.width = 0.5
    c.model.resnet.output_stride = 8
    c.model.deeplab.rates = (1, 2, 3)
    c.model.deeplab.channels = 64
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.2
    c.augment.hue = 0.02
    c.augment.grayscale_probability = c.augment.blur_probability = 0.0
    c.eval.batch = 16
    c.eval.bucket = 64


def _voc(c: ConfigDict) -> None:
    """PASCAL VOC; data.root is the folder that holds VOC2012/. Thresholds are chosen by `--split=train`."""
    c.data.name = "voc"
    c.data.pool = "train_aug"
    c.data.crop = 224
    c.data.shapes.size = 224  # of the embedded images, which would fill a small part of the crop otherwise
    c.data.scale = (0.5, 1.5)
    c.steps = 10_000
    c.log_every = 50
    c.evaluate_every = c.checkpoint_every = 1000
    c.model.resnet.stem = "7x7"
    c.model.resnet.width = c.model.unet.width = 1.0
    c.model.resnet.output_stride = 16
    c.model.deeplab.rates = (6, 12, 18)
    c.model.deeplab.channels = 256
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.4
    c.augment.hue = 0.1
    c.eval.batch = 8
    c.eval.bucket = 128


def _dog(c: ConfigDict) -> None:
    c.data.tag = "dog"


def _classifier(c: ConfigDict) -> None:
    c.method.name = "tag_classifier"
    c.method.mask_threshold = 0.3
    c.batch.tagged = 32
    c.data.scale = (0.8, 1.2)


def _wsss(c: ConfigDict) -> None:
    c.method.name = "wsss_rec"
    c.method.mask_threshold = 0.5
    c.method.wsss_rec.mask_weight = c.method.wsss_rec.class_weight = 1e-2  # chosen on the tune split of shapes
    c.batch.tagged = 8


def _segmenter(c: ConfigDict) -> None:
    """mean_teacher + FOrec on the folder of masks that the stages before it wrote."""
    c.data.name = "folder"
    c.data.pool = "train"
    c.data.tag = ""
    c.batch.tagged = 0
    c.batch.labelled = c.batch.unlabelled = 8
    apply_variant(c, "mean_teacher+forec")


def _paper(c: ConfigDict) -> None:
    """The paper's U-Net, or ResNet-18 classifier, and its hyper-parameters: 10 epochs of 16,000 images of 224 x 224.

    The classifier starts from ImageNet's weights: --config.model.weights=hf:timm/resnet18.tv_in1k (docs/weights.md).
    """
    c.model.resnet.width = c.model.unet.width = 1.0
    c.model.resnet.stem = "7x7"
    c.model.resnet.output_stride = 32
    c.model.unet.align_corners = False
    c.model.unet.last_size = 3
    c.data.crop = c.data.longest_side = c.data.shapes.size = 224  # size: as for voc
    c.data.scale = (1.0, 1.0)
    c.data.flip = False
    c.augment.jitter_probability = c.augment.grayscale_probability = c.augment.blur_probability = 0.0
    c.optim.lr = 1e-4
    c.optim.weight_decay = 0.0  # AdamW without decay is Adam
    c.optim.poly_power = 0.0  # a constant rate
    c.batch.tagged = 64 if c.method.name == "tag_classifier" else 8  # half of them with the tag, half without
    c.steps = 10 * 16_000 // c.batch.tagged
    if c.method.name == "wsss_rec":
        c.model.encoder = "unet"
        c.method.wsss_rec.update({"mask_weight": 1e-3, "class_weight": 1e-3, "mask_loss": "area"})
        c.method.wsss_rec.update({"area_of_classes": "sum", "class_of_parts": "mean"})


def _without(weight: str) -> Change:
    def change(c: ConfigDict) -> None:
        c.method.wsss_rec[weight] = 0.0

    return change


def _size_penalty(c: ConfigDict) -> None:
    c.method.wsss_rec.mask_loss = "size_penalty"


PARTS = {
    "shapes": _shapes,
    "voc": _voc,
    "dog": _dog,
    "classifier": _classifier,
    "cam": _classifier,
    "wsss": _wsss,
    "segmenter": _segmenter,
    "paper": _paper,
    "no_reconstruction": _without("reconstruction_weight"),
    "no_mask_loss": _without("mask_weight"),
    "no_class_loss": _without("class_weight"),
    "size_penalty": _size_penalty,
}


def get_config(variant: str = "wsss") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.batch.labelled = c.batch.unlabelled = 0
    c.model.encoder = "resnet18"
    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 1e-4
    _shapes(c)
    return apply_variant(c, variant, PARTS)
