"""The auxiliary tasks: one file each, listed here."""

from forec_jax.methods.tasks import foreground_segmentation, reco, reconstruction

TASKS = {entry.name: entry for entry in (foreground_segmentation.ENTRY, reco.ENTRY, reconstruction.ENTRY)}
"""By the name that each has under "auxiliary"."""
