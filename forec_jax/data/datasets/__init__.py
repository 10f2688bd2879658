"""The data sets: one file each, listed here."""

from forec_jax.data.datasets import camvid, cityscapes, folder, huggingface, shapes, sunrgbd, tfds, voc

DATASETS = {
    module.ENTRY.name: module.ENTRY for module in (shapes, voc, camvid, cityscapes, sunrgbd, folder, huggingface, tfds)
}
"""By the name that data.name has."""
