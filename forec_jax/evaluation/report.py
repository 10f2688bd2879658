"""An evaluation as people read it: a text table, a dict for JSON, a CSV table."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from forec_jax.evaluation.evaluate import Evaluation
from forec_jax.evaluation.metrics import Scores, mean_of, scores_of

Columns = dict[str, np.ndarray]
"""Scores f64[K] by their names."""


def as_text(evaluation: Evaluation, names: Sequence[str]) -> str:
    """A table in percent: a line a class, then the means; the usual single scores; and which classes nothing shows.

    A dash is no value.
    """
    scores = scores_of(evaluation.confusion)
    columns = _columns(evaluation, scores, names)
    rows = {**_by_class(columns, names), **_means(columns, scores)}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {_spoken(title):>12}" for title in columns)]
    lines += [f"{name:<{width}}" + "".join(f"  {_percent(v):>12}" for v in values) for name, values in rows.items()]
    lines += [
        "",
        *(f"{_spoken(name):<22}  {_percent(value):>6}" for name, value in _single(evaluation, scores).items()),
    ]
    if scores.absent:
        lines.append(f"not in this split, and never predicted: {', '.join(names[k] for k in scores.absent)}")
    return "\n".join(lines)


def as_dict(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """All scores in [0, 1], NaN where there is none: single ones, those of each class, and the confusion matrix."""
    scores = scores_of(evaluation.confusion)
    columns = _columns(evaluation, scores, names)
    by_class = {
        name: {"pixels": int(pixels), **dict(zip(columns, values, strict=True))}
        for (name, values), pixels in zip(_by_class(columns, names).items(), scores.pixels, strict=True)
    }
    absent = [names[k] for k in scores.absent]
    single = _single(evaluation, scores)
    return {**single, "classes": by_class, "not_in_this_split": absent, "confusion": evaluation.confusion.tolist()}


def as_csv(evaluation: Evaluation, names: Sequence[str]) -> str:
    """A line a class, then the two means: pixels, scores in [0, 1], and how many pixels were called which class.

    An empty cell is no value.
    """
    scores = scores_of(evaluation.confusion)
    columns = _columns(evaluation, scores, names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pixels", *columns, *(f"called {name}" for name in names)])
    for (name, values), counts in zip(_by_class(columns, names).items(), evaluation.confusion.tolist(), strict=True):
        writer.writerow([name, sum(counts), *map(_cell, values), *counts])
    for name, values in _means(columns, scores).items():
        writer.writerow([name, int(scores.pixels.sum()), *map(_cell, values), *("" for _ in names)])
    return text.getvalue()


def _columns(evaluation: Evaluation, scores: Scores, names: Sequence[str]) -> Columns:
    """The scores of each class."""
    if len(names) != len(scores.pixels):
        raise ValueError(f"{len(names)} class names for {len(scores.pixels)} classes")
    found = {"iou": scores.iou, "precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    return found if evaluation.boundary is None else found | {"boundary_iou": evaluation.boundary_iou}


def _by_class(columns: Columns, names: Sequence[str]) -> dict[str, list[float]]:
    """The scores of each class by its name."""
    return {name: [float(values[k]) for values in columns.values()] for k, name in enumerate(names)}


def _means(columns: Columns, scores: Scores) -> dict[str, list[float]]:
    """The means over the classes: each counts once, or as often as it has pixels."""
    return {
        "(mean)": [mean_of(values) for values in columns.values()],
        "(mean by pixels)": [scores.by_pixels(values) for values in columns.values()],
    }


def _single(evaluation: Evaluation, scores: Scores) -> dict[str, float]:
    """The scores that are one number."""
    found = {
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "miou": evaluation.miou,
        "frequency_weighted_iou": scores.by_pixels(scores.iou),
        "mean_f1": mean_of(scores.f1),
    }
    return found if evaluation.boundary is None else found | {"mean_boundary_iou": mean_of(evaluation.boundary_iou)}


def _spoken(name: str) -> str:
    """A score's name in words."""
    return name.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
