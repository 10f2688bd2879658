"""PASCAL VOC 2012 with the SBD masks.

    forec-jax train --config=configs/voc.py:forec --workdir=runs/voc_forec \
        --config.data.root=VOCdevkit --config.data.labelled=lists/92.txt --config.data.pool=train_aug

Variants: the methods and tasks of docs/methods.md and sums of them ("+"); `paper` for the
FOrec paper's hyper-parameters (weights of its stem: --config.model.weights=hf:timm/resnet101s.gluon_in1k), `ps_mt_paper`,
`u2pl_paper`, `ael_paper`, `unimatch_paper` and `prevmatch_paper` (the same stem), `cps_paper` and `cct_paper`
(hf:timm/resnet50s.gluon_in1k),
`s4gan_paper`, `adv_semseg_paper`, `gct_paper` and `vat_paper` (hf:timm/resnet101.tv_in1k), `pseudoseg_paper` (as `paper`),
`cac_paper` (the default's weights), `unimatch_v2_paper` and `fixmatch_paper` (hf:facebook/dinov2-base) for those of these
papers, and by `forec-jax chain` `st_paper`, `st_plus_plus_paper` and `dmt_paper`; `ecs_paper` for what is known of one more;
`small` for a CPU core (weights: --config.model.weights=efficientnet_lite2; docs/results.md has scores).
The default is ResNet-50 at output stride 16, crop 321, 8 + 8 images a step; one GPU. Not yet measured on a GPU.
"""

from ml_collections import ConfigDict

from forec_jax.config import Variant, apply_variant, defaults
from forec_jax.variants import (
    OF_AELS_AUTHORS,
    OF_DMTS_AUTHORS,
    OF_STS_AUTHORS,
    OF_VATS_AUTHORS,
    OTHERS,
    SMALL_PRETRAINED,
    batch_of,
    trained,
)

PAPER = Variant(
    {
        "model.encoder": "resnet101",
        "model.resnet.stem": "deep",
        "data.crop": 512,
        "data.pool": "train_aug",
        **trained(steps=80 * 10582 // 8, every=10582 // 8),
    },
    meaning="FOrec, section 5.1: ResNet-101, crop 512, batch 16, SGD 1e-3, weight decay 1e-4, 80 epochs of 10,582 images",
)

PS_MT_PAPER = OTHERS["ps_mt_paper"].but(
    {
        "model.encoder": "resnet101",
        "model.resnet.stem": "deep",
        "model.resnet.multi_grid": (2, 2, 4),  # dilations 2, 4, 8
        "data.crop": 512,
        "data.scale": (0.6, 2.4),  # of a side of 500 pixels: 0.5 to 2 times 600
        "data.pool": "train_aug",
        "optim.lr": 2.5e-3,
        "optim.head_lr_multiplier": 1.0,
        **trained(steps=60 + 80 * 10490 // 8, every=10490 // 8),
    },
    meaning="PS-MT on the list of 92: 5 passes over it, then 80 epochs; that list's unsupervised_weight is 0.06",
)
S4GAN_PAPER = OTHERS["s4gan_paper"].but(
    {
        "model.encoder": "resnet101",
        "data.crop": 321,
        "data.scale": (0.5, 1.6),
        "data.pool": "train_aug",
        "optim.lr": 2.5e-4,
        "optim.head_lr_multiplier": 10.0,
        "optim.weight_decay": 5e-4,
        "steps": 40_000,
    },
    meaning="S4GAN with DeepLabV3+: 8 + 8 images, 40,000 steps",
)
UNIMATCH = {
    "data.crop": 321,
    "data.pool": "train_aug",
    "optim.lr": 1e-3,
    "optim.head_lr_multiplier": 10.0,
    **trained(steps=80 * (10490 // 8), every=10490 // 8),
}
V2 = {
    "data.pool": "train_aug",
    "batch.labelled": 16,
    "batch.unlabelled": lambda c: 16 if c.batch.unlabelled else 0,
    **trained(steps=60 * (10490 // 16), every=10490 // 16),
}
CPS_PAPER = OTHERS["cps_paper"].but(
    {
        "model.resnet.stem": "deep",
        "data.crop": 512,
        "data.scale": (0.5, 2.0),
        "data.pool": "train_aug",
        "eval.mode": "sliding",
        "eval.crop": 512,
        # The published 1e-2 and 1e-4 with gradients that are divided by four devices once more.
        "optim.lr": 2.5e-3,
        "optim.weight_decay": 4e-4,
        "optim.decay_batch_norm": False,
        "optim.head_lr_multiplier": 1.0,
        **trained(steps=34 * 9259 // 8, every=9259 // 8),
    },
    meaning="CPS with CutMix, ResNet-50, 8 + 8 images, 34 epochs of the 9,259 images that an eighth leaves over",
)
U2PL_PAPER = OTHERS["u2pl_paper"].but(
    {
        "model.encoder": "resnet101",
        "data.crop": 513,
        "data.scale": (0.5, 2.0),
        "data.pool": "train_aug",
        "method.start": 1 / 80,
        **trained(steps=80 * 10490 // 16, every=10490 // 16),
        "batch.labelled": 16,
        "batch.unlabelled": lambda c: 16 if c.batch.unlabelled else 0,
    },
    meaning="U2PL on the list of 92: ResNet-101, crop 513, 16 + 16 images, 80 epochs, the first from labels alone",
)
AEL_PAPER = OTHERS["ael_paper"].but(
    {
        **OF_AELS_AUTHORS,
        "data.crop": 513,
        "data.pool": "train_aug",
        **trained(steps=80 * 9259 // 16, every=9259 // 16),
    },
    meaning="AEL: ResNet-101, crop 513, 16 + 16 images, 80 epochs of the 9,259 images that an eighth leaves over",
)
VAT_PAPER = OTHERS["vat_paper"].but(
    {
        **batch_of(10),
        **OF_VATS_AUTHORS,
        "data.crop": 321,
        "data.scale": (0.5, 1.5),
        "data.pool": "train_aug",
    },
    meaning="VAT with DeepLabV2: 10 + 10 images, Adam at a constant 3e-5 (encoder 3e-6), 40,000 steps",
)
ADV_SEMSEG_PAPER = OTHERS["adv_semseg_paper"].but(
    {
        **batch_of(10),
        "model.encoder": "resnet101",
        "model.resnet.output_stride": 8,
        "model.decoder": "deeplab_v2",
        "data.crop": 321,
        "data.scale": (0.5, 1.5),
        "data.pool": "train_aug",
        "optim.lr": 2.5e-4,
        "optim.head_lr_multiplier": 10.0,
        "optim.weight_decay": 5e-4,
        "steps": 20_000,
    },
    meaning="AdvSemSeg with DeepLabV2: 10 + 10 images, 20,000 steps",
)
GCT_PAPER = OTHERS["gct_paper"].but(
    {
        "model.encoder": "resnet101",
        "model.decoder": "pspnet",
        "data.crop": 513,
        "data.scale": (0.7, 2.7),  # of a side of 375 pixels: 0.5 to 2 times 513
        "data.pool": "train_aug",
        # The published rates, 2.5e-4 and 1e-4, are of one device of four.
        "method.gct.lr": 4e-4,
        "optim.lr": 1e-3,
        "optim.head_lr_multiplier": 10.0,
        "optim.weight_decay": 5e-4,
        **trained(steps=45 * 9259 // 8, every=9259 // 8),
    },
    meaning="GCT with PSPNet: 8 + 8 images, 45 epochs of the 9,259 images that an eighth leaves over",
)
CCT_PAPER = OTHERS["cct_paper"].but(
    {
        **batch_of(10),
        "model.resnet.stem": "deep",
        "model.resnet.output_stride": 8,
        "model.decoder": "pspnet",
        "data.crop": 320,
        "data.scale": (0.4, 1.6),  # of a side of 500 pixels: 0.5 to 2 times 400
        "data.pool": "train_aug",
        "optim.lr": 1e-3,
        "optim.head_lr_multiplier": 10.0,
        "optim.weight_decay": 1e-4,
        **trained(steps=80 * 9118 // 10, every=9118 // 10),
    },
    meaning="CCT on the list of 1464: ResNet-50 with PSPNet, crop 320, 10 + 10 images, 80 epochs of the 9,118 others",
)
CAC_PAPER = OTHERS["cac_paper"].but(
    {
        "data.crop": 480,  # crops of 320
        "data.scale": (0.5, 2.0),
        "data.pool": "train_aug",
        "optim.lr": 1e-3,
        "optim.head_lr_multiplier": 10.0,
        "optim.weight_decay": 1e-4,
        **trained(steps=80 * 1157, every=1157),
    },
    meaning="CAC with DeepLabV3+, ResNet-50: 8 + 8 images, two crops of 320 out of 480, 80 x 1157 steps",
)
PSEUDOSEG_PAPER = OTHERS["pseudoseg_paper"].but(
    {
        **batch_of(64),
        "model.encoder": "resnet101",
        "model.resnet.stem": "deep",
        "model.bn_momentum": 0.9997,
        "data.crop": 513,
        "data.scale": (0.5, 2.0),
        "data.pool": "train_aug",
        "data.unlabelled": "all",
        "data.overlap": True,
        "optim.lr": 7e-3,
        "optim.head_lr_multiplier": 1.0,
        "optim.weight_decay": 1e-4,
        "steps": 30_000,
    },
    meaning="PseudoSeg with ResNet-101: 64 + 64 images, those of all of train_aug, 30,000 steps",
)
ST_PAPER = {
    **OF_STS_AUTHORS,
    "model.encoder": "resnet101",
    "data.crop": 321,
    "data.scale": (0.4, 1.6),  # of a side of 500 pixels: 0.5 to 2 times 400
    "data.pool": "train_aug",
    "optim.lr": 1e-3,
}
DMT_PAPER = {**OF_DMTS_AUTHORS, "data.crop": 321, "data.pool": "train_aug"}
CHAIN_PAPERS = {
    # 80 passes in batches of 16; the list of 92 is repeated until it is as long as that of the images with masks.
    "st_first_paper": OTHERS["st_first_paper"].but(
        {**ST_PAPER, "batch.labelled": 16, **trained(steps=80 * (2 * 92 // 16), every=8 * (2 * 92 // 16))},
        meaning="the first training of ST and ST++ on the list of 92: ResNet-101, crop 321, 80 passes over it twice",
    ),
    "st_half_paper": OTHERS["st_half_paper"].but(
        {**ST_PAPER, **trained(steps=80 * ((58 * 92 + 5245) // 16), every=(58 * 92 + 5245) // 16)},
        meaning="ST++'s second training on the list of 92: 8 + 8 images, 80 passes over 5,245 masks and labels",
    ),
    "st_paper": OTHERS["st_paper"].but(
        {**ST_PAPER, **trained(steps=80 * ((115 * 92 + 10490) // 16), every=(115 * 92 + 10490) // 16)},
        meaning="ST, and ST++'s last training, on the list of 92: 8 + 8 images, 80 passes over 10,490 masks and labels",
    ),
    "dmt_first_paper": OTHERS["dmt_first_paper"].but(
        {**DMT_PAPER, "batch.labelled": 8, "optim.lr": 2e-3, **trained(steps=134 * 67, every=10 * 67)},
        meaning="DMT's first trainings on a list of 529 (1/20): DeepLabV2, crop 321, 8 images, 134 epochs",
    ),
    "dmt_paper": OTHERS["dmt_paper"].but(
        {
            **DMT_PAPER,
            "batch.labelled": 1,
            "batch.pseudo": 7,
            "optim.lr": 1e-3,
            **trained(steps=4 * 1437, every=1437),
        },
        meaning="a round of DMT on a list of 529 (1/20): DeepLabV2, crop 321, 1 + 7 images, 4 epochs of the 10,053 others",
    ),
}
PARTS = {
    **CHAIN_PAPERS,
    "small": SMALL_PRETRAINED,
    "paper": PAPER,
    "ps_mt_paper": PS_MT_PAPER,
    "s4gan_paper": S4GAN_PAPER,
    "unimatch_paper": OTHERS["unimatch_paper"].but(
        UNIMATCH, meaning="UniMatch on ResNet-101 at crop 321: 8 + 8 images, 80 epochs"
    ),
    "prevmatch_paper": OTHERS["prevmatch_paper"].but(
        UNIMATCH, meaning="PrevMatch on ResNet-101 at crop 321: 8 + 8 images, 80 epochs"
    ),
    "unimatch_v2_paper": OTHERS["unimatch_v2_paper"].but(V2, meaning="UniMatch V2 on DINOv2-B: 16 + 16, 60 epochs"),
    "fixmatch_paper": OTHERS["fixmatch_paper"].but(V2, meaning="its FixMatch on DINOv2-B: 16 + 16, 60 epochs"),
    "cps_paper": CPS_PAPER,
    "cct_paper": CCT_PAPER,
    "u2pl_paper": U2PL_PAPER,
    "ael_paper": AEL_PAPER,
    "vat_paper": VAT_PAPER,
    "adv_semseg_paper": ADV_SEMSEG_PAPER,
    "gct_paper": GCT_PAPER,
    "cac_paper": CAC_PAPER,
    "pseudoseg_paper": PSEUDOSEG_PAPER,
}


def get_config(variant: str = "forec") -> ConfigDict:
    """The config of a variant."""
    c = defaults()
    c.data.name = "voc"
    c.data.labelled = "92:0"
    return apply_variant(c, variant, PARTS)
