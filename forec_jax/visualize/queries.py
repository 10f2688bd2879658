"""What ReCo contrasts on an image: where the student is sure, easy and hard queries (Figure 2), drawn queries and keys."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from forec_jax.contracts import IGNORE, Array, Method, Network, Variables, Views
from forec_jax.data import Example, Labels
from forec_jax.evaluation import Buckets
from forec_jax.losses.contrast import Draws
from forec_jax.methods import RegionalContrast
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.methods.tasks.reco import label_probability
from forec_jax.visualize.compare import Model, sheets_class
from forec_jax.visualize.legend import with_legend
from forec_jax.visualize.palettes import colourise
from forec_jax.visualize.relations import segmenting_network
from forec_jax.visualize.sheets import CELL_SIDE, captioned, cell, fit, heatmap, sheet

COLUMNS = ("input", "label", "probability of label", "easy queries", "hard queries", "queries and keys")

QUERIES, KEYS = 40, 120
"""How many of each are drawn on a picture; in training they are `auxiliary.reco.queries` and `negative_keys`."""


class Contrast(NamedTuple):
    """Who takes part in the contrast of one padded image, on the representation's grid."""

    label: np.ndarray  # i32[h,w]
    valid: np.ndarray  # bool[h,w], whether a pixel takes part
    hard: np.ndarray  # bool[h,w], whether the student is unsure of its label
    draws: Draws  # of indices into the grid, row by row


class Finding(NamedTuple):
    """What a student makes of one image."""

    label: np.ndarray  # i32[H,W], the truth, or else the student's prediction
    probability: np.ndarray  # f32[H,W], which the student gives to that label
    contrast: Contrast | None  # None where the method has no regional contrast
    padded: tuple[int, ...]  # height and width of the padded image, which the contrast's grid covers


def query_sheets(
    models: Sequence[Model], examples: Iterable[Example], labels: Labels, *, class_index: int | None
) -> Iterator[tuple[Example, np.ndarray]]:
    """Each example with its sheet u8[h,w,3], a row a model: see COLUMNS.

    Labels are the truth, or the student's prediction where there is none. Queries (white) and keys (in their classes'
    colours) are those of `class_index`, or of the class that covers most of the image besides the background. They are drawn
    as in training, but from this image alone, whereas a training step draws from its whole batch. A row ends after the
    probabilities where the method has no regional contrast, and before queries and keys where there are none.
    """
    examiners = [_Examiner(model, len(labels.classes)) for model in models]
    for example in examples:
        found = [examine(example) for examine in examiners]
        maps = [finding.label for finding in found]
        shown = sheets_class(example, maps, labels) if class_index is None else class_index
        rows = [_row(model, example, finding, labels, shown) for model, finding in zip(models, found, strict=True)]
        yield example, with_legend(sheet(rows, COLUMNS[: max(map(len, rows))]), labels, maps)


def contrast_of(method: Method) -> RegionalContrast | None:
    """The method's regional contrast; None where it has none."""
    for _, task in getattr(method, "auxiliary", ()):  # methods without auxiliary tasks have no such field
        if isinstance(task, RegionalContrast):
            return dataclasses.replace(task, queries=QUERIES, negative_keys=KEYS, key_sets="shared")
    return None


class _Examiner:
    """Finds what a model's student is asked about one image after the other."""

    def __init__(self, model: Model, classes: int) -> None:
        self.model = model
        self._buckets = Buckets(model.bucket, batch=1)
        found = segmenting_network(model.method)
        if found is None:
            raise ValueError(f"{model.name}: this method has no segmentation head, so no queries and no relations")
        self._name, network = found
        self._ask = _ask(network, contrast_of(model.method), classes)

    def __call__(self, example: Example) -> Finding:
        _, padded = next(self._buckets.batches([example]))
        known = np.full(padded.valid.shape, example.label is not None)
        found = self._ask(self.model.student[self._name], padded.image, padded.label, padded.valid, known)
        label, probability, sampled = jax.tree.map(np.asarray, found)
        height, width = example.image.shape[:2]
        contrast = None if sampled is None else Contrast(*sampled)
        size = padded.image.shape[1:3]
        return Finding(label[0, :height, :width], probability[0, :height, :width], contrast, size)


def _ask(network: Network, task: RegionalContrast | None, classes: int) -> Callable[..., tuple[Any, ...]]:
    """The compiled examination of one padded image u8[1,H,W,3]: label, probability, contrast."""

    @jax.jit
    def ask(variables: Variables, image: Array, label: Array, valid: Array, known: Array) -> tuple[Any, ...]:
        pixels = image.astype(jnp.float32) / 255.0
        features, _ = network.encode(variables, pixels, valid=valid, train=False, rng=None)
        heads = (SEGMENTATION,) if task is None else (SEGMENTATION, task.head.name)
        outputs = {head: network.decode(variables, head, features, train=False, rng=None)[0] for head in heads}
        logits = outputs[SEGMENTATION].output
        predicted = jax.nn.softmax(logits)
        label = jnp.where(known, label, jnp.where(valid, predicted.argmax(-1), IGNORE))
        probability = label_probability(logits.reshape(-1, classes), label.reshape(-1)).reshape(label.shape)
        if task is None:
            return label, probability, None
        confidence = jnp.where(known, 1.0, predicted.max(-1))
        views = Views(pixels, label, confidence, known, valid, jnp.ones(1, bool))
        sample = task.sample(outputs, views, jax.random.key(0))
        grid = outputs[task.head.name].output.shape[1:3]
        grid_label, takes_part, hard = (part.reshape(grid) for part in (sample.label, sample.valid, sample.hard))
        return label, probability, (grid_label, takes_part, hard, sample.draws)

    return ask


def _row(model: Model, example: Example, found: Finding, labels: Labels, shown: int) -> list[np.ndarray]:
    origin = "predicted" if example.label is None else "truth"
    known = found.label != IGNORE
    row = [
        cell(example.image, model.name),
        cell(colourise(found.label, labels.palette), origin),
        cell(heatmap(found.probability), f"mean {found.probability[known].mean() if known.any() else 0.0:.2f}"),
    ]
    if found.contrast is None:
        return row
    contrast = found.contrast
    stride = found.padded[0] / contrast.valid.shape[0]
    inside = tuple(slice(int(np.ceil(side / stride))) for side in example.image.shape[:2])
    valid, hard = contrast.valid[inside], contrast.hard[inside]
    for queries in (~hard & valid, hard & valid):
        row.append(
            cell(_lit(example.image, queries), f"{100 * queries.sum() / max(valid.sum(), 1):.0f} % of the pixels")
        )
    if shown == IGNORE or not contrast.draws.active[shown]:
        return row
    row.append(captioned(_drawn(example.image, contrast, found.padded, shown, labels), labels.classes[shown]))
    return row


def _lit(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image u8[H,W,3], dark and grey, white where a coarser mask bool[h,w] is true."""
    y = np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]
    x = np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
    grey = np.repeat(image.mean(axis=-1, keepdims=True) / 3, 3, axis=-1).astype(np.uint8)
    return np.where(mask[y][:, x, None], 255, grey).astype(np.uint8)


def _drawn(image: np.ndarray, contrast: Contrast, padded: tuple[int, ...], shown: int, labels: Labels) -> np.ndarray:
    """The image with the queries of a class as white squares and their keys as dots in the colours of their classes."""
    small = fit(image // 2, CELL_SIDE)
    picture = Image.fromarray(small)
    draw, scale = ImageDraw.Draw(picture), small.shape[0] / image.shape[0]
    for pixel in np.unique(contrast.draws.key[shown]):
        y, x = _place(int(pixel), contrast.label.shape, padded)
        colour = labels.palette[contrast.label.reshape(-1)[pixel]]
        draw.ellipse(_box(x * scale, y * scale, 2), fill=colour, outline="grey")
    for pixel in np.unique(contrast.draws.query[shown]):
        y, x = _place(int(pixel), contrast.label.shape, padded)
        draw.rectangle(_box(x * scale, y * scale, 1), fill="white")
    return np.asarray(picture)


def _place(pixel: int, grid: tuple[int, ...], image: tuple[int, ...]) -> tuple[float, float]:
    """Row and column of a grid's pixel in the image: corners lie on corners, as in the decoder's resizes."""
    y, x = divmod(pixel, grid[1])
    return y * (image[0] - 1) / max(grid[0] - 1, 1), x * (image[1] - 1) / max(grid[1] - 1, 1)


def _box(x: float, y: float, radius: int) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius
