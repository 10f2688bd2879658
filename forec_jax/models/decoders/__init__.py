"""The decoders: one file each."""

from forec_jax.models.decoders import deeplab, deeplab_v2, dpt, pspnet, unet

DECODERS = {entry.name: entry for entry in (deeplab.ENTRY, deeplab_v2.ENTRY, pspnet.ENTRY, unet.ENTRY, dpt.ENTRY)}
"""By the name that model.decoder has."""
