"""The auxiliary tasks: one file each, listed here."""

from forec_jax.methods.tasks import class_reconstruction, foreground_segmentation, reco, reconstruction

TASKS = {
    entry.name: entry
    for entry in (class_reconstruction.ENTRY, foreground_segmentation.ENTRY, reco.ENTRY, reconstruction.ENTRY)
}
"""By the name that each has under "auxiliary"."""
