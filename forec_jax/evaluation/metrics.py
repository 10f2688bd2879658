"""Confusion matrices and what follows from them: IoU by class, mean IoU, pixel accuracy."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from forec_jax.contracts import Array


def confusion_matrix(label: Array, prediction: Array, classes: int) -> Array:
    """i32[classes,classes]: how many pixels of class row (ground truth) were called class column.

    `label` and `prediction` are i32 of one shape. Pixels whose label is outside 0..classes-1 (IGNORE) are not counted.
    Runs on the device; add the matrices of a data set up in int64 on the host.
    """
    counted = (label >= 0) & (label < classes)
    cell = jnp.where(counted, label * classes + prediction, classes * classes)
    # Integer counts are exact up to 2^31 whatever the order in which devices add; a one-hot product in float32 is not
    # beyond 2^24, and on a CPU it takes a hundred times longer. The last cell takes what is not counted.
    cells = jnp.zeros(classes * classes + 1, jnp.int32).at[cell.reshape(-1)].add(1)
    return cells[:-1].reshape(classes, classes)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """f64[K]: intersection over union by class of int[K,K]; nan for a class in neither ground truth nor prediction."""
    confusion = np.asarray(confusion, np.int64)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean of `class_iou` over the classes that occur in ground truth or prediction; nan when there are none.

    Published numbers are means over all classes of a data set; on its full validation set every class occurs, and the
    two are the same. On small sets a class that nobody has and nobody predicts does not count as 0.
    """
    iou = class_iou(confusion)
    occurs = ~np.isnan(iou)
    return float(iou[occurs].mean()) if occurs.any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """The share of the counted pixels that were called right; nan when none were counted."""
    confusion = np.asarray(confusion, np.int64)
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else float("nan")


def format_iou(confusion: np.ndarray, names: Sequence[str]) -> str:
    """A text table in percent: one line a class in order, then mean IoU and pixel accuracy; a dash is no value."""
    iou = class_iou(confusion)
    if len(names) != len(iou):
        raise ValueError(f"{len(names)} class names for {len(iou)} classes")
    lines = list(zip(names, iou, strict=True))
    lines += [("mean IoU", mean_iou(confusion)), ("pixel accuracy", pixel_accuracy(confusion))]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {_percent(value):>6}" for name, value in lines)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
