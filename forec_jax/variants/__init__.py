"""The parts of a variant's name ("small+ps_mt+forec"): data, and one function that applies it."""

from forec_jax.variants.apply import SUMS, Change, apply_variant, method_of, parts_of, variants
from forec_jax.variants.chains import OF_DMTS_AUTHORS, OF_STS_AUTHORS
from forec_jax.variants.others import OF_AELS_AUTHORS, OF_VATS_AUTHORS, OTHERS, SMALL_PRETRAINED, batch_of, trained
from forec_jax.variants.part import Variant

__all__ = [
    "OF_AELS_AUTHORS",
    "OF_DMTS_AUTHORS",
    "OF_STS_AUTHORS",
    "OF_VATS_AUTHORS",
    "OTHERS",
    "SMALL_PRETRAINED",
    "SUMS",
    "Change",
    "Variant",
    "apply_variant",
    "batch_of",
    "method_of",
    "parts_of",
    "trained",
    "variants",
]
