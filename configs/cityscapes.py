"""Cityscapes with its 19 training classes, 2048x1024.

    forec-jax train --config=configs/cityscapes.py:forec --workdir=runs/cityscapes_forec \
        --config.data.root=cityscapes --config.data.labelled=lists/186.txt

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `paper` for the
FOrec paper's hyper-parameters (weights of its stem: --config.model.weights=hf:timm/resnet101s.gluon_in1k), `u2pl_paper`,
`ael_paper`, `unimatch_paper` and `prevmatch_paper` (the same), `ps_mt_paper`, `cps_paper` and `gct_paper`
(hf:timm/resnet50s.gluon_in1k), `s4gan_paper`, `adv_semseg_paper` and `vat_paper` (hf:timm/resnet101.tv_in1k),
`unimatch_v2_paper` and `fixmatch_paper` (hf:facebook/dinov2-base), `cac_paper` (the default's) for theirs; `st_paper`,
`st_plus_plus_paper` and `dmt_paper` by `forec-jax chain`; `reco_paper` for ReCo's, which sees, and is scored on, images at
half their size; `scenery` for another background of FOrec: sky, vegetation and building. The paper does not say which class
it took; road is the default, and any other is --config.data.background=CLASS,CLASS.
The default is ResNet-50 at output stride 16, crop 513, 8 + 8 images a step; one large GPU. Not yet measured.
Published systems also use a threshold of 0 here: --config.method.threshold=0. As in theirs, the supervised loss is OHEM's
and evaluation goes by sliding windows of the crop's size.
"""

from ml_collections import ConfigDict

from forec_jax.config import Variant, apply_variant, defaults
from forec_jax.variants import (
    OF_AELS_AUTHORS,
    OF_DMTS_AUTHORS,
    OF_STS_AUTHORS,
    OF_VATS_AUTHORS,
    OTHERS,
    batch_of,
    trained,
)

OHEM = {"method.supervised_loss": "ohem", "method.ohem_min_kept": 100_000}  # 200,000 of two rows
UNIMATCH = {
    **OHEM,
    "method.threshold": 0.0,
    "data.crop": 801,
    "eval.crop": 801,
    "optim.lr": 5e-3,
    "optim.head_lr_multiplier": 1.0,
    **trained(steps=240 * (2603 // 8), every=10 * (2603 // 8)),
}
V2 = {
    **OHEM,
    "data.crop": 798,
    "eval.crop": 798,
    **trained(steps=180 * (2603 // 8), every=10 * (2603 // 8)),
}

ST_PAPER = {
    **OF_STS_AUTHORS,
    "data.crop": 721,
    "data.scale": (0.5, 2.0),
    "eval.mode": "whole",
    "optim.lr": 4e-3,
}
DMT_PAPER = {
    **OF_DMTS_AUTHORS,
    "data.longest_side": 1024,
    "data.crop": 361,
    "eval.mode": "whole",
    "optim.lr": 4e-3,
}
CHAIN_PAPERS = {
    # 240 passes in batches of 16; the list of 372 is repeated until it is as long as that of the images with masks.
    "st_first_paper": OTHERS["st_first_paper"].but(
        {**ST_PAPER, "batch.labelled": 16, **trained(steps=240 * (372 // 16), every=24 * (372 // 16))},
        meaning="the first training of ST and ST++ on the list of 372: ResNet-50, crop 721, 240 passes",
    ),
    "st_half_paper": OTHERS["st_half_paper"].but(
        {**ST_PAPER, **trained(steps=240 * ((4 * 372 + 1301) // 16), every=10 * ((4 * 372 + 1301) // 16))},
        meaning="ST++'s second training on the list of 372: 8 + 8 images, 240 passes over 1,301 masks and labels",
    ),
    "st_paper": OTHERS["st_paper"].but(
        {**ST_PAPER, **trained(steps=240 * ((7 * 372 + 2603) // 16), every=10 * ((7 * 372 + 2603) // 16))},
        meaning="ST, and ST++'s last training, on the list of 372: 8 + 8 images, 240 passes over 2,603 masks and labels",
    ),
    "dmt_first_paper": OTHERS["dmt_first_paper"].but(
        {**DMT_PAPER, "batch.labelled": 8, **trained(steps=170 * 47, every=10 * 47)},
        meaning="DMT's first trainings on a list of 372: half size, DeepLabV2, 8 images, 170 epochs",
    ),
    "dmt_paper": OTHERS["dmt_paper"].but(
        {
            **DMT_PAPER,
            "method.dmt.agreement_power": 3.0,
            "method.dmt.difference_power": 3.0,
            "batch.labelled": 2,
            "batch.pseudo": 6,
            **trained(steps=10 * 434, every=434),
        },
        meaning="a round of DMT on a list of 372: half size, DeepLabV2, 2 + 6 images, 10 epochs of the 2,603 others",
    ),
}

PARTS = {
    **CHAIN_PAPERS,
    "paper": Variant(
        {
            "model.encoder": "resnet101",
            "model.resnet.stem": "deep",
            "data.crop": 712,
            "eval.crop": 712,
            **trained(steps=200 * 2975 // 8, every=10 * 2975 // 8),
        },
        meaning="FOrec, section 5.1: ResNet-101, crop 712, batch 16, SGD 1e-2, weight decay 5e-4, 200 epochs of 2,975",
    ),
    "reco_paper": OTHERS["reco_paper"].but(
        {
            **batch_of(2),
            "method.supervised_loss": "cross_entropy",
            "data.longest_side": 1024,
            "data.crop": 512,
            "data.scale": (1.0, 1.0),
            "eval.mode": "whole",
        },
        meaning="ReCo, appendix A: images at half their size, crop 512 at one scale, 2 + 2 rows, plain loss",
    ),
    "ps_mt_paper": OTHERS["ps_mt_paper"].but(
        {
            "method.unsupervised_weight": 3.0,
            "method.ramp": 12 / 320,
            "augment.mixing": "cutmix_three",
            "model.resnet.stem": "deep",
            "model.resnet.multi_grid": (2, 2, 4),  # dilations 2, 4, 8
            "data.crop": 800,
            "eval.crop": 800,
            "optim.lr": 4.5e-3,
            "optim.weight_decay": 1e-4,
            **trained(steps=5 * 47 + 320 * 2603 // 8, every=10 * 2603 // 8),
        },
        meaning="PS-MT on the list of 372: ResNet-50, 5 passes over it, then 320 epochs (744: 450, 1,488: 550)",
    ),
    "s4gan_paper": OTHERS["s4gan_paper"].but(
        {
            "model.encoder": "resnet101",
            "method.threshold": 0.7,
            "optim.lr": 2.5e-4,
            "optim.head_lr_multiplier": 10.0,
            "steps": 40_000,
        },
        meaning="S4GAN with DeepLabV3+: 8 + 8 images, 40,000 steps",
    ),
    "unimatch_paper": OTHERS["unimatch_paper"].but(
        UNIMATCH, meaning="UniMatch on the list of 372: ResNet-101 at crop 801, 8 + 8 images, 240 epochs"
    ),
    "prevmatch_paper": OTHERS["prevmatch_paper"].but(
        {**UNIMATCH, "method.prevmatch.guided_threshold": 0.0, "method.prevmatch.image_confidence": True},
        meaning="PrevMatch on the list of 372: the same, each image's guided error by its confidence",
    ),
    "unimatch_v2_paper": OTHERS["unimatch_v2_paper"].but(
        V2, meaning="UniMatch V2 on the list of 372: 8 + 8, 180 epochs"
    ),
    "fixmatch_paper": OTHERS["fixmatch_paper"].but(V2, meaning="its FixMatch on the list of 372: 8 + 8, 180 epochs"),
    "cps_paper": OTHERS["cps_paper"].but(
        {
            "method.unsupervised_weight": 5.0,
            "method.supervised_loss": "ohem",
            "method.ohem_min_kept": 50_000,
            "model.resnet.stem": "deep",
            "data.crop": 800,
            "data.scale": (0.5, 2.0),
            "eval.crop": 800,
            # The published 2e-2 and 1e-4 with gradients that are divided by eight devices once more.
            "optim.lr": 2.5e-3,
            "optim.weight_decay": 8e-4,
            "optim.decay_batch_norm": False,
            **trained(steps=137 * 2603 // 8, every=10 * 2603 // 8),
        },
        meaning="CPS with CutMix, ResNet-50, on the list of 372: 8 + 8 images, 137 epochs; L_x counts 5 times",
    ),
    "u2pl_paper": OTHERS["u2pl_paper"].but(
        {
            "method.u2pl.contrast_weight": 0.125,
            "method.supervised_loss": "ohem",
            "method.ohem_min_kept": 50_000,
            "model.encoder": "resnet101",
            "data.crop": 769,
            "data.scale": (0.5, 2.0),
            "eval.crop": 769,
            "batch.labelled": 16,
            "batch.unlabelled": lambda c: 16 if c.batch.unlabelled else 0,
            **trained(steps=200 * 2789 // 16, every=10 * 2789 // 16),
        },
        meaning="U2PL on the list of 186: ResNet-101, crop 769, 16 + 16 images, 200 epochs",
    ),
    "ael_paper": OTHERS["ael_paper"].but(
        {
            "method.threshold": 0.0,
            "method.ael.paste_classes": 3,
            **OF_AELS_AUTHORS,
            "method.ael.row_area": 0.01,
            "method.ael.box_area": 0.005,
            "data.crop": 769,
            "eval.crop": 769,
            **trained(steps=200 * 2603 // 16, every=10 * 2603 // 16),
        },
        meaning="AEL on the list of 372: ResNet-101, crop 769, 16 + 16 images, 200 epochs",
    ),
    "adv_semseg_paper": OTHERS["adv_semseg_paper"].but(
        {
            **batch_of(2),
            "model.encoder": "resnet101",
            "model.resnet.output_stride": 8,
            "model.decoder": "deeplab_v2",
            "data.longest_side": 1024,
            "data.scale": (1.0, 1.0),
            "data.crop": 512,
            "eval.mode": "whole",
            "optim.lr": 2.5e-4,
            "optim.head_lr_multiplier": 10.0,
            "optim.weight_decay": 5e-4,
            "steps": 40_000,
        },
        meaning="AdvSemSeg as its paper describes it (no code is published): half size, 2 + 2 images, 40,000 steps",
    ),
    "gct_paper": OTHERS["gct_paper"].but(
        {
            "method.gct.ramp_epochs": 3,
            "model.resnet.stem": "deep",
            "data.crop": 800,
            "data.scale": (0.5, 2.0),
            "eval.crop": 800,
            "optim.lr": 2.5e-3,
            **trained(steps=137 * 2603 // 8, every=10 * 2603 // 8),
        },
        meaning="GCT as the authors of CPS ran it: DeepLabV3+, crop 800, 8 + 8 images, 137 epochs",
    ),
    "vat_paper": OTHERS["vat_paper"].but(
        {
            **batch_of(4),
            **OF_VATS_AUTHORS,
            "data.longest_side": 1024,
            "data.crop": 361,
            "data.scale": (1.0, 1.0),
            "eval.mode": "whole",
        },
        meaning="VAT, not published here, as its authors ran CutMix: half size, DeepLabV2, 4 + 4 images, 40,000 steps",
    ),
    "cac_paper": OTHERS["cac_paper"].but(
        {
            "method.cac.queue": 129_600,
            "method.cac.pushed": 129_600,
            "data.crop": 1080,  # crops of 720
            "data.scale": (0.5, 2.0),
            "augment.colour_labelled": True,
            "optim.lr": 1e-2,
            "optim.head_lr_multiplier": 10.0,
            "optim.weight_decay": 1e-4,
            **trained(steps=80 * 1157, every=10 * 1157),
        },
        meaning="CAC with DeepLabV3+: 8 + 8 images, two crops of 720 out of 1080, 80 x 1157 steps",
    ),
    "scenery": Variant({"data.background": "sky,vegetation,building"}, meaning="another background for FOrec"),
}


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "cityscapes"
    c.data.labelled = "186:0"
    c.data.crop = c.eval.crop = 513
    c.method.supervised_loss = "ohem"
    c.eval.mode = "sliding"
    c.optim.lr = 1e-2
    c.optim.head_lr_multiplier = 1.0
    c.optim.weight_decay = 5e-4
    c.eval.batch = 2
    return apply_variant(c, variant, PARTS)
