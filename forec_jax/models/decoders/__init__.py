"""The decoders: one file each."""

from forec_jax.models.decoders import deeplab, deeplab_v2, dpt, pspnet, segformer, unet

_ENTRIES = (deeplab.ENTRY, deeplab_v2.ENTRY, pspnet.ENTRY, unet.ENTRY, dpt.ENTRY, segformer.ENTRY)
DECODERS = {entry.name: entry for entry in _ENTRIES}
"""By the name that model.decoder has."""
