"""Sheets of a structured decomposition: WSSSByRec's mask-lets, image-lets, their products and the sum of these."""

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from forec_jax.contracts import IGNORE, Array, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets
from forec_jax.methods import WsssRec
from forec_jax.visualize.sheets import cell, heatmap, sheet

COLUMNS = ("input", "mask-let M", "image-let X", "M X", "sum of all M X")


def decompositions(
    method: WsssRec, variables: dict[str, Variables], examples: Iterable[Example], classes: Sequence[str], bucket: int
) -> Iterator[tuple[Example, np.ndarray]]:
    """Each example with its sheet u8[h,w,3]: a row for the background and each class that is there.

    A class is there where the truth shows it, or else, without a truth, where its mask is the largest somewhere. The
    variables are the student's, as no teacher keeps image-lets.
    """
    buckets = Buckets(bucket, batch=1)

    @jax.jit
    def decompose(variables: dict[str, Variables], image: Array, valid: Array) -> tuple[Array, Array, Array, Array]:
        found = method.decompose(variables, image.astype(np.float32) / 255.0, valid)
        return found.masks, found.images, found.parts(), found.reconstruction()

    for example in examples:
        _, padded = next(buckets.batches([example]))
        height, width = example.image.shape[:2]
        found = decompose(variables, padded.image, padded.valid)
        masks, images, parts, total = (np.asarray(array)[0, :height, :width] for array in found)
        label = masks.argmax(-1) if example.label is None else example.label
        shown = [method.background, *(k for k in np.unique(label) if k not in (method.background, IGNORE))]
        rows = [
            [
                cell(example.image, classes[k]),
                cell(heatmap(masks[..., k]), f"mean {masks[..., k].mean():.2f}"),
                cell(_colours(images[..., k, :])),
                cell(_colours(parts[..., k, :])),
                cell(_colours(total)),
            ]
            for k in shown
        ]
        yield example, sheet(rows, COLUMNS)


def _colours(values: np.ndarray) -> np.ndarray:
    """u8[H,W,3] of f32[H,W,3] in [0, 1]."""
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
