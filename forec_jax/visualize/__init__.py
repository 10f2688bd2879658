"""Pictures of labels, predictions, confidence and latent images, in NumPy and Pillow alone."""

from forec_jax.visualize.latents import channel_correlation, latent_image, latent_sheet, top_channels
from forec_jax.visualize.palettes import IGNORE_COLOUR, colourise, overlay, save_index_png
from forec_jax.visualize.sheets import heatmap, sheet

__all__ = [
    "IGNORE_COLOUR",
    "channel_correlation",
    "colourise",
    "heatmap",
    "latent_image",
    "latent_sheet",
    "overlay",
    "save_index_png",
    "sheet",
    "top_channels",
]
