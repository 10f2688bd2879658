"""The parts of a variant's name that set what UniMatch's authors, and those of PrevMatch after them, had."""

from collections.abc import Mapping
from typing import Any

from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.variants.part import Variant

_UNIMATCH = {
    "model.encoder": "resnet101",
    "model.resnet.stem": "deep",
    "data.scale": (0.5, 2.0),
    "optim.weight_decay": 1e-4,
}
_FIXMATCH_EMA = {**WEAK_TO_STRONG, "ema.decay": 0.996}
_V2_BATCH: dict[str, Any] = {"batch.labelled": 8, "batch.unlabelled": lambda c: 8 if c.batch.unlabelled else 0}
_V2_MEANING = "{} on DINOv2-B, 8 + 8 images (ADE20K's); steps: 60 passes over the unlabelled images"

UNIMATCH_VARIANTS: Mapping[str, Variant] = {
    "fixmatch_ema": Variant(
        _FIXMATCH_EMA,
        of=("mean_teacher",),
        meaning="FixMatch whose labels an EMA of the student gives: UniMatch V2's baseline",
    ),
    "unimatch_paper": Variant(_UNIMATCH, of=("unimatch",), meaning="UniMatch on ResNet-101, 8 + 8 images"),
    "prevmatch_paper": Variant(
        _UNIMATCH, of=("prevmatch",), meaning="PrevMatch on ResNet-101, as UniMatch is published"
    ),
    "unimatch_v2_paper": Variant(
        _V2_BATCH, of=("unimatch_v2", "dinov2_base"), meaning=_V2_MEANING.format("UniMatch V2")
    ),
    "fixmatch_paper": Variant(
        {**_FIXMATCH_EMA, **_V2_BATCH}, of=("mean_teacher", "dinov2_base"), meaning=_V2_MEANING.format("its FixMatch")
    ),
}
"""By name."""
