"""Confusion matrices and what follows from them: IoU, precision, recall and F1 by class, and their means."""

from typing import NamedTuple

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


class Scores(NamedTuple):
    """What a confusion matrix says of each class. All but `pixels` are f64[K] in [0, 1], NaN where there is no value.

    Of a class that no mask shows and no pixel is called, nothing is known: all are NaN. A class that no mask shows but
    some pixels are called has no recall; its IoU, precision and F1 are 0. A class that masks show and no pixel is called
    has 0 everywhere, in precision too.
    """

    pixels: np.ndarray  # i64[K], of the ground truth
    iou: np.ndarray  # intersection over union, TP / (TP + FP + FN)
    precision: np.ndarray  # TP / (TP + FP)
    recall: np.ndarray  # TP / (TP + FN), also called the class's accuracy
    f1: np.ndarray  # 2 TP / (2 TP + FP + FN), which is the Dice coefficient

    @property
    def absent(self) -> tuple[int, ...]:
        """The classes that neither a mask nor a prediction shows."""
        return tuple(np.flatnonzero(np.isnan(self.iou)).tolist())

    @property
    def pixel_accuracy(self) -> float:
        """The share of the counted pixels that were called right; NaN when none were counted."""
        return self.by_pixels(self.recall)

    @property
    def mean_accuracy(self) -> float:
        """The mean recall of the classes that the masks show (Long et al., CVPR 2015, section 5)."""
        return mean_of(self.recall)

    def by_pixels(self, values: np.ndarray) -> float:
        """The mean of f64[K] with each class as often as it has pixels; of the IoU: the frequency-weighted IoU.

        (Long et al., CVPR 2015, section 5.) NaN when no pixel was counted.
        """
        shown = self.pixels > 0
        return float(np.average(values[shown], weights=self.pixels[shown])) if shown.any() else float("nan")


def scores_of(confusion: np.ndarray) -> Scores:
    """The scores by int[K,K], truth by prediction."""
    confusion = np.asarray(confusion, np.int64)
    right, truth, called = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = truth + called > 0
    return Scores(
        truth,
        class_iou(confusion),
        precision=_share(right, called, occurs),
        recall=_share(right, truth, truth > 0),
        f1=_share(2 * right, truth + called, occurs),
    )


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """f64[K]: intersection over union by class of int[K,K]; nan for a class in neither ground truth nor prediction."""
    confusion = np.asarray(confusion, np.int64)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return _share(intersection, union, union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """The mean of `class_iou` over the classes that occur in ground truth or prediction; nan when there are none.

    Published numbers are means over all classes of a data set; on its full validation set every class occurs, and the
    two are the same. On small sets a class that nobody has and nobody predicts does not count as 0.
    """
    return mean_of(class_iou(confusion))


def mean_of(values: np.ndarray) -> float:
    """The mean of the values f64[K] that are not NaN; NaN when all are."""
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else float("nan")


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """f64[K,K] in [0, 1]: each row of int[K,K], truth by prediction, as shares of its pixels; NaN where it has none."""
    pixels = np.asarray(confusion, np.int64)
    of_row = pixels.sum(axis=1, keepdims=True)
    return np.where(of_row > 0, pixels / np.maximum(of_row, 1), np.nan)


def _share(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """f64[K]: part / whole, 0 of nothing, NaN where it is not defined."""
    return np.where(defined, part / np.maximum(whole, 1), np.nan)
