"""What the trainings of a published chain set (`experiment/chains.py`), on every data set: data."""

from collections.abc import Mapping
from typing import Any

from forec_jax.variants.part import FROM_THE_START, Variant, own_colours

_FIRST = {
    "method.supervised_loss": "cross_entropy",
    "augment.mixing": "none",
    "augment.mix_labelled": False,
    **own_colours(),
}

OF_STS_AUTHORS: Mapping[str, Any] = {
    "model.deeplab.rates": (12, 24, 36),
    "optim.head_lr_multiplier": 10.0,
    "optim.weight_decay": 1e-4,
}
"""The network and the optimiser of ST's and ST++'s authors, on each of their data sets."""

OF_DMTS_AUTHORS: Mapping[str, Any] = {
    "model.encoder": "resnet101",
    "model.resnet.output_stride": 8,
    "model.decoder": "deeplab_v2",
    "data.scale": (0.5, 1.5),
    "optim.head_lr_multiplier": 1.0,
    "optim.weight_decay": 5e-4,
}
"""The network, the scales and the optimiser of DMT's authors, on each of their data sets."""

CHAIN_VARIANTS: Mapping[str, Variant] = {
    "st_first_paper": Variant(
        _FIRST,
        of=("supervised",),
        meaning="the first training of st_paper and st_plus_plus_paper: plain labels",
    ),
    "st_half_paper": Variant(
        FROM_THE_START, of=("st",), meaning="the second training of st_plus_plus_paper, beside the reliable half"
    ),
    "st_paper": Variant(FROM_THE_START, of=("st",), meaning="ST, and the last training of ST++, as its authors ran it"),
    "dmt_first_paper": Variant(_FIRST, of=("supervised",), meaning="the first trainings of dmt_paper: plain labels"),
    "dmt_paper": Variant(
        {**FROM_THE_START, **own_colours()},
        of=("dmt",),
        meaning="DMT's rounds as its authors ran them: no change of colours",
    ),
}

CHAINS_ALONE = ("st_plus_plus", "st_plus_plus_paper")
"""Names of chains that no single training has."""
