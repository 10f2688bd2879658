"""How often classes occur in masks, and the weights that make up for it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from forec_jax.data.pipeline import OnCorrupt
from forec_jax.data.source import DataError, Source


def class_pixels(source: Source, num_classes: int, on_corrupt: OnCorrupt = "raise") -> np.ndarray:
    """i64[N,K]: how many pixels of each class the mask of each example shows; reads every mask.

    With on_corrupt="skip" an example that cannot be read shows none; otherwise its DataError is raised.
    """

    def counted(index: int) -> np.ndarray:
        try:
            label = source[index].label
        except DataError:
            if on_corrupt == "raise":
                raise
            label = None
        known = np.zeros(0, np.uint8) if label is None else label[label < num_classes]
        return np.bincount(known, minlength=num_classes)

    with ThreadPoolExecutor(4) as threads:
        return np.array(list(threads.map(counted, range(len(source)))), np.int64).reshape(-1, num_classes)


def median_frequency_weights(pixels: np.ndarray) -> tuple[float, ...]:
    """K weights by i64[N,K]: the median of all classes' frequencies, divided by the class's own.

    A class's frequency is its pixels over all labelled pixels of the images that show it (median frequency balancing,
    Eigen & Fergus, ICCV 2015). A class that no image shows is in no median, and weighs 1.
    """
    shown = pixels > 0
    beside = (shown * pixels.sum(axis=1, keepdims=True)).sum(axis=0)
    there = beside > 0
    frequency = pixels.sum(axis=0) / np.maximum(beside, 1)
    if not there.any():
        return (1.0,) * pixels.shape[1]
    median = float(np.median(frequency[there]))
    return tuple(median / float(f) if known else 1.0 for f, known in zip(frequency, there, strict=True))
