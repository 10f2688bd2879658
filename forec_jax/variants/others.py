"""What the parts of a variant's name do that are neither a method nor a task ("small+ps_mt+cutmix")."""

from collections.abc import Mapping
from typing import Any

from forec_jax.variants.chains import CHAIN_VARIANTS
from forec_jax.variants.encoders import ENCODER_VARIANTS
from forec_jax.variants.part import FROM_THE_START, Variant, own_colours
from forec_jax.variants.partial import PARTIAL_VARIANTS
from forec_jax.variants.unimatch import UNIMATCH_VARIANTS


def _half_mixing(name: str) -> Variant:
    """A baseline of ReCo's: this mixing in every unlabelled row, with the colours of ReCo and ClassMix."""
    return Variant(
        {
            "augment.mixing": name,
            "augment.mixing_probability": 1.0,
            "augment.mix_labelled": False,
            **dict.fromkeys((f"augment.{change}" for change in ("brightness", "contrast", "saturation", "hue")), 0.25),
            "augment.grayscale_probability": 0.0,
            "augment.blur_sigma": (0.15, 1.15),
        },
        meaning=f"ReCo's baseline: {name} of every unlabelled row, with ReCo's colours",
    )


def batch_of(rows: int) -> dict[str, Any]:
    """ReCo's batch: as many labelled as unlabelled rows, and as many labelled ones again where there are no others.

    Partial labels, whose rows a teacher completes, have no other rows either.
    """
    return {
        "batch.labelled": lambda c: 2 * rows if c.method.name == "supervised" else rows,
        "batch.unlabelled": lambda c: rows if c.batch.unlabelled else 0,
    }


def trained(steps: int, every: int) -> dict[str, Any]:
    """A training's length, evaluated and stored after each so many steps."""
    return {"steps": steps, "evaluate_every": every, "checkpoint_every": every}


_MOCOS_COLOURS: Mapping[str, Any] = {
    **dict.fromkeys((f"augment.{change}" for change in ("brightness", "contrast", "saturation")), 0.4),
    "augment.hue": 0.1,
    "augment.jitter_probability": 0.8,
    "augment.grayscale_probability": 0.2,
}
"""The changes of colours of VAT's and CAC's authors, but for the blur."""

OF_VATS_AUTHORS: Mapping[str, Any] = {
    "model.encoder": "resnet101",
    "model.resnet.output_stride": 8,
    "model.decoder": "deeplab_v2",
    "model.encoder_statistics": "weights",
    "optim.name": "adamw",  # Adam, as nothing decays
    "optim.lr": 3e-6,
    "optim.head_lr_multiplier": 10.0,
    "optim.weight_decay": 0.0,
    "optim.poly_power": 0.0,
    "steps": 40_000,
}
"""The network and the optimiser of VAT's authors (French et al., 2020), on each of their data sets."""

OF_AELS_AUTHORS: Mapping[str, Any] = {
    # Cityscapes' large classes; the released code has the same numbers on VOC.
    "method.ael.not_pasted": (0, 1, 2, 8, 10),
    "model.encoder": "resnet101",
    "data.scale": (0.5, 2.0),
    # The published 1e-2 and 1e-4 with gradients that are divided by eight devices once more.
    "optim.lr": 1.25e-3,
    "optim.head_lr_multiplier": 10.0,
    "optim.weight_decay": 8e-4,
    "batch.labelled": 16,
    "batch.unlabelled": lambda c: 16 if c.batch.unlabelled else 0,
}
"""What AEL's authors had on each of their data sets."""

OTHERS: Mapping[str, Variant] = {
    **ENCODER_VARIANTS,
    **PARTIAL_VARIANTS,
    **UNIMATCH_VARIANTS,
    **CHAIN_VARIANTS,
    "cutout": _half_mixing("cutout_half"),
    "cutmix": _half_mixing("cutmix_half"),
    "classmix": _half_mixing("classmix"),
    "reconstruction_only": Variant(
        {"method.supervised_weight": 0.0, "method.unsupervised_weight": 0.0},
        of=("reconstruction",),
        meaning="no segmentation loss: the autoencoder of FOrec's Figure 1",
    ),
    "eta": Variant(
        {"method.normaliser": "eta", "method.threshold": 0.97},
        meaning="L_u as ReCo weights it, with or without contrast",
    ),
    "reco_paper": Variant(
        {
            "model.encoder": "resnet101",
            "ema.bn_mode": "own",
            **batch_of(10),
            "auxiliary.reco.class_mean": "present",
            "auxiliary.reco.sure_pixels": True,
            "data.crop": 321,
            "data.scale": (0.5, 1.5),
            "data.unlabelled_plain": True,  # the student scales its view by the same range, and mirrors it
            "method.separate_passes": True,
            "augment.student_scale": lambda c: tuple(c.data.scale),
            "augment.student_order": "before",
            "augment.student_flip": True,
            "augment.student_labelled": False,
            "optim.lr": 2.5e-3,
            "optim.head_lr_multiplier": 1.0,
            "optim.weight_decay": 5e-4,
            "steps": 40_000,
        },
        of=("reco", "eta", "classmix"),
        meaning="ReCo, section 3.3 and appendix A: ClassMix, eta, one learning rate; VOC's crop and batch",
    ),
    "ps_mt_paper": Variant(
        {
            "method.ps_mt.warmup_passes": 5,
            "method.ps_mt.teacher_mode": "train",
            "method.ps_mt.top_classes": 7,
            "method.ps_mt.perturbed": "fused",
            "method.ps_mt.direction": "published",
            "method.separate_passes": True,
            "method.start": 0.0,
            "method.supervised_loss": "cross_entropy",
            "augment.mixing": "cutmix_clipped",
        },
        of=("ps_mt",),
        meaning="PS-MT as its authors ran it: warm-up, teachers, T-VAT and CutMix",
    ),
    "s4gan_paper": Variant(
        {
            "method.s4gan.gaps": "shown",
            "method.separate_passes": True,
            "method.unsupervised_weight": 1.0,
            **FROM_THE_START,
            **own_colours(),
        },
        of=("s4gan",),
        meaning="S4GAN as its authors ran it: no change of colours, no ramp, void and padding as they are",
    ),
    "cps_unmixed": Variant(
        {"method.unsupervised_weight": 1.5, "method.cps.cross": "all", "augment.mixing": "none"},
        of=("cps",),
        meaning="CPS without CutMix: labelled rows in the cross loss as well, which counts 1.5 times",
    ),
    "cps_paper": Variant(
        {
            "method.cps.label_mode": "train",
            "method.cps.gaps": "shown",
            "data.unlabelled_pairs": True,
            "augment.mixing": "cutmix_pairs",
            "method.separate_passes": True,
            **FROM_THE_START,
            **own_colours(),
        },
        of=("cps",),
        meaning="CPS with CutMix as its authors ran it: of two crops of one image, no change of colours, no ramp",
    ),
    "cct_paper": Variant(
        {
            "method.cct.gaps": "shown",
            "method.separate_passes": True,
            "method.start": 0.0,
            "method.supervised_loss": "cross_entropy",
            **own_colours(),
        },
        of=("cct",),
        meaning="CCT as its authors ran it: no change of colours, labelled rows in a pass of their own",
    ),
    "u2pl_paper": Variant(
        {
            "method.u2pl.negatives": "released",
            "method.u2pl.gaps": "shown",
            "method.u2pl.contrast_weight": 0.25,  # 1, with a gradient that is divided by four devices once more
            "method.u2pl.queue": 30_000,
            "method.u2pl.pushed": 4096,
            "method.ramp": 0.0,
            "method.supervised_loss": "cross_entropy",
            **own_colours(),
        },
        of=("u2pl", "u2pl_model"),
        meaning="U2PL as its authors ran it: the released code's contrast, its network, no change of colours",
    ),
    "ael_paper": Variant(
        {
            "method.ael.bank_start": "noise",
            "method.ael.absent": "zero",
            "method.ael.label_mode": "train",
            "ema.bn_mode": "own",
            "method.start": 0.0,
            "method.ramp": 0.0,
            "method.supervised_loss": "ohem",
            "method.ohem_min_kept": 50_000,  # 100,000 of a device's two rows
            **own_colours(),
        },
        of=("ael", "u2pl_model"),
        meaning="AEL as its authors ran it: the released code's bank, its network, no change of colours",
    ),
    "adv_semseg_paper": Variant(
        {
            "method.adv_semseg.gaps": "shown",
            "method.separate_passes": True,
            **FROM_THE_START,
            **own_colours(),
        },
        of=("adv_semseg",),
        meaning="AdvSemSeg as its authors ran it: no change of colours, no ramp, void and padding as they are",
    ),
    "gct_paper": Variant(
        {
            "method.gct.gaps": "shown",
            "method.start": 0.0,
            "method.supervised_loss": "cross_entropy",
            **own_colours(),
            "augment.blur_probability": 0.5,
            "augment.blur_sigma": (0.01, 1.0),
        },
        of=("gct",),
        meaning="GCT as its authors ran it: some blur and no change of colours, void and padding as they are",
    ),
    "vat_paper": Variant(
        {
            "method.separate_passes": True,
            **FROM_THE_START,
            **_MOCOS_COLOURS,
            "augment.blur_probability": 0.0,
        },
        of=("vat",),
        meaning="VAT as French et al. ran it: MoCo's colours for the unlabelled rows, no ramp",
    ),
    "cac_paper": Variant(
        {
            "method.cac.queue": 51_200,
            "method.cac.pushed": 25_600,
            "method.ramp": 0.0,
            "method.supervised_loss": "cross_entropy",
            **_MOCOS_COLOURS,
            "augment.blur_probability": 0.5,
        },
        of=("cac",),
        meaning="CAC as its authors ran it: their store, MoCo's colours in the crops alone, no ramp",
    ),
    "pseudoseg_paper": Variant(
        {
            "method.pseudoseg.label_mode": "train",
            "method.separate_passes": True,
            **FROM_THE_START,
            **dict.fromkeys((f"augment.{change}" for change in ("brightness", "contrast", "saturation")), 0.5),
            "augment.hue": 0.25,
            "augment.jitter_probability": 1.0,
            "augment.grayscale_probability": 0.0,
            "augment.blur_probability": 0.0,
        },
        of=("pseudoseg",),
        meaning="PseudoSeg as its authors ran it: strong colours and a square cut out, no ramp, BatchNorm of the batch",
    ),
    "ecs_paper": Variant(
        {
            **FROM_THE_START,
            **own_colours(),
        },
        of=("ecs",),
        meaning="ECS with no change of colours and no ramp; reconstructed from its abstract, not verified",
    ),
    "other_lambdas": Variant(
        {
            "method.unsupervised_weight": 0.5,
            "auxiliary.*.labelled_weight": 1.0,
            "auxiliary.*.unlabelled_weight": 1.0,
        },
        meaning="L = L_s + 0.5 L_u + 1 L_rec, the other reading of FOrec's two lambdas",
    ),
    "u2pl_model": Variant(
        {
            "model.resnet.stem": "deep",
            "model.resnet.output_stride": 8,
            "model.resnet.multi_grid": (2, 2, 4),
            "model.deeplab.rates": (12, 24, 36),
            "model.deeplab.low_level_channels": 256,
            "model.deeplab.projection_size": 3,
            "model.deeplab.dropout": 0.1,
        },
        meaning="DeepLabV3+ as in U2PL",
    ),
    "small": Variant(
        {
            "model.encoder": "mobilenet_v2",
            "model.mobilenet_v2.output_stride": 8,
            "model.deeplab.channels": 64,
            "model.deeplab.low_level_channels": 24,
            "data.crop": 128,
            "data.scale": (0.3, 1.0),
            "optim.name": "adamw",  # in so few steps SGD learns the background and little else
            "optim.lr": 3e-4,
            "optim.head_lr_multiplier": 5.0,
            "optim.weight_decay": 1e-2,
            "steps": 400,
            "evaluate_every": 200,
            "checkpoint_every": 200,
        },
        meaning="MobileNetV2 with a narrow decoder at crop 128: a quarter of an hour on a CPU core",
    ),
    "share_aspp": Variant({"model.deeplab.share_aspp": True}, meaning="a departure of FOrec: all heads read one ASPP"),
}
"""The parts that are neither a method nor a task."""


def _of_a_short_training(threshold: float) -> float:
    """No threshold in place of the usual 0.95, which few pixels pass in few steps (docs/lessons.md); another stays."""
    return 0.0 if threshold == 0.95 else threshold


SMALL_PRETRAINED = OTHERS["small"].but(
    {
        "model.encoder": "efficientnet_lite2",
        "batch.labelled": 4,
        "batch.unlabelled": lambda c: min(c.batch.unlabelled, 4),
        "batch.pseudo": lambda c: min(c.batch.pseudo, 4),
        "data.longest_side": 256,
        "data.scale": (0.75, 1.5),  # so that training and evaluation see things at the same size
        "data.crop": 177,
        "method.ramp": 0.4,  # first labels, then pseudo-labels
        "method.threshold": lambda c: _of_a_short_training(c.method.threshold),
        "steps": 600,
    },
    meaning="EfficientNet-Lite2 with a narrow decoder, photographs of 256 pixels, crop 177: ten minutes on a CPU core",
)
"""The part `small` of data sets of photographs. It wants weights: --config.model.weights=efficientnet_lite2."""
