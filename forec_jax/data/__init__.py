"""Data sets, splits, geometry and the training batches."""

from forec_jax.data.balance import classes_in_images
from forec_jax.data.chosen import chosen_classes, one_against_rest
from forec_jax.data.datasets import DATASETS
from forec_jax.data.datasets.camvid import camvid_dataset
from forec_jax.data.datasets.cityscapes import cityscapes_dataset
from forec_jax.data.datasets.folder import folder_dataset, folder_splits
from forec_jax.data.datasets.shapes import shapes_dataset
from forec_jax.data.datasets.sunrgbd import sunrgbd_dataset
from forec_jax.data.datasets.voc import voc_dataset
from forec_jax.data.frequencies import class_pixels, median_frequency_weights
from forec_jax.data.partial import KnownLabels, PartialLabels, parse_partial
from forec_jax.data.pipeline import batch_ids, evaluation_examples, train_batches
from forec_jax.data.pseudo import WithPseudoLabels, content_sha256, with_pseudo_labels
from forec_jax.data.shrink import shrink, with_longest_side
from forec_jax.data.source import (
    DataEntry,
    DataError,
    Dataset,
    Example,
    Labels,
    Source,
    Subset,
    WithTags,
    select,
)
from forec_jax.data.splits import Split, class_coverage, classes_not_shown, resolve_split, tagged_split
from forec_jax.data.tags import (
    Tags,
    balanced,
    check_tags,
    read_tags,
    tag_indices,
    tags_of_folders,
    tags_of_masks,
)
from forec_jax.data.transforms import Geometry

__all__ = [
    "DATASETS",
    "DataEntry",
    "DataError",
    "Dataset",
    "Example",
    "Geometry",
    "KnownLabels",
    "Labels",
    "PartialLabels",
    "Source",
    "Split",
    "Subset",
    "Tags",
    "WithPseudoLabels",
    "WithTags",
    "balanced",
    "batch_ids",
    "camvid_dataset",
    "check_tags",
    "chosen_classes",
    "cityscapes_dataset",
    "class_coverage",
    "class_pixels",
    "classes_in_images",
    "classes_not_shown",
    "content_sha256",
    "evaluation_examples",
    "folder_dataset",
    "folder_splits",
    "median_frequency_weights",
    "one_against_rest",
    "parse_partial",
    "read_tags",
    "resolve_split",
    "select",
    "shapes_dataset",
    "shrink",
    "sunrgbd_dataset",
    "tag_indices",
    "tagged_split",
    "tags_of_folders",
    "tags_of_masks",
    "train_batches",
    "voc_dataset",
    "with_longest_side",
    "with_pseudo_labels",
]
