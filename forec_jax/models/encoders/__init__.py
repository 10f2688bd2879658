"""The encoders: one file each, and what two of them share in `inverted.py`."""

from forec_jax.models.encoders import dinov2, efficientnet_lite, mobilenet_v2, resnet, unet

ENCODERS = {
    variant: entry
    for entry in (resnet.ENTRY, mobilenet_v2.ENTRY, efficientnet_lite.ENTRY, unet.ENTRY, dinov2.ENTRY)
    for variant in entry.variants
}
"""By the name that model.encoder has."""
