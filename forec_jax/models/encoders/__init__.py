"""The encoders: one file each, and what several of them share in `inverted.py` and `transformer.py`."""

from forec_jax.models.encoders import dinov2, dinov3, efficientnet_lite, mit, mobilenet_v2, resnet, unet

_ENTRIES = (
    resnet.ENTRY,
    mobilenet_v2.ENTRY,
    efficientnet_lite.ENTRY,
    unet.ENTRY,
    dinov2.ENTRY,
    dinov3.ENTRY,
    mit.ENTRY,
)
ENCODERS = {variant: entry for entry in _ENTRIES for variant in entry.variants}
"""By the name that model.encoder has."""
