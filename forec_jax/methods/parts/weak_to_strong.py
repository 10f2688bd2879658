"""What UniMatch's authors set in all their methods, from FixMatch to UniMatch V2."""

WEAK_TO_STRONG = {
    "method.threshold": 0.95,
    "method.supervised_weight": 0.5,
    "method.unsupervised_weight": 0.5,
    "method.normaliser": "valid",
    "augment.mixing": "cutmix",
    "augment.mixing_probability": 0.5,
    "augment.mix_labelled": False,
    "augment.colour_labelled": False,
}
"""Half of each loss, and CutMix and colours of the unlabelled rows alone; by dotted key (`MethodEntry.published`)."""
