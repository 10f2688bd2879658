"""Pictures of labels, predictions, confidence and latent images, made with NumPy and Pillow."""

from forec_jax.visualize.compare import Examiner, Finding, Model, compare, mean_correlations, sheets_class, truth_of
from forec_jax.visualize.confusion import confusion_picture
from forec_jax.visualize.decomposition import decompositions
from forec_jax.visualize.labels import label_sheets, shown_labels
from forec_jax.visualize.latents import (
    BestChannel,
    best_channels,
    channel_correlation,
    class_correlations,
    latent_image,
    top_channels,
)
from forec_jax.visualize.legend import legend, with_legend
from forec_jax.visualize.painter import Painted, Painter, painter_of
from forec_jax.visualize.palettes import IGNORE_COLOUR, colourise, overlay, save_index_png
from forec_jax.visualize.queries import query_sheets
from forec_jax.visualize.relations import Relations, relation_picture, relations, segmenting_network
from forec_jax.visualize.sheets import captioned, fit, heatmap, sheet

__all__ = [
    "IGNORE_COLOUR",
    "BestChannel",
    "Examiner",
    "Finding",
    "Model",
    "Painted",
    "Painter",
    "Relations",
    "best_channels",
    "captioned",
    "channel_correlation",
    "class_correlations",
    "colourise",
    "compare",
    "confusion_picture",
    "decompositions",
    "fit",
    "heatmap",
    "label_sheets",
    "latent_image",
    "legend",
    "mean_correlations",
    "overlay",
    "painter_of",
    "query_sheets",
    "relation_picture",
    "relations",
    "save_index_png",
    "segmenting_network",
    "sheet",
    "sheets_class",
    "shown_labels",
    "top_channels",
    "truth_of",
    "with_legend",
]
