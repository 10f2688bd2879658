"""The decoders: one file each."""

from forec_jax.models.decoders import deeplab, dpt, unet

DECODERS = {entry.name: entry for entry in (deeplab.ENTRY, unet.ENTRY, dpt.ENTRY)}
"""By the name that model.decoder has."""
