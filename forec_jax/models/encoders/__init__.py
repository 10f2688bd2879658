"""The encoders: one file each."""

from forec_jax.models.encoders import mobilenet_v2, resnet, unet

ENCODERS = {variant: entry for entry in (resnet.ENTRY, mobilenet_v2.ENTRY, unet.ENTRY) for variant in entry.variants}
"""By the name that model.encoder has."""
