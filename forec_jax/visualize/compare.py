"""Trained models side by side on the same images: the sheets of FOrec's Figures 1 and 4, and the number behind them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from forec_jax.contracts import IGNORE, Method, Variables
from forec_jax.data import Example, Labels
from forec_jax.evaluation import Buckets, Prediction, Predictor, Predicts
from forec_jax.methods.tasks.reconstruction import RECONSTRUCTION, PixelSpace
from forec_jax.visualize.latents import (
    BestChannel,
    best_channels,
    class_correlations,
    latent_image,
    top_channels,
)
from forec_jax.visualize.legend import with_legend
from forec_jax.visualize.painter import Painted, Painter, painter_of
from forec_jax.visualize.palettes import colourise, overlay
from forec_jax.visualize.sheets import cell, heatmap, sheet


class Model(NamedTuple):
    """A trained model as a sheet shows it."""

    name: str  # of its row
    method: Method
    network: str  # "teacher" or "student": whose variables these are
    variables: dict[str, Variables]
    student: dict[str, Variables]  # has the heads that a teacher does not keep
    bucket: int  # see evaluation.Buckets
    space: PixelSpace  # that the reconstruction head paints in
    predicts: Predicts  # the method, or what predicts with it window by window


class Finding(NamedTuple):
    """What a model makes of one image."""

    prediction: Prediction
    painted: Painted | None  # None where the model has no reconstruction head
    painted_by: str  # "teacher" or "student"


def compare(
    models: Sequence[Model], examples: Iterable[Example], labels: Labels, *, class_index: int | None, count: int
) -> Iterator[tuple[Example, np.ndarray]]:
    """Each example with its sheet u8[h,w,3], a row a model, made as it is asked for; the classes' colours stand below.

    A row is input, the input under the truth's colours (or the prediction's), truth (where it is known), prediction,
    confidence, and, from a model with a reconstruction head, the reconstruction, the class's mask and the `count` latent
    images that follow it most, each with its correlation. The class is `class_index`, or `sheets_class`; its mask is the
    truth's, or else the prediction's. Where it is not in the image, its mask and the latent images are left out.
    """
    examiners = [Examiner(model) for model in models]
    latents = [f"latent image {rank}" for rank in range(1, count + 1)]
    titles = ["input", "overlay", "truth", "prediction", "confidence", "reconstruction", "class", *latents]
    for example in examples:
        found = [examine(example) for examine in examiners]
        maps = [finding.prediction.label for finding in found]
        shown = sheets_class(example, maps, labels) if class_index is None else class_index
        rows = [_row(*pair, labels, shown, count) for pair in zip(models, found, strict=True)]
        picture = sheet(rows, titles[: max(map(len, rows))])
        yield example, with_legend(picture, labels, [*maps, truth_of(example)])


def mean_correlations(model: Model, examples: Iterable[Example]) -> dict[int, BestChannel]:
    """How strongly the best latent image follows each class over examples with masks (see `best_channels`).

    Empty for a model without a reconstruction head.
    """
    painter = painter_of(model.method, model.bucket, model.space)
    if painter is None:
        return {}
    variables, _ = painting_variables(model, painter)
    labelled = ((example, example.label) for example in examples)
    images = [
        class_correlations(painter(variables, example).latent, label)
        for example, label in labelled
        if label is not None
    ]
    return best_channels(images)


def painting_variables(model: Model, painter: Painter) -> tuple[dict[str, Variables], str]:
    """The variables to paint with and whose they are: the model's own where they have the head, else the student's."""
    own = model.variables.get(painter.name)  # two teachers have names of their own
    if own is not None and RECONSTRUCTION in own.params:
        return model.variables, model.network
    return model.student, "student"


class Examiner:
    """Finds what a model makes of one image after the other."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._predictor = Predictor(model.predicts, Buckets(model.bucket, batch=1))
        self._painter = painter_of(model.method, model.bucket, model.space)

    def __call__(self, example: Example) -> Finding:
        """What the model makes of an example."""
        prediction = next(self._predictor(self.model.variables, [example]))
        if self._painter is None:
            return Finding(prediction, None, "")
        variables, painted_by = painting_variables(self.model, self._painter)
        return Finding(prediction, self._painter(variables, example), painted_by)


def _row(model: Model, found: Finding, labels: Labels, shown: int, count: int) -> list[np.ndarray]:
    prediction, painted = found.prediction, found.painted
    example = prediction.example
    label, origin = (prediction.label, "predicted") if example.label is None else (example.label, "truth")
    row = [
        cell(example.image, model.name),
        cell(overlay(example.image, label, labels.palette), origin),
        cell(colourise(truth_of(example), labels.palette), "unknown" if example.label is None else ""),
        cell(colourise(prediction.label, labels.palette), model.network),
        cell(heatmap(prediction.confidence), f"mean {prediction.confidence.mean():.2f}"),
    ]
    if painted is None:
        return row
    row.append(cell(painted.image, found.painted_by))
    correlations = class_correlations(painted.latent, label)
    if shown not in correlations:
        return row
    height, width = example.image.shape[:2]
    row.append(cell(latent_image(label == shown, height, width), f"{labels.classes[shown]} ({origin})"))
    correlation = correlations[shown]
    for channel in top_channels(correlation, count):
        picture = latent_image(painted.latent[..., channel], height, width)
        row.append(cell(picture, f"channel {channel}: {correlation[channel]:+.2f}"))
    return row


def truth_of(example: Example) -> np.ndarray:
    """u8[H,W]: the mask of an example, IGNORE everywhere where it has none."""
    return np.full(example.image.shape[:2], IGNORE, np.uint8) if example.label is None else example.label


def sheets_class(example: Example, predicted: Sequence[np.ndarray], labels: Labels) -> int:
    """The class that all rows of a sheet are about: the truth's main one, or else the first prediction's."""
    return _main_class(predicted[0] if example.label is None else example.label, labels.background_classes)


def _main_class(label: np.ndarray, background: Sequence[int]) -> int:
    """The class of most pixels that is not the background's; IGNORE where there is none."""
    pixels = np.bincount(label.ravel(), minlength=IGNORE + 1)
    pixels[[*background, IGNORE]] = 0
    return int(pixels.argmax()) if pixels.any() else IGNORE
