"""What a training is shown of its masks: whole ones, and ReCo's partial labels (Liu et al., ICLR 2022, section 4)."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from forec_jax.contracts import UNLABELLED
from forec_jax.data import Example, Labels, Source
from forec_jax.visualize.legend import with_legend
from forec_jax.visualize.palettes import colourise, overlay
from forec_jax.visualize.sheets import cell, sheet

_WIDTH = 1 / 30
"""What a single labelled pixel covers at least, as a share of the picture's longer side: else nobody would see it."""


def label_sheets(
    labelled: Source, parts: Mapping[str, Source], labels: Labels, count: int
) -> Iterator[tuple[Example, np.ndarray]]:
    """The first `count` labelled examples, each with its sheet u8[h,w,3]: input, mask over it, mask, and its parts.

    `parts` are the same examples with partial labels, by what stands above their column; below it stands their share.
    """
    titles, palette = ["input", "overlay", "mask", *parts], labels.palette
    for index in range(min(count, len(labelled))):
        examples = [source[index] for source in (labelled, *parts.values())]
        image = examples[0].image
        shown = [example.label for example in examples if example.label is not None]
        over = [overlay(image, shown[0], palette)] if shown else []
        pictures = [image, *over, *(shown_labels(image, label, palette) for label in shown)]
        captions = [
            "",
            *("" for _ in over),
            *(f"{100 * np.mean(label < UNLABELLED):.3g} % of the pixels" for label in shown),
        ]
        row = [cell(picture, text) for picture, text in zip(pictures, captions, strict=True)]
        yield examples[0], with_legend(sheet([row], titles), labels, shown)


def shown_labels(image: np.ndarray, label: np.ndarray, palette: ArrayLike) -> np.ndarray:
    """u8[H,W,3]: the image u8[H,W,3], paler, under the colours of the labelled pixels of u8[H,W], void in cream.

    Each label also colours what is around it up to half of _WIDTH away, so that single pixels are seen.
    """
    pale = (image.astype(np.uint16) + 255) // 2
    picture = np.where((label == UNLABELLED)[..., None], pale, colourise(label, palette)).astype(np.uint8)
    said = label < UNLABELLED
    if said.any():
        distance, nearest = ndimage.distance_transform_edt(~said, return_indices=True)
        near = distance <= max(label.shape) * _WIDTH / 2
        picture[near] = colourise(label[tuple(nearest)], palette)[near]
    return picture
